//! The language of GraphQL, as far as it takes to tell an executable document from any other text, and its operations
//! from each other (section 2 of its specification). Every token is looked at, and none is kept but a name.

use std::sync::Arc;

use super::identifier;
use crate::model::OperationType;

/// An operation of a document; what is not known of it is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) name: Option<Arc<str>>,
    pub(super) kind: Option<OperationType>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Name(&'a [u8]),
    /// A name that ends where the bytes do: it may be longer.
    CutName,
    /// One of `! $ & ( ) : = @ [ ] { | }`; a point stands for three.
    Punctuator(u8),
    /// A string or a number.
    Value,
    End,
}

enum Definition<'a> {
    Operation(OperationType, Option<&'a [u8]>),
    Fragment,
}

/// The bytes are none of the language.
#[derive(Clone, Copy, Debug)]
struct Foreign;

struct Lexer<'a> {
    rest: &'a [u8],
    /// The document does not go on behind `rest`.
    whole: bool,
}

/// The operation of `document` that is named `wanted`, or its only one. `None` when it is no executable document.
/// `whole`: its end was seen.
pub(super) fn operation(document: &[u8], whole: bool, wanted: Option<&[u8]>) -> Option<Operation> {
    let mut lexer = Lexer { rest: document, whole };
    let mut definitions = 0_usize;
    let mut operations = 0_usize;
    let mut found = None;
    while let Some(definition) = lexer.definition().ok()? {
        definitions = definitions.saturating_add(1);
        let Definition::Operation(kind, name) = definition else { continue };
        operations = operations.saturating_add(1);
        if wanted.is_none() || name == wanted {
            found.get_or_insert((kind, name));
        }
    }
    if definitions == 0 {
        return None;
    }
    Some(match (wanted, found) {
        (Some(wanted), found) => Operation { name: identifier(wanted, b""), kind: found.map(|(kind, _)| kind) },
        // Of several one has to be named.
        (None, Some((kind, name))) if operations == 1 => {
            Operation { name: name.and_then(|name| identifier(name, b"")), kind: Some(kind) }
        }
        (None, _) => Operation::default(),
    })
}

