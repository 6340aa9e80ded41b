//! `/proc/PID/maps`: which files a process executes. Pure.

use super::FileKey;

/// An executable mapping of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping<'a> {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) key: FileKey,
    /// As the process sees it, without the mark of a deleted file.
    pub(super) path: &'a str,
}

impl Mapping<'_> {
    /// Bytes.
    pub(super) const fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// Executable file mappings of `text`; a line that is none is passed over.
pub(super) fn executable(text: &str) -> impl Iterator<Item = Mapping<'_>> {
    text.lines().filter_map(parse)
}

/// `start-end perms offset major:minor inode path` (proc_pid_maps(5)).
fn parse(line: &str) -> Option<Mapping<'_>> {
    let (range, rest) = line.split_once(' ')?;
    let (perms, rest) = rest.split_once(' ')?;
    if perms.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let (_offset, rest) = rest.split_once(' ')?;
    let (device, rest) = rest.split_once(' ')?;
    let (inode, path) = rest.split_once(' ').unwrap_or((rest, ""));
    let (start, end) = range.split_once('-')?;
    let (major, minor) = device.split_once(':')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let inode = inode.parse().ok().filter(|inode| *inode != 0)?;
    let path = path.trim_start();
    Some(Mapping {
        start: hex(start)?,
        end: hex(end)?,
        key: FileKey { major: u32::try_from(hex(major)?).ok()?, minor: u32::try_from(hex(minor)?).ok()?, inode },
        path: path.strip_suffix(" (deleted)").unwrap_or(path),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_files_are_found_and_nothing_else() {
        let text = "\
55d0c8a00000-55d0c8a02000 r--p 00000000 fe:00 247282                     /usr/bin/head
55d0c8a02000-55d0c8a08000 r-xp 00002000 fe:00 247282                     /usr/bin/head
7f3a5a46a000-7f3a5a5c0000 r-xp 00026000 103:01 326279                    /usr/lib/with space/libc.so.6 (deleted)
7f3a5a700000-7f3a5a701000 rwxp 00000000 00:00 0
7ffd4b1f5000-7ffd4b1f7000 r-xp 00000000 00:00 0                          [vdso]
nonsense
";
        let found: Vec<_> = executable(text).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].key, FileKey { major: 0xfe, minor: 0, inode: 247_282 });
        assert_eq!((found[0].start, found[0].end), (0x55d0_c8a0_2000, 0x55d0_c8a0_8000));
        assert_eq!(found[1].key, FileKey { major: 0x103, minor: 1, inode: 326_279 });
        assert_eq!(found[1].path, "/usr/lib/with space/libc.so.6");
    }

    #[test]
    fn no_line_panics() {
        for line in
            ["", " ", "a-b", "0-1 r-xp", "0-1 r-xp 0 0:0", "0-1 r-xp 0 0:0 9", "x-y r-xp 0 z:0 9 /a", "0-1 ééx 0"]
        {
            _ = executable(line).count();
        }
        assert_eq!(executable("0-1 r-xp 0 0:0 9").count(), 1);
    }
}
