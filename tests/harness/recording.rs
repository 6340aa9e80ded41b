//! What the kernel programs tell, as `weir record` writes it down: for tests of the copying itself.

use std::path::PathBuf;
use std::time::Duration;

use agent::event::{self, KernelEvent};
use agent::model::Direction;
use agent::record::Recording as Bytes;
use agent_common::event::data_flags;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::guard::Process;

/// Loading eBPF programs on an emulated machine takes its time.
const START: Duration = Duration::from_mins(2);

/// A running `weir record`.
#[derive(Debug)]
pub struct Recorder {
    process: Process,
    path: PathBuf,
    _dir: TempDir,
}

/// A record of moved bytes.
#[derive(Clone, Debug)]
pub struct Moved {
    pub conn: u64,
    pub pid: u32,
    pub direction: Direction,
    pub position: u64,
    pub len: u32,
    pub head: Vec<u8>,
    /// The first byte begins a frame of HTTP/2.
    pub frame: bool,
    /// Further records of the operation follow.
    pub continues: bool,
}

/// What was recorded.
#[derive(Debug, Default)]
pub struct Recorded {
    pub moved: Vec<Moved>,
    /// Identity, local and remote port, and the fields of the kernel's record that say how it was met.
    pub opened: Vec<Opened>,
}

/// A connection that was met.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    pub conn: u64,
    pub pid: u32,
    pub local_port: u16,
    pub remote_port: u16,
    pub protocol: u8,
    pub joined: bool,
}

impl Recorder {
    /// Start recording; ready when this returns.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recording");
        let mut process = Process::spawn(&mut super::agent::command(&["record", path.to_str().unwrap()]));
        process.wait_for_stderr("ready", START);
        Self { process, path, _dir: dir }
    }

    /// Stop, and read what it wrote.
    pub fn stop(mut self) -> Recorded {
        self.process.signal(Signal::SIGTERM);
        let status = self.process.wait(super::PATIENCE);
        assert!(
            status.is_some_and(|status| status.success()),
            "weir record did not end ({status:?}): {:#?}",
            self.process.stderr()
        );
        let recording = Bytes::open(&self.path).unwrap();
        let mut recorded = Recorded::default();
        for bytes in recording.iter() {
            let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
            match event::decode(bytes).unwrap() {
                KernelEvent::Data(data) => recorded.moved.push(Moved {
                    conn: data.conn.0,
                    pid: data.pid,
                    direction: data.direction,
                    position: data.position,
                    len: data.len,
                    head: data.head.to_vec(),
                    frame: bytes[2] & data_flags::FRAME != 0,
                    continues: bytes[2] & data_flags::CONTINUES != 0,
                }),
                KernelEvent::Open(open) => recorded.opened.push(Opened {
                    conn: open.conn.0,
                    pid: open.process.pid,
                    local_port: field(34),
                    remote_port: field(36),
                    protocol: bytes[38],
                    joined: open.joined,
                }),
                KernelEvent::Close(_) | KernelEvent::Exec(_) => {}
            }
        }
        recorded
    }
}

impl Recorded {
    /// The connection of this process between two ports.
    pub fn between(&self, local: u16, remote: u16) -> Option<Opened> {
        let own = std::process::id();
        self.opened
            .iter()
            .find(|open| open.pid == own && open.local_port == local && open.remote_port == remote)
            .copied()
    }

    /// Records of one direction of a connection, in order.
    pub fn of(&self, conn: u64, direction: Direction) -> Vec<&Moved> {
        self.moved.iter().filter(|moved| moved.conn == conn && moved.direction == direction).collect()
    }
}
