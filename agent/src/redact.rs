//! From an exchange to a [`CallReport`]: the only door outward, and the only place that builds one.
//!
//! Everything a peer sent is masked, bounded and escaped here, or does not leave. Pure: no clock, no I/O, never panics,
//! whatever the bytes.

mod application;

use std::{
    borrow::Cow,
    fmt::Write as _,
    net::IpAddr,
    str,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::model::{Application, CallReport, Exchange, Headers, Request, Role, SocketAddress, Workload};

/// What stands where a secret stood (semantic conventions for `url.query` and `url.full`).
pub const REDACTED: &str = "REDACTED";
/// `http.request.method` of a method that is not in the known set.
pub const OTHER_METHOD: &str = "_OTHER";

/// RFC 9110 section 9, PATCH (RFC 5789) and QUERY (draft-ietf-httpbis-safe-method-w-body).
const KNOWN_METHODS: [&str; 10] =
    ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE", "QUERY"];

/// Longest `http.request.method_original`, bytes kept. Registered methods have at most 17 characters.
const MAX_METHOD: usize = 32;
/// Longest path and query kept, bytes. Browsers and proxies rarely pass 2,048; the rest is cut and marked.
const MAX_URL: usize = 2048;
/// Longest host kept, bytes: a DNS name has at most 253 characters.
const MAX_HOST: usize = 255;
const MAX_USER_AGENT: usize = 256;
/// Longest value of an allow-listed header, bytes.
const MAX_HEADER_VALUE: usize = 256;
/// Most allow-listed header values on one report.
const MAX_HEADER_VALUES: usize = 32;
/// Where a value was cut.
const CUT: &str = "...";

/// Names (lower case) whose values never leave, whatever the allow-list says.
const CREDENTIAL_HEADERS: [&str; 7] = [
    "authorization",
    "cookie",
    "proxy-authorization",
    "set-cookie",
    "www-authenticate",
    "proxy-authenticate",
    "authentication-info",
];
/// A header whose name contains one of these carries a credential. Of the 95 API-key header names in the OpenAPI
/// directory, 68 match; the rest are identifiers.
const CREDENTIAL_HEADER_PARTS: [&str; 10] =
    ["token", "secret", "passw", "api-key", "apikey", "api_key", "access-key", "signature", "credential", "session"];

/// Query keys (lower case, separators removed) whose values are secrets or personal as a whole word.
const SENSITIVE_KEYS: [&str; 33] = [
    "address",
    "auth",
    "birthday",
    "card",
    "code",
    "cvc",
    "cvv",
    "dob",
    "firstname",
    "hmac",
    "iban",
    "jwt",
    "key",
    "lastname",
    "login",
    "mail",
    "msisdn",
    "otp",
    "pan",
    "passport",
    "phone",
    "pin",
    "pw",
    "pwd",
    "sid",
    "sig",
    "signed",
    "ssn",
    "tel",
    "telephone",
    "ticket",
    "user",
    "username",
];
/// A query key (lower case, separators removed) that contains one of these is sensitive. The conventions' own list
/// (`AWSAccessKeyId`, `Signature`, `sig`, `X-Goog-Signature`, `X-Amz-*`) is covered.
const SENSITIVE_KEY_PARTS: [&str; 17] = [
    "token",
    "secret",
    "passw",
    "passphrase",
    "passcode",
    "signature",
    "credential",
    "apikey",
    "accesskey",
    "authoriz",
    "session",
    "privatekey",
    "email",
    "creditcard",
    "cardnum",
    "samlre",
    "oauth",
];

/// Parameters of a GraphQL request (GraphQL over HTTP, section 5.1) that hold values, not names.
const GRAPHQL_KEYS: [&[u8]; 3] = [b"query", b"variables", b"extensions"];

/// Beginnings of tokens that name their issuer (a subset of the published secret-scanning patterns with no false
/// positives worth naming).
const TOKEN_PREFIXES: [&str; 22] = [
    "AKIA",
    "ASIA",
    "AIza",
    "ya29.",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "xoxa-",
    "xapp-",
    "sk_live_",
    "sk_test_",
    "rk_live_",
    "sk-",
    "hvs.",
    "npm_",
    "SG.",
];

/// How values in query strings are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryRedaction {
    /// Values of sensitive keys and values that look like secrets or personal data become `REDACTED`; the rest stays.
    #[default]
    Sensitive,
    /// Every value becomes `REDACTED`; keys stay.
    All,
    /// Only the four keys that the semantic conventions demand.
    Off,
}

/// What may leave the machine about a call. The default is safe: no headers, no secrets, no bodies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RedactionConfig {
    /// Query strings: `sensitive` (default), `all` or `off`.
    pub query: QueryRedaction,
    /// More query keys whose values are replaced, compared without case. Default: none.
    pub sensitive_query_keys: Vec<String>,
    /// Mask path segments that look like tokens, JWTs, e-mail addresses or card numbers. Default: true.
    pub mask_paths: bool,
    /// Request headers to export, by name. Values of credential headers are masked all the same. Default: none.
    pub request_headers: Vec<String>,
    /// Response headers to export, by name. Default: none.
    pub response_headers: Vec<String>,
    /// More header names that carry a credential, for `weir.auth.scheme` and masking. Default: none.
    pub credential_headers: Vec<String>,
    /// Methods reported as they are; all others become `_OTHER`. Replaces the default list (RFC 9110, PATCH, QUERY);
    /// empty means the default. Case matters (semantic conventions).
    pub known_methods: Vec<String>,
}

impl Default for RedactionConfig {
    fn default() -> Self {
        Self {
            query: QueryRedaction::Sensitive,
            sensitive_query_keys: Vec::new(),
            mask_paths: true,
            request_headers: Vec::new(),
            response_headers: Vec::new(),
            credential_headers: Vec::new(),
            known_methods: Vec::new(),
        }
    }
}

/// Builds reports. Keeps the strings that repeat (hosts, addresses, user agents) so that a call costs few allocations.
#[derive(Debug)]
pub struct Redactor {
    config: RedactionConfig,
    methods: Vec<Arc<str>>,
    other: Arc<str>,
    /// `error.type` of the codes 100 to 999.
    statuses: Vec<Arc<str>>,
    outcomes: Vec<Arc<str>>,
    request_headers: Vec<HeaderRule>,
    response_headers: Vec<HeaderRule>,
    strings: Mutex<Strings>,
}

#[derive(Debug)]
struct HeaderRule {
    name: String,
    attribute: Arc<str>,
    credential: bool,
}

/// The request-target, taken apart (RFC 9112 section 3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Target<'a> {
    authority: Option<&'a [u8]>,
    path: Option<&'a [u8]>,
    query: Option<&'a [u8]>,
}

/// A direct-mapped cache from raw bytes to the string shown for them. Bounded: [`Strings::SLOTS`] entries of at most
/// [`Strings::MAX_KEY`] bytes.
#[derive(Debug)]
struct Strings {
    slots: Vec<Option<Slot>>,
}

