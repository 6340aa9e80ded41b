//! Every key of the configuration in one table: default, meaning, sources. Validation and the reference both read it,
//! so that neither can say what the other does not.

use crate::filter::Target;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

/// One key.
#[derive(Debug)]
pub(super) struct KeySpec {
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    /// As it would be written; empty: none.
    pub(super) default: &'static str,
    pub(super) effect: &'static str,
    /// Changes need a restart of the agent.
    pub(super) restart: bool,
    /// Environment variable.
    pub(super) env: Option<&'static str>,
    /// Command line flag.
    pub(super) flag: Option<&'static str>,
}

/// What a value must look like. Bounds are inclusive.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Bool,
    /// Bytes: `4096`, `4KiB`, `256MiB`, `8MB`.
    Bytes {
        min: u64,
        max: u64,
        power_of_two: bool,
    },
    /// With a unit: `500ms`, `10s`, `5m`, `1h`. Kept in nanoseconds. In the environment a bare number is milliseconds.
    Duration {
        min: u64,
        max: u64,
    },
    Count {
        min: u64,
        max: u64,
    },
    Number {
        min: f64,
        max: f64,
    },
    Choice(&'static [&'static str]),
    Url,
    /// `ADDRESS:PORT` or `off`.
    Address,
    /// An absolute path.
    Path,
    /// An absolute path or `off`.
    PathOrOff,
    Targets,
    /// Header names or other tokens (RFC 9110 section 5.6.2).
    Tokens,
    /// Header names to values; the values are secrets.
    Headers,
    /// The vocabulary of a later version.
    Policies,
}

/// A value that fits its kind.
#[derive(Clone, PartialEq)]
pub(super) enum Value {
    Absent,
    Bool(bool),
    Integer(u64),
    Number(f64),
    Text(String),
    List(Vec<String>),
    Pairs(Vec<(String, String)>),
}

const fn key(path: &'static str, kind: Kind, default: &'static str, effect: &'static str) -> KeySpec {
    KeySpec { path, kind, default, effect, restart: false, env: None, flag: None }
}

impl KeySpec {
    const fn env(self, name: &'static str) -> Self {
        Self { env: Some(name), ..self }
    }

    const fn flag(self, name: &'static str) -> Self {
        Self { flag: Some(name), ..self }
    }

    const fn restart(self) -> Self {
        Self { restart: true, ..self }
    }
}

const PROTOCOLS: Kind = Kind::Choice(&["auto", "grpc", "http/protobuf"]);
const COMPRESSIONS: Kind = Kind::Choice(&["none", "gzip"]);
const TIMEOUT: Kind = Kind::Duration { min: MS, max: 600 * SECOND };
const PERIOD: Kind = Kind::Duration { min: 10 * MS, max: 3600 * SECOND };

