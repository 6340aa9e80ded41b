//! Running other programs: where they are, as whom they run, and what is said when they fail.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead as _, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result, bail};

/// Root of the workspace.
pub(crate) fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// Where cargo puts what it builds; everything xtask makes goes below it too.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The directory `cargo install` puts programs into; not always on `PATH` of a bare machine.
pub(crate) fn cargo_bin_dir() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))?;
    Some(home.join("bin"))
}

/// Full path of a program, looked up in `PATH`, in the system directories that an ordinary user's `PATH` lacks, and
/// in cargo's own.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .chain(cargo_bin_dir())
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// `PATH` with `first` in front and cargo's programs behind.
pub(crate) fn path_with(first: Option<&Path>) -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = first.map(Path::to_path_buf).into_iter().chain(env::split_paths(&path)).chain(cargo_bin_dir());
    env::join_paths(dirs).context("PATH holds a directory that cannot be in a PATH")
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A command that runs as root: as it is, or through sudo.
///
/// # Errors
/// Neither root nor sudo: says what to do.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    let Some(sudo) = find("sudo") else {
        bail!(
            "`{}` has to run as root, and there is no sudo: run this command again as root",
            program.as_ref().display()
        );
    };
    let mut command = Command::new(sudo);
    command.arg("--preserve-env=PATH").arg("--").arg(program);
    Ok(command)
}

/// A command that does not outlive xtask, however xtask ends, where util-linux is there to see to it.
pub(crate) fn bound(program: impl AsRef<OsStr>) -> Command {
    let Some(setpriv) = find("setpriv") else { return Command::new(program) };
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command
}

/// Run to the end, output shown.
///
/// # Errors
/// It could not be started, or did not succeed; the message is the command line.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", line(command)))?;
    check(command, status)
}

/// Run to the end, standard output returned, standard error shown.
///
/// # Errors
/// As [`run`]; also output that is not UTF-8.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start {}", line(command)))?;
    check(command, output.status)?;
    String::from_utf8(output.stdout).with_context(|| format!("{} printed something that is not text", line(command)))
}

/// What a program that was shown while it ran printed.
pub(crate) struct Transcript {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Run to the end, both outputs shown as they come and kept.
///
/// # Errors
/// It could not be started. An unsuccessful end is in the result.
pub(crate) fn tee(command: &mut Command) -> Result<Transcript> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", line(command)))?;
    let stdout = child.stdout.take().context("no pipe to standard output")?;
    let stderr = child.stderr.take().context("no pipe to standard error")?;
    let errors = thread::spawn(move || copy_and_keep(stderr, std::io::stderr()));
    let stdout = copy_and_keep(stdout, std::io::stdout());
    let status = child.wait().context("cannot wait for a child")?;
    let Ok(stderr) = errors.join() else { bail!("reading the output of {} failed", line(command)) };
    Ok(Transcript { status, stdout, stderr })
}

/// Read to the end, showing every line; lines are whole, so that two streams do not mix within one.
fn copy_and_keep(from: impl Read, mut to: impl Write) -> String {
    let mut kept = String::new();
    let mut reader = BufReader::new(from);
    let mut bytes = Vec::new();
    while matches!(reader.read_until(b'\n', &mut bytes), Ok(read) if read > 0) {
        // A closed terminal must not stop the child by a full pipe: keep reading.
        drop(to.write_all(&bytes));
        drop(to.flush());
        kept.push_str(&String::from_utf8_lossy(&bytes));
        bytes.clear();
    }
    kept
}

/// Lines of a stream, sent as they come; the channel closes at the end of the stream.
pub(crate) fn lines(from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::sync_channel(1024);
    thread::spawn(move || {
        let mut reader = BufReader::new(from);
        let mut bytes = Vec::new();
        while matches!(reader.read_until(b'\n', &mut bytes), Ok(read) if read > 0) {
            let line = printable(&String::from_utf8_lossy(&bytes));
            bytes.clear();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A line without control characters and sequences: what a machine under test prints must not steer our terminal.
pub(crate) fn printable(line: &str) -> String {
    let mut kept = String::new();
    let mut chars = line.trim_end_matches(['\n', '\r']).chars();
    while let Some(c) = chars.next() {
        match c {
            // `ESC [ parameters final`, or ESC and one character.
            '\u{1b}' => {
                if chars.next() == Some('[') {
                    chars.by_ref().find(|c| ('@'..='~').contains(c));
                }
            }
            '\t' => kept.push(c),
            c if c.is_control() => {}
            c => kept.push(c),
        }
    }
    kept
}

fn check(command: &Command, status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    bail!("{} failed ({status})", line(command))
}

/// The command as one would type it, without the environment.
pub(crate) fn line(command: &Command) -> String {
    let mut line = String::from("`");
    let program = Path::new(command.get_program());
    line.push_str(&program.file_name().unwrap_or(program.as_os_str()).to_string_lossy());
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line.push('`');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_machine_under_test_cannot_steer_the_terminal() {
        assert_eq!(printable("\x1bc\x1b[?7l\x1b[2Jok\x07\tdone\r\n"), "ok\tdone");
    }

    #[test]
    fn a_failed_command_is_named_as_it_was_typed() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).unwrap_err().to_string();
        assert_eq!(error, "`sh -c exit 3` failed (exit status: 3)");
    }

    #[test]
    fn both_outputs_of_a_program_are_kept() {
        let transcript = tee(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 2"])).unwrap();
        assert_eq!(transcript.status.code(), Some(2));
        assert_eq!((transcript.stdout.as_str(), transcript.stderr.as_str()), ("out\n", "err\n"));
    }
}
