//! `cargo xtask vm`: the kernel tests on other kernels, in QEMU without KVM. The machine is a kernel of the
//! distribution and an archive in memory that holds one test binary, the agent and busybox; it has no disk and no
//! network.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    artifacts, ebpf,
    initramfs::{self, Entry},
    results::{Count, ExpectedSkips, Results},
    setup::{self, Purpose},
    shell,
};

/// Kernels that can be named, oldest first. One line adds a kernel: the distribution's cloud image of that series is
/// looked up when it is wanted.
pub(crate) const KERNELS: &[&str] = &["6.1", "6.12"];

/// Emulation on two busy cores is slow; a machine that says nothing new for this long hangs.
const SILENCE: Duration = Duration::from_mins(4);
const DEADLINE: Duration = Duration::from_mins(25);

/// A machine to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    /// Value of the `lockdown=` parameter: `integrity` or `confidentiality`.
    pub(crate) lockdown: Option<String>,
}

impl Machine {
    /// Its name in the list of expected skips.
    pub(crate) fn name(&self) -> String {
        self.lockdown.as_ref().map_or_else(|| self.kernel.clone(), |mode| format!("{}+{mode}", self.kernel))
    }
}

/// How a boot ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ending {
    Success,
    Failure,
    /// The kernel gave up, or was seen hanging; the line that said so.
    Crash(String),
    /// The same, by the fault of emulation: it stumbles over the kernel's own code patching now and then, before our first
    /// process runs or at a breakpoint (`int3`) of which the patching kernel knows nothing any more.
    Emulation(String),
    Timeout,
    /// The machine went off without a word.
    Silent,
}

/// Boots at most, while emulation is at fault.
const BOOTS: usize = 3;

/// Build once, boot each machine, print what passed; the sum over all.
///
/// # Errors
/// A machine crashed or hung, a test failed, or one was skipped that the committed list does not expect.
pub(crate) fn run(machines: &[Machine], filter: Option<&str>) -> Result<Count> {
    setup::ensure(Purpose::Vm)?;
    let initramfs = build(filter)?;
    let skips = expected_skips()?;
    let mut sum = Count::default();
    let mut faults = Vec::new();
    for machine in machines {
        let name = machine.name();
        let image = kernel_image(&machine.kernel)?;
        println!("vm {name}: boot");
        let start = Instant::now();
        let (mut ending, mut results) = boot(machine, &image, &initramfs)?;
        for _ in 1..BOOTS {
            let Ending::Emulation(line) = &ending else { break };
            println!("vm {name}: crashed by the fault of emulation ({line}): booted again");
            (ending, results) = boot(machine, &image, &initramfs)?;
        }
        let count = results.count();
        sum += count;
        println!("vm {name}: {ending:?}, {count} ({:.0} s)", start.elapsed().as_secs_f32());
        if ending != Ending::Success {
            faults.push(format!("{name}: {ending:?}"));
        } else if count.passed == 0 {
            faults.push(format!("{name}: no test ran"));
        }
        faults.extend(skip_faults(&name, &skips, &results, filter.is_some()));
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("; "));
    }
    Ok(sum)
}

/// The committed list of what cannot run where.
pub(crate) fn expected_skips() -> Result<ExpectedSkips> {
    let path = shell::root().join("tests/expected-skips.txt");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(ExpectedSkips::parse(&text))
}

/// Print all skips; return those that are faults.
pub(crate) fn skip_faults(kernel: &str, list: &ExpectedSkips, results: &Results, filtered: bool) -> Vec<String> {
    for (name, outcome) in results.outcomes() {
        if let crate::results::Outcome::Skipped(why) = outcome {
            println!("{kernel}: skipped: {name}: {why}");
        }
    }
    if !filtered {
        for name in list.stale(kernel, results) {
            println!("{kernel}: note: {name} ran, although tests/expected-skips.txt lists it; delete the line");
        }
    }
    let unexpected = list.unexpected(kernel, results).into_iter();
    unexpected.map(|(name, _)| format!("{kernel}: unexpected skip of {name}")).collect()
}

/// Path of a program without a dynamic linker: the agent, or the kernel tests.
pub(crate) fn static_program(name: &str, test: bool) -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let mut cargo = ebpf::cargo()?;
    cargo
        .args(["build", "--target", TARGET, "--message-format=json-render-diagnostics"])
        .args(["--package", "agent", "--bin", "weir", "--package", "weir-tests", "--test", "it"])
        // Uprobe tests need the symbols; the lines of the source would be most of the archive.
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=debuginfo");
    let built = artifacts::build(&mut cargo)?;
    let found = built.into_iter().find(|artifact| artifact.target == name && artifact.is_test == test);
    Ok(found.with_context(|| format!("cargo built no `{name}`"))?.executable)
}

