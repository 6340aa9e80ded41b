//! Path to route template with bounded cardinality.
//!
//! Never invents a route for an answer that says there is none (404 and the like), never grows beyond its limits, and
//! never panics, whatever the path.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Segments of a template; what is deeper becomes `/**`.
pub const SEGMENTS_MAX: usize = 20;

/// Bytes of a template; what is longer becomes `/**`.
pub const TEMPLATE_MAX: usize = 256;

/// A longer segment is taken for a value.
const LITERAL_MAX: usize = 40;

/// Longest name made from the previous segment.
const NAME_MAX: usize = 32;

const REST: &str = "**";

/// Maps a path to the low-cardinality template of its route (`http.route`).
pub trait RouteInference {
    /// The template of `path` as requested from `service`; `None` when it has none or is not known.
    ///
    /// `path` is the path of the request-target as sent (a query or fragment is ignored); `status` is that of the final
    /// response, if any.
    fn template(&mut self, service: &str, method: &str, path: &str, status: Option<u16>) -> Option<Arc<str>>;
}

/// How much [`TypedSegments`] remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteLimits {
    /// Services; the one not used for longest makes room.
    pub services: usize,
    /// Templates of one service: a service that answers every path cannot crowd out others.
    pub templates_per_service: usize,
    /// Templates of all services (about 150 bytes each).
    pub templates: usize,
}

/// What [`TypedSegments`] holds and gave up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteCounts {
    pub services: u64,
    pub templates: u64,
    /// Calls left without a template because a limit was reached.
    pub overflow: u64,
    /// Calls left without a template because their status does not tell that the route exists.
    pub unproven: u64,
    /// Services forgotten to make room.
    pub evicted_services: u64,
}

/// Replaces segments that look like values by `{name}`; every other segment stays as it is.
#[derive(Debug)]
pub struct TypedSegments {
    limits: RouteLimits,
    services: HashMap<Box<str>, Service>,
    counts: RouteCounts,
    clock: u64,
    scratch: Scratch,
}

#[derive(Debug, Default)]
struct Service {
    templates: HashSet<Arc<str>>,
    used: u64,
}

/// Buffers kept between calls, so that a known route costs no allocation.
#[derive(Debug, Default)]
struct Scratch {
    decoded: String,
    segments: Vec<(usize, usize)>,
    template: String,
}

/// What one segment looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Literal,
    /// Already a template's parameter.
    Parameter,
    Id,
    Uuid,
    Token,
    Number,
    Date,
    Email,
}

/// Counts of a segment's bytes, from one pass.
#[derive(Clone, Copy, Debug, Default)]
struct Census {
    digits: usize,
    lower: usize,
    upper: usize,
    hex_letters: usize,
    /// `-` and `_`.
    joins: usize,
    dots: usize,
    at: bool,
    other: usize,
    /// Changes between lower case, upper case and digits.
    changes: usize,
}

impl Default for RouteLimits {
    fn default() -> Self {
        Self { services: 1024, templates_per_service: 1000, templates: 20_000 }
    }
}

impl TypedSegments {
    pub fn new(limits: RouteLimits) -> Self {
        Self { limits, services: HashMap::new(), counts: RouteCounts::default(), clock: 0, scratch: Scratch::default() }
    }

    pub const fn counts(&self) -> RouteCounts {
        self.counts
    }

    /// Forget the service that was not used for longest.
    fn evict(&mut self) {
        let Some(oldest) = self.services.iter().min_by_key(|(_, service)| service.used).map(|(name, _)| name.clone())
        else {
            return;
        };
        if let Some(service) = self.services.remove(&oldest) {
            self.counts.templates -= service.templates.len() as u64;
            self.counts.services -= 1;
            self.counts.evicted_services += 1;
        }
    }
}

impl Default for TypedSegments {
    fn default() -> Self {
        Self::new(RouteLimits::default())
    }
}

