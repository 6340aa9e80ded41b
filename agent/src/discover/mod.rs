//! Finds the TLS libraries of all processes and has them probed: at the start, and as they are mapped. Each file is
//! looked at once, by inode; a file's probes go when nobody maps it any more.

mod maps;
mod opened;
mod survey;
mod view;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

pub use self::survey::{Survey, SurveyedFile, SurveyedProcess, survey};
pub use self::view::{Counts, LibraryView, ProcessView, Unread, View};

use rustix::fs::{Mode, OFlags};

use self::opened::Opened;
use crate::bpf::{Library, Mapped, Uprobes};
use crate::model::ProcessRef;
use crate::tls_targets::elf::Image;
use crate::tls_targets::{self, Effort, Found, Target};

/// Files kept in mind; beyond, those that are not probed are forgotten, and looked at again when they are met again.
const FILES: usize = 65_536;
/// Processes explained at most: those that use TLS.
const EXPLAINED: usize = 1_024;
/// A process's list of mappings that is read at most. Some map tens of thousands of anonymous pieces.
const MAPS_BYTES: u64 = 16 * 1024 * 1024;
/// Sweeps in which nobody maps a file before its probes go.
const SWEEPS: u8 = 2;

/// Why a library is not read that could be.
const NO_ROOM: &str =
    "as many TLS libraries as can be are in use already; this one is probed when one of them is not any more";
/// Why Java is not read.
const JAVA: &str = "Java: TLS (JSSE) is code that the virtual machine makes; it can only be read from inside";

/// A file, as mappings name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileKey {
    major: u32,
    minor: u32,
    inode: u64,
}

/// What a file is to the kernel's probes, whatever mount it was reached by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Identity {
    place: Place,
    inode: u64,
    size: u64,
}

/// What tells files of the same number apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    Device(u64),
    /// The lower files of overlay file systems have another device on each mount, and one inode. Only there: copies on other
    /// file systems have the same build id, and may have the same number.
    Build(Box<[u8]>),
}

/// A file that was looked at.
#[derive(Clone)]
struct Examined {
    path: Arc<Path>,
    outcome: Outcome,
    /// The code was looked at, too.
    thorough: bool,
    /// Sweeps that did not meet it.
    missed: u8,
    /// Probed before anybody mapped it; it stays.
    standing: bool,
}

#[derive(Clone)]
enum Outcome {
    /// No TLS that we know.
    Nothing,
    Probed(Arc<Probed>),
    /// It holds TLS that cannot be read, and why.
    Unreadable(Arc<str>),
    /// It would be probed, but the kernel's table of libraries is full of others that are in use.
    NoRoom,
}

/// A probed file. Its probes go with it.
struct Probed {
    stack: &'static str,
    libraries: Vec<Library>,
}

/// The finder. Not for a thread that others wait for: looking into a file and attaching take milliseconds each.
pub struct Discovery {
    uprobes: Arc<Uprobes>,
    proc: PathBuf,
    files: HashMap<FileKey, Examined>,
    probed: HashMap<Identity, std::sync::Weak<Probed>>,
    /// Our own executable: what we say to collectors is not traffic.
    own: Option<FileKey>,
    explained: HashMap<ProcessRef, ProcessView>,
    counts: Counts,
    /// Something is new since the view was made.
    changed: bool,
    view: Arc<Mutex<View>>,
}

impl Discovery {
    /// `proc` is `/proc` but in tests.
    pub fn new(uprobes: Arc<Uprobes>, proc: impl Into<PathBuf>) -> Self {
        let proc = proc.into();
        let own = fs::read_to_string(proc.join("self/maps")).ok().and_then(|text| {
            let path = fs::read_link(proc.join("self/exe")).ok()?;
            maps::executable(&text).find(|mapping| Path::new(mapping.path) == path).map(|mapping| mapping.key)
        });
        Self {
            uprobes,
            proc,
            files: HashMap::new(),
            probed: HashMap::new(),
            own,
            explained: HashMap::new(),
            counts: Counts::default(),
            changed: false,
            view: Arc::default(),
        }
    }

    /// What others may look at; as of the last [`Discovery::publish`].
    pub fn view(&self) -> Arc<Mutex<View>> {
        Arc::clone(&self.view)
    }