/// All keys, in the order of the reference.
pub(super) const KEYS: &[KeySpec] = &[
    key(
        "mode",
        Kind::Choice(&["observe", "audit", "enforce"]),
        "observe",
        "The most the agent may do: `observe` reports, `audit` also says what would be denied, `enforce` denies. Each \
         policy and rule may only lower it.",
    )
    .flag("--mode"),
    key(
        "targets",
        Kind::Targets,
        "[]",
        "Observe only what matches one of these: `pid:N`, `exe:GLOB`, `cgroup:GLOB`, `port:N`. Empty: everything.",
    )
    .flag("--target"),
    key("exclude", Kind::Targets, "[]", "Leave alone what matches one of these; wins over `targets`.")
        .flag("--exclude"),
    key(
        "memoryLimit",
        Kind::Bytes { min: 48 * MIB, max: 1024 * 1024 * MIB, power_of_two: false },
        "256MiB",
        "Memory the agent may use. Near it, tables and queues shrink and count what they give up.",
    )
    .restart(),
    key(
        "cpuLimit",
        Kind::Number { min: 0.05, max: 1024.0 },
        "1.0",
        "Cores the agent may use. Above it, less of each message is copied before calls are left out; both are \
         counted.",
    ),
    key("otlp.endpoint", Kind::Url, "", "OTLP receiver, `http://` or `https://`. Unset: no OTLP export.")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT")
        .flag("--otlp-endpoint")
        .restart(),
    key(
        "otlp.protocol",
        PROTOCOLS,
        "auto",
        "`auto` is `grpc` for an endpoint with port 4317 and `http/protobuf` for any other.",
    )
    .env("OTEL_EXPORTER_OTLP_PROTOCOL")
    .flag("--otlp-protocol")
    .restart(),
    key("otlp.headers", Kind::Headers, "{}", "Header fields of every export request. Values are never shown.")
        .env("OTEL_EXPORTER_OTLP_HEADERS")
        .restart(),
    key("otlp.timeout", TIMEOUT, "10s", "Longest wait for one attempt.").env("OTEL_EXPORTER_OTLP_TIMEOUT").restart(),
    key("otlp.compression", COMPRESSIONS, "none", "Compression of export requests.")
        .env("OTEL_EXPORTER_OTLP_COMPRESSION")
        .restart(),
    key("otlp.traces.enabled", Kind::Bool, "true", "Export spans to the endpoint.").restart(),
    key("otlp.traces.endpoint", Kind::Url, "", "Endpoint of spans, taken as it is. Unset: as `otlp.endpoint`.")
        .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        .restart(),
    key("otlp.traces.protocol", PROTOCOLS, "", "Unset: as `otlp.protocol`.")
        .env("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        .restart(),
    key("otlp.traces.headers", Kind::Headers, "", "Unset: as `otlp.headers`.")
        .env("OTEL_EXPORTER_OTLP_TRACES_HEADERS")
        .restart(),
    key("otlp.traces.timeout", TIMEOUT, "", "Unset: as `otlp.timeout`.")
        .env("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT")
        .restart(),
    key("otlp.traces.compression", COMPRESSIONS, "", "Unset: as `otlp.compression`.")
        .env("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION")
        .restart(),
    key(
        "otlp.traces.queue",
        Kind::Count { min: 1, max: 1_000_000 },
        "16384",
        "Spans that wait for export; a full queue drops new ones and counts them.",
    )
    .env("OTEL_BSP_MAX_QUEUE_SIZE")
    .restart(),
    key("otlp.traces.batch", Kind::Count { min: 1, max: 65_536 }, "1024", "Most spans in one request.")
        .env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE")
        .restart(),
    key("otlp.traces.delay", PERIOD, "1s", "Longest time a span waits for a batch to fill.")
        .env("OTEL_BSP_SCHEDULE_DELAY")
        .restart(),
    key("otlp.traces.batchTimeout", TIMEOUT, "30s", "Longest time for one request with its retries.")
        .env("OTEL_BSP_EXPORT_TIMEOUT")
        .restart(),
    key("otlp.metrics.enabled", Kind::Bool, "true", "Export metrics to the endpoint.").restart(),
    key("otlp.metrics.endpoint", Kind::Url, "", "Endpoint of metrics, taken as it is. Unset: as `otlp.endpoint`.")
        .env("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
        .restart(),
    key("otlp.metrics.protocol", PROTOCOLS, "", "Unset: as `otlp.protocol`.")
        .env("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL")
        .restart(),
    key("otlp.metrics.headers", Kind::Headers, "", "Unset: as `otlp.headers`.")
        .env("OTEL_EXPORTER_OTLP_METRICS_HEADERS")
        .restart(),
    key("otlp.metrics.timeout", TIMEOUT, "", "Unset: as `otlp.timeout`.")
        .env("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT")
        .restart(),
    key("otlp.metrics.compression", COMPRESSIONS, "", "Unset: as `otlp.compression`.")
        .env("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION")
        .restart(),
    key("otlp.metrics.interval", PERIOD, "60s", "Time between exports of metrics.")
        .env("OTEL_METRIC_EXPORT_INTERVAL")
        .restart(),
    key("export.console", Kind::Bool, "false", "Print one line per call on standard output.")
        .flag("--export console")
        .restart(),
    key("export.jsonl", Kind::Path, "", "Append one JSON object per call to this file. Unset: none.")
        .flag("--export jsonl:PATH")
        .restart(),
    key(
        "export.deduplicate",
        Kind::Choice(&["mark", "suppress", "off"]),
        "mark",
        "Calls of a process that exports OTLP spans itself: `mark` reports and marks them, `suppress` leaves them out, \
         `off` reports them as any other.",
    ),
    key(
        "export.sampler",
        Kind::Choice(&[
            "always_on",
            "always_off",
            "traceidratio",
            "parentbased_always_on",
            "parentbased_always_off",
            "parentbased_traceidratio",
        ]),
        "parentbased_always_on",
        "Which calls become spans. Metrics count all calls.",
    )
    .env("OTEL_TRACES_SAMPLER")
    .restart(),
    key(
        "export.samplerRatio",
        Kind::Number { min: 0.0, max: 1.0 },
        "1.0",
        "Share of traces kept by the `traceidratio` samplers, 0 to 1.",
    )
    .env("OTEL_TRACES_SAMPLER_ARG")
    .restart(),
    key(
        "export.query",
        Kind::Choice(&["sensitive", "all", "off"]),
        "sensitive",
        "Values in query strings that are replaced by `REDACTED`: those that are or look secret or personal, all, or \
         (`off`) only the four that the semantic conventions demand.",
    ),
    key("export.sensitiveQueryKeys", Kind::Tokens, "[]", "More query keys whose values are replaced, of any case."),
    key(
        "export.maskPaths",
        Kind::Bool,
        "true",
        "Replace path segments that look like a token, an e-mail address or a card number.",
    ),
    key(
        "export.requestHeaders",
        Kind::Tokens,
        "[]",
        "Request header fields to export, of any case. Values of credentials are masked all the same.",
    ),
    key("export.responseHeaders", Kind::Tokens, "[]", "Response header fields to export, of any case."),
    key(
        "export.credentialHeaders",
        Kind::Tokens,
        "[]",
        "More header fields that carry a credential: masked, and counted as a way to authenticate.",
    ),
    key(
        "export.knownMethods",
        Kind::Tokens,
        "[]",
        "Methods reported as they are, any other as `_OTHER`. Empty: those of RFC 9110, PATCH and QUERY.",
    )
    .env("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS"),
    key("admin.address", Kind::Address, "127.0.0.1:9464", "Where page, API and metrics listen, or `off`.")
        .flag("--admin")
        .restart(),
    key(
        "admin.socket",
        Kind::PathOrOff,
        "/run/weir/weir.sock",
        "Unix socket for the `weir` commands, root only, or `off`.",
    )
    .restart(),
    key(
        "admin.tokenFile",
        Kind::Path,
        "",
        "File with the token that clients of `admin.address` must send. Unset: a new one at each start.",
    )
    .restart(),
    key("admin.hosts", Kind::Tokens, "[]", "Host names under which `admin.address` may be asked, besides `localhost`.")
        .restart(),
    key("admin.openMetrics", Kind::Bool, "false", "Serve `/metrics` without the token.").restart(),
    key(
        "capture.budget",
        Kind::Bytes { min: 256, max: 64 * KIB, power_of_two: false },
        "4KiB",
        "Bytes copied of each message; the rest is counted. Longer heads than this are not understood.",
    ),
    key(
        "capture.bodyPrefix",
        Kind::Bytes { min: 0, max: 64 * KIB, power_of_two: false },
        "4KiB",
        "First bytes of content looked at where they may name a call (GraphQL, JSON-RPC, MCP), as far as \
         `capture.budget` copied them; they never leave the agent. More would find names behind long variables, at as \
         much memory for each open call. 0: none, and such calls are told by their heads alone.",
    )
    .restart(),
    key(
        "capture.backend",
        Kind::Choice(&["auto", "sock_tracepoint", "sys_exit"]),
        "auto",
        "How plaintext sockets are observed; `auto` takes the best that this kernel allows.",
    )
    .restart(),
    key(
        "capture.tls",
        Kind::Bool,
        "true",
        "Read the plaintext of TLS libraries, by probes on their functions. `false`: TLS connections are only counted.",
    )
    .restart(),
    key(
        "capture.tlsSweep",
        Kind::Duration { min: SECOND, max: 3600 * SECOND },
        "1m",
        "How often the mappings of all processes are read. A file that nobody maps twice in a row loses its probes.",
    )
    .restart(),
    key(
        "capture.ringBuffer",
        Kind::Bytes { min: 256 * KIB, max: 1024 * MIB, power_of_two: true },
        "8MiB",
        "Ring buffer between kernel and agent, a power of two; at most half of `memoryLimit`. Full: records are lost \
         and counted.",
    )
    .restart(),
    key(
        "limits.connections",
        Kind::Count { min: 16, max: 10_000_000 },
        "65536",
        "Connections followed at a time; the one idle for longest makes room.",
    )
    .restart(),
    key(
        "limits.processes",
        Kind::Count { min: 16, max: 1_000_000 },
        "16384",
        "Processes remembered, about 1 KiB each; the one unused for longest makes room.",
    )
    .restart(),
    key(
        "limits.routes",
        Kind::Count { min: 16, max: 1_000_000 },
        "20000",
        "Route templates of all services; further calls have no route.",
    )
    .restart(),
    key(
        "limits.routesPerService",
        Kind::Count { min: 16, max: 1_000_000 },
        "1000",
        "Route templates of one service; its further calls have no route.",
    )
    .restart(),
    key(
        "limits.metricSeries",
        Kind::Count { min: 16, max: 1_000_000 },
        "10000",
        "Series of each histogram; calls beyond go to one overflow series.",
    )
    .restart(),
    key(
        "limits.headBytes",
        Kind::Bytes { min: KIB, max: MIB, power_of_two: false },
        "64KiB",
        "Longest message head kept; a longer one is reported as incomplete.",
    )
    .restart(),
    key(
        "limits.responseTimeout",
        Kind::Duration { min: SECOND, max: 86_400 * SECOND },
        "5m",
        "A request without response is given up after this long.",
    )
    .restart(),
    key(
        "store.calls",
        Kind::Count { min: 0, max: 10_000_000 },
        "10000",
        "Recent calls kept in memory for the page and `weir tail`; 0 keeps none.",
    )
    .restart(),
    key("policies", Kind::Policies, "[]", "Not supported by this version: anything but an empty list is refused."),
];

impl std::fmt::Debug for Value {
    /// Values of headers are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Absent => f.write_str("Absent"),
            Self::Bool(value) => value.fmt(f),
            Self::Integer(value) => value.fmt(f),
            Self::Number(value) => value.fmt(f),
            Self::Text(value) => value.fmt(f),
            Self::List(values) => values.fmt(f),
            Self::Pairs(pairs) => f.debug_list().entries(pairs.iter().map(|(name, _)| name)).finish(),
        }
    }
}