impl RouteInference for TypedSegments {
    fn template(&mut self, service: &str, method: &str, path: &str, status: Option<u16>) -> Option<Arc<str>> {
        // CONNECT names an authority and `*` the server itself (RFC 9112 sections 3.2.3 and 3.2.4): no route.
        if method == "CONNECT" || !path.starts_with('/') {
            return None;
        }
        self.clock += 1;
        self.scratch.build(path);
        let template = self.scratch.template.as_str();
        if let Some(known) = self.services.get_mut(service) {
            known.used = self.clock;
            if let Some(found) = known.templates.get(template) {
                return Some(Arc::clone(found));
            }
        }
        if !proves_route(status) {
            self.counts.unproven += 1;
            return None;
        }
        let templates_of_service = self.services.get(service).map_or(0, |known| known.templates.len());
        if templates_of_service >= self.limits.templates_per_service
            || self.counts.templates >= self.limits.templates as u64
        {
            self.counts.overflow += 1;
            return None;
        }
        let made: Arc<str> = Arc::from(template);
        if !self.services.contains_key(service) {
            if self.services.len() >= self.limits.services.max(1) {
                self.evict();
            }
            self.counts.services += 1;
        }
        let entry = self.services.entry(service.into()).or_default();
        entry.used = self.clock;
        entry.templates.insert(Arc::clone(&made));
        self.counts.templates += 1;
        Some(made)
    }
}

impl Scratch {
    /// Write the template of `path` into `self.template`.
    fn build(&mut self, path: &str) {
        let Self { decoded, segments, template } = self;
        let end = path.find(['?', '#']).unwrap_or(path.len());
        let path = path.get(..end).unwrap_or_default();
        decoded.clear();
        segments.clear();
        template.clear();

        let mut deeper = false;
        for piece in path.split('/') {
            // Matrix parameters (RFC 3986 section 3.3) are arguments, not part of the name.
            let piece = piece.split(';').next().unwrap_or_default();
            let start = decoded.len();
            // Enough to tell that it is longer than a literal may be.
            push_decoded(decoded, piece, LITERAL_MAX + 1);
            match decoded.get(start..).unwrap_or_default() {
                "" => {}
                "." => decoded.truncate(start),
                ".." => {
                    decoded.truncate(start);
                    if let Some((previous, _)) = segments.pop() {
                        decoded.truncate(previous);
                    }
                }
                _ if segments.len() == SEGMENTS_MAX => {
                    deeper = true;
                    break;
                }
                _ => segments.push((start, decoded.len())),
            }
        }
        if deeper {
            segments.truncate(SEGMENTS_MAX - 1);
        }

        let mut previous: Option<&str> = None;
        for &(start, end) in segments.iter() {
            let segment = decoded.get(start..end).unwrap_or_default();
            let before = template.len();
            template.push('/');
            let literal = push_segment(template, previous, segment);
            if template.len() + 1 + REST.len() > TEMPLATE_MAX {
                template.truncate(before);
                deeper = true;
                break;
            }
            previous = literal.then_some(segment);
        }
        if deeper {
            template.push('/');
            template.push_str(REST);
        } else if template.is_empty() || path.ends_with('/') {
            template.push('/');
        }
    }
}

/// Statuses that tell that there is such a route; no answer at all is a route that did not answer.
const fn proves_route(status: Option<u16>) -> bool {
    matches!(status, None | Some(101 | 200..=399 | 401 | 403 | 405 | 409 | 422 | 500..=599))
}

/// Append at most about `max` bytes of `piece`, percent-encoded unreserved characters decoded (RFC 3986 section 2.3).
fn push_decoded(out: &mut String, piece: &str, max: usize) {
    let mut rest = piece;
    let mut room = max;
    while let Some(at) = rest.find('%') {
        let (plain, encoded) = rest.split_at(at);
        if !push_bounded(out, plain, &mut room) {
            return;
        }
        let digits = encoded.as_bytes();
        let byte = match (digits.get(1).and_then(|d| hex(*d)), digits.get(2).and_then(|d| hex(*d))) {
            (Some(high), Some(low)) => Some(high << 4 | low),
            _ => None,
        };
        let mut taken = 1;
        match byte {
            Some(byte) if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') => {
                out.push(char::from(byte));
                taken = 3;
            }
            _ => out.push('%'),
        }
        room = room.saturating_sub(1);
        rest = encoded.get(taken..).unwrap_or_default();
        if room == 0 {
            return;
        }
    }
    push_bounded(out, rest, &mut room);
}