    /// What was done so far.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Look at everything that any process executes now.
    pub fn scan(&mut self) {
        for pid in processes(&self.proc) {
            self.scan_process(pid);
        }
        self.publish();
    }

    /// Bring the view up to date, if libraries or processes came or went.
    pub fn publish_news(&mut self) {
        if self.changed {
            self.publish();
        }
    }

    /// The libraries that the dynamic linker would load, before the first process does.
    pub fn scan_linker_cache(&mut self) {
        let Ok(cache) = fs::read("/etc/ld.so.cache") else { return };
        for path in linker_paths(&cache) {
            let Ok(file) = File::open(path) else { continue };
            let Ok(metadata) = file.metadata() else { continue };
            let key = key_of(&metadata);
            if !self.files.contains_key(&key) {
                self.examine(key, &file, Path::new(path), Effort::Symbols);
                if let Some(examined) = self.files.get_mut(&key) {
                    examined.standing = true;
                }
            }
        }
    }

    /// A process mapped an executable part of a file.
    pub fn on_mapped(&mut self, mapped: &Mapped) {
        let key = FileKey { major: mapped.major, minor: mapped.minor, inode: mapped.inode };
        if let Some(known) = self.files.get_mut(&key) {
            known.missed = 0;
            return;
        }
        let link = self.map_file(mapped.pid, mapped.start, mapped.end);
        let path = fs::read_link(&link).unwrap_or_default();
        match File::open(&link) {
            Ok(file) => self.examine(key, &file, &path, Effort::Symbols),
            // Gone already, or we may not use map_files: by name then.
            Err(_) => self.scan_process(mapped.pid),
        }
    }

    /// Events were lost: look everywhere again.
    pub fn on_overflow(&mut self) {
        self.counts.overflows += 1;
        self.scan();
    }

    /// Say which source a process that uses TLS is read by. Where something of it is not read that its sources do not explain,
    /// also look into code that no symbol names, one file at a time.
    /// False: it is gone.
    pub fn explain(&mut self, process: ProcessRef, unread: Unread) -> bool {
        let Some(text) = self.maps(process.pid).filter(|text| !text.is_empty()) else { return false };
        let mut view = ProcessView::default();
        let mut met = HashSet::new();
        let mut candidate: Option<maps::Mapping<'_>> = None;
        for mapping in maps::executable(&text).filter(|mapping| met.insert(mapping.key)) {
            if Some(mapping.key) == self.own {
                view.reasons.push("this is the agent itself".to_owned());
                continue;
            }
            if !self.files.contains_key(&mapping.key) {
                self.examine_mapping(process.pid, &mapping, Effort::Symbols);
            }
            let Some(examined) = self.files.get(&mapping.key) else { continue };
            match &examined.outcome {
                Outcome::Probed(library) => view.sources.push(format!("{} {}", library.stack, mapping.path)),
                Outcome::Unreadable(reason) => view.reasons.push(reason.to_string()),
                Outcome::NoRoom => {
                    view.reasons.push(NO_ROOM.to_owned());
                    view.unfinished = true;
                }
                // Who brings a TLS library along has more code than others.
                Outcome::Nothing
                    if !examined.thorough && candidate.as_ref().is_none_or(|best| best.len() < mapping.len()) =>
                {
                    candidate = Some(mapping);
                }
                Outcome::Nothing => {}
            }
        }
        let is_due = match unread {
            Unread::Nothing => false,
            Unread::All => view.sources.is_empty(),
            Unread::Lasting => true,
        };
        view.unsearched = candidate.is_some() && !view.sources.is_empty() && !is_due;
        if is_due && view.reasons.is_empty() {
            if let Some(mapping) = candidate {
                self.files.remove(&mapping.key);
                self.examine_mapping(process.pid, &mapping, Effort::Code);
                if let Some(Outcome::Probed(library)) = self.files.get(&mapping.key).map(|file| &file.outcome) {
                    view.sources.push(format!("{} {}", library.stack, mapping.path));
                } else {
                    view.unfinished = true;
                    view.reasons.push("its code is being looked through".to_owned());
                }
            } else if view.sources.is_empty() {
                view.reasons
                    .push("no TLS library that is known was recognised in its executable and libraries".to_owned());
            }
        }
        if self.explained.len() >= EXPLAINED && !self.explained.contains_key(&process) {
            self.explained.clear();
        }
        self.explained.insert(process, view);
        self.changed = true;
        true
    }