#[derive(Clone, Debug)]
struct Slot {
    kind: StringKind,
    raw: Box<[u8]>,
    shown: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StringKind {
    Host,
    UserAgent,
    Ip,
    Unix,
    Path,
}

impl Strings {
    const SLOTS: usize = 512;
    const MAX_KEY: usize = 512;

    fn new() -> Self {
        Self { slots: vec![None; Self::SLOTS] }
    }

    fn get(&mut self, kind: StringKind, raw: &[u8], make: impl FnOnce(&[u8]) -> Option<Arc<str>>) -> Option<Arc<str>> {
        if raw.len() > Self::MAX_KEY {
            return make(raw);
        }
        let index = (hash(raw, kind as u64) as usize) % Self::SLOTS;
        let Some(slot) = self.slots.get_mut(index) else { return make(raw) };
        if let Some(known) = slot
            && known.kind == kind
            && *known.raw == *raw
        {
            return known.shown.clone();
        }
        let shown = make(raw);
        *slot = Some(Slot { kind, raw: raw.into(), shown: shown.clone() });
        shown
    }
}

/// FxHash over words: the cache only needs spread, an attacker can at worst make it miss.
fn hash(bytes: &[u8], seed: u64) -> u64 {
    const K: u64 = 0x51_7c_c1_b7_27_22_0a_95;
    let mut state = seed.wrapping_mul(K) ^ bytes.len() as u64;
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let word = word.try_into().map_or(0, u64::from_le_bytes);
        state = (state.rotate_left(5) ^ word).wrapping_mul(K);
    }
    for byte in words.remainder() {
        state = (state.rotate_left(5) ^ u64::from(*byte)).wrapping_mul(K);
    }
    state >> 20
}

impl Redactor {
    pub fn new(config: RedactionConfig) -> Self {
        let methods = if config.known_methods.is_empty() {
            KNOWN_METHODS.iter().map(|method| Arc::from(*method)).collect()
        } else {
            config.known_methods.iter().map(|method| Arc::from(method.as_str())).collect()
        };
        let rules = |names: &[String], prefix: &str| {
            names
                .iter()
                .map(|name| {
                    let name = name.to_ascii_lowercase();
                    HeaderRule {
                        attribute: Arc::from(format!("{prefix}{name}")),
                        credential: is_credential_header(name.as_bytes(), &config.credential_headers),
                        name,
                    }
                })
                .collect()
        };
        Self {
            methods,
            other: Arc::from(OTHER_METHOD),
            statuses: (100..1000u16).map(|status| Arc::from(status.to_string())).collect(),
            outcomes: ["connection_closed", "connection_reset", "timeout"].map(Arc::from).into(),
            request_headers: rules(&config.request_headers, "http.request.header."),
            response_headers: rules(&config.response_headers, "http.response.header."),
            strings: Mutex::new(Strings::new()),
            config,
        }
    }

    /// The report of `exchange`, which is `application` above HTTP. `route` is the low-cardinality template of its path,
    /// `wall_start_unix_ns` the wall clock at its first request byte.
    pub fn report(
        &self,
        exchange: &Exchange,
        application: Option<Application>,
        workload: &Arc<Workload>,
        route: Option<Arc<str>>,
        wall_start_unix_ns: u64,
    ) -> CallReport {
        let connection = &*exchange.connection;
        let request = exchange.request.as_ref();
        let response = exchange.response.as_ref();
        let scheme = if connection.tls.is_some() { "https" } else { "http" };
        let mut strings = self.strings.lock().unwrap_or_else(PoisonError::into_inner);

        let target = request.map(|request| Target::parse(&request.target, &request.method)).unwrap_or_default();
        let sent = request.map(|request| &*request.method).filter(|method| !method.is_empty());
        let (method, method_original) = sent.map_or((None, None), |method| self.method(method));
        let status = response.map(|response| response.status).filter(|status| *status != 0);

        let peer_address = address(&mut strings, &connection.remote);
        let peer_port = connection.remote.port();
        let named = request
            .and_then(|request| target.authority.or_else(|| request.headers.get("host")))
            .and_then(|authority| split_authority(authority))
            .and_then(|(host, port)| Some((strings.get(StringKind::Host, host, show_host)?, port)));
        let server_socket = match exchange.role {
            Role::Server => &connection.local,
            Role::Client => &connection.remote,
        };
        // On a Unix socket the authority is a filler (curl sends `localhost`); the path is the server's address.
        let path_named = matches!(server_socket, SocketAddress::Unix(path) if !path.is_empty());
        let (server_address, server_port) = match named.filter(|_| !path_named) {
            // Without a port in the authority the scheme's own is meant (RFC 9110 section 4.2), but a server behind
            // a plain `Host: name` on another port is better told by its socket.
            Some((host, port)) => (Some(host), port.or_else(|| server_socket.port())),
            None => (address(&mut strings, server_socket), server_socket.port()),
        };
        let (client_address, client_port) = match exchange.role {
            Role::Server => (peer_address.clone(), peer_port),
            Role::Client => (None, None),
        };
        let user_agent = request.and_then(|request| request.headers.get("user-agent")).and_then(|value| {
            strings.get(StringKind::UserAgent, value, |raw| Some(Arc::from(show_text(raw, MAX_USER_AGENT))))
        });
        let path = target.path.and_then(|path| {
            strings.get(StringKind::Path, path, |raw| Some(Arc::from(show_path(raw, self.config.mask_paths))))
        });
        drop(strings);

        let application = application.map(application::masked);
        let is_graphql = matches!(application, Some(Application::Graphql(_)));
        let route = match &application {
            Some(Application::Grpc(grpc)) => grpc.route(),
            _ => route,
        };
        let application_error = application.as_ref().and_then(|it| application::error_type(it, exchange.role));

        CallReport {
            start_unix_ns: wall_start_unix_ns,
            duration_ns: exchange.timing.end.since(exchange.timing.start),
            time_to_first_byte_ns: exchange.timing.response_start.map(|first| first.since(exchange.timing.start)),
            role: exchange.role,
            trace: exchange.trace,
            method,
            method_original,
            scheme,
            path,
            query: target.query.map(|query| Arc::from(self.show_query(query, is_graphql))),
            route,
            status,
            request_body_size: request.and_then(|request| request.body.size),
            response_body_size: response.and_then(|response| response.body.size),
            request_messages: request.and_then(|request| request.body.messages),
            response_messages: response.and_then(|response| response.body.messages),
            server_address,
            server_port,
            client_address,
            client_port,
            peer_address,
            peer_port,
            version: exchange.version,
            transport: connection.transport,
            tls: connection.tls.clone(),
            user_agent,
            error_type: self.error_type(exchange, status, application_error),
            application,
            pid: exchange.pid,
            tid: exchange.tid,
            workload: Arc::clone(workload),
            backend: connection.backend,
            incomplete: exchange.incomplete,
            in_progress: false,
            headers: self.headers(exchange),
            auth_scheme: request.and_then(|request| self.auth_scheme(exchange, request, target.query)),
        }
    }

