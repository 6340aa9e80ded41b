//! Who may ask the admin server what: the token, the session cookie, and the checks against other web pages.
//!
//! The admin API shows everybody's traffic, so a request is refused unless it proves its right, on loopback too. The
//! decision is a function of the request's head; no answer tells how close a wrong token was.
//!
//! What a browser could be made to do by a foreign page is refused thrice: by `Host` (DNS rebinding), by
//! `Sec-Fetch-Site` and `Origin` (requests from other sites), and by a `SameSite=Strict` cookie. Cookies do not keep
//! ports apart, so the cookie is a secret of its own that ends with the agent and is not the token.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use axum::http::header::{AUTHORIZATION, COOKIE, HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use subtle::ConstantTimeEq as _;

/// Shortest token taken from a file: 128 bits in base64 without padding.
const MIN_TOKEN: usize = 22;
const MAX_TOKEN: usize = 4_096;
/// The page asks for the token again after this many seconds.
const SESSION_SECONDS: u32 = 12 * 60 * 60;

const HOST_REFUSED: &str =
    "this Host is not taken: use the address that the agent listens on, or list the name in admin.hosts";
const TOKEN_NEEDED: &str = "a token is needed: send `Authorization: Bearer TOKEN`; the agent writes it to /run/weir/token unless told otherwise";

/// A secret that lets its holder see all traffic. Never printed by `Debug`.
#[derive(Clone)]
pub struct Token(String);

/// What a listener demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The peer's credentials were checked when it connected (Unix socket).
    Peer,
    /// The token or the session cookie.
    Token,
}

/// Decides about requests of one listener.
#[derive(Debug)]
pub struct Guard {
    access: Access,
    token: Token,
    session: Token,
    /// Cookie name; with the port, because cookies do not keep ports apart.
    cookie: String,
    /// Names taken in `Host` besides IP addresses and `localhost`.
    hosts: Vec<String>,
    /// Bound to a loopback address: no other address is taken in `Host`.
    loopback: bool,
    open_metrics: bool,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// `authorized`: may see traffic; else only what is open to all.
    Allow {
        authorized: bool,
    },
    Refuse(StatusCode, &'static str),
}

/// Part of the URL space, by who may see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Area {
    /// Static files: nothing of the observed traffic is in them.
    Page,
    /// `/livez`, `/readyz`: a word each without the token.
    Health,
    /// Takes only the token itself, not the cookie.
    Session,
    Metrics,
    Traffic,
}

