//! GraphQL over HTTP: the operation's name and type, from a document of JSON, a bare one, or the query of a GET. The
//! document and its variables are passed over.

mod document;

use std::borrow::Cow;

use self::document::{Operation, operation};
use super::json::{self, Elements, Members, Text, Value};
use super::{Call, Document, identifier};
use crate::model::{Application, Batch, Graphql};

/// Parameters of a GET that are looked at; GraphQL has four.
const PARAMETERS: usize = 32;

/// What a request says (GraphQL over HTTP, section 5), as far as it was seen.
#[derive(Debug, Default)]
struct Said<'a> {
    query: Option<Cow<'a, [u8]>>,
    /// The query was seen to its end.
    query_whole: bool,
    operation_name: Option<Cow<'a, [u8]>>,
    has_variables: bool,
    /// The server knows the document by a hash.
    is_persisted: bool,
    /// Nothing was cut off that might say more.
    whole: bool,
}

pub(super) fn recognise(call: &Call<'_>) -> Option<Application> {
    let found = match call.kind {
        Some(kind) if kind.eq_ignore_ascii_case(b"application/graphql") => {
            let document = Document::of(&call.request.headers, &call.request.body)?;
            operation(&document.bytes, document.whole, None).map(Graphql::from)
        }
        _ if &*call.request.method == b"GET" => Said::in_target(&call.request.target)?.operation().map(Graphql::from),
        _ => {
            let document = call.json().filter(|it| it.has("\"query\"") || it.has("\"operationName\""))?;
            match json::value(&document.bytes)? {
                Value::Object(members) => Said::in_object(members).operation().map(Graphql::from),
                Value::Array(elements) => batch(elements),
                _ => None,
            }
        }
    };
    found.map(Application::Graphql)
}

/// Requests that travel as one.
fn batch(mut elements: Elements<'_>) -> Option<Graphql> {
    let mut size = 0_u32;
    while let Some(element) = elements.step() {
        let said = Said::in_object(element.object()?);
        // Of a cut one nothing may be known; the first has to be one, and every other that is whole.
        if said.operation().is_none() && (size == 0 || said.whole) {
            return None;
        }
        size = size.saturating_add(1);
    }
    let batch = Some(Batch { size, exact: elements.is_whole() });
    (size > 0).then(|| Graphql { batch, ..Graphql::default() })
}

impl<'a> Said<'a> {
    fn in_object(mut members: Members<'a>) -> Self {
        let mut said = Self::default();
        let whole = |text: Text<'a>| text.whole.then(|| text.unescaped());
        while let Some((key, value)) = members.step() {
            let Cow::Borrowed(key) = key.unescaped() else { continue };
            match key {
                b"query" => {
                    said.query = value.text().map(|text| text.unescaped());
                    said.query_whole = value.text().is_some_and(|text| text.whole);
                }
                b"operationName" => said.operation_name = value.text().and_then(whole),
                b"variables" => said.has_variables = true,
                b"extensions" => {
                    let persisted = |extensions: Members<'a>| extensions.find("persistedQuery").is_some();
                    said.is_persisted = value.object().is_some_and(persisted);
                }
                _ => {}
            }
        }
        said.whole = members.is_whole();
        said
    }

    /// `None` where the target has none of the parameters.
    fn in_target(target: &'a [u8]) -> Option<Self> {
        let at = memchr::memchr(b'?', target)?;
        let mut said = Self { query_whole: true, whole: true, ..Self::default() };
        for pair in target.get(at + 1..)?.split(|&byte| byte == b'&').take(PARAMETERS) {
            let mut parts = pair.splitn(2, |&byte| byte == b'=');
            let (key, value) = (parts.next()?, parts.next().unwrap_or_default());
            match key {
                b"query" => said.query = Some(decoded(value)),
                b"operationName" => said.operation_name = Some(decoded(value)),
                b"extensions" => said.is_persisted = memchr::memmem::find(value, b"persistedQuery").is_some(),
                _ => {}
            }
        }
        Some(said)
    }

    /// The operation that is to be executed; `None` where this is no request of GraphQL.
    fn operation(&self) -> Option<Operation> {
        let wanted = self.operation_name.as_deref().filter(|name| !name.is_empty());
        if let Some(query) = self.query.as_deref().filter(|query| !query.is_empty()) {
            return operation(query, self.query_whole, wanted);
        }
        // The document is known already, or comes behind variables that are longer than what was kept.
        let cut = !self.whole && self.has_variables;
        let name = wanted.and_then(|name| identifier(name, b""));
        (self.is_persisted || (cut && name.is_some())).then_some(Operation { name, kind: None })
    }
}

impl From<Operation> for Graphql {
    fn from(Operation { name, kind }: Operation) -> Self {
        Self { operation_name: name, operation_type: kind, batch: None }
    }
}

/// A value of `application/x-www-form-urlencoded`.
fn decoded(value: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr2(b'%', b'+', value).is_none() {
        return Cow::Borrowed(value);
    }
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut said = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        said.push(match (byte, digit(after.first()), digit(after.get(1))) {
            (b'%', Some(high), Some(low)) => {
                rest = after.get(2..).unwrap_or_default();
                (high << 4 | low) as u8
            }
            (b'+', ..) => b' ',
            _ => byte,
        });
    }
    Cow::Owned(said)
}