    /// The report of an exchange that goes on: what was seen of its bodies stands for their sizes.
    pub fn progress(
        &self,
        exchange: &Exchange,
        application: Option<Application>,
        workload: &Arc<Workload>,
        route: Option<Arc<str>>,
        wall_start_unix_ns: u64,
    ) -> CallReport {
        CallReport {
            in_progress: true,
            request_body_size: exchange.request.as_ref().map(|request| request.body.seen),
            response_body_size: exchange.response.as_ref().map(|response| response.body.seen),
            ..self.report(exchange, application, workload, route, wall_start_unix_ns)
        }
    }

    /// Method names are case-sensitive (RFC 9110 section 9.1), so `get` is another method than `GET`.
    fn method(&self, sent: &[u8]) -> (Option<Arc<str>>, Option<Arc<str>>) {
        if let Some(known) = self.methods.iter().find(|known| known.as_bytes() == sent) {
            return (Some(Arc::clone(known)), None);
        }
        (Some(Arc::clone(&self.other)), Some(Arc::from(show_text(sent, MAX_METHOD))))
    }

    /// The status code where it says error for this side, else what the protocol above says, else why the exchange
    /// failed.
    fn error_type(&self, exchange: &Exchange, status: Option<u16>, above: Option<Arc<str>>) -> Option<Arc<str>> {
        if let Some(status) = status
            && is_error_status(exchange.role, status)
        {
            return self
                .statuses
                .get(usize::from(status).wrapping_sub(100))
                .map_or_else(|| Some(Arc::from(status.to_string())), |known| Some(Arc::clone(known)));
        }
        if above.is_some() {
            return above;
        }
        let name = exchange.outcome.error_type()?;
        let known = self.outcomes.iter().find(|known| &***known == name);
        Some(known.map_or_else(|| Arc::from(name), Arc::clone))
    }

    fn headers(&self, exchange: &Exchange) -> Vec<(Arc<str>, Arc<str>)> {
        let mut shown = Vec::new();
        let mut add = |rules: &[HeaderRule], headers: Option<&Headers>| {
            let Some(headers) = headers else { return };
            for rule in rules {
                for value in headers.get_all(&rule.name) {
                    if shown.len() == MAX_HEADER_VALUES {
                        return;
                    }
                    let value = if rule.credential { mask_credential(value) } else { mask_text(value) };
                    shown.push((Arc::clone(&rule.attribute), Arc::from(value)));
                }
            }
        };
        add(&self.request_headers, exchange.request.as_ref().map(|request| &request.headers));
        add(&self.response_headers, exchange.response.as_ref().map(|response| &response.headers));
        shown
    }

    /// How the caller identified itself, by shape alone: nothing is verified, nothing is kept.
    fn auth_scheme(&self, exchange: &Exchange, request: &Request, query: Option<&[u8]>) -> Option<&'static str> {
        let mut api_key = false;
        let mut cookie = false;
        for (name, value) in request.headers.iter() {
            if name.eq_ignore_ascii_case(b"authorization") {
                return Some(authorization_scheme(value));
            }
            if name.eq_ignore_ascii_case(b"cookie") {
                cookie |= has_session_cookie(value);
            } else if !value.is_empty() && is_api_key_header(name, &self.config.credential_headers) {
                api_key = true;
            }
        }
        if api_key || query.is_some_and(has_api_key) {
            return Some("api_key");
        }
        if cookie {
            return Some("cookie");
        }
        if exchange.connection.tls.as_ref().is_some_and(|handshake| handshake.client_certificate_sent) {
            return Some("mtls");
        }
        // A field that was dropped may have been the credential: unknown is said, not guessed.
        if request.headers.truncated { None } else { Some("none") }
    }

    /// `is_graphql`: what the call asks stands in its query, and does not leave.
    fn show_query(&self, query: &[u8], is_graphql: bool) -> String {
        let mut shown = String::with_capacity(query.len().min(MAX_URL) + 16);
        for (index, pair) in query.split(|byte| *byte == b'&').enumerate() {
            if shown.len() > MAX_URL {
                shown.push_str(CUT);
                break;
            }
            if index > 0 {
                shown.push('&');
            }
            let equals = pair.iter().position(|byte| *byte == b'=');
            let (key, value) = match equals.and_then(|at| pair.split_at_checked(at)) {
                Some((key, value)) => (key, value.get(1..)),
                None => (pair, None),
            };
            let room = MAX_URL.saturating_sub(shown.len());
            // A lone word is as likely a value as a key.
            if self.config.query != QueryRedaction::Off && looks_sensitive(key) {
                shown.push_str(REDACTED);
            } else {
                push_escaped(&mut shown, key, room);
            }
            if let Some(value) = value {
                shown.push('=');
                let says = is_graphql && GRAPHQL_KEYS.contains(&key);
                if !value.is_empty() && (says || self.hides(key, value)) {
                    shown.push_str(REDACTED);
                } else {
                    push_escaped(&mut shown, value, room);
                }
            }
        }
        shown
    }

    fn hides(&self, key: &[u8], value: &[u8]) -> bool {
        match self.config.query {
            QueryRedaction::All => true,
            QueryRedaction::Sensitive => {
                is_sensitive_key(key, &self.config.sensitive_query_keys) || looks_sensitive(value)
            }
            QueryRedaction::Off => {
                matches!(key, b"AWSAccessKeyId" | b"Signature" | b"sig" | b"X-Goog-Signature")
                    || self.config.sensitive_query_keys.iter().any(|more| key.eq_ignore_ascii_case(more.as_bytes()))
            }
        }
    }
}

impl Default for Redactor {
    fn default() -> Self {
        Self::new(RedactionConfig::default())
    }
}

impl<'a> Target<'a> {
    fn parse(target: &'a [u8], method: &[u8]) -> Self {
        let origin = |path_and_query: &'a [u8], authority| {
            // A fragment is never sent (RFC 9112 section 3.2.1), but what is sent all the same must not hide a secret.
            let end = path_and_query.iter().position(|byte| *byte == b'#').unwrap_or(path_and_query.len());
            let (before, _) = path_and_query.split_at_checked(end).unwrap_or((path_and_query, b""));
            let mut parts = before.splitn(2, |byte| *byte == b'?');
            Self { authority, path: parts.next(), query: parts.next() }
        };
        if target.is_empty() {
            return Self::default();
        }
        // An extended CONNECT has a path (RFC 8441 section 4).
        if method == b"CONNECT" && target.first() != Some(&b'/') {
            return Self { authority: Some(target), path: None, query: None };
        }
        if target.first() == Some(&b'/') || target == b"*" {
            return origin(target, None);
        }
        let scheme_end = target.windows(3).take(16).position(|window| window == b"://");
        let Some(rest) = scheme_end.and_then(|at| target.get(at + 3..)) else { return origin(target, None) };
        let authority_end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
        let (authority, path_and_query) = rest.split_at_checked(authority_end).unwrap_or((rest, b""));
        let parsed = origin(path_and_query, Some(authority));
        // An empty path of an absolute form is "/" (RFC 9110 section 4.2.3).
        Self { path: parsed.path.map(|path| if path.is_empty() { b"/" } else { path }), ..parsed }
    }
}