/// Append up to `room` bytes, whole characters only; false when there was not room for all.
fn push_bounded(out: &mut String, text: &str, room: &mut usize) -> bool {
    let kept = text.get(..text.floor_char_boundary(*room)).unwrap_or_default();
    out.push_str(kept);
    *room -= kept.len();
    kept.len() == text.len()
}

const fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Append the segment or the parameter it stands for; true when it was kept as it is.
fn push_segment(out: &mut String, previous: Option<&str>, segment: &str) -> bool {
    match classify(segment) {
        Kind::Literal => {
            if let Some((stem, extension)) = split_extension(segment) {
                let kind = classify(stem);
                if !matches!(kind, Kind::Literal | Kind::Parameter) {
                    push_parameter(out, previous, kind);
                    out.push('.');
                    out.push_str(extension);
                    return false;
                }
            }
            out.push_str(segment);
            true
        }
        Kind::Id | Kind::Number if previous == Some("api") && segment.len() <= 3 => {
            // `/rest/api/2/issue`, `/api/1.0/users`: a version.
            out.push_str(segment);
            true
        }
        Kind::Parameter => {
            out.push_str(segment);
            false
        }
        kind => {
            push_parameter(out, previous, kind);
            false
        }
    }
}

fn push_parameter(out: &mut String, previous: Option<&str>, kind: Kind) {
    let fixed = match kind {
        Kind::Number => "{number}",
        Kind::Date => "{date}",
        Kind::Email => "{email}",
        Kind::Id | Kind::Literal | Kind::Parameter => "{id}",
        Kind::Uuid => "{uuid}",
        Kind::Token => "{token}",
    };
    if matches!(kind, Kind::Id | Kind::Uuid | Kind::Token)
        && let Some(previous) = previous
        && push_name(out, previous)
    {
        return;
    }
    out.push_str(fixed);
}

/// `users` gives `{user_id}`. False, and nothing appended, when no good name can be made of `previous`.
fn push_name(out: &mut String, previous: &str) -> bool {
    if previous.len() > NAME_MAX || previous == "api" || is_version(previous.as_bytes()) {
        return false;
    }
    let start = out.len();
    out.push('{');
    for byte in previous.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' => out.push(char::from(byte)),
            b'A'..=b'Z' => out.push(char::from(byte.to_ascii_lowercase())),
            b'-' => out.push('_'),
            _ => {
                out.truncate(start);
                return false;
            }
        }
    }
    let (keep, ending) = singular(out.get(start + 1..).unwrap_or_default());
    out.truncate(start + 1 + keep);
    out.push_str(ending);
    let name = out.get(start + 1..).unwrap_or_default();
    if name != "id" && !name.ends_with("_id") {
        out.push_str("_id");
    }
    out.push('}');
    true
}

/// Bytes of the plural to keep, and what to append to get the singular.
fn singular(plural: &str) -> (usize, &'static str) {
    let len = plural.len();
    if plural.ends_with("people") {
        return (len - 5, "erson");
    }
    if plural.ends_with("children") {
        return (len - 3, "");
    }
    if len < 4 || ["ss", "us", "is", "news", "series"].iter().any(|end| plural.ends_with(end)) {
        return (len, "");
    }
    if ["movies", "cookies"].iter().any(|end| plural.ends_with(end)) {
        return (len - 1, "");
    }
    if plural.ends_with("ies") {
        return (len - 3, "y");
    }
    if ["sses", "tuses", "puses", "ruses", "xes", "ches", "shes", "zzes"].iter().any(|end| plural.ends_with(end)) {
        return (len - 2, "");
    }
    if plural.ends_with('s') { (len - 1, "") } else { (len, "") }
}

