//! What this kernel and these privileges allow, and the reason when not.

use std::collections::BTreeSet;
use std::fs;

use agent_common::offsets::{FIELDS, Group};

use super::btf::Btf;

const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Facts that the plan is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// `uname -r`.
    pub kernel: String,
    pub btf: bool,
    /// Tracepoints with BTF, of those that any program of ours uses.
    pub tracepoints: BTreeSet<String>,
    /// Offsets found, by name of the global.
    pub offsets: Vec<(&'static str, u32)>,
    pub missing_socket_fields: Vec<String>,
    pub missing_walk_fields: Vec<String>,
    /// `bpf_probe_read_kernel` is allowed (it is not under lockdown=confidentiality).
    pub probe_read_kernel: bool,
    /// `none`, `integrity`, `confidentiality`, or `unknown` where securityfs is not mounted.
    pub lockdown: String,
    /// Why nothing can be loaded, each with what to do.
    pub obstacles: Vec<String>,
}

const TRACEPOINTS: [&str; 5] =
    ["sock_send_length", "sock_recv_length", "inet_sock_set_state", "sys_exit", "sched_process_exec"];

// include/uapi/linux/capability.h
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Look at the running system.
pub fn detect() -> Features {
    let mut features = Features {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        lockdown: lockdown(&fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default()),
        obstacles: obstacles(&fs::read_to_string("/proc/self/status").unwrap_or_default()),
        ..Features::default()
    };
    features.probe_read_kernel = features.lockdown != "confidentiality";
    let Ok(bytes) = fs::read(BTF_PATH) else { return features };
    match Btf::parse(&bytes) {
        Ok(btf) => from_btf(&btf, &mut features),
        Err(error) => features.obstacles.push(format!("{BTF_PATH}: {error:#}")),
    }
    features
}

fn from_btf(btf: &Btf<'_>, features: &mut Features) {
    features.btf = true;
    for name in TRACEPOINTS {
        if btf.has_tracepoint(name) {
            features.tracepoints.insert(name.to_owned());
        }
    }
    for field in FIELDS {
        match (btf.offset(field.structure, field.member), field.group) {
            (Ok(offset), _) => features.offsets.push((field.global, offset)),
            (Err(error), Group::Socket) => features.missing_socket_fields.push(format!("{error:#}")),
            (Err(error), Group::DescriptorWalk) => features.missing_walk_fields.push(format!("{error:#}")),
            (Err(_), Group::Unix | Group::Exec) => features.probe_read_kernel = false,
        }
    }
}

/// The bracketed word of `none [integrity] confidentiality`.
fn lockdown(text: &str) -> String {
    text.split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or_else(|| "unknown".to_owned(), |(state, _)| state.to_owned())
}

/// Missing privileges, from `/proc/self/status`.
fn obstacles(status: &str) -> Vec<String> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let Some(effective) = field("CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok()) else {
        return vec!["/proc/self/status cannot be read: mount /proc".to_owned()];
    };
    let has = |capability: u32| effective >> capability & 1 == 1;
    let mut found = Vec::new();
    if !has(CAP_SYS_ADMIN) {
        for (capability, name, why) in
            [(CAP_BPF, "CAP_BPF", "load programs and maps"), (CAP_PERFMON, "CAP_PERFMON", "attach tracing programs")]
        {
            if !has(capability) {
                found.push(format!(
                    "{name} is missing, needed to {why}: run as root, or grant it (`setcap cap_bpf,cap_perfmon+ep`, \
                     `capabilities.add` in a pod)"
                ));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lockdown_state_is_the_bracketed_word() {
        assert_eq!(lockdown("none [integrity] confidentiality\n"), "integrity");
        assert_eq!(lockdown("[none] integrity confidentiality\n"), "none");
        assert_eq!(lockdown(""), "unknown");
    }

    #[test]
    fn missing_capabilities_are_named_and_sys_admin_implies_them() {
        let status = |caps: u64| format!("Name:\tweir\nCapEff:\t{caps:016x}\n");
        assert_eq!(obstacles(&status(0)).len(), 2);
        assert!(obstacles(&status(1 << CAP_BPF))[0].starts_with("CAP_PERFMON"));
        assert!(obstacles(&status(1 << CAP_SYS_ADMIN)).is_empty());
        assert!(obstacles(&status(1 << CAP_BPF | 1 << CAP_PERFMON)).is_empty());
    }
}
