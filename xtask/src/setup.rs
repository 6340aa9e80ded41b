//! `cargo xtask setup`: installs what a bare Debian or a rustup machine lacks. Never touches what is there, never
//! starts a service, and does nothing but look when nothing is missing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{ebpf, shell};

/// What the machine is wanted for; each includes what building needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Purpose {
    Build,
    Demo,
    Vm,
    Test,
}

/// Something Debian packages. Found when any of `files` is: a program's name or an absolute path.
struct Need {
    package: &'static str,
    files: &'static [&'static str],
    wanted_for: &'static [Purpose],
}

use Purpose::{Build, Demo, Test, Vm};

const NEEDS: &[Need] = &[
    Need { package: "gcc", files: &["cc"], wanted_for: &[Build] },
    Need {
        package: "libc6-dev",
        files: &["/usr/include/stdio.h", "/usr/include/x86_64-linux-gnu/stdio.h"],
        wanted_for: &[Build],
    },
    Need { package: "protobuf-compiler", files: &["protoc"], wanted_for: &[Demo, Test, Vm] },
    // The well-known types that the protocol files import.
    Need {
        package: "libprotobuf-dev",
        files: &["/usr/include/google/protobuf/empty.proto", "/usr/local/include/google/protobuf/empty.proto"],
        wanted_for: &[Demo, Test, Vm],
    },
    Need { package: "nginx-light", files: &["nginx"], wanted_for: &[Demo, Test] },
    Need { package: "curl", files: &["curl"], wanted_for: &[Demo, Test] },
    Need { package: "python3", files: &["python3"], wanted_for: &[Demo, Test] },
    Need { package: "openssl", files: &["openssl"], wanted_for: &[Demo, Test] },
    Need { package: "nodejs", files: &["node"], wanted_for: &[Demo, Test] },
    Need { package: "bpftool", files: &["bpftool"], wanted_for: &[Test] },
    Need { package: "wrk", files: &["wrk"], wanted_for: &[Test] },
    Need { package: "runc", files: &["runc"], wanted_for: &[Test] },
    // What the tests of TLS call with, beside the programs of requirements.txt: GnuTLS twice, and an older Go.
    Need { package: "wget", files: &["wget"], wanted_for: &[Test] },
    Need {
        package: "libcurl3-gnutls",
        files: &["/usr/lib/x86_64-linux-gnu/libcurl-gnutls.so.4", "/usr/lib/libcurl-gnutls.so.4"],
        wanted_for: &[Test],
    },
    Need { package: "golang-go", files: &["go"], wanted_for: &[Test] },
    // For a program of the tests that is written against OpenSSL.
    Need {
        package: "libssl-dev",
        files: &["/usr/include/openssl/ssl.h", "/usr/local/include/openssl/ssl.h"],
        wanted_for: &[Test],
    },
    // HTTP/2 peers beside those of requirements.txt.
    Need { package: "nghttp2-server", files: &["nghttpd"], wanted_for: &[Test] },
    Need { package: "nghttp2-client", files: &["h2load"], wanted_for: &[Test] },
    Need { package: "qemu-system-x86", files: &["qemu-system-x86_64"], wanted_for: &[Vm, Test] },
    Need { package: "busybox-static", files: &["/bin/busybox", "/usr/bin/busybox"], wanted_for: &[Vm, Test] },
];

/// The compiler of the distribution that is new enough for this workspace, with the source of its library.
const COMPILER_PACKAGES: &[&str] = &["rustc-web", "rust-web-src", "cargo-web"];