    /// Detach what nobody maps any more, and look at what was missed. Every minute or so.
    pub fn sweep(&mut self) {
        if self.uprobes.has_room() {
            // Another chance for those there was no room for.
            self.files.retain(|_, examined| !matches!(examined.outcome, Outcome::NoRoom));
        }
        let mut live = HashSet::new();
        for pid in processes(&self.proc) {
            let Some(text) = self.maps(pid) else { continue };
            for mapping in maps::executable(&text) {
                if live.insert(mapping.key) && !self.files.contains_key(&mapping.key) {
                    self.examine_mapping(pid, &mapping, Effort::Symbols);
                }
            }
        }
        for (key, examined) in &mut self.files {
            examined.missed = if live.contains(key) { 0 } else { examined.missed.saturating_add(1) };
        }
        self.forget(|examined| examined.missed >= SWEEPS && !examined.standing);
        let proc = &self.proc;
        self.explained.retain(|process, _| proc.join(process.pid.to_string()).exists());
        self.publish();
    }

    /// Forget files. Their probes go, unless they are those of another name of the same file.
    fn forget(&mut self, is_unwanted: impl Fn(&Examined) -> bool) {
        let mut gone = Vec::new();
        self.files.retain(|_, examined| {
            let keep = !is_unwanted(examined);
            if !keep {
                gone.push(examined.outcome.clone());
            }
            keep
        });
        let before = self.probed.len();
        drop_all(gone);
        self.probed.retain(|_, probed| probed.strong_count() > 0);
        self.counts.detached += (before - self.probed.len()) as u64;
        self.changed = true;
    }

    fn scan_process(&mut self, pid: u32) {
        let Some(text) = self.maps(pid) else { return };
        self.counts.processes += 1;
        for mapping in maps::executable(&text) {
            if !self.files.contains_key(&mapping.key) {
                self.examine_mapping(pid, &mapping, Effort::Symbols);
            }
        }
    }