/// The side's view of an error: a server is not at fault for a 4xx (semantic conventions, span status).
pub const fn is_error_status(role: Role, status: u16) -> bool {
    match role {
        Role::Server => status >= 500,
        Role::Client => status >= 400,
    }
}

/// Host and port of an authority; user information is dropped. `None` when it is no host.
fn split_authority(authority: &[u8]) -> Option<(&[u8], Option<u16>)> {
    let host_and_port = authority.rsplit(|byte| *byte == b'@').next()?;
    let bracketed = host_and_port.first() == Some(&b'[');
    let host_end = if bracketed {
        host_and_port.iter().position(|byte| *byte == b']')? + 1
    } else {
        host_and_port.iter().position(|byte| *byte == b':').unwrap_or(host_and_port.len())
    };
    let (host, port) = host_and_port.split_at_checked(host_end)?;
    let host = if bracketed { host.get(1..host.len().checked_sub(1)?)? } else { host };
    let port = match port.strip_prefix(b":") {
        Some(digits) if !digits.is_empty() => Some(str::from_utf8(digits).ok()?.parse::<u16>().ok()?),
        _ => None,
    };
    (!host.is_empty()).then_some((host, port))
}

/// A name or an address, or `None`: a `Host` that is neither is not worth a label.
fn show_host(host: &[u8]) -> Option<Arc<str>> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'%' | b'~');
    if host.len() > MAX_HOST || !host.iter().all(plain) {
        return None;
    }
    str::from_utf8(host).ok().map(Arc::from)
}

fn address(strings: &mut Strings, socket: &SocketAddress) -> Option<Arc<str>> {
    match socket {
        SocketAddress::Ip(address) => match address.ip() {
            IpAddr::V4(ip) => strings.get(StringKind::Ip, &ip.octets(), |_| Some(Arc::from(ip.to_string()))),
            IpAddr::V6(ip) => strings.get(StringKind::Ip, &ip.octets(), |_| Some(Arc::from(ip.to_string()))),
        },
        SocketAddress::Unix(path) if path.is_empty() => None,
        SocketAddress::Unix(path) => strings.get(StringKind::Unix, path.as_bytes(), |raw| {
            Some(Arc::from(format!("unix:{}", show_text(raw, MAX_HEADER_VALUE))))
        }),
        SocketAddress::Unknown => None,
    }
}

fn authorization_scheme(value: &[u8]) -> &'static str {
    let value = value.trim_ascii();
    let end = value.iter().position(|byte| *byte == b' ').unwrap_or(value.len());
    let (scheme, token) = value.split_at_checked(end).unwrap_or((value, b""));
    let token = token.trim_ascii();
    if value.is_empty() {
        "none"
    } else if scheme.eq_ignore_ascii_case(b"basic") {
        "basic"
    } else if is_jwt(token) || is_jwt(scheme) {
        "jwt"
    } else if scheme.eq_ignore_ascii_case(b"bearer") {
        "bearer"
    } else if scheme.eq_ignore_ascii_case(b"digest")
        || scheme.eq_ignore_ascii_case(b"negotiate")
        || scheme.eq_ignore_ascii_case(b"ntlm")
    {
        "other"
    } else {
        // `Token x`, `ApiKey x`, `AWS4-HMAC-SHA256 ..` and a bare key: a shared secret without a standard scheme.
        "api_key"
    }
}

fn is_api_key_header(name: &[u8], more: &[String]) -> bool {
    // First bytes first: most headers are out after one comparison.
    matches!(name.first(), Some(b'x' | b'X' | b'a' | b'A' | b'p' | b'P')) && {
        const NAMES: [&str; 9] = [
            "x-api-key",
            "api-key",
            "apikey",
            "x-apikey",
            "x-auth-token",
            "x-access-token",
            "x-auth-key",
            "private-token",
            "x-goog-api-key",
        ];
        NAMES.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
    } || more.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

fn is_credential_header(lower: &[u8], more: &[String]) -> bool {
    CREDENTIAL_HEADERS.iter().any(|name| lower == name.as_bytes())
        || CREDENTIAL_HEADER_PARTS.iter().any(|part| contains(lower, part.as_bytes()))
        || is_api_key_header(lower, more)
}

/// A cookie identifies its caller when its name says so or its value is a token; others are preferences.
fn has_session_cookie(value: &[u8]) -> bool {
    const PARTS: [&str; 7] = ["sess", "sid", "auth", "token", "jwt", "login", "remember"];
    value.split(|byte| *byte == b';').take(64).any(|pair| {
        let mut parts = pair.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default().trim_ascii();
        let content = parts.next().unwrap_or_default().trim_ascii();
        let mut lower = [0; 64];
        let name = lowered(name, &mut lower);
        !content.is_empty()
            && (PARTS.iter().any(|part| contains(name, part.as_bytes())) || is_jwt(content) || is_long_token(content))
    })
}

fn has_api_key(query: &[u8]) -> bool {
    query.split(|byte| *byte == b'&').take(64).any(|pair| {
        let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        let (key, value) = pair.split_at_checked(end).unwrap_or((pair, b""));
        let mut normal = [0; 64];
        let key = normalized(key, &mut normal);
        value.len() > 1 && matches!(key, b"apikey" | b"key" | b"accesstoken" | b"token" | b"authtoken" | b"sig")
    })
}

/// `[REDACTED]`, with the scheme of an `Authorization` value left to read.
fn mask_credential(value: &[u8]) -> String {
    const SCHEMES: [&str; 5] = ["Basic", "Bearer", "Digest", "Negotiate", "Token"];
    let first = value.split(|byte| *byte == b' ').next().unwrap_or_default();
    match SCHEMES.iter().find(|scheme| first.len() < value.len() && first.eq_ignore_ascii_case(scheme.as_bytes())) {
        Some(scheme) => format!("{scheme} {REDACTED}"),
        None => REDACTED.to_owned(),
    }
}

/// An allow-listed header of another kind: URLs and free text may still hold a secret, so each word is looked at.
fn mask_text(value: &[u8]) -> String {
    let is_break = |byte: &u8| matches!(byte, b' ' | b',' | b';' | b'=' | b'?' | b'&' | b'/' | b'"');
    let mut masked = Vec::with_capacity(value.len().min(MAX_HEADER_VALUE * 2));
    for word in value.split_inclusive(is_break) {
        if masked.len() > MAX_HEADER_VALUE {
            break;
        }
        let (content, end) = match word.split_last() {
            Some((last, content)) if is_break(last) => (content, word.get(content.len()..).unwrap_or_default()),
            _ => (word, &b""[..]),
        };
        masked.extend_from_slice(if looks_sensitive(content) { REDACTED.as_bytes() } else { content });
        masked.extend_from_slice(end);
    }
    show_text(&masked, MAX_HEADER_VALUE)
}

fn is_sensitive_key(key: &[u8], more: &[String]) -> bool {
    if more.iter().any(|known| key.eq_ignore_ascii_case(known.as_bytes())) {
        return true;
    }
    let decoded = percent_decoded(key);
    let mut normal = [0; 64];
    let normal = normalized(&decoded, &mut normal);
    SENSITIVE_KEYS.iter().any(|word| normal == word.as_bytes())
        || SENSITIVE_KEY_PARTS.iter().any(|part| contains(normal, part.as_bytes()))
        || (contains(normal, b"auth") && !contains(normal, b"author"))
        || normal.starts_with(b"xamz")
}

/// A value that is a secret or personal whatever its key: JWT, issuer-prefixed token, long random token, e-mail
/// address, nine digits or more.
fn looks_sensitive(value: &[u8]) -> bool {
    // Shorter than any of the shapes below, and by far the most common.
    if value.len() < 6 {
        return false;
    }
    let value = percent_decoded(value);
    is_token(&value) || is_email(&value) || is_long_number(&value)
}

fn is_token(value: &[u8]) -> bool {
    is_jwt(value)
        || (value.len() >= 16 && TOKEN_PREFIXES.iter().any(|prefix| value.starts_with(prefix.as_bytes())))
        || is_long_token(value)
}

/// Three base64url parts, the first an encoded JSON object (RFC 7519 section 3; `eyJ` is `{"`).
fn is_jwt(value: &[u8]) -> bool {
    value.len() > 16
        && value.starts_with(b"eyJ")
        && value.contains(&b'.')
        && value.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'='))
}

