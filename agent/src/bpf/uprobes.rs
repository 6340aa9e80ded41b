//! Attaches the programs on TLS libraries, file by file. A file's probes are attached all or none, and for all processes
//! that map it; which of these are observed is decided in the kernel.

use std::collections::BTreeSet;
use std::mem;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use agent_common::event::backend;
use agent_common::limits::LAYOUTS;
use agent_common::tls::{Cookie, Layout, Watched, form};
use anyhow::{Context as _, Result, anyhow, bail};
use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::UProbe;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope};

use super::canary;
use crate::clock;
use crate::tls_targets::{Probe, Program, Stack, Target};

/// All programs on TLS libraries.
const PROGRAMS: [&str; 7] =
    ["tls_enter", "tls_return", "tls_return_at", "tls_push", "go_enter", "go_push", "go_return"];

/// Threads that detach at once.
const CLOSING: usize = 64;

/// The programs, loaded.
pub struct Uprobes {
    ebpf: Arc<Mutex<Ebpf>>,
    libraries: Mutex<Slots>,
    /// Why no uretprobe is to be attached: it may kill a process that filters its system calls.
    returns_refused: Option<String>,
}

/// The kernel's table of libraries.
struct Slots {
    map: Array<MapData, Watched>,
    free: BTreeSet<u16>,
}

/// Probes on one file. Dropping it detaches them, for which the kernel may take a second: not on a thread that others
/// wait for.
pub struct Library {
    /// Dropped before the slot is free for another.
    links: Vec<UProbeLink>,
    slot: u16,
    owner: Arc<Uprobes>,
}

impl Uprobes {
    /// Load all programs, and try what could hurt on a process of our own.
    pub(super) fn load(ebpf: Arc<Mutex<Ebpf>>, map: Array<MapData, Watched>, limit: u16) -> Result<Self> {
        let returns_refused = {
            let mut ebpf = ebpf.lock().unwrap_or_else(PoisonError::into_inner);
            // All now: verifying one takes the kernel a tenth of a second, in which the first process that runs a new library
            // would not be seen.
            for name in PROGRAMS {
                program(&mut ebpf, name)?;
            }
            canary::test(program(&mut ebpf, "tls_return")?).err().map(|error| format!("{error:#}"))
        };
        if let Some(reason) = &returns_refused {
            tracing::warn!(reason, "no uretprobes");
        }
        let free = (0..limit.min(LAYOUTS as u16)).collect();
        Ok(Self { ebpf, libraries: Mutex::new(Slots { map, free }), returns_refused })
    }

    /// Another library can be attached.
    pub fn has_room(&self) -> bool {
        !self.libraries.lock().unwrap_or_else(PoisonError::into_inner).free.is_empty()
    }

    /// Why libraries that need a uretprobe are not read, if so.
    pub fn returns_refused(&self) -> Option<&str> {
        self.returns_refused.as_deref()
    }

    /// Probe a file that is open at `file`. Whatever name it has or had: the probes are the inode's.
    ///
    /// # Errors
    /// The kernel refuses a probe (then none is left), or a uretprobe is needed and not to be used.
    pub fn attach(self: &Arc<Self>, file: BorrowedFd<'_>, target: &Target) -> Result<Library> {
        if let Some(reason) = &self.returns_refused
            && target.probes.iter().any(|probe| probe.program == Program::Return)
        {
            bail!("{reason}");
        }
        let slot = {
            let mut slots = self.libraries.lock().unwrap_or_else(PoisonError::into_inner);
            let slot = slots.free.pop_first().context("the table of TLS libraries is full")?;
            // Until all probes are attached, every connection is met late.
            slots.write(slot, Watched { layout: target.layout, since_ns: u64::MAX })?;
            slot
        };
        let mut library = Library { links: Vec::new(), slot, owner: Arc::clone(self) };
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        for probe in &target.probes {
            let mut ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
            let program = program(&mut ebpf, program_of(probe))?;
            let cookie = Cookie {
                layout: slot,
                form: probe.form,
                direction: probe.direction,
                backend: backend_of(target.stack),
            };
            let point = UProbeAttachPoint {
                location: UProbeAttachLocation::AbsoluteOffset(probe.offset),
                cookie: Some(cookie.to_word()),
            };
            let link = program
                .attach(point, &path, UProbeScope::AllProcesses)
                .and_then(|id| program.take_link(id))
                .map_err(|error| anyhow!(error))
                .with_context(|| {
                    format!("the kernel refused the probe on {} at {:#x}", probe.function, probe.offset)
                })?;
            library.links.push(link);
        }
        let mut slots = self.libraries.lock().unwrap_or_else(PoisonError::into_inner);
        slots.write(slot, Watched { layout: target.layout, since_ns: clock::now().0 })?;
        Ok(library)
    }
}

impl Slots {
    fn write(&mut self, slot: u16, watched: Watched) -> Result<()> {
        self.map.set(u32::from(slot), watched, 0).context("cannot write the kernel's table of TLS libraries")
    }
}

impl Library {
    /// Probes attached.
    pub fn probes(&self) -> usize {
        self.links.len()
    }

    /// Detach the probes of several libraries at once, which takes as long as those of one.
    pub fn detach(mut libraries: Vec<Self>) {
        close(libraries.iter_mut().flat_map(|library| library.links.drain(..)).collect());
    }
}

/// Each waits for a grace period of the kernel; those that wait at the same time share it.
fn close(links: Vec<UProbeLink>) {
    let threads = links.len().min(CLOSING);
    let links = Mutex::new(links);
    let next = || links.lock().unwrap_or_else(PoisonError::into_inner).pop();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| while next().is_some() {});
        }
    });
}

impl Drop for Library {
    fn drop(&mut self) {
        close(mem::take(&mut self.links));
        let mut slots = self.owner.libraries.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing reads the slot any more; a failure leaves what was there.
        _ = slots.write(self.slot, Watched { layout: Layout::NONE, since_ns: u64::MAX });
        slots.free.insert(self.slot);
    }
}

/// A program, loaded.
fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut UProbe> {
    let program: &mut UProbe =
        ebpf.program_mut(name).with_context(|| format!("the kernel object has no program {name}"))?.try_into()?;
    if program.fd().is_err() {
        program
            .load()
            .map_err(super::loader::explain)
            .with_context(|| format!("program {name} (uprobe) was refused"))?;
    }
    Ok(program)
}

/// Goroutines have a calling convention and an identity of their own.
const fn program_of(probe: &Probe) -> &'static str {
    let is_go = matches!(probe.form, form::GO_READ | form::GO_READ_COPY | form::GO_WRITE);
    match (probe.program, is_go) {
        (Program::Enter, false) => "tls_enter",
        (Program::Return, _) => "tls_return",
        (Program::ReturnAt, false) => "tls_return_at",
        (Program::Push, false) => "tls_push",
        (Program::Enter, true) => "go_enter",
        (Program::ReturnAt, true) => "go_return",
        (Program::Push, true) => "go_push",
    }
}

const fn backend_of(stack: Stack) -> u8 {
    match stack {
        Stack::Openssl => backend::OPENSSL,
        Stack::Boringssl => backend::BORINGSSL,
        Stack::Go => backend::GO,
        Stack::Gnutls => backend::GNUTLS,
        Stack::Rustls => backend::RUSTLS,
        Stack::Nss => backend::NSS,
    }
}
