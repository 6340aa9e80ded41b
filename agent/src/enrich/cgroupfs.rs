//! The cgroup v2 directories by inode number, which is the id that the kernel records carry.
//!
//! Reads directory entries only, and no more often than once a second; never writes below the mount.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::model::Timestamp;

/// Directories looked at in one walk; a node with 250 pods has about 1,500.
const DIRECTORIES_MAX: usize = 32 * 1024;

/// Levels below the mount; nested container hosts have about ten.
const DEPTH_MAX: usize = 24;

/// Directories that are gone are remembered until there are so many.
const REMEMBERED_MAX: usize = 64 * 1024;

/// Inodes that a walk did not find; their cgroup is gone.
const MISSED_MAX: usize = 4 * 1024;

const WALK_EVERY_NS: u64 = 1_000_000_000;

/// Paths of cgroups by inode, filled by walks of the mounted hierarchy.
#[derive(Debug)]
pub struct CgroupIndex {
    mount: Option<PathBuf>,
    paths: HashMap<u64, Box<str>>,
    missed: HashSet<u64>,
    walked: Option<Timestamp>,
}

impl CgroupIndex {
    /// `mount` is where the cgroup v2 hierarchy is mounted; without one nothing is ever found.
    pub fn new(mount: Option<PathBuf>) -> Self {
        Self { mount, paths: HashMap::new(), missed: HashSet::new(), walked: None }
    }

    /// The path below the mount, beginning with `/`. A miss walks the hierarchy, at most once a second.
    pub fn path(&mut self, inode: u64, now: Timestamp) -> Option<&str> {
        if inode == 0 || self.mount.is_none() {
            return None;
        }
        if !self.paths.contains_key(&inode) && !self.missed.contains(&inode) && self.may_walk(now) {
            self.walk(now);
            if !self.paths.contains_key(&inode) {
                if self.missed.len() >= MISSED_MAX {
                    self.missed.clear();
                }
                self.missed.insert(inode);
            }
        }
        self.paths.get(&inode).map(AsRef::as_ref)
    }

    fn may_walk(&self, now: Timestamp) -> bool {
        self.walked.is_none_or(|walked| now.since(walked) >= WALK_EVERY_NS)
    }

    fn walk(&mut self, now: Timestamp) {
        self.walked = Some(now);
        let Some(mount) = self.mount.clone() else { return };
        if self.paths.len() >= REMEMBERED_MAX {
            self.paths.clear();
        }
        let mut left = DIRECTORIES_MAX;
        let mut pending = vec![(mount.clone(), 0)];
        while let Some((directory, depth)) = pending.pop() {
            let Ok(metadata) = fs::metadata(&directory) else { continue };
            self.paths.insert(metadata.ino(), relative(&mount, &directory).into());
            left -= 1;
            if left == 0 {
                return;
            }
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            if depth == DEPTH_MAX {
                continue;
            }
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) && pending.len() < left {
                    pending.push((entry.path(), depth + 1));
                }
            }
        }
    }
}

fn relative(mount: &Path, directory: &Path) -> String {
    let below = directory.strip_prefix(mount).unwrap_or(Path::new(""));
    format!("/{}", below.to_string_lossy())
}

/// Where the cgroup v2 hierarchy is mounted, from the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
/// The mount whose root is the hierarchy's own comes first: others show a part of it only.
pub fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    let mut found = None;
    for line in mountinfo.lines() {
        let Some((fields, source)) = line.split_once(" - ") else { continue };
        if source.split(' ').next() != Some("cgroup2") {
            continue;
        }
        let mut fields = fields.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
        let point = PathBuf::from(unescape(point));
        if root == "/" {
            return Some(point);
        }
        found.get_or_insert(point);
    }
    found
}

/// Spaces and the like are written `\040`.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut parts = text.split('\\');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let (Some(code), Some(rest)) = (code, part.get(3..)) {
            out.push(char::from(code));
            out.push_str(rest);
        } else {
            out.push('\\');
            out.push_str(part);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn inode(path: &Path) -> u64 {
        fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn a_miss_walks_the_hierarchy_at_most_once_a_second() {
        let mount = tempfile::tempdir().unwrap();
        let first = mount.path().join("system.slice/nginx.service");
        fs::create_dir_all(&first).unwrap();
        let mut index = CgroupIndex::new(Some(mount.path().to_owned()));
        assert_eq!(index.path(inode(&first), Timestamp(5 * SECOND)), Some("/system.slice/nginx.service"));
        assert_eq!(index.path(inode(mount.path()), Timestamp(5 * SECOND)), Some("/"));

        let second = mount.path().join("user.slice");
        fs::create_dir(&second).unwrap();
        let second_inode = inode(&second);
        assert_eq!(index.path(second_inode, Timestamp(5 * SECOND + 1)), None);
        assert_eq!(index.path(second_inode, Timestamp(6 * SECOND)), Some("/user.slice"));

        fs::remove_dir(&second).unwrap();
        assert_eq!(index.path(second_inode, Timestamp(9 * SECOND)), Some("/user.slice"), "remembered when gone");
    }

    #[test]
    fn an_inode_that_was_not_found_is_not_searched_again() {
        let mount = tempfile::tempdir().unwrap();
        let mut index = CgroupIndex::new(Some(mount.path().to_owned()));
        assert_eq!(index.path(u64::MAX, Timestamp(SECOND)), None);
        assert_eq!(index.path(u64::MAX, Timestamp(9 * SECOND)), None);
        assert_eq!(index.walked, Some(Timestamp(SECOND)));
        assert_eq!(index.path(0, Timestamp(10 * SECOND)), None);
    }

    #[test]
    fn without_a_mount_nothing_is_found() {
        assert_eq!(CgroupIndex::new(None).path(1, Timestamp(SECOND)), None);
        let gone = CgroupIndex::new(Some("/does/not/exist".into())).path(1, Timestamp(SECOND)).map(str::to_owned);
        assert_eq!(gone, None);
    }

    #[test]
    fn the_unified_mount_is_found() {
        for (text, want) in [
            ("31 23 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw", Some("/sys/fs/cgroup")),
            (
                "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                 31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate\n\
                 32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd",
                Some("/sys/fs/cgroup/unified"),
            ),
            (
                "31 23 0:27 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup rw\n\
                 32 23 0:27 / /host/my\\040cgroup rw - cgroup2 cgroup rw",
                Some("/host/my cgroup"),
            ),
            ("31 23 0:27 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup rw", Some("/sys/fs/cgroup")),
            ("nonsense - cgroup2", None),
            ("", None),
        ] {
            assert_eq!(find_mount(text), want.map(PathBuf::from), "{text}");
        }
    }
}