/// A run of 20 or more letters and digits, well mixed. Words joined by separators, UUIDs and plain numbers are not.
fn is_long_token(value: &[u8]) -> bool {
    if value.len() < 20 {
        return false;
    }
    value.split(|byte| !byte.is_ascii_alphanumeric()).any(|run| {
        let digits = run.iter().filter(|byte| byte.is_ascii_digit()).count();
        let upper = run.iter().filter(|byte| byte.is_ascii_uppercase()).count();
        let letters = run.len() - digits;
        let mixed_case = upper >= 4 && letters - upper >= 4;
        run.len() >= 20 && letters >= 3 && (digits >= 3 || mixed_case)
    })
}

fn is_email(value: &[u8]) -> bool {
    let Some(at) = value.iter().position(|byte| *byte == b'@') else { return false };
    let Some((local, domain)) = value.split_at_checked(at) else { return false };
    !local.is_empty() && domain.iter().skip(2).any(|byte| *byte == b'.')
}

/// Nine digits or more, with the separators people write: telephone, card, account and identity numbers.
fn is_long_number(value: &[u8]) -> bool {
    let digits = value.iter().filter(|byte| byte.is_ascii_digit()).count();
    digits >= 9
        && value
            .iter()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b' ' | b'-' | b'+' | b'(' | b')' | b'.' | b'/'))
}

