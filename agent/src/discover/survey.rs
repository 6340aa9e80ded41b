//! A look at all processes that touches none: what would be probed, and what could not be. For `weir doctor`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::opened::Opened;
use super::{FileKey, JAVA, is_java, maps, processes};
use crate::tls_targets::elf::Image;
use crate::tls_targets::{self, Effort};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// By path.
    pub files: Vec<SurveyedFile>,
    /// Those that execute one of `files`, by number.
    pub processes: Vec<SurveyedProcess>,
}

/// A file with TLS that a process executes now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyedFile {
    pub path: PathBuf,
    pub stack: &'static str,
    /// Processes that map it.
    pub processes: usize,
    /// Why its plaintext cannot be read; `None` when it can.
    pub obstacle: Option<String>,
}

/// A process, and how its TLS would be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyedProcess {
    pub pid: u32,
    /// As the process sees it; empty where that cannot be seen.
    pub executable: PathBuf,
    /// Files that are read, each as `stack path`.
    pub sources: Vec<String>,
    /// Why others are not.
    pub reasons: Vec<String>,
}

/// What a file holds: stack, and why it cannot be read.
type Held = Vec<(&'static str, Option<String>)>;

/// Look at all processes below `proc` but this one.
pub fn survey(proc: &Path) -> Survey {
    let mut survey = Survey::default();
    let mut files: HashMap<FileKey, (PathBuf, Held)> = HashMap::new();
    let mut users: HashMap<FileKey, usize> = HashMap::new();
    let mut all = processes(proc);
    all.sort_unstable();
    let own = std::process::id();
    for pid in all.into_iter().filter(|pid| *pid != own) {
        let folder = proc.join(pid.to_string());
        let Ok(text) = fs::read_to_string(folder.join("maps")) else { continue };
        let mut process = SurveyedProcess {
            pid,
            executable: fs::read_link(folder.join("exe")).unwrap_or_default(),
            sources: Vec::new(),
            reasons: Vec::new(),
        };
        let mut met = HashSet::new();
        for mapping in maps::executable(&text).filter(|mapping| met.insert(mapping.key)) {
            let (path, held) = files.entry(mapping.key).or_insert_with(|| {
                let name = format!("map_files/{:x}-{:x}", mapping.start, mapping.end);
                let held = File::open(folder.join(name)).map_or_else(|_| Held::new(), |file| held(&file));
                (PathBuf::from(mapping.path), held)
            });
            if !held.is_empty() {
                *users.entry(mapping.key).or_default() += 1;
            }
            for (stack, obstacle) in held {
                match obstacle {
                    None => process.sources.push(format!("{stack} {}", path.display())),
                    Some(obstacle) => process.reasons.push(obstacle.clone()),
                }
            }
        }
        if !process.sources.is_empty() || !process.reasons.is_empty() {
            survey.processes.push(process);
        }
    }
    // The same file may be mapped by several names: one line each.
    let mut lines: BTreeMap<(PathBuf, &'static str), SurveyedFile> = BTreeMap::new();
    for (key, (path, held)) in files {
        for (stack, obstacle) in held {
            let processes = users.get(&key).copied().unwrap_or_default();
            let line = SurveyedFile { path: path.clone(), stack, processes: 0, obstacle };
            lines.entry((path.clone(), stack)).or_insert(line).processes += processes;
        }
    }
    survey.files = lines.into_values().collect();
    survey
}

/// What is in a file, as far as its symbols tell.
fn held(file: &File) -> Held {
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Held::new();
    }
    let Ok(cache) = Opened::new(file) else { return Held::new() };
    let Ok(image) = Image::parse(&cache) else { return Held::new() };
    if is_java(&image) {
        return vec![("java", Some(JAVA.to_owned()))];
    }
    let found = tls_targets::find(&image, Effort::Symbols);
    let readable = found.targets.iter().map(|target| (target.stack.name(), None));
    let unreadable = found.unreadable.iter();
    readable.chain(unreadable.map(|unreadable| (unreadable.stack.name(), Some(unreadable.reason.clone())))).collect()
}
