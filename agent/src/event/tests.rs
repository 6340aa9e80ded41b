//! Decoding of kernel records, and the encoder that tests of the core write their records with.

use agent_common::event as raw;
use proptest::prelude::*;

use super::*;

fn header(kind: u8, backend: Backend, conn: ConnId, time: Timestamp, pid: u32, tid: u32) -> Vec<u8> {
    let backend = match backend {
        Backend::SockTracepoint => raw::backend::SOCK_TRACEPOINT,
        Backend::SysExit => raw::backend::SYS_EXIT,
        Backend::Openssl => raw::backend::OPENSSL,
        Backend::Boringssl => raw::backend::BORINGSSL,
        Backend::Go => raw::backend::GO,
        Backend::Gnutls => raw::backend::GNUTLS,
        Backend::Rustls => raw::backend::RUSTLS,
        Backend::Nss => raw::backend::NSS,
    };
    let mut bytes = vec![kind, 0, 0, backend];
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(conn.0.to_ne_bytes());
    bytes.extend(time.0.to_ne_bytes());
    bytes.extend(pid.to_ne_bytes());
    bytes.extend(tid.to_ne_bytes());
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// The record of an event, laid out as the kernel lays it out.
pub(crate) fn encode(event: &KernelEvent<'_>) -> Vec<u8> {
    const FLAGS: usize = offset_of!(raw::Header, flags);
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    match event {
        KernelEvent::Data(data) => {
            let mut bytes = header(raw::kind::DATA, data.backend, data.conn, data.time, data.pid, data.tid);
            bytes[FLAGS] = flag(data.opaque, raw::data_flags::OPAQUE)
                | flag(data.unreadable, raw::data_flags::UNREADABLE)
                | flag(data.frame, raw::data_flags::FRAME);
            bytes[offset_of!(raw::Header, direction)] = match data.direction {
                Direction::Receive => raw::direction::RECEIVE,
                Direction::Send => raw::direction::SEND,
            };
            put(&mut bytes, offset_of!(raw::Header, seq), &data.seq.to_ne_bytes());
            bytes.resize(size_of::<raw::Data>(), 0);
            put(&mut bytes, offset_of!(raw::Data, position), &data.position.to_ne_bytes());
            put(&mut bytes, offset_of!(raw::Data, len), &data.len.to_ne_bytes());
            put(&mut bytes, offset_of!(raw::Data, head), &(data.head.len() as u16).to_ne_bytes());
            put(&mut bytes, offset_of!(raw::Data, tail), &(data.tail.len() as u16).to_ne_bytes());
            bytes.extend(data.head);
            bytes.extend(data.tail);
            bytes
        }
        KernelEvent::Open(open) => encode_open(open),
        KernelEvent::Close(close) => {
            let mut bytes = header(raw::kind::CLOSE, close.backend, close.conn, close.time, 0, 0);
            bytes[FLAGS] = flag(close.receive, raw::close_flags::RECEIVE)
                | flag(close.send, raw::close_flags::SEND)
                | flag(close.reset, raw::close_flags::RESET);
            bytes
        }
        KernelEvent::Exec(exec) => {
            let pid = exec.process.pid;
            let mut bytes = header(raw::kind::EXEC, Backend::SockTracepoint, ConnId(0), exec.time, pid, pid);
            bytes.resize(size_of::<raw::Exec>(), 0);
            put(&mut bytes, offset_of!(raw::Exec, process_start_ns), &exec.process.start_ns.to_ne_bytes());
            put(&mut bytes, offset_of!(raw::Exec, cgroup), &exec.cgroup.to_ne_bytes());
            put(&mut bytes, offset_of!(raw::Exec, comm), &exec.comm.0);
            bytes.extend(exec.filename.as_bytes());
            bytes
        }
    }
}

fn encode_open(open: &Open) -> Vec<u8> {
    let mut bytes = header(raw::kind::OPEN, open.backend, open.conn, open.time, open.process.pid, open.tid);
    bytes[offset_of!(raw::Header, flags)] = if open.joined { raw::open_flags::JOINED } else { 0 };
    bytes.resize(size_of::<raw::Open>(), 0);
    let mut path = Vec::new();
    let mut family = 0_u16;
    for (address, at, port) in [
        (&open.local, offset_of!(raw::Open, local), offset_of!(raw::Open, local_port)),
        (&open.remote, offset_of!(raw::Open, remote), offset_of!(raw::Open, remote_port)),
    ] {
        match address {
            SocketAddress::Ip(ip) => {
                put(&mut bytes, port, &ip.port().to_ne_bytes());
                match ip.ip() {
                    IpAddr::V4(v4) => {
                        family = raw::family::INET;
                        put(&mut bytes, at, &v4.octets());
                    }
                    IpAddr::V6(v6) => {
                        family = raw::family::INET6;
                        put(&mut bytes, at, &v6.octets());
                    }
                }
            }
            SocketAddress::Unix(name) if name.is_empty() => family = raw::family::UNIX,
            SocketAddress::Unix(name) => {
                family = raw::family::UNIX;
                bytes[offset_of!(raw::Open, peer_named)] = u8::from(at == offset_of!(raw::Open, remote));
                path = match name.strip_prefix('@') {
                    Some(name) => [b"\0", name.as_bytes()].concat(),
                    None => name.as_bytes().to_vec(),
                };
            }
            SocketAddress::Unknown => {}
        }
    }
    put(&mut bytes, offset_of!(raw::Open, family), &family.to_ne_bytes());
    bytes[offset_of!(raw::Open, protocol)] = match open.protocol {
        FirstBytes::Unknown => raw::protocol::UNKNOWN,
        FirstBytes::Http1 => raw::protocol::HTTP1,
        FirstBytes::Http2 => raw::protocol::HTTP2,
        FirstBytes::Tls => raw::protocol::TLS,
        FirstBytes::Other => raw::protocol::OTHER,
        FirstBytes::Quic => raw::protocol::QUIC,
    };
    put(&mut bytes, offset_of!(raw::Open, netns), &open.netns.to_ne_bytes());
    put(&mut bytes, offset_of!(raw::Open, uid), &open.uid.to_ne_bytes());
    put(&mut bytes, offset_of!(raw::Open, process_start_ns), &open.process.start_ns.to_ne_bytes());
    put(&mut bytes, offset_of!(raw::Open, cgroup), &open.cgroup.to_ne_bytes());
    put(&mut bytes, offset_of!(raw::Open, comm), &open.comm.0);
    put(&mut bytes, offset_of!(raw::Open, socket), &open.socket.map_or(0, |id| id.0).to_ne_bytes());
    bytes[offset_of!(raw::Open, association)] = open.association as u8;
    bytes.extend(path);
    bytes
}

fn open() -> Open {
    Open {
        conn: ConnId(7),
        time: Timestamp(9),
        backend: Backend::SysExit,
        tid: 43,
        protocol: FirstBytes::Http1,
        transport: Transport::Tcp,
        local: SocketAddress::Ip("10.0.0.1:80".parse().unwrap()),
        remote: SocketAddress::Ip("10.0.0.2:40000".parse().unwrap()),
        netns: 3,
        uid: 1000,
        process: ProcessRef { pid: 42, start_ns: 5 },
        cgroup: 11,
        comm: Comm(*b"nginx\0\0\0\0\0\0\0\0\0\0\0"),
        joined: false,
        socket: None,
        association: Association::None,
    }
}

fn data() -> Data<'static> {
    Data {
        conn: ConnId(7),
        time: Timestamp(9),
        backend: Backend::SockTracepoint,
        pid: 42,
        tid: 43,
        direction: Direction::Send,
        seq: 3,
        position: 1 << 33,
        len: 10,
        head: b"head",
        tail: b"end",
        opaque: false,
        unreadable: true,
        frame: true,
    }
}