/// 13 to 19 digits whose check digit is right (ISO/IEC 7812).
fn is_card_number(value: &[u8]) -> bool {
    if !(13..=19).contains(&value.len()) || !value.iter().all(u8::is_ascii_digit) {
        return false;
    }
    let sum: u32 = value
        .iter()
        .rev()
        .enumerate()
        .map(|(index, byte)| {
            let digit = u32::from(byte - b'0');
            match index % 2 {
                0 => digit,
                _ if digit > 4 => digit * 2 - 9,
                _ => digit * 2,
            }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// Numeric identifiers stay in paths, where they are what the path is about; secrets do not.
fn show_path(path: &[u8], mask: bool) -> String {
    let mut shown = String::with_capacity(path.len().min(MAX_URL) + 16);
    for (index, segment) in path.split(|byte| *byte == b'/').enumerate() {
        if index > 0 {
            shown.push('/');
        }
        let room = MAX_URL.saturating_sub(shown.len());
        if room == 0 {
            shown.push_str(CUT);
            break;
        }
        if mask && segment.len() >= 6 {
            let decoded = percent_decoded(segment);
            if is_token(&decoded) || is_email(&decoded) || is_card_number(&decoded) {
                shown.push_str(REDACTED);
                continue;
            }
            // Matrix parameters (`;jsessionid=..`) carry sessions in paths.
            if let Some(at) = segment.iter().position(|byte| *byte == b';')
                && let Some((name, _)) = segment.split_at_checked(at)
            {
                push_escaped(&mut shown, name, room);
                shown.push(';');
                shown.push_str(REDACTED);
                continue;
            }
        }
        push_escaped(&mut shown, segment, room);
    }
    shown
}

/// URL bytes as they are, all others percent-encoded, at most `room` bytes.
fn push_escaped(shown: &mut String, bytes: &[u8], room: usize) {
    let end = shown.len().saturating_add(room);
    for byte in bytes {
        if shown.len() >= end {
            shown.push_str(CUT);
            return;
        }
        if matches!(byte, b'!'..=b'~') && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`') {
            shown.push(char::from(*byte));
        } else {
            push_hex(shown, *byte);
        }
    }
}

fn push_hex(shown: &mut String, byte: u8) {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    shown.push('%');
    for nibble in [byte >> 4, byte & 15] {
        shown.push(HEX.get(usize::from(nibble)).copied().unwrap_or('0'));
    }
}

/// Text of any origin, safe in a terminal and in a log: control and direction-changing characters escaped, bytes that
/// are not UTF-8 shown as U+FFFD, cut at `max` bytes.
fn show_text(raw: &[u8], max: usize) -> String {
    let cut = raw.len() > max;
    let raw = raw.get(..max).unwrap_or(raw);
    let mut shown = String::with_capacity(raw.len() + 8);
    if raw.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        shown.push_str(str::from_utf8(raw).unwrap_or_default());
    } else {
        for character in String::from_utf8_lossy(raw).chars() {
            let unsafe_format = matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
            if !character.is_control() && !unsafe_format {
                shown.push(character);
            } else if let Ok(byte) = u8::try_from(u32::from(character)) {
                // Writing to a String cannot fail.
                write!(shown, "\\x{byte:02x}").unwrap_or_default();
            } else {
                write!(shown, "\\u{{{:x}}}", u32::from(character)).unwrap_or_default();
            }
        }
    }
    if cut {
        shown.push_str(CUT);
    }
    shown
}

/// One round of percent-decoding, borrowed when there is nothing to decode; `+` stays, which no shape needs.
fn percent_decoded(bytes: &[u8]) -> Cow<'_, [u8]> {
    if !bytes.contains(&b'%') {
        return Cow::Borrowed(bytes);
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        let pair = tail.first_chunk::<2>().filter(|_| *first == b'%');
        let byte = pair.and_then(|[high, low]| {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
        });
        match byte {
            Some(byte) => {
                decoded.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => decoded.push(*first),
        }
    }
    Cow::Owned(decoded)
}

/// Lower case, at most the buffer's length.
fn lowered<'a>(text: &[u8], buffer: &'a mut [u8; 64]) -> &'a [u8] {
    let mut len = 0;
    for (slot, byte) in buffer.iter_mut().zip(text) {
        *slot = byte.to_ascii_lowercase();
        len += 1;
    }
    buffer.get(..len).unwrap_or_default()
}

/// Lower case without separators (`X-Api_Key[]` is `xapikey`), at most the buffer's length.
fn normalized<'a>(text: &[u8], buffer: &'a mut [u8; 64]) -> &'a [u8] {
    let mut len = 0;
    let kept = text.iter().filter(|byte| !matches!(byte, b'-' | b'_' | b'.' | b'[' | b']' | b' '));
    for (slot, byte) in buffer.iter_mut().zip(kept) {
        *slot = byte.to_ascii_lowercase();
        len += 1;
    }
    buffer.get(..len).unwrap_or_default()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    let Some(first) = part.first() else { return true };
    text.len() >= part.len() && text.windows(part.len()).any(|window| window.first() == Some(first) && window == part)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::model::{
        Backend, Body, ConnId, Connection, Field, Handshake, Outcome, ProcessRef, Response, SpanId, Timestamp, Timing,
        TraceContext, TraceId, Transport, Version, fixture,
    };

    const SECRET: &str = "s3cr3tS3cr3tS3cr3tS3cr3t";

    fn headers(fields: &[(&str, &str)]) -> Headers {
        let mut raw = Vec::new();
        let mut ranges = Vec::new();
        for (name, value) in fields {
            let start = raw.len() as u32;
            raw.extend_from_slice(name.as_bytes());
            let middle = raw.len() as u32;
            raw.extend_from_slice(value.as_bytes());
            ranges.push(Field { name: (start, middle), value: (middle, raw.len() as u32) });
        }
        Headers::new(Bytes::from(raw), ranges.into())
    }

    fn exchange(role: Role, method: &[u8], target: &[u8], fields: &[(&str, &str)], status: Option<u16>) -> Exchange {
        let version = Version::Http11;
        Exchange {
            connection: Arc::new(Connection {
                id: ConnId(1),
                transport: Transport::Tcp,
                local: SocketAddress::Ip("127.0.0.1:8080".parse().unwrap()),
                remote: SocketAddress::Ip("10.0.0.7:50000".parse().unwrap()),
                backend: Backend::SockTracepoint,
                tls: None,
                process: ProcessRef { pid: 42, start_ns: 1 },
                comm: Arc::from("nginx"),
                cgroup: 0,
                uid: 0,
                netns: 0,
                first_seen: Timestamp(0),
            }),
            role,
            version,
            request: Some(Request {
                method: Bytes::copy_from_slice(method),
                target: Bytes::copy_from_slice(target),
                version,
                headers: headers(fields),
                body: Body { size: Some(3), ..Body::default() },
            }),
            response: status.map(|status| Response {
                status,
                version,
                headers: headers(&[("Set-Cookie", "session=abc"), ("X-Kind", "plain")]),
                trailers: None,
                body: Body { size: Some(5), ..Body::default() },
                interim: 0,
                first_byte: Timestamp(1_500),
            }),
            timing: Timing {
                start: Timestamp(1_000),
                request_end: Some(Timestamp(1_100)),
                response_start: status.map(|_| Timestamp(1_500)),
                end: Timestamp(3_000),
            },
            outcome: if status.is_some() { Outcome::Complete } else { Outcome::Timeout },
            incomplete: None,
            pid: 42,
            tid: 43,
            trace: TraceContext {
                trace_id: TraceId([1; 16]),
                span_id: SpanId([2; 8]),
                parent: None,
                parent_remote: false,
                sampled: None,
            },
        }
    }

    fn report_of(exchange: &Exchange) -> CallReport {
        Redactor::default().report(exchange, None, &Arc::new(Workload::default()), None, 7)
    }

    fn server(method: &str, target: &str, fields: &[(&str, &str)]) -> CallReport {
        report_of(&exchange(Role::Server, method.as_bytes(), target.as_bytes(), fields, Some(200)))
    }

    fn encrypted(mut exchange: Exchange, handshake: Handshake) -> Exchange {
        Arc::get_mut(&mut exchange.connection).unwrap().tls = Some(Arc::new(handshake));
        exchange
    }

    #[test]
    fn a_call_over_tls_says_so_and_shares_the_handshake_of_its_connection() {
        let plain = exchange(Role::Server, b"GET", b"/", &[], Some(200));
        let report = report_of(&plain);
        assert_eq!((report.scheme, report.tls), ("http", None));
        let exchange = encrypted(plain, fixture::handshake());
        let report = report_of(&exchange);
        assert_eq!(report.scheme, "https");
        assert!(Arc::ptr_eq(report.tls.as_ref().unwrap(), exchange.connection.tls.as_ref().unwrap()));
    }

    #[test]
    fn methods_are_known_by_exact_case_or_other() {
        for (sent, method, original) in [
            ("GET", "GET", None),
            ("QUERY", "QUERY", None),
            ("PATCH", "PATCH", None),
            ("get", "_OTHER", Some("get")),
            ("PROPFIND", "_OTHER", Some("PROPFIND")),
            ("A\x1b[31m", "_OTHER", Some("A\\x1b[31m")),
            ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "_OTHER", Some("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA...")),
        ] {
            let report = server(sent, "/", &[]);
            assert_eq!(report.method.as_deref(), Some(method), "{sent}");
            assert_eq!(report.method_original.as_deref(), original, "{sent}");
        }
        let own = RedactionConfig { known_methods: vec!["PROPFIND".to_owned()], ..RedactionConfig::default() };
        let report = Redactor::new(own).report(
            &exchange(Role::Server, b"PROPFIND", b"/", &[], None),
            None,
            &Arc::new(Workload::default()),
            None,
            0,
        );
        assert_eq!(report.method.as_deref(), Some("PROPFIND"));
    }

    #[test]
    fn every_target_form_of_rfc_9112_is_taken_apart() {
        for (method, target, host, path, query, address, port) in [
            ("GET", "/a?b=1", "x.example:81", Some("/a"), Some("b=1"), "x.example", 81),
            ("GET", "/a", "x.example", Some("/a"), None, "x.example", 8080),
            ("GET", "/a?", "[::1]:81", Some("/a"), Some(""), "::1", 81),
            ("GET", "http://u:p@y.example:82/a?b=1#c", "x", Some("/a"), Some("b=1"), "y.example", 82),
            ("GET", "http://y.example?b=1", "x", Some("/"), Some("b=1"), "y.example", 8080),
            ("CONNECT", "y.example:443", "x", None, None, "y.example", 443),
            ("OPTIONS", "*", "x", Some("*"), None, "x", 8080),
            ("GET", "/", "bad host", Some("/"), None, "127.0.0.1", 8080),
            ("GET", "/", "x:99999", Some("/"), None, "127.0.0.1", 8080),
            ("GET", "/", "", Some("/"), None, "127.0.0.1", 8080),
            ("GET", "a:b", "x", Some("a:b"), None, "x", 8080),
        ] {
            let report = server(method, target, &[("Host", host)]);
            assert_eq!(report.path.as_deref(), path, "{target}");
            assert_eq!(report.query.as_deref(), query, "{target}");
            assert_eq!(report.server_address.as_deref(), Some(address), "{target}");
            assert_eq!(report.server_port, Some(port), "{target}");
        }
    }

    #[test]
    fn query_values_that_are_secret_or_personal_are_replaced() {
        for (sent, shown) in [
            ("q=OpenTelemetry&sig=abc", "q=OpenTelemetry&sig=REDACTED"),
            (
                "AWSAccessKeyId=A&Signature=b&X-Goog-Signature=c",
                "AWSAccessKeyId=REDACTED&Signature=REDACTED&X-Goog-Signature=REDACTED",
            ),
            ("X-Amz-Credential=a&X-Amz-Security-Token=b", "X-Amz-Credential=REDACTED&X-Amz-Security-Token=REDACTED"),
            (
                "access_token=a&api%5Fkey=b&user%5Bpassword%5D=c",
                "access_token=REDACTED&api%5Fkey=REDACTED&user%5Bpassword%5D=REDACTED",
            ),
            ("author=knuth&page=2&sort=-created_at", "author=knuth&page=2&sort=-created_at"),
            ("authorization_code=x&auth=y", "authorization_code=REDACTED&auth=REDACTED"),
            ("to=joe%40example.com&cc=joe@example.com", "to=REDACTED&cc=REDACTED"),
            ("tel2=%2B1-555-010-0199&n=12345678", "tel2=REDACTED&n=12345678"),
            ("x=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "x=REDACTED"),
            ("x=ghp_abcdefghijklmnopqrst", "x=REDACTED"),
            ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "REDACTED"),
            ("id=3f2b8c1e-9d4a-4c7b-8e5f-0123456789ab", "id=3f2b8c1e-9d4a-4c7b-8e5f-0123456789ab"),
            ("slug=a-rather-long-title-of-an-article", "slug=a-rather-long-title-of-an-article"),
            ("a&b=&c=d=e", "a&b=&c=d=e"),
            ("a=\x1b[0m \"<", "a=%1B[0m%20%22%3C"),
            ("", ""),
        ] {
            assert_eq!(server("GET", &format!("/?{sent}"), &[]).query.as_deref(), Some(shown));
        }
    }

    #[test]
    fn query_redaction_can_be_stricter_or_as_the_conventions_ask() {
        for (query, shown) in [
            (QueryRedaction::All, "a=REDACTED&sig=REDACTED&mine=REDACTED&token=REDACTED"),
            (QueryRedaction::Sensitive, "a=1&sig=REDACTED&mine=REDACTED&token=REDACTED"),
            (QueryRedaction::Off, "a=1&sig=REDACTED&mine=REDACTED&token=4"),
        ] {
            let config =
                RedactionConfig { query, sensitive_query_keys: vec!["MINE".to_owned()], ..RedactionConfig::default() };
            assert_eq!(Redactor::new(config).show_query(b"a=1&sig=2&mine=3&token=4", false), shown);
        }
    }

    #[test]
    fn what_a_graphql_query_asks_does_not_leave_whatever_the_setting() {
        let sent = b"query=%7Ba%7D&variables=%7B%7D&extensions=x&operationName=Basket&page=2";
        let shown = "query=REDACTED&variables=REDACTED&extensions=REDACTED&operationName=Basket&page=2";
        for query in [QueryRedaction::Sensitive, QueryRedaction::Off] {
            let redactor = Redactor::new(RedactionConfig { query, ..RedactionConfig::default() });
            assert_eq!(redactor.show_query(sent, true), shown);
        }
        assert_eq!(Redactor::default().show_query(b"query=shoes&variables=2", false), "query=shoes&variables=2");
    }

    #[test]
    fn paths_keep_identifiers_and_lose_secrets() {
        for (sent, shown) in [
            ("/users/42/orders/123456789", "/users/42/orders/123456789"),
            ("/o/3f2b8c1e-9d4a-4c7b-8e5f-0123456789ab", "/o/3f2b8c1e-9d4a-4c7b-8e5f-0123456789ab"),
            ("/reset/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln/x", "/reset/REDACTED/x"),
            ("/u/joe%40example.com", "/u/REDACTED"),
            ("/card/4111111111111111", "/card/REDACTED"),
            ("/t/s3cr3tS3cr3tS3cr3tS3cr3t", "/t/REDACTED"),
            ("/shop;jsessionid=abc/cart", "/shop;REDACTED/cart"),
            ("/a\x07b\u{e9}", "/a%07b%C3%A9"),
            ("//x/../y", "//x/../y"),
        ] {
            assert_eq!(server("GET", sent, &[]).path.as_deref(), Some(shown));
        }
        let long = format!("/{}", "a/".repeat(4000));
        assert!(server("GET", &long, &[]).path.is_some_and(|path| path.len() <= MAX_URL + 8));
        let long = format!("/?{}", "a=b&".repeat(4000));
        assert!(server("GET", &long, &[]).query.is_some_and(|query| query.len() <= MAX_URL + 16));
    }

    #[test]
    fn the_authentication_scheme_is_read_from_shape_alone() {
        for (fields, target, scheme) in [
            (&[][..], "/", "none"),
            (&[("Authorization", "Basic dTpw")][..], "/", "basic"),
            (&[("authorization", "bearer opaque")], "/", "bearer"),
            (&[("Authorization", "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln")], "/", "jwt"),
            (&[("Authorization", "Digest username=x")], "/", "other"),
            (&[("Authorization", "ApiKey abc")], "/", "api_key"),
            (&[("Authorization", "")], "/", "none"),
            (&[("X-Api-Key", "abc")], "/", "api_key"),
            (&[("Cookie", "theme=dark")], "/", "none"),
            (&[("Cookie", "theme=dark; PHPSESSID=abc")], "/", "cookie"),
            (&[("Cookie", "x=s3cr3tS3cr3tS3cr3tS3cr3t")], "/", "cookie"),
            (&[("Cookie", "sid=1"), ("X-Api-Key", "abc")], "/", "api_key"),
            (&[], "/?api_key=abc", "api_key"),
        ] {
            assert_eq!(server("GET", target, fields).auth_scheme, Some(scheme), "{fields:?} {target}");
        }
        for (fields, sent, scheme) in
            [(&[][..], true, "mtls"), (&[], false, "none"), (&[("Authorization", "Basic dTpw")], true, "basic")]
        {
            let handshake = Handshake { client_certificate_sent: sent, ..Handshake::default() };
            let report = report_of(&encrypted(exchange(Role::Server, b"GET", b"/", fields, None), handshake));
            assert_eq!(report.auth_scheme, Some(scheme));
        }
        let mut truncated = exchange(Role::Server, b"GET", b"/", &[("A", "b")], None);
        truncated.request.as_mut().unwrap().headers.truncated = true;
        assert_eq!(report_of(&truncated).auth_scheme, None);
        truncated.request = None;
        assert_eq!(report_of(&truncated).auth_scheme, None);
    }

    #[test]
    fn headers_leave_by_allow_list_and_credentials_never() {
        let fields = [
            ("X-Id", "7"),
            ("X-Id", "8"),
            ("Authorization", SECRET),
            ("Proxy-Authorization", "Basic dTpw"),
            ("X-Tenant-Token", SECRET),
            ("Referer", "http://h/p?t=s3cr3tS3cr3tS3cr3tS3cr3t&a=1"),
            ("Other", "not asked for"),
        ];
        let config = RedactionConfig {
            request_headers: ["x-id", "AUTHORIZATION", "proxy-authorization", "x-tenant-token", "referer"]
                .map(str::to_owned)
                .into(),
            response_headers: ["set-cookie", "x-kind"].map(str::to_owned).into(),
            ..RedactionConfig::default()
        };
        let report = Redactor::new(config).report(
            &exchange(Role::Server, b"GET", b"/", &fields, Some(200)),
            None,
            &Arc::new(Workload::default()),
            None,
            0,
        );
        let shown: Vec<(&str, &str)> = report.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(
            shown,
            [
                ("http.request.header.x-id", "7"),
                ("http.request.header.x-id", "8"),
                ("http.request.header.authorization", "REDACTED"),
                ("http.request.header.proxy-authorization", "Basic REDACTED"),
                ("http.request.header.x-tenant-token", "REDACTED"),
                ("http.request.header.referer", "http://h/p?t=REDACTED&a=1"),
                ("http.response.header.set-cookie", "REDACTED"),
                ("http.response.header.x-kind", "plain"),
            ]
        );
        assert!(report_of(&exchange(Role::Server, b"GET", b"/", &fields, Some(200))).headers.is_empty());
    }

    #[test]
    fn errors_are_judged_from_the_side_of_the_process() {
        for (role, status, error) in [
            (Role::Server, Some(200), None),
            (Role::Server, Some(404), None),
            (Role::Server, Some(500), Some("500")),
            (Role::Client, Some(302), None),
            (Role::Client, Some(404), Some("404")),
            (Role::Client, Some(999), Some("999")),
            (Role::Client, Some(1500), Some("1500")),
            (Role::Server, None, Some("timeout")),
        ] {
            let report = report_of(&exchange(role, b"GET", b"/", &[], status));
            assert_eq!(report.error_type.as_deref(), error, "{role:?} {status:?}");
        }
    }

    #[test]
    fn addresses_follow_the_side_of_the_process() {
        let report = report_of(&exchange(Role::Server, b"GET", b"/", &[], Some(200)));
        assert_eq!(report.client_address.as_deref(), Some("10.0.0.7"));
        assert_eq!((report.client_port, report.server_port), (Some(50000), Some(8080)));
        assert_eq!((report.duration_ns, report.time_to_first_byte_ns), (2_000, Some(500)));
        let report = report_of(&exchange(Role::Client, b"GET", b"/", &[], Some(200)));
        assert_eq!(report.server_address.as_deref(), Some("10.0.0.7"));
        assert_eq!((report.client_address, report.server_port), (None, Some(50000)));
        let mut unix = exchange(Role::Client, b"GET", b"/", &[("Host", "localhost")], Some(200));
        let connection = Arc::get_mut(&mut unix.connection).unwrap();
        connection.remote = SocketAddress::Unix("/run/x.sock".into());
        connection.local = SocketAddress::Unix("".into());
        let report = report_of(&unix);
        assert_eq!(report.peer_address.as_deref(), Some("unix:/run/x.sock"));
        assert_eq!((report.server_address.as_deref(), report.server_port), (Some("unix:/run/x.sock"), None));
    }

    #[test]
    fn the_user_agent_is_bounded_and_harmless_in_a_terminal() {
        let agent = format!("curl\x1b]0;x\x07\u{202e}{}", "a".repeat(1000));
        let shown = server("GET", "/", &[("User-Agent", &agent)]).user_agent.unwrap();
        assert!(shown.starts_with("curl\\x1b]0;x\\x07\\u{202e}aaa"), "{shown}");
        assert!(shown.len() < MAX_USER_AGENT + 32);
    }

    #[test]
    fn an_exchange_without_a_request_says_nothing_of_it() {
        let mut lone = exchange(Role::Server, b"GET", b"/x?y", &[("Host", "h")], Some(200));
        lone.request = None;
        let report = report_of(&lone);
        assert_eq!((report.method, report.path, report.query, report.user_agent), (None, None, None, None));
        assert_eq!(report.server_address.as_deref(), Some("127.0.0.1"));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_bounded_printable_report(
            method in proptest::collection::vec(any::<u8>(), 0..64),
            target in proptest::collection::vec(any::<u8>(), 0..512),
            host in proptest::collection::vec(any::<u8>(), 0..64),
            cookie in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut exchange = exchange(Role::Client, &method, &target, &[], Some(200));
            let mut raw = b"HostCookieUser-Agent".to_vec();
            let (h, c) = (host.len() as u32, cookie.len() as u32);
            raw.extend_from_slice(&host);
            raw.extend_from_slice(&cookie);
            let fields = vec![
                Field { name: (0, 4), value: (20, 20 + h) },
                Field { name: (4, 10), value: (20 + h, 20 + h + c) },
                Field { name: (10, 20), value: (20, 20 + h + c) },
            ];
            exchange.request.as_mut().unwrap().headers = Headers::new(Bytes::from(raw), fields.into());
            let report = report_of(&exchange);
            let strings =
                [&report.method_original, &report.path, &report.query, &report.server_address, &report.user_agent];
            for shown in strings.into_iter().flatten() {
                prop_assert!(shown.len() <= 8 * MAX_URL && !shown.chars().any(char::is_control), "{shown:?}");
            }
        }

        #[test]
        fn a_token_never_leaves_by_query_path_or_cookie(
            secret in "[A-Z]{4}[a-z]{8}[0-9]{6}[A-Za-z0-9]{4,20}",
            key in "[a-z_]{1,12}",
        ) {
            let target = format!("http://{secret}:{secret}@h/{secret}/a?{key}={secret}&{secret}");
            let fields = [("Cookie", format!("a={secret}")), ("Authorization", format!("Bearer {secret}"))];
            let fields = [(fields[0].0, &*fields[0].1), (fields[1].0, &*fields[1].1)];
            let shown = format!("{:?}", server("GET", &target, &fields));
            prop_assert!(!shown.contains(&secret), "{shown}");
        }
    }
}
