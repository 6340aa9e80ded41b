//! Recordings of kernel records: for replay, benchmarks and bug reports.
//!
//! A recording holds what processes exchanged, secrets included: it is created readable by its owner only.
//!
//! Format, native byte order: the magic `WEIRREC1`, `u64` nanoseconds to add to kernel times for the wall clock, `u64`
//! seed of trace ids, then per record its `u32` length and its bytes as the ring buffer held them.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

const MAGIC: &[u8; 8] = b"WEIRREC1";
const HEADER: usize = 24;
/// Longer than any record: a longer length is damage.
const RECORD_MAX: usize = 1 << 20;

/// Writes a recording up to a size.
#[derive(Debug)]
pub struct Recorder {
    out: BufWriter<File>,
    left: u64,
    pub records: u64,
    /// Records that did not fit, or could not be written.
    pub refused: u64,
    error: Option<io::Error>,
}

/// A recording in memory.
#[derive(Debug)]
pub struct Recording {
    bytes: Vec<u8>,
    /// Start of each record's bytes and their number.
    records: Vec<(usize, usize)>,
    pub wall_offset_ns: u64,
    pub seed: u64,
}

impl Recorder {
    /// Create `path`, which must not exist.
    pub fn create(path: &Path, wall_offset_ns: u64, seed: u64, max_bytes: u64) -> Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(MAGIC)
            .and_then(|()| out.write_all(&wall_offset_ns.to_ne_bytes()))
            .and_then(|()| out.write_all(&seed.to_ne_bytes()))
            .with_context(|| format!("cannot write to {}", path.display()))?;
        Ok(Self { out, left: max_bytes.saturating_sub(HEADER as u64), records: 0, refused: 0, error: None })
    }

    /// Append one record; what does not fit is counted.
    pub fn push(&mut self, record: &[u8]) {
        let size = 4 + record.len() as u64;
        if size > self.left || self.error.is_some() {
            self.refused += 1;
            return;
        }
        let written =
            self.out.write_all(&(record.len() as u32).to_ne_bytes()).and_then(|()| self.out.write_all(record));
        match written {
            Ok(()) => {
                self.left -= size;
                self.records += 1;
            }
            Err(error) => {
                self.error = Some(error);
                self.refused += 1;
            }
        }
    }

    /// Nothing more fits.
    pub const fn is_full(&self) -> bool {
        self.refused > 0
    }

    /// Write what is buffered. Returns how many records were written and refused.
    pub fn finish(mut self) -> Result<(u64, u64)> {
        if let Some(error) = self.error {
            return Err(error).context("cannot write the recording");
        }
        self.out.flush().context("cannot write the recording")?;
        Ok((self.records, self.refused))
    }
}

impl Recording {
    /// Read `path`. Errors name the file and the byte.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(bytes).with_context(|| format!("{} is not a whole recording", path.display()))
    }

    /// Index the bytes of a recording.
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        let number = |at: usize| -> Option<u64> {
            bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes)
        };
        let (Some(MAGIC), Some(wall_offset_ns), Some(seed)) = (bytes.first_chunk::<8>(), number(8), number(16)) else {
            bail!("it does not begin with the header of a recording (WEIRREC1)");
        };
        let mut records = Vec::new();
        let mut at = HEADER;
        while at < bytes.len() {
            let len = bytes
                .get(at..at + 4)
                .and_then(|bytes| bytes.try_into().ok())
                .map(|bytes| u32::from_ne_bytes(bytes) as usize);
            let Some(len) = len.filter(|len| *len <= RECORD_MAX) else { bail!("the record at byte {at} is damaged") };
            if bytes.len() - at - 4 < len {
                bail!("the record at byte {at} is cut short");
            }
            records.push((at + 4, len));
            at += 4 + len;
        }
        Ok(Self { bytes, records, wall_offset_ns, seed })
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The records in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.records.iter().map(|&(at, len)| self.bytes.get(at..at + len).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_was_recorded_is_read_back_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        let mut recorder = Recorder::create(&path, 7, 9, 1000).unwrap();
        for record in [&b"one"[..], b"", b"three"] {
            recorder.push(record);
        }
        assert_eq!(recorder.finish().unwrap(), (3, 0));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let recording = Recording::open(&path).unwrap();
        assert_eq!((recording.wall_offset_ns, recording.seed), (7, 9));
        assert_eq!(recording.iter().collect::<Vec<_>>(), [&b"one"[..], b"", b"three"]);
        assert!(Recorder::create(&path, 0, 0, 1000).is_err(), "an existing file is left alone");
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::create(&folder.path().join("r"), 0, 0, HEADER as u64 + 10).unwrap();
        recorder.push(b"123456");
        recorder.push(b"7");
        assert!(recorder.is_full());
        assert_eq!(recorder.finish().unwrap(), (1, 1));
    }

    #[test]
    fn every_cut_and_every_foreign_file_is_an_error_that_names_the_place() {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([0; 16]);
        bytes.extend(3_u32.to_ne_bytes());
        bytes.extend(b"abc");
        assert_eq!(Recording::parse(bytes.clone()).unwrap().len(), 1);
        for len in (0..bytes.len()).filter(|len| *len != HEADER) {
            assert!(Recording::parse(bytes[..len].to_vec()).is_err(), "cut at {len}");
        }
        bytes.extend(u32::MAX.to_ne_bytes());
        assert!(Recording::parse(bytes).unwrap_err().to_string().contains("byte 31"));
        assert!(Recording::parse(b"\x7fELF".to_vec()).is_err());
    }
}