fn decoded_open(bytes: &[u8]) -> Open {
    match decode(bytes) {
        Ok(KernelEvent::Open(open)) => open,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_record_cut_anywhere_in_its_fixed_part_or_payload_is_an_error() {
    let close = Close {
        conn: ConnId(1),
        time: Timestamp(2),
        backend: Backend::SysExit,
        receive: true,
        send: false,
        reset: true,
    };
    for event in [KernelEvent::Data(data()), KernelEvent::Open(open()), KernelEvent::Close(close)] {
        let bytes = encode(&event);
        assert_eq!(decode(&bytes), Ok(event));
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "{len} of {} bytes", bytes.len());
        }
    }
}

#[test]
fn lengths_that_contradict_each_other_are_refused() {
    let whole = encode(&KernelEvent::Data(data()));
    for (at, value, want) in [
        (offset_of!(raw::Data, head), 5_u16, DecodeError::Payload),
        (offset_of!(raw::Data, head), u16::MAX, DecodeError::Payload),
        (offset_of!(raw::Data, tail), 4, DecodeError::Payload),
        (offset_of!(raw::Data, tail), u16::MAX, DecodeError::Payload),
        // More bytes copied than moved.
        (offset_of!(raw::Data, len), 6, DecodeError::Field),
    ] {
        let mut bytes = whole.clone();
        put(&mut bytes, at, &value.to_ne_bytes());
        assert_eq!(decode(&bytes), Err(want), "{value} at {at}");
    }
}