fn classify(segment: &str) -> Kind {
    let bytes = segment.as_bytes();
    let len = bytes.len();
    if let Some(b'{') = bytes.first() {
        return if is_parameter(bytes) { Kind::Parameter } else { long_or_literal(len) };
    }
    if len > LITERAL_MAX {
        let bounded = bytes.get(..LITERAL_MAX).unwrap_or_default();
        return if bounded.contains(&b'@') { Kind::Email } else { Kind::Token };
    }
    let census = Census::of(bytes);
    if census.digits == 0 && !census.at && len < 16 {
        return Kind::Literal;
    }
    if census.digits == len {
        return Kind::Id;
    }
    if is_email(segment) {
        return Kind::Email;
    }
    if census.other > 0 {
        return if is_date_time(bytes) { Kind::Date } else { Kind::Literal };
    }
    let letters = census.lower + census.upper;
    if letters == 0 {
        return if is_number(bytes) {
            Kind::Number
        } else if is_date(bytes) {
            Kind::Date
        } else {
            Kind::Literal
        };
    }
    if is_version(bytes) {
        return Kind::Literal;
    }
    if is_uuid(bytes) {
        return Kind::Uuid;
    }
    if census.dots > 0 {
        return if is_date_time(bytes) { Kind::Date } else { Kind::Literal };
    }
    if census.joins == 0 {
        let hex = len >= 16 && census.digits > 0 && census.hex_letters == letters;
        // Names change case about twice a word; random letters every other byte.
        let noise = len >= 16 && census.changes * 3 >= len;
        return if hex || noise || is_mixed_token(bytes, census) { Kind::Token } else { Kind::Literal };
    }
    if is_prefixed_id(segment) || (len >= 16 && census.digits >= 2 && census.lower > 0 && census.upper > 1) {
        return Kind::Token;
    }
    Kind::Literal
}

const fn long_or_literal(len: usize) -> Kind {
    if len > LITERAL_MAX { Kind::Token } else { Kind::Literal }
}

impl Census {
    fn of(bytes: &[u8]) -> Self {
        let mut census = Self::default();
        let mut last = 0_u8;
        for &byte in bytes {
            let class = match byte {
                b'0'..=b'9' => {
                    census.digits += 1;
                    1
                }
                b'a'..=b'z' => {
                    census.lower += 1;
                    census.hex_letters += usize::from(byte <= b'f');
                    2
                }
                b'A'..=b'Z' => {
                    census.upper += 1;
                    census.hex_letters += usize::from(byte <= b'F');
                    3
                }
                b'-' | b'_' => {
                    census.joins += 1;
                    0
                }
                b'.' => {
                    census.dots += 1;
                    0
                }
                b'@' => {
                    census.at = true;
                    census.other += 1;
                    0
                }
                _ => {
                    census.other += 1;
                    0
                }
            };
            census.changes += usize::from(class != last && class != 0 && last != 0);
            last = class;
        }
        census
    }
}

/// `{name}`, as this module writes it, with or without an extension.
fn is_parameter(bytes: &[u8]) -> bool {
    let Some(end) = bytes.iter().position(|byte| *byte == b'}') else { return false };
    let name = bytes.get(1..end).unwrap_or_default();
    let rest = bytes.get(end + 1..).unwrap_or_default();
    let named = !name.is_empty()
        && name.len() <= NAME_MAX + 8
        && name.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_');
    let extended = match rest.split_first() {
        None => true,
        Some((b'.', extension)) => is_extension(extension),
        Some(_) => false,
    };
    named && extended
}

/// `42.json` gives `42` and `json`.
fn split_extension(segment: &str) -> Option<(&str, &str)> {
    let (stem, extension) = segment.rsplit_once('.')?;
    (!stem.is_empty() && is_extension(extension.as_bytes())).then_some((stem, extension))
}

fn is_extension(bytes: &[u8]) -> bool {
    (1..=5).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_alphabetic)
}