impl Kind {
    pub(super) const fn is_list(self) -> bool {
        matches!(self, Self::Targets | Self::Tokens | Self::Policies)
    }

    pub(super) const fn is_map(self) -> bool {
        matches!(self, Self::Headers)
    }

    /// The kind in words, for messages and the reference.
    pub(super) fn describe(self) -> String {
        match self {
            Self::Bool => "`true` or `false`".to_owned(),
            Self::Bytes { min, max, .. } => {
                format!("bytes, {} to {}, such as `64KiB`", show_bytes(min), show_bytes(max))
            }
            Self::Duration { min, max } => {
                format!("a duration, {} to {}, such as `10s`", show_duration(min), show_duration(max))
            }
            Self::Count { min, max } => format!("a whole number, {min} to {max}"),
            Self::Number { min, max } => format!("a number, {min} to {max}"),
            Self::Choice(names) => {
                let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
                quoted.join(", ")
            }
            Self::Url => "a URL".to_owned(),
            Self::Address => "`ADDRESS:PORT` or `off`".to_owned(),
            Self::Path => "an absolute path".to_owned(),
            Self::PathOrOff => "an absolute path or `off`".to_owned(),
            Self::Targets => "a list of targets".to_owned(),
            Self::Tokens => "a list of names".to_owned(),
            Self::Headers => "a mapping of names to values".to_owned(),
            Self::Policies => "a list of policies".to_owned(),
        }
    }