/// The linker for the kernel crate reads what the compiler's LLVM wrote, so its LLVM is at least as new.
const LINKER_VERSION: &str = "0.13.0";
const LINKER_PACKAGES: &[&str] = &["llvm-22-dev", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev", "g++"];
const LINKER_LLVM: &str = "/usr/lib/llvm-22";
const LINKER_FEATURE: &str = "llvm-22";

/// Install what is missing for a purpose. Prints one line per step, nothing when nothing is missing.
///
/// # Errors
/// Something is missing and cannot be installed here; says what to install by hand.
pub(crate) fn ensure(purpose: Purpose) -> Result<()> {
    packages(purpose)?;
    kernel_compiler()?;
    kernel_linker()?;
    if purpose == Test {
        lint_tools()?;
        python()?;
    }
    if matches!(purpose, Demo | Test) {
        mounts();
    }
    Ok(())
}

/// The command itself: says that it is done.
pub(crate) fn run(purposes: &[Purpose]) -> Result<()> {
    let start = Instant::now();
    for purpose in purposes {
        ensure(*purpose)?;
    }
    println!("setup: complete ({:.1} s)", start.elapsed().as_secs_f32());
    Ok(())
}

fn step(what: &str) {
    println!("setup: {what}");
}

fn packages(purpose: Purpose) -> Result<()> {
    let missing =
        missing(
            purpose,
            |file| {
                if file.starts_with('/') { Path::new(file).exists() } else { shell::find(file).is_some() }
            },
        );
    if missing.is_empty() {
        return Ok(());
    }
    apt_install(&missing)
}

/// The packages a purpose lacks, given what there is.
fn missing(purpose: Purpose, there: impl Fn(&str) -> bool) -> Vec<&'static str> {
    NEEDS
        .iter()
        .filter(|need| need.wanted_for.contains(&Build) || need.wanted_for.contains(&purpose))
        .filter(|need| !need.files.iter().any(|file| there(file)))
        .map(|need| need.package)
        .collect()
}

fn apt_install(packages: &[&str]) -> Result<()> {
    if shell::find("apt-get").is_none() {
        bail!(
            "missing on this machine: {0}. There is no apt-get to install them with: install what your distribution \
             calls {0}, then run this command again",
            packages.join(", ")
        );
    }
    step(&format!("apt-get install {}", packages.join(" ")));
    let _no_services = NoServices::new();
    let install = || -> Result<Command> {
        let mut command = shell::as_root("env").with_context(|| format!("cannot install {}", packages.join(", ")))?;
        command
            .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qq", "-y", "--no-install-recommends"])
            .args(packages)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Ok(command)
    };
    // Lists may be absent (a fresh image) or older than the mirror.
    if install()?.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    step("apt-get update");
    shell::run(shell::as_root("apt-get")?.args(["update", "-qq"]))?;
    shell::run(&mut install()?)
        .with_context(|| format!("apt-get could not install {}; see its message above", packages.join(", ")))
}

/// Can apt install this package here?
fn apt_has(package: &str) -> bool {
    let policy = || Command::new("apt-cache").args(["policy", package]).output();
    let has = || policy().is_ok_and(|output| candidate(&String::from_utf8_lossy(&output.stdout)));
    if shell::find("apt-cache").is_none() {
        return false;
    }
    if has() {
        return true;
    }
    step("apt-get update");
    let updated = shell::as_root("apt-get").and_then(|mut apt| shell::run(apt.args(["update", "-qq"])));
    updated.is_ok() && has()
}

/// Does the answer of `apt-cache policy` name a version to install?
fn candidate(policy: &str) -> bool {
    policy.lines().filter_map(|line| line.trim().strip_prefix("Candidate: ")).any(|version| version != "(none)")
}

fn kernel_compiler() -> Result<()> {
    if ebpf::find().is_some() {
        return Ok(());
    }
    let rustup = shell::find("rustup").is_some();
    if apt_has("rust-web-src") {
        apt_install(COMPILER_PACKAGES)?;
        if rustup {
            step(&format!("rustup toolchain link {} /usr", ebpf::LINKED));
            shell::run(Command::new("rustup").args(["toolchain", "link", ebpf::LINKED, "/usr"]))?;
        }
    } else if rustup {
        step("rustup toolchain install nightly --profile minimal --component rust-src");
        shell::run(
            Command::new("rustup")
                .args(["toolchain", "install", "nightly", "--profile", "minimal"])
                .args(["--component", "rust-src"]),
        )
        .context("the kernel programs need a nightly compiler with rust-src, and rustup could not install one")?;
    }
    if ebpf::find().is_none() {
        bail!(
            "no compiler for the kernel programs: install rustup, then `rustup toolchain install nightly --component \
             rust-src`; or on Debian the packages {}",
            COMPILER_PACKAGES.join(" ")
        );
    }
    Ok(())
}