/// `v1`, `v2beta1`, `v1.2`.
fn is_version(bytes: &[u8]) -> bool {
    let Some((b'v' | b'V', rest)) = bytes.split_first() else { return false };
    rest.first().is_some_and(u8::is_ascii_digit)
        && rest.len() <= 10
        && rest.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase() || *byte == b'.')
        && rest.iter().filter(|byte| byte.is_ascii_digit()).count() <= 4
        && rest.chunk_by(|a, b| a.is_ascii_lowercase() == b.is_ascii_lowercase()).count() <= 3
}

fn is_uuid(bytes: &[u8]) -> bool {
    bytes.len() == 36
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// `-12`, `3.14`.
fn is_number(bytes: &[u8]) -> bool {
    let unsigned = match bytes.split_first() {
        Some((b'-' | b'+', rest)) => rest,
        _ => bytes,
    };
    unsigned.first().is_some_and(u8::is_ascii_digit)
        && unsigned.last().is_some_and(u8::is_ascii_digit)
        && unsigned.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.')
        && unsigned.split(|byte| *byte == b'.').count() <= 2
}

/// `2026-11-24`, `2026-11`.
fn is_date(bytes: &[u8]) -> bool {
    matches!(bytes.len(), 7 | 10)
        && matches!(bytes.first(), Some(b'1' | b'2'))
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            4 | 7 => *byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

/// `2026-11-24T10:00:00Z`.
fn is_date_time(bytes: &[u8]) -> bool {
    bytes.split_at_checked(10).is_some_and(|(date, rest)| {
        is_date(date)
            && matches!(rest.first(), Some(b'T' | b't'))
            && rest.iter().all(|byte| {
                byte.is_ascii_digit()
                    || matches!(byte, b'T' | b't' | b'Z' | b'z' | b':' | b'.' | b'-' | b'+' | b'%' | b'A')
            })
    })
}

/// `a@b.c`; the `@` may be percent-encoded.
fn is_email(segment: &str) -> bool {
    let parts = segment
        .split_once('@')
        .or_else(|| segment.split_once("%40"))
        .filter(|(local, domain)| !local.is_empty() && !domain.starts_with('.'));
    parts.is_some_and(|(_, domain)| domain.contains('.') && !domain.ends_with('.'))
}

/// At least six letters and digits with two digits, unless it is a word with a number (`oauth2024`).
fn is_mixed_token(bytes: &[u8], census: Census) -> bool {
    if bytes.len() < 6 || census.digits < 2 {
        return false;
    }
    let letters = bytes.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
    let word_with_number = letters >= 3 && letters + census.digits == bytes.len() && census.digits <= 4;
    !word_with_number
}

/// `cus_9s6XKzkNRiz8i3`, `order-12345`.
fn is_prefixed_id(segment: &str) -> bool {
    let Some(at) = segment.find(['_', '-']) else { return false };
    let (prefix, rest) = segment.split_at(at);
    let (separator, rest) = rest.split_at(1);
    let bytes = rest.as_bytes();
    if !(2..=12).contains(&prefix.len())
        || !prefix.bytes().all(|byte| byte.is_ascii_alphabetic())
        || !bytes.iter().all(u8::is_ascii_alphanumeric)
    {
        return false;
    }
    let census = Census::of(bytes);
    if census.digits == bytes.len() {
        return bytes.len() >= 4;
    }
    if separator == "_" { bytes.len() >= 6 && census.digits >= 1 } else { is_mixed_token(bytes, census) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn infer(path: &str) -> Option<String> {
        TypedSegments::default().template("shop", "GET", path, Some(200)).map(|template| template.to_string())
    }

    #[test]
    fn segments_that_look_like_values_become_parameters() {
        for (path, want) in [
            ("/", "/"),
            ("/users", "/users"),
            ("/users/", "/users/"),
            ("/users/42", "/users/{user_id}"),
            ("/users/42/", "/users/{user_id}/"),
            ("/users/42?page=2", "/users/{user_id}"),
            ("/users/42#top", "/users/{user_id}"),
            ("/users/me", "/users/me"),
            ("/users/42/orders/7", "/users/{user_id}/orders/{order_id}"),
            ("/users/42/7", "/users/{user_id}/{id}"),
            ("/42", "/{id}"),
            ("/v1/42", "/v1/{id}"),
            ("/api/v2beta1/users", "/api/v2beta1/users"),
            ("/rest/api/2/issue/TEST-1234", "/rest/api/2/issue/{issue_id}"),
            ("/api/1.0/users", "/api/1.0/users"),
            ("/api/users/1", "/api/users/{user_id}"),
            ("/categories/9", "/categories/{category_id}"),
            ("/addresses/9", "/addresses/{address_id}"),
            ("/statuses/9", "/statuses/{status_id}"),
            ("/houses/9", "/houses/{house_id}"),
            ("/boxes/9", "/boxes/{box_id}"),
            ("/people/9", "/people/{person_id}"),
            ("/movies/9", "/movies/{movie_id}"),
            ("/series/9", "/series/{series_id}"),
            ("/order-items/9", "/order-items/{order_item_id}"),
            ("/OrderItems/9", "/OrderItems/{orderitem_id}"),
            ("/by_id/9", "/by_id/{by_id}"),
            ("/a,b/9", "/a,b/{id}"),
            ("/carts/3fa85f64-5717-4562-b3fc-2c963f66afa6", "/carts/{cart_id}"),
            ("/3fa85f64-5717-4562-b3fc-2c963f66afa6", "/{uuid}"),
            ("/blobs/0123456789abcdef", "/blobs/{blob_id}"),
            ("/customers/cus_9s6XKzkNRiz8i3", "/customers/{customer_id}"),
            ("/customers/order-12345", "/customers/{customer_id}"),
            ("/s/a1b2c3", "/s/{s_id}"),
            ("/t/dQw4w9WgXcQ", "/t/{t_id}"),
            ("/t/VGhpc0lzQVJhbmRvbVN0cmluZw", "/t/{t_id}"),
            ("/t/XkDoPqRsTbUvWhYzAb", "/t/{t_id}"),
            ("/n/V1StGXR8_Z5jdHi6B-myT", "/n/{n_id}"),
            ("/report/2026-11-24", "/report/{date}"),
            ("/report/2026-11", "/report/{date}"),
            ("/report/2026-11-24T10:00:00Z", "/report/{date}"),
            ("/at/-0.1276/51.5", "/at/{number}/{number}"),
            ("/mail/ann@example.org", "/mail/{email}"),
            ("/mail/ann%40example.org", "/mail/{email}"),
            ("/users/42.json", "/users/{user_id}.json"),
            ("/img/0123456789abcdef.png", "/img/{img_id}.png"),
            ("/static/app.js", "/static/app.js"),
            ("/oauth2/token", "/oauth2/token"),
            ("/base64/encode", "/base64/encode"),
            ("/web2024/x", "/web2024/x"),
            ("/getUserProfileInformation", "/getUserProfileInformation"),
            ("/utf-8", "/utf-8"),
            ("/how-to-write-a-parser", "/how-to-write-a-parser"),
            ("/@types/node", "/@types/node"),
            ("/shop.v1.Cart/AddItem", "/shop.v1.Cart/AddItem"),
            ("//users///42", "/users/{user_id}"),
            ("/users;v=1/42;color=red", "/users/{user_id}"),
            ("/%75sers/%34%32", "/users/{user_id}"),
            ("/a%2Fb/c%20d", "/a%2Fb/c%20d"),
            ("/a/./b/../c", "/a/c"),
            ("/a/%2e%2e/c", "/c"),
            ("/../..", "/"),
            ("/a%", "/a%"),
            ("/a%4", "/a%4"),
        ] {
            assert_eq!(infer(path).as_deref(), Some(want), "{path}");
        }
        let long = format!("/posts/{}", "x-".repeat(30));
        assert_eq!(infer(&long).as_deref(), Some("/posts/{post_id}"));
    }

    #[test]
    fn what_is_not_a_path_has_no_route() {
        assert_eq!(infer("*"), None);
        assert_eq!(infer(""), None);
        assert_eq!(infer("example.org:443"), None);
        assert_eq!(TypedSegments::default().template("shop", "CONNECT", "/a", Some(200)), None);
    }

    #[test]
    fn a_deep_path_ends_in_a_wildcard() {
        let twenty = "/a".repeat(20);
        assert_eq!(infer(&twenty), Some(twenty.clone()));
        assert_eq!(infer(&"/a".repeat(21)), Some(format!("{}/**", "/a".repeat(19))));
        let wide = format!("/{}", "abcdefghij-abcdefghij-klmn").repeat(12);
        let template = infer(&wide).unwrap();
        assert!(template.ends_with("/**") && template.len() <= TEMPLATE_MAX, "{template}");
    }

    #[test]
    fn an_answer_that_says_no_creates_no_route_but_finds_a_known_one() {
        let mut routes = TypedSegments::default();
        assert_eq!(routes.template("shop", "GET", "/users/9", Some(404)), None);
        assert_eq!(routes.template("shop", "GET", "/users/9", Some(400)), None);
        assert_eq!(routes.counts(), RouteCounts { unproven: 2, ..RouteCounts::default() });
        assert!(routes.template("shop", "GET", "/users/9", Some(200)).is_some());
        assert_eq!(routes.template("shop", "GET", "/users/7", Some(404)).as_deref(), Some("/users/{user_id}"));
        assert_eq!(routes.template("other", "GET", "/users/7", Some(404)), None);
        for status in [None, Some(201), Some(304), Some(401), Some(405), Some(503)] {
            assert!(TypedSegments::default().template("shop", "GET", "/a", status).is_some(), "{status:?}");
        }
    }

    #[test]
    fn a_service_that_answers_everything_does_not_crowd_out_others() {
        let limits = RouteLimits { services: 2, templates_per_service: 3, templates: 5 };
        let mut routes = TypedSegments::new(limits);
        for path in ["/a", "/b", "/c", "/d", "/e"] {
            routes.template("wild", "GET", path, Some(200));
        }
        assert_eq!(routes.counts().templates, 3);
        assert_eq!(routes.counts().overflow, 2);
        assert!(routes.template("shop", "GET", "/a", Some(200)).is_some());
        assert_eq!(routes.template("wild", "GET", "/a", Some(200)).as_deref(), Some("/a"));
        assert!(routes.template("third", "GET", "/a", Some(200)).is_some(), "the idle service makes room");
        assert_eq!(routes.counts().services, 2);
        assert_eq!(routes.counts().templates, 4);
        assert_eq!(routes.counts().evicted_services, 1);
    }

    #[test]
    fn a_known_route_is_the_same_allocation() {
        let mut routes = TypedSegments::default();
        let first = routes.template("shop", "GET", "/users/1", Some(200)).unwrap();
        let second = routes.template("shop", "GET", "/users/2", Some(200)).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
    }

    fn check_bounds(path: &str) {
        let Some(template) = infer(path) else { return };
        assert!(template.len() <= TEMPLATE_MAX, "{template}");
        assert!(template.split('/').filter(|segment| !segment.is_empty()).count() <= SEGMENTS_MAX, "{template}");
        assert_eq!(infer(&template).as_deref(), Some(template.as_str()), "from {path}");
    }

    proptest! {
        #[test]
        fn any_path_gives_a_bounded_template_that_maps_to_itself(path in "/.{0,400}") {
            check_bounds(&path);
        }

        #[test]
        fn any_likely_path_gives_a_bounded_template_that_maps_to_itself(
            path in "(/([a-z]{1,8}s?|[0-9]{1,6}|[\\w-]{6,44}|\\{[a-z_]{1,6}\\}|%[0-9A-F]{2}|\\.\\.|[a-z0-9]{8}\\.js)){1,24}/?"
        ) {
            check_bounds(&path);
        }
    }
}
