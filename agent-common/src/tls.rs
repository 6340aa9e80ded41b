//! What a probe on a function of a TLS library must know: where the arguments are, and where the object keeps what
//! names its connection. The agent finds it in the file, the kernel programs read it.

/// How a function is called, see [`Cookie::form`].
pub mod form {
    /// `int f(object, buffer, len)`: bytes moved, or zero and less.
    pub const INT: u8 = 0;
    /// `int f(object, buffer, len, size_t *moved)`: 1 on success.
    pub const OUT4: u8 = 1;
    /// `int f(object, buffer, len, flags, size_t *moved)`: 1 on success.
    pub const OUT5: u8 = 2;
    /// `ssize_t f(object, buffer, len, ..)`.
    pub const SIZE: u8 = 3;
    /// `ssize_t f(object, ..)`: bytes moved that are in no buffer (`SSL_sendfile`).
    pub const NO_BUFFER: u8 = 4;
    /// `f(object, &Payload)`, rustls: a word, then pointer and length.
    pub const PAYLOAD: u8 = 5;
    /// `size_t f(object, &OutboundChunks, ..)`, rustls: 0, pointer, length; or pointer and number of slices, start, end.
    /// Gives the number of bytes that it accepted; the caller presents the rest again.
    pub const CHUNKS: u8 = 6;
    /// `crypto/tls.(*Conn).Write` of Go at the branch of its stack check: object, pointer and length in the first
    /// integer registers of ABIInternal. Nothing happens when the branch is taken: the function begins again.
    pub const GO_WRITE: u8 = 7;
    /// `crypto/tls.(*Conn).Read` of Go, at the branch of its stack check.
    pub const GO_READ: u8 = 8;
    /// The call of `runtime.memmove` in `crypto/tls.(*Conn).Read`: source and length in the second and third registers.
    pub const GO_READ_COPY: u8 = 9;
    /// The call of `memcpy` with which OpenSSL's `ssl3_read_bytes` gives content of records to its caller: source and
    /// length are the second and third argument; [`Layout`](super::Layout) says where the function keeps the object,
    /// the content type and whether the caller only peeks.
    pub const READ_COPY: u8 = 10;
    /// `do_ssl3_write(object, type, buffer, size_t lengths[count], count, ..)` of OpenSSL 3.0 and 3.1: makes records, each
    /// content once.
    pub const RECORDS: u8 = 11;
}

/// An offset that is not known.
pub const UNKNOWN: u16 = u16::MAX;

/// The place of a value that a function keeps in a register, by the number that instructions have for it; other places
/// are distances in bytes from the stack pointer.
pub const fn register(number: u8) -> u16 {
    REGISTER | number as u16
}

/// Marks places that are registers.
pub const REGISTER: u16 = 0x8000;

/// Where a TLS object keeps what the programs read. Offsets in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Of a pointer in the object through which `random` is reached; [`UNKNOWN`]: `random` is in the object itself.
    pub random_base: u16,
    /// Of the 32 bytes of `ClientHello.random` (RFC 8446 section 4.1.2); [`UNKNOWN`]: cannot be read.
    pub random: u16,
    /// Of a byte that is not zero, under `server_mask`, when the object is the server's; [`UNKNOWN`]: cannot be read.
    pub server: u16,
    pub server_mask: u8,
    pub padding: u8,
    /// The [place](register) of the object's address at a [`form::GO_READ_COPY`] or [`form::READ_COPY`];
    /// [`UNKNOWN`]: it was kept when the call began.
    pub object: u16,
    /// At a [`form::READ_COPY`]: the place of the `ContentType` that is asked for (one byte).
    pub content_type: u16,
    /// At a [`form::READ_COPY`]: the place of an `int` that is not zero when the bytes will be read again.
    pub peek: u16,
    pub reserved: u16,
}
const _: () = assert!(size_of::<Layout>() == 16);

impl Layout {
    /// Nothing is known of the object.
    pub const NONE: Self = Self {
        random_base: UNKNOWN,
        random: UNKNOWN,
        server: UNKNOWN,
        server_mask: 0,
        padding: 0,
        object: UNKNOWN,
        content_type: UNKNOWN,
        peek: UNKNOWN,
        reserved: 0,
    };
}

// SAFETY: `repr(C)` without implicit padding, every bit pattern valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Layout {}

/// What a library's probes share.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    pub layout: Layout,
    /// `CLOCK_MONOTONIC` when all its probes were attached; connections older than this were met late.
    pub since_ns: u64,
}
const _: () = assert!(size_of::<Watched>() == 24);

// SAFETY: `repr(C)` without implicit padding, every bit pattern valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Watched {}

/// What an attachment tells its program (`bpf_get_attach_cookie`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Index of the [`Watched`] in the map of libraries.
    pub layout: u16,
    /// One of [`form`].
    pub form: u8,
    /// One of [`crate::event::direction`].
    pub direction: u8,
    /// One of [`crate::event::backend`].
    pub backend: u8,
}

impl Cookie {
    pub const fn to_word(self) -> u64 {
        self.layout as u64 | (self.form as u64) << 16 | (self.direction as u64) << 24 | (self.backend as u64) << 32
    }

    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            layout: word as u16,
            form: (word >> 16) as u8,
            direction: (word >> 24) as u8,
            backend: (word >> 32) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_survives_its_word() {
        let cookie = Cookie { layout: 0x1234, form: 9, direction: 1, backend: 0xfe };
        assert_eq!(Cookie::from_word(cookie.to_word()), cookie);
    }
}