    /// A single value; `bare_ms`: a number without unit is a duration in milliseconds. The error says what is wrong and
    /// what to do.
    pub(super) fn parse(self, text: &str, bare_ms: bool) -> Result<Value, String> {
        let wrong = || format!("{text:?} is not right here; write {}", self.describe());
        match self {
            Self::Bool => match text {
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                _ => Err(wrong()),
            },
            Self::Bytes { min, max, power_of_two } => {
                let bytes = parse_bytes(text).filter(|bytes| (min..=max).contains(bytes)).ok_or_else(wrong)?;
                if power_of_two && !bytes.is_power_of_two() {
                    return Err(format!(
                        "{text:?} is not a power of two; write {}",
                        show_bytes(bytes.next_power_of_two())
                    ));
                }
                Ok(Value::Integer(bytes))
            }
            Self::Duration { min, max } => {
                let bare = bare_ms.then(|| text.parse::<u64>().ok()).flatten().and_then(|ms| ms.checked_mul(MS));
                let duration = bare.or_else(|| parse_duration(text)).filter(|ns| (min..=max).contains(ns));
                duration.map(Value::Integer).ok_or_else(wrong)
            }
            Self::Count { min, max } => {
                let count = text.parse().ok().filter(|count| (min..=max).contains(count));
                count.map(Value::Integer).ok_or_else(wrong)
            }
            Self::Number { min, max } => {
                let number = text.parse().ok().filter(|number| (min..=max).contains(number));
                number.map(Value::Number).ok_or_else(wrong)
            }
            Self::Choice(names) => {
                if names.contains(&text) {
                    return Ok(Value::Text(text.to_owned()));
                }
                Err(format!("{text:?} is not one of {}; write one of these", self.describe()))
            }
            Self::Url => check_url(text).map(|()| Value::Text(text.to_owned())),
            Self::Address => {
                if text == "off" || text.parse::<std::net::SocketAddr>().is_ok() {
                    return Ok(Value::Text(text.to_owned()));
                }
                Err(format!("{text:?} is not an address; write IP:PORT such as 127.0.0.1:9464 or [::1]:9464, or off"))
            }
            Self::PathOrOff if text == "off" => Ok(Value::Text(text.to_owned())),
            Self::Path | Self::PathOrOff => {
                if text.starts_with('/') && !text.contains('\0') {
                    return Ok(Value::Text(text.to_owned()));
                }
                Err(format!("{text:?} is not an absolute path; begin it with /"))
            }
            Self::Targets | Self::Tokens | Self::Headers | Self::Policies => Err(wrong()),
        }
    }