fn kernel_linker() -> Result<()> {
    if shell::find("bpf-linker").is_some() {
        return Ok(());
    }
    if !Path::new(LINKER_LLVM).join("bin/llvm-config").exists() {
        if !apt_has(LINKER_PACKAGES[0]) {
            return released_linker();
        }
        apt_install(LINKER_PACKAGES)?;
    }
    step(&format!("cargo install bpf-linker {LINKER_VERSION} (one to two minutes)"));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["install", "--quiet", "--locked", "bpf-linker", "--version", LINKER_VERSION])
        .args(["--no-default-features", "--features", LINKER_FEATURE])
        .env("LLVM_PREFIX", LINKER_LLVM)
        // The workspace's own settings are none of the linker's.
        .current_dir(std::env::temp_dir());
    shell::run(&mut cargo)?;
    if shell::find("bpf-linker").is_none() {
        bail!("cargo installed bpf-linker, but it is in none of the directories of PATH");
    }
    Ok(())
}

/// Where the distribution has no LLVM to build it with: the program its authors release, in the way they recommend.
fn released_linker() -> Result<()> {
    let cargo = || Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let install = || -> Result<()> {
        if shell::find("cargo-binstall").is_none() {
            step("cargo install cargo-binstall (some minutes)");
            shell::run(cargo().args(["install", "--quiet", "--locked", "cargo-binstall"]))?;
        }
        step(&format!("cargo binstall bpf-linker {LINKER_VERSION}"));
        let package = format!("bpf-linker@{LINKER_VERSION}");
        shell::run(cargo().args(["binstall", "--no-confirm", &package]).env("PATH", shell::path_with(None)?))
    };
    install().with_context(|| {
        format!(
            "bpf-linker is missing, and there is neither the package {} to build it with nor its release. Install LLVM's \
             development files, at least of the version that `rustc -vV` names, then `cargo install bpf-linker`",
            LINKER_PACKAGES[0]
        )
    })
}

/// rustfmt and clippy for the compiler that builds the agent.
fn lint_tools() -> Result<()> {
    for (program, component, package) in
        [("cargo-fmt", "rustfmt", "rustfmt-web"), ("cargo-clippy", "clippy", "rust-web-clippy")]
    {
        let there = if shell::find("rustup").is_some() {
            // rustup's own file of that name exists even when the component does not.
            let which = Command::new("rustup").args(["which", program]).output();
            which.is_ok_and(|output| output.status.success())
        } else {
            shell::find(program).is_some()
        };
        if there {
            continue;
        }
        if shell::find("rustup").is_some() {
            step(&format!("rustup component add {component}"));
            shell::run(Command::new("rustup").args(["component", "add", component]))?;
        } else {
            apt_install(&[package])?;
        }
    }
    Ok(())
}

/// The environment with the Python programs that the tests talk to.
pub(crate) fn python_dir() -> PathBuf {
    shell::target_dir().join("python")
}

