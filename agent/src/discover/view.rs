//! What discovery tells others: which files are probed, and by which source a process is read or why by none. Says
//! nothing that is not known.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::model::ProcessRef;

/// What was found, for people and programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub libraries: Vec<LibraryView>,
    /// Processes that use TLS.
    pub processes: HashMap<ProcessRef, ProcessView>,
    pub counts: Counts,
}

/// A probed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibraryView {
    pub path: PathBuf,
    pub stack: &'static str,
    pub probes: usize,
}

/// Which source a process's TLS is read by, or why by none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessView {
    /// Probed files that it maps, each as `stack path`.
    pub sources: Vec<String>,
    /// Sentences, empty when something is probed and nothing speaks against it.
    pub reasons: Vec<String>,
    /// Files are left whose code may hold something.
    pub(super) unfinished: bool,
    /// Its code was not looked into, because it is read by its sources.
    pub(super) unsearched: bool,
}

/// What of a process's TLS nobody reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    Nothing,
    /// All of it, so far.
    All,
    /// Connections that are not new, whatever else of it is read: it uses another library, too.
    Lasting,
}

impl ProcessView {
    /// Another look may find more.
    pub fn is_open(&self, unread: Unread) -> bool {
        self.unfinished || (self.unsearched && unread == Unread::Lasting)
    }
}

/// What happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files looked at.
    pub files: u64,
    /// Processes whose mappings were read.
    pub processes: u64,
    /// Files that hold TLS and could not be probed.
    pub refused: u64,
    pub attached: u64,
    pub detached: u64,
    /// Files that were gone, or could not be opened, before they were looked at.
    pub unopened: u64,
    /// Times that the kernel's list of new mappings overflowed; everything was looked at again.
    pub overflows: u64,
    /// Files with TLS that were not probed because the kernel's table was full of others that are in use.
    pub no_room: u64,
}