    /// One item of a list of this kind.
    pub(super) fn parse_item(self, text: &str) -> Result<String, String> {
        match self {
            Self::Targets => text.parse::<Target>().map(|_| text.to_owned()),
            Self::Tokens if is_token(text) => Ok(text.to_owned()),
            _ => Err(format!("{text:?} is not a name; use letters, digits and - _ . only")),
        }
    }
}

/// One header; the error does not repeat the value.
pub(super) fn check_header(name: &str, value: &str) -> Result<(), String> {
    if !is_token(name) {
        return Err(format!("{name:?} is not a header name; use letters, digits and - _ . only"));
    }
    if value.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
        return Err(format!("the value of {name:?} holds control characters; remove them"));
    }
    Ok(())
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 128
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// The error does not repeat the URL: it may hold credentials.
fn check_url(text: &str) -> Result<(), String> {
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"))
        .ok_or("the URL does not begin with http:// or https://; write for example http://127.0.0.1:4317")?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err("the URL holds user information; use otlp.headers for credentials".to_owned());
    }
    if authority.is_empty() || authority.starts_with(':') {
        return Err("the URL has no host; write for example http://127.0.0.1:4317".to_owned());
    }
    if text.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err("the URL holds spaces or other characters that must be percent-encoded; encode them".to_owned());
    }
    if rest.contains(['?', '#']) {
        return Err("the URL has a query or a fragment; remove it".to_owned());
    }
    let after_host = authority.rsplit_once(']').map_or(authority, |(_, after)| after);
    match after_host.rsplit_once(':') {
        Some((_, port)) if !port.parse::<u16>().is_ok_and(|port| port > 0) => {
            Err("the port of the URL is not a number from 1 to 65535; correct it".to_owned())
        }
        _ => Ok(()),
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    (number, unit.trim_start())
}

fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text);
    let unit = match unit {
        "" | "B" => 1,
        "KiB" => KIB,
        "MiB" => MIB,
        "GiB" => 1024 * MIB,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

fn parse_duration(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text);
    let unit = match unit {
        "ms" => MS,
        "s" => SECOND,
        "m" => 60 * SECOND,
        "h" => 3600 * SECOND,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

fn show_bytes(bytes: u64) -> String {
    for (unit, name) in [(1024 * MIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    bytes.to_string()
}

fn show_duration(ns: u64) -> String {
    for (unit, name) in [(3600 * SECOND, "h"), (60 * SECOND, "m"), (SECOND, "s")] {
        if ns >= unit && ns.is_multiple_of(unit) {
            return format!("{}{name}", ns / unit);
        }
    }
    format!("{}ms", ns / MS)
}

/// The reference, as `agent/docs/configuration.md` has it.
pub fn reference() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         <!-- Made from the table in agent/src/config/keys.rs; a test keeps them equal. -->\n\n\
         One YAML file, given with `--config`; `weir check FILE` validates it and reports all errors at once. Without \
         a file everything has its default. A flag wins over an environment variable, which wins over the file, which \
         wins over the default; a list is replaced as a whole. Unknown keys are refused. A key without a value, or \
         with `null`, is as if it were not there; so is an empty environment variable.\n\n\
         The file is read again when it changes and on SIGHUP. When the new one is wrong, the last good one stays in \
         force. Keys marked \"restart\" take effect when the agent is started again.\n\n\
         Sizes are bytes, with `KiB`, `MiB`, `GiB` (powers of 1024) or `kB`, `MB`, `GB` (powers of 1000) after the \
         number. Durations need a unit: `ms`, `s`, `m`, `h`; in `OTEL_*` variables a bare number is milliseconds, as \
         OpenTelemetry demands. A value that is wrong in an `OTEL_*` variable is reported and ignored, for the same \
         reason; anywhere else it is an error.\n",
    );
    let group_of = |spec: &KeySpec| spec.path.split_once('.').map_or("", |(group, _)| group);
    let mut groups: Vec<&str> = Vec::new();
    for spec in KEYS {
        if !groups.contains(&group_of(spec)) {
            groups.push(group_of(spec));
        }
    }
    for group in groups {
        let title = if group.is_empty() { "Top level" } else { group };
        out.push_str("\n## ");
        out.push_str(title);
        out.push_str("\n\n| key | value | default | effect | change | other sources |\n|---|---|---|---|---|---|\n");
        for spec in KEYS.iter().filter(|spec| group_of(spec) == group) {
            push_row(&mut out, spec);
        }
    }
    out.push_str(
        "\n## Other environment variables\n\n\
         | variable | effect |\n|---|---|\n\
         | `OTEL_SDK_DISABLED=true` | no OTLP export |\n\
         | `OTEL_TRACES_EXPORTER` | `none`: no spans; `console`: as `export.console: true`; `otlp`: as configured |\n\
         | `OTEL_METRICS_EXPORTER` | `none`: no metrics over OTLP; `otlp`: as configured; `prometheus`: always there, \
         at `/metrics` |\n\
         | `OTEL_EXPORTER_OTLP_CERTIFICATE`, `.._CLIENT_CERTIFICATE`, `.._CLIENT_KEY`, also per signal | PEM files: \
         whom to trust, and the agent's own identity |\n\
         | `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` | in the agent's own environment: the resource of its own \
         metrics; attributes of the host go on every service |\n\
         | `WEIR_OBSERVE=off` | in the environment of any process: it is not observed |\n\
         | `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` | in the environment of any process: its `service.name` and \
         `service.namespace` |\n",
    );
    out
}

fn push_row(out: &mut String, spec: &KeySpec) {
    let default = if spec.default.is_empty() { "none".to_owned() } else { format!("`{}`", spec.default) };
    let sources: Vec<String> =
        [spec.env, spec.flag].into_iter().flatten().map(|source| format!("`{source}`")).collect();
    let cells = [
        format!("`{}`", spec.path),
        spec.kind.describe(),
        default,
        spec.effect.to_owned(),
        if spec.restart { "restart" } else { "at once" }.to_owned(),
        sources.join(", "),
    ];
    out.push_str("| ");
    out.push_str(&cells.join(" | "));
    out.push_str(" |\n");
}
