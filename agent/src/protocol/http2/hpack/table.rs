//! The tables of HPACK (RFC 7541 section 2.3): static entries, and those that the encoder adds.

use std::collections::VecDeque;

/// RFC 7541 appendix A, from index 1.
#[rustfmt::skip]
pub(super) const STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

/// Counted for each entry beside its bytes (RFC 7541 section 4.1).
const OVERHEAD: usize = 32;
/// `SETTINGS_HEADER_TABLE_SIZE` before any is sent (RFC 9113 section 6.5.2).
const DEFAULT_BYTES: usize = 4096;
/// Most that is kept for one direction. Encoders that are allowed more are followed: entries beyond are not known.
const MAX_BYTES: usize = 64 * 1024;
/// The same while it is not known what the encoder keeps: few keep more than the default.
const UNKNOWN_BYTES: usize = 16 * 1024;
/// Longest name that is kept: three bytes of a block refer to a name, add it anew, and have it copied.
const MAX_NAME: usize = 1024;
/// Marks a name that is not known.
const UNKNOWN: u32 = u32::MAX;

/// One direction's table: newest entry first.
#[derive(Debug)]
pub(super) struct Table {
    entries: VecDeque<Entry>,
    /// Names and values, oldest first; those of evicted entries go when they are more than half.
    bytes: Vec<u8>,
    /// What was ever removed from the beginning of `bytes`; it may wrap.
    removed: u32,
    /// By the count of section 4.1.
    size: usize,
    /// What the encoder keeps.
    limit: usize,
    /// Older entries than the ones here may exist.
    partial: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where its bytes begin, counted like `removed`.
    start: u32,
    /// Bytes of the name, or `UNKNOWN`; the value follows.
    name: u32,
    value: u32,
    /// By the count of section 4.1, as far as it is known.
    size: u32,
}

/// Name and value of an entry, as far as they are known.
pub(super) type Known<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

impl Table {
    pub(super) fn new() -> Self {
        Self { entries: VecDeque::new(), bytes: Vec::new(), removed: 0, size: 0, limit: DEFAULT_BYTES, partial: false }
    }

    pub(super) fn joined() -> Self {
        Self { limit: UNKNOWN_BYTES, partial: true, ..Self::new() }
    }

    /// Indexes count from the newest entry: what is inserted from now on is exact, what there was is not known.
    pub(super) fn lose(&mut self) {
        self.entries.clear();
        self.bytes.clear();
        self.size = 0;
        self.limit = UNKNOWN_BYTES;
        self.partial = true;
    }

    /// `None`: there is no such entry.
    pub(super) fn get(&self, index: usize) -> Option<Known<'_>> {
        let index = index.checked_sub(1)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Some((Some(name), Some(value)));
        }
        match self.entries.get(index - STATIC.len()) {
            Some(&entry) => Some(self.known(entry)),
            None => self.partial.then_some((None, None)),
        }
    }

    fn known(&self, entry: Entry) -> Known<'_> {
        let start = entry.start.wrapping_sub(self.removed) as usize;
        let bytes = self.bytes.get(start..).unwrap_or_default();
        if entry.name == UNKNOWN {
            return (None, bytes.get(..entry.value as usize));
        }
        let (name, rest) = bytes.split_at_checked(entry.name as usize).unwrap_or_default();
        (Some(name), rest.get(..entry.value as usize))
    }

    /// The encoder keeps that many bytes from now on (section 4.3).
    pub(super) fn resize(&mut self, bytes: usize) {
        self.partial |= bytes > MAX_BYTES;
        self.limit = bytes.min(MAX_BYTES);
        self.evict(0);
        self.compact();
    }

    /// Indexes of entries that are there grow by one. One whose name is not known counts for less than with the encoder
    /// and stays longer: no index leads to it then.
    pub(super) fn insert(&mut self, name: Option<&[u8]>, value: &[u8]) {
        let size = name.map_or(0, <[u8]>::len) + value.len() + OVERHEAD;
        self.evict(size);
        if size > self.limit {
            // An entry larger than the table empties it (section 4.4). Where the encoder keeps more than is kept here, its
            // indexes of this one and older ones lead behind all that comes, to what is not known.
            return;
        }
        let name = name.filter(|name| name.len() <= MAX_NAME);
        let start = self.removed.wrapping_add(self.bytes.len() as u32);
        self.bytes.extend_from_slice(name.unwrap_or_default());
        self.bytes.extend_from_slice(value);
        let name = name.map_or(UNKNOWN, |name| name.len() as u32);
        self.entries.push_front(Entry { start, name, value: value.len() as u32, size: size as u32 });
        self.size += size;
        self.compact();
    }

    fn evict(&mut self, room: usize) {
        while self.size + room > self.limit
            && let Some(entry) = self.entries.pop_back()
        {
            self.size -= entry.size as usize;
        }
    }

    /// Each byte is moved once for as many that came, or less.
    fn compact(&mut self) {
        let oldest = self.entries.back().map(|entry| entry.start.wrapping_sub(self.removed) as usize);
        let unused = oldest.unwrap_or(self.bytes.len());
        if unused > self.bytes.len() / 2 {
            self.bytes.drain(..unused);
            self.removed = self.removed.wrapping_add(unused as u32);
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry>()
    }
}