/// The archive, as a file: the statically linked agent and tests, and what runs them.
fn build(filter: Option<&str>) -> Result<PathBuf> {
    let read = |name: &str, test: bool| -> Result<Vec<u8>> {
        let program = static_program(name, test)?;
        fs::read(&program).with_context(|| format!("cannot read {}", program.display()))
    };
    let (weir, it) = (read("weir", false)?, read("it", true)?);
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let busybox = fs::read(busybox.context("no busybox")?).context("cannot read busybox")?;
    if needs_interpreter(&busybox) {
        bail!("this machine's busybox is not statically linked: install the package busybox-static");
    }
    let directories = ["bin", "dev", "etc", "proc", "run", "sys", "tmp"].map(|path| Entry::Directory { path });
    let filter = filter.unwrap_or_default();
    let mut entries = Vec::from(directories);
    entries.extend([
        Entry::CharacterDevice { path: "dev/console", major: 5, minor: 1 },
        Entry::CharacterDevice { path: "dev/null", major: 1, minor: 3 },
        Entry::File { path: "init", content: include_bytes!("init.sh") },
        Entry::File { path: "filter", content: filter.as_bytes() },
        Entry::File { path: "bin/busybox", content: &busybox },
        Entry::Link { path: "bin/sh", target: "busybox" },
        Entry::File { path: "bin/it", content: &it },
        Entry::File { path: "bin/weir", content: &weir },
        Entry::File { path: "etc/hosts", content: b"127.0.0.1 localhost\n::1 localhost\n" },
        Entry::File { path: "etc/passwd", content: b"root:x:0:0:root:/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n" },
        Entry::File { path: "etc/group", content: b"root:x:0:\nnogroup:x:65534:\n" },
    ]);
    let archive = initramfs::archive(&entries);
    let path = shell::target_dir().join("vm/initramfs.cpio");
    fs::create_dir_all(shell::target_dir().join("vm")).context("cannot make the directory for the machine's files")?;
    fs::write(&path, archive).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Does this 64-bit ELF program want a dynamic linker? There is none in the machine.
fn needs_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, len: usize| -> Option<u64> {
        let bytes = elf.get(at..at.checked_add(len)?)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    let headers = || Some((number(32, 8)? as usize, number(54, 2)? as usize, number(56, 2)? as usize));
    let Some((start, size, count)) = headers() else { return false };
    (0..count).any(|header| number(start.saturating_add(header * size), 4) == Some(PT_INTERP))
}

/// The kernel of a series, downloaded when it is not there yet.
fn kernel_image(kernel: &str) -> Result<PathBuf> {
    let dir = shell::target_dir().join("vm/kernels").join(kernel);
    let image = dir.join("vmlinuz");
    if image.exists() {
        return Ok(image);
    }
    let pattern = format!("^linux-image-{}\\..*-cloud-amd64$", kernel.replace('.', "\\."));
    let search = || shell::output(Command::new("apt-cache").args(["search", "--names-only", &pattern]));
    let package = if let Some(package) = newest(kernel, &search()?) {
        package
    } else {
        println!("vm {kernel}: apt-get update");
        shell::run(shell::as_root("apt-get")?.args(["update", "-qq"]))?;
        newest(kernel, &search()?)
            .with_context(|| format!("this distribution has no cloud kernel {kernel}; `apt-cache search {pattern}`"))?
    };
    println!("vm {kernel}: download {package}");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    shell::run(
        Command::new("apt-get")
            // Only root has a sandbox to leave, and only to write here.
            .args(["-o", "APT::Sandbox::User=root", "download", "-qq", &package])
            .current_dir(&dir)
            .stdout(Stdio::null()),
    )?;
    // The rest of the package is modules, which the machine does without.
    let script = "set -e; dpkg-deb --fsys-tarfile linux-image-*.deb | tar -x --wildcards --strip-components=2 \
                  './boot/vmlinuz-*'; rm linux-image-*.deb; mv vmlinuz-* vmlinuz";
    shell::run(Command::new("sh").args(["-c", script]).current_dir(&dir))?;
    Ok(image)
}

/// The newest package of a kernel series in the output of `apt-cache search`.
fn newest(kernel: &str, search: &str) -> Option<String> {
    let prefix = format!("linux-image-{kernel}.");
    let names = search.lines().filter_map(|line| line.split(' ').next());
    let images = names.filter(|name| name.starts_with(&prefix) && name.ends_with("-cloud-amd64"));
    images.max_by_key(|name| version(name)).map(str::to_owned)
}

/// The numbers in a name, in order: `6.1.0-9` is older than `6.1.0-56`.
fn version(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn boot(machine: &Machine, kernel: &Path, initramfs: &Path) -> Result<(Ending, Results)> {
    let mut append = String::from("console=ttyS0 quiet panic=-1 rcupdate.rcu_cpu_stall_timeout=120");
    if let Some(mode) = &machine.lockdown {
        append.push_str(" lockdown=");
        append.push_str(mode);
    }
    let mut qemu = shell::bound("qemu-system-x86_64");
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-m", "2048", "-smp", "2"])
        .args(["-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", &append])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = qemu.spawn().with_context(|| format!("cannot start {}", shell::line(&qemu)))?;
    let serial = child.stdout.take().context("no pipe to the serial line")?;
    let watched = watch(&machine.name(), serial);
    // It may still run: after a crash, or at the deadline.
    switch_off(&mut child)?;
    Ok(watched)
}

fn switch_off(child: &mut Child) -> Result<()> {
    for _ in 0..50 {
        if child.try_wait().context("cannot wait for QEMU")?.is_some() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    child.kill().context("cannot stop QEMU")?;
    child.wait().context("cannot wait for QEMU")?;
    Ok(())
}

/// Show and read the serial line until the machine says how it ended, or it is clear that it will not.
fn watch(name: &str, serial: impl std::io::Read + Send + 'static) -> (Ending, Results) {
    let start = Instant::now();
    let lines = shell::lines(serial.take(256 << 20));
    let mut results = Results::default();
    let mut began = false;
    loop {
        let left = DEADLINE.saturating_sub(start.elapsed()).min(SILENCE);
        match lines.recv_timeout(left) {
            Ok(line) => {
                println!("{name}| {line}");
                results.line(&line);
                began |= line.starts_with("init: ");
                match ending(&line) {
                    Some(Ending::Crash(line)) if !began => return (Ending::Emulation(line), results),
                    Some(ending) => return (ending, results),
                    None => {}
                }
            }
            Err(RecvTimeoutError::Timeout) => return (Ending::Timeout, results),
            Err(RecvTimeoutError::Disconnected) => return (Ending::Silent, results),
        }
    }
}

/// What a line of the serial console says about the end, if anything.
fn ending(line: &str) -> Option<Ending> {
    const CRASHES: &[&str] = &[
        "Kernel panic",
        "detected stall",
        "self-detected stall",
        "soft lockup",
        "BUG: ",
        "Oops: ",
        "general protection fault",
        "unable to handle page fault",
    ];
    // Probes of ours have breakpoints in user code alone. It may come behind the name of a test that runs.
    if line.contains("] Oops: int3: ") {
        return Some(Ending::Emulation(line.to_owned()));
    }
    // Only the kernel stamps its lines: a test may speak of a panic.
    let from_kernel = line.trim_start().starts_with('[');
    if line.starts_with("init: success") {
        Some(Ending::Success)
    } else if line.starts_with("init: failure") {
        Some(Ending::Failure)
    } else if from_kernel && CRASHES.iter().any(|crash| line.contains(crash)) {
        Some(Ending::Crash(line.to_owned()))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_image_of_a_series_is_chosen_by_number() {
        let search = "\
linux-image-6.1.0-9-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-56-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-56-cloud-amd64-unsigned - Linux 6.1 for x86-64 cloud
linux-image-6.1.0-56-cloud-amd64-dbg - Debug symbols
linux-image-6.12.107+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.117+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
";
        assert_eq!(newest("6.1", search).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest("6.12", search).as_deref(), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest("5.15", search), None);
    }

    #[test]
    fn a_program_with_a_dynamic_linker_is_told_from_one_without() {
        // The header, then program headers of 56 bytes at 64: PT_LOAD, and PT_INTERP or not.
        let elf = |second: u8| {
            let mut elf = vec![0; 64 + 2 * 56];
            (elf[32], elf[54], elf[56], elf[64], elf[64 + 56]) = (64, 56, 2, 1, second);
            elf
        };
        assert!(needs_interpreter(&elf(3)));
        assert!(!needs_interpreter(&elf(1)));
        assert!(!needs_interpreter(b"#!/bin/sh"));
    }

    #[test]
    fn the_serial_line_tells_how_it_ended() {
        for (line, expected) in [
            ("init: success", Some("Success")),
            ("init: failure 101", Some("Failure")),
            ("[    3.1] Kernel panic - not syncing: Attempted to kill init!", Some("Crash")),
            ("[  131.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", Some("Crash")),
            ("[   61.0] watchdog: BUG: soft lockup - CPU#1 stuck for 22s!", Some("Crash")),
            ("test a::b ... [   26.298906] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI", Some("Emulation")),
            ("[    1.0] systemd: nothing of the kind", None),
            ("test a::b ... ok", None),
            ("a test that mentions a Kernel panic", None),
        ] {
            let found = ending(line).map(|ending| format!("{ending:?}"));
            let found = found.as_deref().and_then(|text| text.split('(').next());
            assert_eq!(found, expected, "{line}");
        }
    }

    #[test]
    fn a_machine_that_goes_off_silently_is_not_a_success() {
        let (ending, results) = watch("test", &b"test a ... ok\r\n"[..]);
        assert_eq!(ending, Ending::Silent);
        assert_eq!(results.count().passed, 1);
    }

    #[test]
    fn a_machine_in_lockdown_has_its_own_list_of_skips() {
        let machine = |mode: Option<&str>| Machine { kernel: "6.12".to_owned(), lockdown: mode.map(str::to_owned) };
        assert_eq!(machine(None).name(), "6.12");
        assert_eq!(machine(Some("confidentiality")).name(), "6.12+confidentiality");
    }
}