#[test]
fn values_outside_of_the_contract_are_refused() {
    for (event, at, value, want) in [
        (KernelEvent::Data(data()), offset_of!(raw::Header, kind), 0, DecodeError::Kind(0)),
        (KernelEvent::Data(data()), offset_of!(raw::Header, kind), 9, DecodeError::Kind(9)),
        (KernelEvent::Data(data()), offset_of!(raw::Header, direction), 2, DecodeError::Field),
        (KernelEvent::Data(data()), offset_of!(raw::Header, backend), 0, DecodeError::Field),
        (KernelEvent::Open(open()), offset_of!(raw::Open, protocol), 200, DecodeError::Field),
    ] {
        let mut bytes = encode(&event);
        bytes[at] = value;
        assert_eq!(decode(&bytes), Err(want), "{value} at {at}");
    }
}

#[test]
fn mapped_addresses_become_ipv4_and_others_stay() {
    for (given, want) in
        [("[::ffff:10.1.2.3]:80", "10.1.2.3:80"), ("[::1]:80", "[::1]:80"), ("[2001:db8::1]:80", "[2001:db8::1]:80")]
    {
        let address = SocketAddress::Ip(given.parse().unwrap());
        let bytes = encode_open(&Open { local: address.clone(), remote: address, ..open() });
        assert_eq!(decoded_open(&bytes).local, SocketAddress::Ip(want.parse().unwrap()), "{given}");
    }
}

#[test]
fn names_of_unix_sockets_are_safe_to_print() {
    let unnamed = SocketAddress::Unix(Box::default());
    let mut plain =
        encode_open(&Open { transport: Transport::Unix, local: unnamed.clone(), remote: unnamed.clone(), ..open() });
    assert_eq!(decoded_open(&plain).local, unnamed);
    for (path, want) in [
        (&b"/run/app.sock"[..], "/run/app.sock"),
        (b"/run/app.sock\0rest", "/run/app.sock"),
        (b"\0app\0\0\0", "@app"),
        (b"\0", "@"),
        (b"/run/\xff", "/run/\u{fffd}"),
        (b"/run/\x1b[2J\n", "/run/\\u{1b}[2J\\n"),
    ] {
        let named = SocketAddress::Unix(want.into());
        for (peer_named, local, remote) in [(0, &named, &unnamed), (1, &unnamed, &named)] {
            plain[offset_of!(raw::Open, peer_named)] = peer_named;
            let open = decoded_open(&[&plain[..], path].concat());
            assert_eq!((open.transport, &open.local, &open.remote), (Transport::Unix, local, remote));
        }
    }
}