    fn maps(&self, pid: u32) -> Option<String> {
        use std::io::Read as _;
        let file = File::open(self.proc.join(pid.to_string()).join("maps")).ok()?;
        let mut bytes = Vec::new();
        file.take(MAPS_BYTES).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn map_file(&self, pid: u32, start: u64, end: u64) -> PathBuf {
        self.proc.join(pid.to_string()).join(format!("map_files/{start:x}-{end:x}"))
    }

    fn examine_mapping(&mut self, pid: u32, mapping: &maps::Mapping<'_>, effort: Effort) {
        match open_mapped(&self.proc.join(pid.to_string()), mapping) {
            Ok(file) => self.examine(mapping.key, &file, Path::new(mapping.path), effort),
            Err(_) => self.counts.unopened += 1,
        }
    }

    fn examine(&mut self, key: FileKey, file: &File, path: &Path, effort: Effort) {
        if Some(key) == self.own {
            return;
        }
        if self.files.len() >= FILES {
            // What is probed stays, and is bounded by the kernel's table.
            self.files.retain(|_, examined| matches!(examined.outcome, Outcome::Probed(_)));
        }
        self.counts.files += 1;
        let outcome = self.look(file, path, effort).unwrap_or_else(|error| {
            self.counts.unopened += 1;
            tracing::debug!(path = %path.display(), %error, "a mapped file cannot be read");
            Outcome::Nothing
        });
        self.changed |= !matches!(outcome, Outcome::Nothing);
        self.files.insert(
            key,
            Examined { path: Arc::from(path), outcome, thorough: effort == Effort::Code, missed: 0, standing: false },
        );
    }

    fn look(&mut self, file: &File, path: &Path, effort: Effort) -> io::Result<Outcome> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(Outcome::Nothing);
        }
        let cache = Opened::new(file)?;
        let Ok(image) = Image::parse(&cache) else { return Ok(Outcome::Nothing) };
        let build = if is_overlay(file) { image.build_id() } else { None };
        let identity = Identity {
            place: build.map_or(Place::Device(metadata.dev()), |build| Place::Build(build.into())),
            inode: metadata.ino(),
            size: metadata.size(),
        };
        if let Some(known) = self.probed.get(&identity).and_then(std::sync::Weak::upgrade) {
            return Ok(Outcome::Probed(known));
        }
        if is_java(&image) {
            return Ok(Outcome::Unreadable(JAVA.into()));
        }
        let found = tls_targets::find(&image, effort);
        Ok(self.probe(file, path, identity, &found))
    }

    fn probe(&mut self, file: &File, path: &Path, identity: Identity, found: &Found) -> Outcome {
        if !found.targets.is_empty() && !self.uprobes.has_room() {
            // What nobody mapped in the last sweep goes first, also if it was there before anybody did.
            self.forget(|examined| examined.missed > 0);
            if !self.uprobes.has_room() {
                self.counts.no_room += 1;
                tracing::warn!(path = %path.display(), "{NO_ROOM}");
                return Outcome::NoRoom;
            }
        }
        let mut reasons: Vec<String> =
            found.unreadable.iter().map(|unreadable| format!("{}: {}", unreadable.stack, unreadable.reason)).collect();
        let mut libraries = Vec::new();
        let mut stack = "";
        for target in &found.targets {
            match self.attach(file, path, target) {
                Ok(library) => {
                    libraries.push(library);
                    stack = target.stack.name();
                }
                Err(reason) => reasons.push(reason),
            }
        }
        if !libraries.is_empty() {
            let probed = Arc::new(Probed { stack, libraries });
            self.probed.insert(identity, Arc::downgrade(&probed));
            return Outcome::Probed(probed);
        }
        if reasons.is_empty() {
            return Outcome::Nothing;
        }
        self.counts.refused += 1;
        tracing::info!(path = %path.display(), reason = reasons.join("; "), "TLS that cannot be read");
        Outcome::Unreadable(reasons.join("; ").into())
    }

    fn attach(&mut self, file: &File, path: &Path, target: &Target) -> Result<Library, String> {
        match self.uprobes.attach(file.as_fd(), target) {
            Ok(library) => {
                self.counts.attached += 1;
                tracing::info!(
                    path = %path.display(),
                    stack = target.stack.name(),
                    probes = library.probes(),
                    "reading plaintext of a TLS library"
                );
                Ok(library)
            }
            Err(error) => {
                let reason = format!("{}: {error:#}", target.stack);
                tracing::warn!(path = %path.display(), reason, "a TLS library cannot be probed");
                Err(reason)
            }
        }
    }

    /// Bring the view up to date.
    pub fn publish(&mut self) {
        self.changed = false;
        let mut libraries: Vec<LibraryView> = self
            .files
            .values()
            .filter_map(|examined| match &examined.outcome {
                Outcome::Probed(probed) => Some(LibraryView {
                    path: examined.path.to_path_buf(),
                    stack: probed.stack,
                    probes: probed.libraries.iter().map(Library::probes).sum(),
                }),
                Outcome::Nothing | Outcome::Unreadable(_) | Outcome::NoRoom => None,
            })
            .collect();
        libraries.sort_by(|a, b| a.path.cmp(&b.path));
        let view = View { libraries, processes: self.explained.clone(), counts: self.counts };
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }
}

fn is_java<'a, R: tls_targets::source::Source<'a>>(image: &Image<'a, R>) -> bool {
    image.function("JNI_CreateJavaVM").is_some()
}

fn is_overlay(file: &File) -> bool {
    /// `OVERLAYFS_SUPER_MAGIC`, linux/magic.h.
    const OVERLAY: i64 = 0x794c_7630;
    // Where it cannot be told it is taken for none.
    rustix::fs::fstatfs(file).is_ok_and(|statfs| statfs.f_type == OVERLAY)
}

/// Detach everything, all files at once.
impl Drop for Discovery {
    fn drop(&mut self) {
        drop_all(self.files.drain().map(|(_, examined)| examined.outcome).collect());
    }
}

/// Detach what nobody else has.
fn drop_all(outcomes: Vec<Outcome>) {
    let unshared = outcomes.into_iter().filter_map(|outcome| match outcome {
        Outcome::Probed(probed) => Arc::into_inner(probed),
        Outcome::Nothing | Outcome::Unreadable(_) | Outcome::NoRoom => None,
    });
    Library::detach(unshared.flat_map(|probed| probed.libraries).collect());
}