fn python() -> Result<()> {
    let dir = python_dir();
    let wanted = shell::root().join("tests/requirements.txt");
    let installed = dir.join("requirements.txt");
    let wanted_text = fs::read_to_string(&wanted).with_context(|| format!("cannot read {}", wanted.display()))?;
    if fs::read_to_string(&installed).is_ok_and(|text| text == wanted_text) {
        return Ok(());
    }
    step(&format!("Python programs for the tests ({})", dir.display()));
    let python = ["/usr/bin/python3", "/usr/local/bin/python3"]
        .into_iter()
        .map(PathBuf::from)
        .find(|python| python.exists())
        .or_else(|| shell::find("python3"))
        .context("no python3")?;
    let create = || {
        let mut command = Command::new(&python);
        command.args(["-m", "venv", "--clear"]).arg(&dir).stdout(Stdio::null());
        command
    };
    if !create().stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        apt_install(&["python3-venv"])?;
        shell::run(&mut create())?;
    }
    shell::run(
        Command::new(dir.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check", "--no-input", "--requirement"])
            .arg(&wanted),
    )?;
    // Written last: an interrupted installation starts again.
    fs::write(&installed, wanted_text).with_context(|| format!("cannot write {}", installed.display()))
}

/// File systems that tell about tracepoints and the lockdown state. The agent works without them and says less.
fn mounts() {
    let mounted = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for (kind, at) in [("tracefs", "/sys/kernel/tracing"), ("securityfs", "/sys/kernel/security")] {
        if !shell::is_root() || is_mounted(&mounted, kind, at) || !Path::new(at).is_dir() {
            continue;
        }
        step(&format!("mount {kind} at {at}"));
        if let Err(error) = shell::run(Command::new("mount").args(["-t", kind, kind, at])) {
            step(&format!("{error}; going on without"));
        }
    }
}

fn is_mounted(mounts: &str, kind: &str, at: &str) -> bool {
    mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(at) && words.next() == Some(kind)
    })
}

/// While it lives, packages do not start the services they bring: an nginx on port 80 is not what was asked for.
struct NoServices {
    made: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn new() -> Self {
        let script = "#!/bin/sh\nexit 101\n";
        let made = !Path::new(POLICY).exists()
            && shell::as_root("sh").is_ok_and(|mut sh| {
                let write = format!("printf '{}' > {POLICY} && chmod 755 {POLICY}", script.replace('\n', "\\n"));
                shell::run(sh.args(["-c", &write])).is_ok()
            });
        Self { made }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.made {
            let removed = shell::as_root("rm").and_then(|mut rm| shell::run(rm.args(["-f", POLICY])));
            if let Err(error) = removed {
                step(&format!("could not remove {POLICY} again: {error}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complete_machine_lacks_nothing() {
        for purpose in [Build, Demo, Vm, Test] {
            assert_eq!(missing(purpose, |_| true), Vec::<&str>::new());
        }
    }

    #[test]
    fn each_purpose_asks_only_for_what_it_uses() {
        assert_eq!(missing(Build, |_| false), ["gcc", "libc6-dev"]);
        let vm = missing(Vm, |_| false);
        assert!(vm.contains(&"qemu-system-x86") && !vm.contains(&"nginx-light"), "{vm:?}");
        let demo = missing(Demo, |_| false);
        assert!(demo.contains(&"nginx-light") && !demo.contains(&"qemu-system-x86"), "{demo:?}");
        assert_eq!(missing(Test, |_| false).len(), NEEDS.len());
    }

    #[test]
    fn one_of_several_places_is_enough() {
        let there = |file: &str| file != "/bin/busybox";
        assert_eq!(missing(Vm, there), Vec::<&str>::new());
    }

    #[test]
    fn a_package_that_apt_only_knows_by_name_is_not_installable() {
        assert!(candidate("rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0\n"));
        assert!(!candidate("rustc-web:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!candidate(""));
    }

    #[test]
    fn a_file_system_elsewhere_does_not_count_as_mounted() {
        let mounts = "tracefs /sys/kernel/tracing tracefs rw 0 0\nproc /proc proc rw 0 0\n";
        assert!(is_mounted(mounts, "tracefs", "/sys/kernel/tracing"));
        assert!(!is_mounted(mounts, "tracefs", "/sys/kernel/debug/tracing"));
        assert!(!is_mounted(mounts, "securityfs", "/sys/kernel/security"));
    }
}