#[test]
fn a_command_name_ends_at_its_nul_and_is_safe_to_print() {
    for (comm, want) in [
        (*b"nginx\0garbage!!!", "nginx"),
        (*b"sixteen-letters!", "sixteen-letters!"),
        ([0; 16], ""),
        (*b"a\x07b\0\0\0\0\0\0\0\0\0\0\0\0\0", "a\\u{7}b"),
    ] {
        assert_eq!(Comm(comm).to_text(), want);
    }
}

fn any_address() -> impl Strategy<Value = (Transport, SocketAddress, SocketAddress)> {
    let ip = |ip: IpAddr, port| SocketAddress::Ip(SocketAddr::new(ip, port));
    prop_oneof![
        (any::<[u8; 4]>(), any::<[u8; 4]>(), any::<u16>(), any::<u16>()).prop_map(move |(a, b, p, q)| (
            Transport::Tcp,
            ip(a.into(), p),
            ip(b.into(), q)
        )),
        (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u16>(), any::<u16>())
            .prop_filter("mapped addresses come back as IPv4", |(a, b, ..)| {
                [a, b].iter().all(|ip| Ipv6Addr::from(**ip).to_ipv4_mapped().is_none())
            })
            .prop_map(move |(a, b, p, q)| (Transport::Tcp, ip(a.into(), p), ip(b.into(), q))),
        ("[@/]?[a-z/.]{0,100}", any::<bool>()).prop_map(|(name, peer_named)| {
            let (name, unnamed) = (SocketAddress::Unix(name.into()), SocketAddress::Unix(Box::default()));
            let (local, remote) = if peer_named { (unnamed, name) } else { (name, unnamed) };
            (Transport::Unix, local, remote)
        }),
    ]
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(kind in 0_u8..6, bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        drop(decode(&bytes));
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = kind;
        }
        if let Ok(KernelEvent::Data(data)) = decode(&bytes) {
            prop_assert!(data.head.len() + data.tail.len() <= data.len as usize);
        }
    }

    #[test]
    fn what_is_encoded_is_decoded(
        (transport, local, remote) in any_address(),
        numbers in any::<(u64, u64, u32, u32, u32, u64, u64)>(),
        comm in any::<[u8; 16]>(),
        flags in any::<(bool, bool, bool)>(),
        head in proptest::collection::vec(any::<u8>(), 0..300),
        tail in proptest::collection::vec(any::<u8>(), 0..9),
        skipped in 0_u32..1_000_000,
        filename in "[a-z/]{0,256}",
    ) {
        let (conn, time, pid, tid, seq, start_ns, position) = numbers;
        let (conn, time, process) = (ConnId(conn), Timestamp(time), ProcessRef { pid, start_ns });
        let open = Open {
            conn, time, tid, transport, local, remote, process, cgroup: position, comm: Comm(comm), joined: flags.0,
            netns: seq,
            backend: if flags.1 { Backend::Openssl } else { Backend::SysExit },
            socket: flags.1.then_some(ConnId(position | 1)),
            association: if flags.1 { Association::Learned } else { Association::None },
            ..open()
        };
        let data = Data {
            conn, time, pid, tid, seq, position, head: &head, tail: &tail, opaque: flags.0, unreadable: flags.1,
            frame: flags.2,
            len: head.len() as u32 + tail.len() as u32 + skipped,
            direction: if flags.2 { Direction::Send } else { Direction::Receive },
            backend: if flags.2 { Backend::SockTracepoint } else { Backend::SysExit },
        };
        let close = Close {
            conn, time, backend: Backend::SockTracepoint, receive: flags.0, send: flags.1, reset: flags.2
        };
        let exec = Exec { time, process, cgroup: position, comm: Comm(comm), filename: filename.into() };
        for event in
            [KernelEvent::Open(open), KernelEvent::Data(data), KernelEvent::Close(close), KernelEvent::Exec(exec)]
        {
            let bytes = encode(&event);
            prop_assert_eq!(decode(&bytes), Ok(event));
        }
    }
}