/// The very file that is mapped, even when its name leads to another by now; by its name only where the kernel does not let
/// us, within the root of the process, and then only if that is the same file. `process` is its folder below `/proc`.
fn open_mapped(process: &Path, mapping: &maps::Mapping<'_>) -> io::Result<File> {
    let (start, end) = (mapping.start, mapping.end);
    File::open(process.join(format!("map_files/{start:x}-{end:x}"))).or_else(|_| {
        let name = mapping.path.strip_prefix('/').ok_or(io::ErrorKind::NotFound)?;
        // By now it may be anything that the process put there: nothing that is waited for, or leads elsewhere.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::open(process.join("root").join(name), flags, Mode::empty())?);
        let metadata = file.metadata()?;
        let same = metadata.is_file() && metadata.ino() == mapping.key.inode;
        if same { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
    })
}

/// Process numbers below `proc`.
fn processes(proc: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(proc) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

fn key_of(metadata: &fs::Metadata) -> FileKey {
    let device = metadata.dev();
    FileKey { major: rustix::fs::major(device), minor: rustix::fs::minor(device), inode: metadata.ino() }
}

/// Paths of TLS libraries in the linker's cache (ld.so(8)), whose strings end with NUL.
fn linker_paths(cache: &[u8]) -> Vec<&str> {
    let mut paths: Vec<&str> = cache
        .split(|byte| *byte == 0)
        .filter_map(|text| str::from_utf8(text).ok())
        .filter(|text| {
            let name = text.rsplit('/').next().unwrap_or_default();
            text.starts_with('/')
                && ["libssl.so", "libgnutls.so", "libnspr4.so"].iter().any(|lib| name.starts_with(lib))
        })
        .collect();
    paths.sort_unstable();
    paths.dedup();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_libraries_are_found_in_the_linker_cache() {
        let cache =
            b"glibc-ld.so.cache1.1\0\x01\x02libssl.so.3\0/usr/lib/libssl.so.3\0/usr/lib/libsslx\0/lib/libssl.so.3\0\
            /usr/lib/libgnutls.so.30\0\xff\xfe\0/usr/lib/libssl.so.3\0libgnutls.so.30";
        assert_eq!(linker_paths(cache), ["/lib/libssl.so.3", "/usr/lib/libgnutls.so.30", "/usr/lib/libssl.so.3"]);
        assert!(linker_paths(b"").is_empty());
    }

    #[test]
    fn a_file_is_opened_by_its_mapping_else_by_its_name_within_the_root_of_the_process() {
        use std::io::Read as _;
        let folder = tempfile::tempdir().unwrap();
        let process = folder.path().join("7");
        fs::create_dir_all(process.join("root/lib")).unwrap();
        fs::create_dir_all(process.join("map_files")).unwrap();
        let named = process.join("root/lib/libssl.so.3");
        fs::write(&named, "named").unwrap();
        let inode = fs::metadata(&named).unwrap().ino();
        let opened = |inode| {
            let key = FileKey { major: 1, minor: 2, inode };
            let mapping = maps::Mapping { start: 0x1000, end: 0x2000, key, path: "/lib/libssl.so.3" };
            open_mapped(&process, &mapping).map(|mut file| {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                text
            })
        };
        assert_eq!(opened(inode).unwrap(), "named");
        assert!(opened(inode + 1).is_err(), "another file by its name");
        fs::write(process.join("map_files/1000-2000"), "mapped").unwrap();
        assert_eq!(opened(inode + 1).unwrap(), "mapped");
        fs::remove_file(process.join("map_files/1000-2000")).unwrap();
        // What a process may put there instead.
        let elsewhere = process.join("root/lib/elsewhere");
        fs::rename(&named, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &named).unwrap();
        assert!(opened(inode).is_err(), "a link is followed");
        fs::remove_file(&named).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &named, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(opened(fs::metadata(&named).unwrap().ino()).is_err(), "a pipe is no file");
    }

    #[test]
    fn only_numbers_are_processes() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["1", "22", "self", "3x"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let mut found = processes(folder.path());
        found.sort_unstable();
        assert_eq!(found, [1, 22]);
    }
}
