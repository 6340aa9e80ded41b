//! JSON of which the end may be missing: members of an object and elements of an array, one after the other, as far as
//! the bytes go. What is skipped is not verified, and nothing is built.

use std::borrow::Cow;

/// Longest text that is taken out of its escapes, bytes: a name is far shorter, a document of GraphQL is told by its
/// beginning.
const TEXT_BYTES: usize = 16 * 1024;

/// A value, as far as it was seen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Text(Text<'a>),
    Object(Members<'a>),
    Array(Elements<'a>),
    /// Digits, sign, point and exponent, or a word; `None`: its end was not seen.
    Plain(Option<&'a [u8]>),
}

/// A string between its quotes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a> {
    raw: &'a [u8],
    escaped: bool,
    /// Its end was seen.
    pub(super) whole: bool,
}

/// What is left of an object, behind its brace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Members<'a>(List<'a>);

/// What is left of an array, behind its bracket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Elements<'a>(List<'a>);

#[derive(Clone, Copy, Debug)]
struct List<'a> {
    rest: &'a [u8],
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    First,
    Further,
    /// The closing brace or bracket was there.
    Ended,
    /// The bytes ended before it, or are no JSON.
    Cut,
}

/// The first value in `bytes`.
pub(super) fn value(bytes: &[u8]) -> Option<Value<'_>> {
    let (value, _) = take(bytes.trim_ascii_start());
    value
}

impl<'a> Value<'a> {
    pub(super) const fn text(self) -> Option<Text<'a>> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    pub(super) const fn object(self) -> Option<Members<'a>> {
        if let Self::Object(members) = self { Some(members) } else { None }
    }

    pub(super) fn integer(self) -> Option<i64> {
        let Self::Plain(Some(digits)) = self else { return None };
        str::from_utf8(digits).ok()?.parse().ok()
    }

    pub(super) fn is(self, word: &str) -> bool {
        matches!(self, Self::Plain(Some(plain)) if plain == word.as_bytes())
    }
}

impl<'a> Text<'a> {
    pub(super) fn is(&self, text: &str) -> bool {
        self.whole && *self.unescaped() == *text.as_bytes()
    }

    /// What it says, as far as it was seen and bounded.
    pub(super) fn unescaped(&self) -> Cow<'a, [u8]> {
        if !self.escaped {
            return Cow::Borrowed(self.raw);
        }
        let mut said = Vec::with_capacity(self.raw.len().min(TEXT_BYTES));
        let mut rest = self.raw;
        while said.len() < TEXT_BYTES
            && let Some((&byte, after)) = rest.split_first()
        {
            rest = after;
            if byte != b'\\' {
                said.push(byte);
                continue;
            }
            let Some((&kind, after)) = rest.split_first() else { break };
            rest = after;
            match kind {
                b'b' => said.push(8),
                b'f' => said.push(12),
                b'n' => said.push(b'\n'),
                b'r' => said.push(b'\r'),
                b't' => said.push(b'\t'),
                b'u' => {
                    let Some((digits, after)) = rest.split_at_checked(4) else { break };
                    rest = after;
                    let code = str::from_utf8(digits).ok().and_then(|digits| u32::from_str_radix(digits, 16).ok());
                    // Halves of a pair stand in no name that is looked for.
                    let char = code.and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER);
                    said.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
                }
                other => said.push(other),
            }
        }
        Cow::Owned(said)
    }
}

impl<'a> Members<'a> {
    /// The object was seen to its end. Only true once no member is left.
    pub(super) fn is_whole(&self) -> bool {
        self.0.state == State::Ended
    }

    /// The last member of that name, which is the one that most parsers take.
    pub(super) fn find(mut self, name: &str) -> Option<Value<'a>> {
        let mut found = None;
        while let Some((key, value)) = self.step() {
            if key.is(name) {
                found = Some(value);
            }
        }
        found
    }

    /// The next member.
    pub(super) fn step(&mut self) -> Option<(Text<'a>, Value<'a>)> {
        self.0.begin(b'}')?;
        let (key, rest) = take(self.0.rest);
        let member = key.and_then(Value::text).filter(|key| key.whole).and_then(|key| {
            let rest = rest.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
            let (value, rest) = take(rest);
            self.0.rest = rest;
            Some((key, value?))
        });
        if member.is_none() {
            self.0.state = State::Cut;
        }
        member
    }
}

impl<'a> Elements<'a> {
    /// The array was seen to its end. Only true once no element is left.
    pub(super) fn is_whole(&self) -> bool {
        self.0.state == State::Ended
    }

    /// The next element.
    pub(super) fn step(&mut self) -> Option<Value<'a>> {
        self.0.begin(b']')?;
        let (value, rest) = take(self.0.rest);
        self.0.rest = rest;
        if value.is_none() {
            self.0.state = State::Cut;
        }
        value
    }
}

impl List<'_> {
    /// Stand before the next item; `None` where there is none.
    fn begin(&mut self, close: u8) -> Option<()> {
        let rest = self.rest.trim_ascii_start();
        let comma = self.state == State::Further;
        self.rest = match (self.state, rest.split_first()) {
            (State::Ended | State::Cut, _) => return None,
            (_, Some((&byte, after))) if byte == close => {
                self.state = State::Ended;
                self.rest = after;
                return None;
            }
            (_, Some((b',', after))) if comma => after.trim_ascii_start(),
            (_, Some(_)) if !comma => rest,
            _ => {
                self.state = State::Cut;
                return None;
            }
        };
        self.state = State::Further;
        Some(())
    }
}

/// The value at the very beginning, and what follows it.
fn take(bytes: &[u8]) -> (Option<Value<'_>>, &[u8]) {
    let Some((&first, after)) = bytes.split_first() else { return (None, bytes) };
    match first {
        b'"' => {
            let (text, rest) = text(after);
            (Some(Value::Text(text)), rest)
        }
        b'{' => (Some(Value::Object(Members(List { rest: after, state: State::First }))), behind(after)),
        b'[' => (Some(Value::Array(Elements(List { rest: after, state: State::First }))), behind(after)),
        b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => {
            let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
            let len = bytes.iter().take_while(|byte| is_plain(byte)).count();
            let (plain, rest) = bytes.split_at_checked(len).unwrap_or((bytes, &[]));
            (Some(Value::Plain((!rest.is_empty()).then_some(plain))), rest)
        }
        _ => (None, bytes),
    }
}

/// The string that begins behind a quote.
fn text(bytes: &[u8]) -> (Text<'_>, &[u8]) {
    let mut escaped = false;
    let mut at = 0;
    while let Some(found) = bytes.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found;
        if bytes.get(at) == Some(&b'"') {
            let (raw, rest) = bytes.split_at_checked(at).unwrap_or((bytes, &[]));
            return (Text { raw, escaped, whole: true }, rest.get(1..).unwrap_or_default());
        }
        escaped = true;
        at += 2;
    }
    (Text { raw: bytes, escaped, whole: false }, &[])
}

/// What follows the brace or bracket that closes the one before `bytes`.
fn behind(bytes: &[u8]) -> &[u8] {
    let mut depth = 1_usize;
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'"' => rest = text(after).1,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            _ => {}
        }
    }
    rest
}
