//! The tables of HPACK (RFC 7541 section 2.3): static entries, and those that the encoder adds.

use std::collections::VecDeque;

/// RFC 7541 appendix A, from index 1.
#[rustfmt::skip]
const STATIC: [(&[u8], &[u8]); 61] = [
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

/// One direction's table: newest entry first.
#[derive(Debug)]
pub(super) struct Table {
    entries: VecDeque<Entry>,
    /// By the count of section 4.1.
    size: usize,
    /// What the encoder keeps.
    limit: usize,
    /// Older entries than the ones here may exist.
    partial: bool,
}

/// A field; `None` where it named an entry that is not known.
#[derive(Debug)]
struct Entry {
    bytes: Box<[u8]>,
    name: Option<usize>,
    value: bool,
}

/// Name and value of an entry, as far as they are known.
pub(super) type Known<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

impl Table {
    pub(super) fn new() -> Self {
        Self { entries: VecDeque::new(), size: 0, limit: DEFAULT_BYTES, partial: false }
    }

    pub(super) fn joined() -> Self {
        Self { limit: MAX_BYTES, partial: true, ..Self::new() }
    }

    /// Indexes count from the newest entry: what is inserted from now on is exact, what there was is not known.
    pub(super) fn lose(&mut self) {
        self.entries.clear();
        self.size = 0;
        self.limit = MAX_BYTES;
        self.partial = true;
    }

    /// `None`: there is no such entry.
    pub(super) fn get(&self, index: usize) -> Option<Known<'_>> {
        let index = index.checked_sub(1)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Some((Some(name), Some(value)));
        }
        match self.entries.get(index - STATIC.len()) {
            Some(entry) => Some(entry.known()),
            None => self.partial.then_some((None, None)),
        }
    }

    /// The encoder keeps that many bytes from now on (section 4.3).
    pub(super) fn resize(&mut self, bytes: usize) {
        self.partial |= bytes > MAX_BYTES;
        self.limit = bytes.min(MAX_BYTES);
        self.evict(0);
    }

    pub(super) fn insert(&mut self, name: Option<&[u8]>, value: Option<&[u8]>) {
        let size = name.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len) + OVERHEAD;
        self.evict(size);
        if size > self.limit {
            // An entry larger than the table empties it (section 4.4).
            return;
        }
        let bytes = [name.unwrap_or_default(), value.unwrap_or_default()].concat().into_boxed_slice();
        self.size += size;
        self.entries.push_front(Entry { bytes, name: name.map(<[u8]>::len), value: value.is_some() });
    }

    fn evict(&mut self, room: usize) {
        while self.size + room > self.limit
            && let Some(entry) = self.entries.pop_back()
        {
            self.size -= entry.bytes.len() + OVERHEAD;
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.size + self.entries.capacity() * size_of::<Entry>()
    }
}

impl Entry {
    fn known(&self) -> Known<'_> {
        let (name, value) = self.bytes.split_at_checked(self.name.unwrap_or_default()).unwrap_or_default();
        (self.name.map(|_| name), self.value.then_some(value))
    }
}
