//! HTTP/3 is not read: that it is spoken, or offered, is told by process and port.

use std::net::{TcpListener, UdpSocket};
use std::process::Command;

use weir_tests::harness::agent::{Agent, Options};
use weir_tests::harness::client::Http;
use weir_tests::harness::guard::Process;
use weir_tests::harness::{PATIENCE, python_with_packages, server, skip, wait_until};

const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/http3/peer.py");

fn blind_spots(agent: &Agent) -> Vec<String> {
    let status = agent.status();
    let spots = status["blind_spots"].as_array().cloned().unwrap_or_default();
    spots.iter().filter_map(|spot| spot.as_str().map(str::to_owned)).collect()
}

#[test]
fn both_ends_of_a_quic_connection_are_told_by_process_and_port() {
    let Some(python) = python_with_packages() else {
        return skip("both_ends_of_a_quic_connection_are_told_by_process_and_port", "no aioquic");
    };
    for backend in ["auto", "sys_exit"] {
        let agent = Agent::start(&Options::config(&format!("capture:\n  backend: {backend}\n")));
        let mut server = Process::spawn(Command::new(python).args([PEER, "server"]));
        let port = server.wait_for_stdout("port ", PATIENCE);
        let mut client = Process::spawn(Command::new(python).args([PEER, "client", &port]));
        assert_eq!(client.wait_for_stdout("status ", PATIENCE), "200");
        let wanted = [
            format!("(pid {}) speaks QUIC on UDP port {port}", server.pid()),
            format!("(pid {}) speaks QUIC ", client.pid()),
        ];
        let told = |want: &String| {
            blind_spots(&agent).iter().any(|spot| spot.contains(want) && spot.ends_with("HTTP/3 over QUIC is not read"))
        };
        assert!(wait_until(|| wanted.iter().all(told), PATIENCE), "{wanted:?} are not in {:#?}", blind_spots(&agent));
        assert!(agent.metric("weir_kernel_total", &[("kind", "sockets_quic")]) >= 2.0);
        agent.stop();
    }
}

#[test]
fn large_datagrams_of_other_protocols_are_not_taken_for_quic() {
    let agent = Agent::start(&Options::default());
    let (one, other) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let mut buffer = [0; 2000];
    for first in 0..=u8::MAX {
        // Version 0 (negotiation), and one that nobody has.
        for version in [0_u32, 0xbaba_baba] {
            let mut datagram = vec![first; 1400];
            datagram[1..5].copy_from_slice(&version.to_be_bytes());
            one.send_to(&datagram, other.local_addr().unwrap()).unwrap();
            assert_eq!(other.recv(&mut buffer).unwrap(), datagram.len());
        }
    }
    // What comes behind in the same ring is there: so would be what came before.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    server::tcp(listener, server::echo());
    Http::tcp(("127.0.0.1", port)).get("/behind");
    agent.wait_for(|calls| !calls.is_empty(), PATIENCE);
    let own = format!("(pid {})", std::process::id());
    assert!(!blind_spots(&agent).iter().any(|spot| spot.contains(&own) && spot.contains("QUIC")));
    agent.stop();
}

#[test]
fn a_server_that_offers_http3_is_told_with_its_port() {
    let agent = Agent::start(&Options::default());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    server::tcp(
        listener,
        std::sync::Arc::new(|_, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nAlt-Svc: h3=\":443\"; ma=86400\r\n\r\n")
        }),
    );
    Http::tcp(("127.0.0.1", port)).get("/");
    let want = format!("(pid {}) offers HTTP/3 (Alt-Svc on TCP port {port})", std::process::id());
    let told = || blind_spots(&agent).iter().any(|spot| spot.contains(&want));
    assert!(wait_until(told, PATIENCE), "{want:?} is not in {:#?}", blind_spots(&agent));
    agent.stop();
}