impl Token {
    /// 256 random bits as hexadecimal digits.
    pub fn generate() -> anyhow::Result<Self> {
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes).context("read random bytes for the admin token")?;
        let mut text = String::with_capacity(64);
        for byte in bytes {
            write!(text, "{byte:02x}").context("format the admin token")?;
        }
        Ok(Self(text))
    }

    /// The token in `path`, white space around it removed.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let metadata = fs::metadata(path).with_context(|| format!("read the admin token file {shown}"))?;
        if metadata.len() > MAX_TOKEN as u64 {
            bail!("the admin token file {shown} is longer than {MAX_TOKEN} bytes");
        }
        if metadata.mode() & 0o022 != 0 {
            bail!("the admin token file {shown} can be written by others: chmod go-w {shown}");
        }
        if metadata.mode() & 0o004 != 0 {
            tracing::warn!(path = %shown, "the admin token file can be read by every user of this machine");
        }
        let text = fs::read_to_string(path).with_context(|| format!("read the admin token file {shown}"))?;
        let text = text.trim();
        if text.len() < MIN_TOKEN {
            bail!("the token in {shown} is shorter than {MIN_TOKEN} characters: openssl rand -hex 32 > {shown}");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            bail!("the token in {shown} has characters that cannot stand in an HTTP header");
        }
        Ok(Self(text.to_owned()))
    }

    /// Put the token where only the owner can read it, replacing what an earlier run left.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let fresh = path.with_extension("new");
        let written = (|| {
            match fs::remove_file(&fresh) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // A new file: the mode holds from the first byte, and a planted link is not followed.
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
            file.write_all(self.0.as_bytes())?;
            file.write_all(b"\n")?;
            fs::rename(&fresh, path)
        })();
        written.with_context(|| format!("write the admin token to {}", path.display()))
    }

    /// The secret itself, for the address that is printed for the user.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    fn is(&self, offered: &str) -> bool {
        self.0.as_bytes().ct_eq(offered.as_bytes()).into()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Guard {
    /// For a Unix socket, whose peers are checked when they connect.
    pub fn peer() -> anyhow::Result<Self> {
        let (token, session) = (Token::generate()?, Token::generate()?);
        Ok(Self {
            access: Access::Peer,
            token,
            session,
            cookie: String::new(),
            hosts: Vec::new(),
            loopback: true,
            open_metrics: true,
        })
    }

    /// For a TCP listener bound to `address`.
    pub fn token(
        address: std::net::SocketAddr,
        token: Token,
        hosts: Vec<String>,
        open_metrics: bool,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            access: Access::Token,
            token,
            session: Token::generate()?,
            cookie: format!("weir_session_{}", address.port()),
            hosts,
            loopback: address.ip().is_loopback(),
            open_metrics,
        })
    }

    /// The decision for a request with this head.
    pub fn decide(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Decision {
        if self.access == Access::Peer {
            return Decision::Allow { authorized: true };
        }
        // An absolute target (RFC 9112 section 3.2.2) is for proxies and would take the place of `Host`.
        if uri.authority().is_some() || !self.host_is_ours(headers) {
            return Decision::Refuse(StatusCode::MISDIRECTED_REQUEST, HOST_REFUSED);
        }
        let area = Area::of(uri.path());
        // A link to the page from elsewhere is a navigation and shows nothing by itself.
        let navigation = area == Area::Page && matches!(*method, Method::GET | Method::HEAD);
        if !navigation && !is_same_origin(headers) {
            return Decision::Refuse(StatusCode::FORBIDDEN, "requests from other sites are refused");
        }
        let by_token = bearer(headers).is_some_and(|offered| self.token.is(offered));
        // A wrong token is an error even with a good cookie: the caller meant to use it.
        let by_cookie =
            !headers.contains_key(AUTHORIZATION) && self.cookies(headers).any(|offered| self.session.is(offered));
        let authorized = match area {
            Area::Session => by_token,
            _ => by_token || by_cookie,
        };
        let open = match area {
            Area::Page | Area::Health => true,
            Area::Metrics => self.open_metrics,
            Area::Session | Area::Traffic => false,
        };
        if authorized || open {
            Decision::Allow { authorized }
        } else {
            Decision::Refuse(StatusCode::UNAUTHORIZED, TOKEN_NEEDED)
        }
    }

    /// `Set-Cookie` for a page that has shown the token.
    pub fn set_cookie(&self) -> String {
        format!(
            "{}={}; Path=/; Max-Age={SESSION_SECONDS}; HttpOnly; SameSite=Strict",
            self.cookie,
            self.session.reveal()
        )
    }

    fn host_is_ours(&self, headers: &HeaderMap) -> bool {
        let mut fields = headers.get_all(HOST).iter();
        let (Some(field), None) = (fields.next(), fields.next()) else { return false };
        let Some(authority) = field.to_str().ok().and_then(|text| text.parse::<Authority>().ok()) else { return false };
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match bare.parse::<IpAddr>() {
            // Rebinding needs a name. An address that is not loopback cannot have led to a loopback listener.
            Ok(address) => !self.loopback || address.is_loopback(),
            Err(_) => {
                host.eq_ignore_ascii_case("localhost") || self.hosts.iter().any(|name| name.eq_ignore_ascii_case(host))
            }
        }
    }

    fn cookies<'a>(&'a self, headers: &'a HeaderMap) -> impl Iterator<Item = &'a str> {
        headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|field| field.to_str().ok())
            .flat_map(|field| field.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .filter(|(name, _)| *name == self.cookie)
            .map(|(_, value)| value)
    }
}

impl Area {
    fn of(path: &str) -> Self {
        match path {
            "/livez" | "/readyz" => Self::Health,
            "/metrics" => Self::Metrics,
            "/api/v1/session" => Self::Session,
            "/" => Self::Page,
            _ if path.starts_with("/ui/") => Self::Page,
            _ => Self::Traffic,
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else { return None };
    let (scheme, token) = field.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Not sent by another page. Programs send neither header.
fn is_same_origin(headers: &HeaderMap) -> bool {
    let site = headers.get_all("sec-fetch-site").iter().all(|site| matches!(site.as_bytes(), b"same-origin" | b"none"));
    let own = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let origin = headers.get_all(ORIGIN).iter().all(|origin| {
        let origin = origin.to_str().unwrap_or_default();
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        authority.is_some_and(|authority| authority.eq_ignore_ascii_case(own))
    });
    site && origin
}
