//! Processes that end with the test that started them, whatever way it ends.

use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// A child in a process group of its own, with both outputs collected by lines. Killed, group and all, when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

#[derive(Debug)]
struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Lines {
    fn collect(from: impl Read + Send + 'static) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
                sink.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
            }
        });
        Self { lines, reader: Some(reader) }
    }

    fn get(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

impl Process {
    /// Start it; its standard input is closed unless the command says otherwise before.
    pub fn spawn(command: &mut Command) -> Self {
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let stdout = Lines::collect(child.stdout.take().unwrap());
        let stderr = Lines::collect(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stdout(&self) -> Vec<String> {
        self.stdout.get()
    }

    pub fn stderr(&self) -> Vec<String> {
        self.stderr.get()
    }

    /// The first line of standard output that begins so, without that beginning. Panics when it does not come.
    pub fn wait_for_stdout(&mut self, prefix: &str, limit: Duration) -> String {
        self.wait_for_line(prefix, limit, |process| process.stdout.get())
    }

    /// As [`Process::wait_for_stdout`], for standard error.
    pub fn wait_for_stderr(&mut self, prefix: &str, limit: Duration) -> String {
        self.wait_for_line(prefix, limit, |process| process.stderr.get())
    }

    fn wait_for_line(&mut self, prefix: &str, limit: Duration, lines: impl Fn(&Self) -> Vec<String>) -> String {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.child.try_wait().unwrap();
            if let Some(rest) = lines(self).iter().find_map(|line| line.strip_prefix(prefix)) {
                return rest.trim().to_owned();
            }
            let late = Instant::now() > deadline;
            assert!(
                ended.is_none() && !late,
                "no line {prefix:?} ({ended:?}); stdout {:#?}, stderr {:#?}",
                self.stdout.get(),
                self.stderr.get()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Wait for its end; `None` when `limit` passed. All output is there afterwards.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(5));
        };
        for lines in [&mut self.stdout, &mut self.stderr] {
            // A grandchild may hold the pipe; the reader then ends with it.
            while lines.reader.as_ref().is_some_and(|reader| !reader.is_finished()) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
        }
        Some(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The group is gone when the child was waited for and left nobody behind.
        _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
