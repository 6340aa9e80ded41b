//! Kernel structure members that the programs read.
//!
//! rustc emits no CO-RE relocations, so the agent looks each member up in the running kernel's BTF and passes its byte
//! offset as a read-only global of that name; the verifier sees a constant.

/// A read-only `u32` global of the object and the member whose byte offset it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name of the global.
    pub global: &'static str,
    /// Name of the kernel structure.
    pub structure: &'static str,
    /// Path of members from it, separated by dots; anonymous structures and unions need no name.
    pub member: &'static str,
    pub group: Group,
}

/// What is lost without the member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Every backend needs it.
    Socket,
    /// Names of Unix sockets.
    Unix,
    /// Backend `sys_exit`.
    DescriptorWalk,
    /// Executables of processes that end at once.
    Exec,
}

macro_rules! fields {
    ($($global:ident = $structure:literal . $member:literal, $group:ident;)+) => {
        /// All members, in no particular order.
        pub const FIELDS: &[Field] = &[$(
            Field { global: stringify!($global), structure: $structure, member: $member, group: Group::$group },
        )+];

        /// Invokes `$m!` with the names of all globals.
        #[macro_export]
        macro_rules! for_each_offset {
            ($m:ident) => {
                $m! { $($global)+ }
            };
        }
    };
}

fields! {
    SKC_FAMILY = "sock"."__sk_common.skc_family", Socket;
    SKC_NUM = "sock"."__sk_common.skc_num", Socket;
    SKC_DPORT = "sock"."__sk_common.skc_dport", Socket;
    SKC_RCV_SADDR = "sock"."__sk_common.skc_rcv_saddr", Socket;
    SKC_DADDR = "sock"."__sk_common.skc_daddr", Socket;
    SKC_V6_RCV_SADDR = "sock"."__sk_common.skc_v6_rcv_saddr", Socket;
    SKC_V6_DADDR = "sock"."__sk_common.skc_v6_daddr", Socket;
    SKC_NET = "sock"."__sk_common.skc_net", Socket;
    SKC_COOKIE = "sock"."__sk_common.skc_cookie", DescriptorWalk;
    SK_TYPE = "sock"."sk_type", Socket;
    SK_PROTOCOL = "sock"."sk_protocol", Socket;
    NET_INUM = "net"."ns.inum", Socket;
    TCP_COPIED_SEQ = "tcp_sock"."copied_seq", Socket;
    TCP_WRITE_SEQ = "tcp_sock"."write_seq", Socket;
    TCP_RCV_NXT = "tcp_sock"."rcv_nxt", Socket;
    TCP_SND_UNA = "tcp_sock"."snd_una", Socket;
    TCP_BYTES_RECEIVED = "tcp_sock"."bytes_received", Socket;
    TCP_BYTES_ACKED = "tcp_sock"."bytes_acked", Socket;
    TASK_GROUP_LEADER = "task_struct"."group_leader", Socket;
    TASK_START_BOOTTIME = "task_struct"."start_boottime", Socket;
    UNIX_ADDR = "unix_sock"."addr", Unix;
    UNIX_PEER = "unix_sock"."peer", Unix;
    UNIX_ADDRESS_LEN = "unix_address"."len", Unix;
    UNIX_ADDRESS_NAME = "unix_address"."name", Unix;
    TASK_FILES = "task_struct"."files", DescriptorWalk;
    FILES_FDT = "files_struct"."fdt", DescriptorWalk;
    FDT_MAX_FDS = "fdtable"."max_fds", DescriptorWalk;
    FDT_FD = "fdtable"."fd", DescriptorWalk;
    FILE_INODE = "file"."f_inode", DescriptorWalk;
    FILE_PRIVATE_DATA = "file"."private_data", DescriptorWalk;
    INODE_MODE = "inode"."i_mode", DescriptorWalk;
    SOCKET_SK = "socket"."sk", DescriptorWalk;
    BPRM_FILENAME = "linux_binprm"."filename", Exec;
}