impl<'a> Lexer<'a> {
    /// The next definition; `None` at the end, wherever that is.
    fn definition(&mut self) -> Result<Option<Definition<'a>>, Foreign> {
        let mut token = self.token()?;
        if token == Token::Value {
            // A description.
            token = self.token()?;
        }
        let kind = match token {
            Token::End | Token::CutName => return Ok(None),
            Token::Punctuator(b'{') => {
                self.selection()?;
                return Ok(Some(Definition::Operation(OperationType::Query, None)));
            }
            Token::Name(b"query") => Some(OperationType::Query),
            Token::Name(b"mutation") => Some(OperationType::Mutation),
            Token::Name(b"subscription") => Some(OperationType::Subscription),
            Token::Name(b"fragment") => None,
            _ => return Err(Foreign),
        };
        let mut name = None;
        let mut names = 0;
        loop {
            match self.token()? {
                // A fragment has its own, `on` and that of a type.
                Token::Name(said) if names == 0 || (kind.is_none() && names < 3) => {
                    names += 1;
                    name = Some(said);
                }
                Token::Punctuator(b'(') => self.variables()?,
                Token::Punctuator(b'@') => match self.token()? {
                    Token::Name(_) | Token::CutName | Token::End => {}
                    _ => return Err(Foreign),
                },
                Token::Punctuator(b'{') => {
                    self.selection()?;
                    break;
                }
                Token::CutName => break,
                Token::End if !self.whole => break,
                _ => return Err(Foreign),
            }
        }
        Ok(Some(kind.map_or(Definition::Fragment, |kind| Definition::Operation(kind, name))))
    }

    /// Definitions of variables, or arguments of a directive, behind their parenthesis.
    fn variables(&mut self) -> Result<(), Foreign> {
        let mut depth = 1_usize;
        while depth > 0 {
            match self.token()? {
                Token::Punctuator(b'(') => depth += 1,
                Token::Punctuator(b')') => depth -= 1,
                Token::End => return if self.whole { Err(Foreign) } else { Ok(()) },
                _ => {}
            }
        }
        Ok(())
    }

    /// A selection set behind its brace.
    fn selection(&mut self) -> Result<(), Foreign> {
        let (mut braces, mut parentheses, mut is_first) = (1_usize, 0_usize, true);
        while braces > 0 {
            let token = self.token()?;
            match token {
                Token::End => return if self.whole { Err(Foreign) } else { Ok(()) },
                Token::Name(_) | Token::CutName | Token::Punctuator(b'.') => {}
                _ if is_first => return Err(Foreign),
                Token::Punctuator(b'{') => braces += 1,
                Token::Punctuator(b'}') => braces -= 1,
                Token::Punctuator(b'(') => parentheses += 1,
                Token::Punctuator(b')') => parentheses = parentheses.checked_sub(1).ok_or(Foreign)?,
                Token::Punctuator(b'@' | b':') => {}
                // Values stand among arguments alone, and definitions nowhere here.
                Token::Punctuator(b'=') => return Err(Foreign),
                _ if parentheses == 0 => return Err(Foreign),
                _ => {}
            }
            is_first = false;
        }
        if parentheses == 0 { Ok(()) } else { Err(Foreign) }
    }

    fn token(&mut self) -> Result<Token<'a>, Foreign> {
        self.skip_ignored();
        let Some((&first, after)) = self.rest.split_first() else { return Ok(Token::End) };
        match first {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                let name = self.take_while(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                Ok(if self.rest.is_empty() && !self.whole { Token::CutName } else { Token::Name(name) })
            }
            b'!' | b'$' | b'&' | b'(' | b')' | b':' | b'=' | b'@' | b'[' | b']' | b'{' | b'|' | b'}' => {
                self.rest = after;
                Ok(Token::Punctuator(first))
            }
            b'.' => {
                let points = self.take_while(|byte| byte == b'.').len();
                match points {
                    3 => Ok(Token::Punctuator(b'.')),
                    1 | 2 if self.rest.is_empty() && !self.whole => Ok(Token::End),
                    _ => Err(Foreign),
                }
            }
            b'-' | b'0'..=b'9' => {
                self.take_while(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E'));
                Ok(Token::Value)
            }
            b'"' => self.string(),
            _ => Err(Foreign),
        }
    }

    fn string(&mut self) -> Result<Token<'a>, Foreign> {
        let (mut rest, is_block) = match self.rest.strip_prefix(b"\"\"\"") {
            Some(rest) => (rest, true),
            None => (self.rest.get(1..).unwrap_or_default(), false),
        };
        loop {
            let Some(at) = memchr::memchr2(b'"', b'\\', rest) else {
                self.rest = &[];
                return if self.whole { Err(Foreign) } else { Ok(Token::End) };
            };
            rest = rest.get(at..).unwrap_or_default();
            if rest.first() == Some(&b'\\') {
                // A block has one escape alone, of three quotes.
                let len = if is_block && !rest.starts_with(b"\\\"\"\"") {
                    1
                } else if is_block {
                    4
                } else {
                    2
                };
                rest = rest.get(len..).unwrap_or_default();
            } else if !is_block || rest.starts_with(b"\"\"\"") {
                self.rest = rest.get(if is_block { 3 } else { 1 }..).unwrap_or_default();
                return Ok(Token::Value);
            } else {
                rest = rest.get(1..).unwrap_or_default();
            }
        }
    }

    /// White space, commas, comments and the mark of the byte order.
    fn skip_ignored(&mut self) {
        loop {
            self.take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b','));
            if let Some(rest) = self.rest.strip_prefix(b"\xef\xbb\xbf") {
                self.rest = rest;
            } else if self.rest.first() == Some(&b'#') {
                self.take_while(|byte| !matches!(byte, b'\r' | b'\n'));
            } else {
                return;
            }
        }
    }

    fn take_while(&mut self, takes: impl Fn(u8) -> bool) -> &'a [u8] {
        let len = self.rest.iter().take_while(|byte| takes(**byte)).count();
        let (taken, rest) = self.rest.split_at_checked(len).unwrap_or((self.rest, &[]));
        self.rest = rest;
        taken
    }
}
