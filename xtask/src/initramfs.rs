//! Files to an initramfs: the "newc" form of a cpio archive, as the kernel's own documentation of early user space
//! describes it (Documentation/driver-api/early-userspace/buffer-format.rst). Pure: entries in, bytes out.

/// One thing in the archive. Paths are relative to the root, without a leading slash; a directory comes before what
/// is in it.
pub(crate) enum Entry<'a> {
    Directory {
        path: &'a str,
    },
    /// A file with mode 755: everything we put in is run or read by root.
    File {
        path: &'a str,
        content: &'a [u8],
    },
    Link {
        path: &'a str,
        target: &'a str,
    },
    CharacterDevice {
        path: &'a str,
        major: u32,
        minor: u32,
    },
}

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// The archive. Uncompressed: the emulated machine would unpack slower than it copies.
pub(crate) fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        // Zero would be taken for a hard link to the first such entry.
        let inode = at as u32 + 1;
        match *entry {
            Entry::Directory { path } => append(&mut archive, inode, DIRECTORY, (0, 0), path, &[]),
            Entry::File { path, content } => append(&mut archive, inode, FILE, (0, 0), path, content),
            Entry::Link { path, target } => append(&mut archive, inode, LINK, (0, 0), path, target.as_bytes()),
            Entry::CharacterDevice { path, major, minor } => {
                append(&mut archive, inode, CHARACTER_DEVICE, (major, minor), path, &[]);
            }
        }
    }
    append(&mut archive, 0, 0, (0, 0), "TRAILER!!!", &[]);
    archive
}

fn append(archive: &mut Vec<u8>, inode: u32, mode: u32, device: (u32, u32), path: &str, content: &[u8]) {
    let links = 1;
    let (user, group, time, checksum, on_device) = (0, 0, 0, 0, (0, 0));
    let name_len = path.len() as u32 + 1;
    let content_len = content.len() as u32;
    archive.extend_from_slice(b"070701");
    for field in [
        inode,
        mode,
        user,
        group,
        links,
        time,
        content_len,
        on_device.0,
        on_device.1,
        device.0,
        device.1,
        name_len,
        checksum,
    ] {
        archive.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    archive.extend_from_slice(path.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(content);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Path, mode, device and content.
    type Found = (String, u32, (u32, u32), Vec<u8>);

    fn read(mut archive: &[u8]) -> Vec<Found> {
        let mut entries = Vec::new();
        let whole = archive.len();
        loop {
            let field = |at: usize| {
                let digits = std::str::from_utf8(&archive[6 + at * 8..14 + at * 8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            assert_eq!(&archive[..6], b"070701");
            let (mode, len, name_len) = (field(1), field(6) as usize, field(11) as usize);
            let device = (field(9), field(10));
            let name = String::from_utf8(archive[110..110 + name_len - 1].to_vec()).unwrap();
            let start = (110 + name_len).next_multiple_of(4);
            let content = archive[start..start + len].to_vec();
            archive = &archive[(start + len).next_multiple_of(4)..];
            assert_eq!((whole - archive.len()) % 4, 0);
            if name == "TRAILER!!!" {
                assert!(archive.is_empty());
                return entries;
            }
            entries.push((name, mode, device, content));
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        let entries = [
            Entry::Directory { path: "bin" },
            Entry::File { path: "bin/one", content: b"1" },
            Entry::File { path: "bin/four", content: b"1234" },
            Entry::File { path: "empty", content: b"" },
            Entry::Link { path: "bin/sh", target: "busybox" },
            Entry::CharacterDevice { path: "dev/console", major: 5, minor: 1 },
        ];
        let expected = [
            ("bin", 0o040_755, (0, 0), &b""[..]),
            ("bin/one", 0o100_755, (0, 0), b"1"),
            ("bin/four", 0o100_755, (0, 0), b"1234"),
            ("empty", 0o100_755, (0, 0), b""),
            ("bin/sh", 0o120_777, (0, 0), b"busybox"),
            ("dev/console", 0o020_600, (5, 1), b""),
        ];
        let expected = expected.map(|(path, mode, device, content)| (path.to_owned(), mode, device, content.to_vec()));
        assert_eq!(read(&archive(&entries)), expected);
    }

    #[test]
    fn an_empty_archive_is_a_trailer() {
        let archive = archive(&[]);
        assert!(archive.starts_with(b"070701") && archive.ends_with(b"TRAILER!!!\0\0\0\0"));
        assert_eq!(archive.len(), 124);
    }
}
