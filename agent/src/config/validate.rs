//! Raw tree, environment and flags to [`Config`], or everything that is wrong. Pure.

use std::path::PathBuf;
use std::time::Duration;

use super::keys::{KEYS, KeySpec, Kind, Value, check_header};
use super::raw::{self, Content, Mark, Node};
use super::{
    Admin, Backend, Capture, Config, ConfigError, Export, Limits, Mode, Otlp, OtlpProtocol, OtlpSignal, Overrides,
    Sampler, Secret, Source,
};
use crate::assess::Deduplicate;
use crate::filter::{Filter, Target};
use crate::redact::{QueryRedaction, RedactionConfig};

/// Edits by which an unknown key may differ from the one it is taken for.
const TYPO_MAX: usize = 2;

/// The value of every key, as far as it is known.
struct Settings<'a> {
    file: &'a str,
    values: Vec<Value>,
    /// Where the file set the key.
    marks: Vec<Option<Mark>>,
    errors: Vec<ConfigError>,
    warnings: Vec<String>,
}

/// As [`Config::load`].
pub(super) fn load(
    file: Option<(&str, &str)>,
    env: &dyn Fn(&str) -> Option<String>,
    overrides: &Overrides,
) -> Result<Config, Vec<ConfigError>> {
    let mut settings = Settings {
        file: file.map_or("", |(name, _)| name),
        values: KEYS.iter().map(default_of).collect(),
        marks: vec![None; KEYS.len()],
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    if let Some((_, text)) = file {
        let (root, faults) = raw::parse(text);
        for (mark, message) in faults {
            settings.fail(mark, "", message);
        }
        if let Some(root) = root {
            settings.read_section(&root, "");
        }
    }
    settings.read_environment(env);
    settings.read_flags(overrides);
    settings.check_together();
    if !settings.errors.is_empty() {
        settings.errors.sort_by_key(|error| match &error.source {
            Source::File { line, column, .. } => (*line, *column),
            Source::Flag(_) => (usize::MAX, 0),
        });
        return Err(settings.errors);
    }
    Ok(settings.build(env))
}

fn default_of(spec: &KeySpec) -> Value {
    match spec.default {
        "" => Value::Absent,
        "[]" => Value::List(Vec::new()),
        "{}" => Value::Pairs(Vec::new()),
        // A test holds every default against its kind.
        text => spec.kind.parse(text, false).unwrap_or(Value::Absent),
    }
}

fn index_of(path: &str) -> Option<usize> {
    KEYS.iter().position(|spec| spec.path == path)
}

fn is_section(path: &str) -> bool {
    KEYS.iter().any(|spec| spec.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

impl Settings<'_> {
    fn fail(&mut self, mark: Mark, key: &str, message: String) {
        let source = Source::File { name: self.file.to_owned(), line: mark.line, column: mark.column };
        self.errors.push(ConfigError { source, key: key.to_owned(), message });
    }

    fn set(&mut self, index: usize, value: Value, mark: Option<Mark>) {
        if let Some(slot) = self.values.get_mut(index) {
            *slot = value;
        }
        if let Some(slot) = self.marks.get_mut(index) {
            *slot = mark;
        }
    }

    /// The mapping at `prefix`, which is empty or ends with a dot.
    fn read_section(&mut self, node: &Node, prefix: &str) {
        let Content::Mapping(entries) = &node.content else {
            let name = prefix.trim_end_matches('.');
            self.fail(node.mark, name, format!("this is {}; write a mapping, `key: value`", node.kind()));
            return;
        };
        for (key, value) in entries {
            let path = format!("{prefix}{}", key.text);
            if let Some((index, spec)) = index_of(&path).and_then(|index| Some((index, KEYS.get(index)?))) {
                if !value.is_null() {
                    self.read_value(index, spec, value);
                }
            } else if is_section(&path) {
                if !value.is_null() {
                    self.read_section(value, &format!("{path}."));
                }
            } else {
                let message = match similar(prefix, &key.text) {
                    Some(name) => format!("there is no such key; write {name}"),
                    None => "there is no such key; remove it".to_owned(),
                };
                self.fail(key.mark, &path, message);
            }
        }
    }

    fn read_value(&mut self, index: usize, spec: &KeySpec, node: &Node) {
        match (&node.content, spec.kind) {
            (Content::Sequence(items), Kind::Policies) if items.is_empty() => {}
            (_, Kind::Policies) => {
                let message = "policies are not supported by this version, nothing would enforce them; remove them";
                self.fail(node.mark, spec.path, message.to_owned());
            }
            (Content::Sequence(items), kind) if kind.is_list() => self.read_list(index, spec, node.mark, items),
            (Content::Mapping(entries), kind) if kind.is_map() => {
                let mut pairs = Vec::new();
                for (key, value) in entries {
                    let path = format!("{}.{}", spec.path, key.text);
                    let Content::Scalar { text, .. } = &value.content else {
                        self.fail(value.mark, &path, format!("this is {}; write a single value", value.kind()));
                        continue;
                    };
                    match check_header(&key.text, text) {
                        Ok(()) => pairs.push((key.text.to_ascii_lowercase(), text.clone())),
                        Err(message) => self.fail(key.mark, &path, message),
                    }
                }
                self.set(index, Value::Pairs(pairs), Some(node.mark));
            }
            (Content::Scalar { text, .. }, kind) if !kind.is_list() && !kind.is_map() => {
                match kind.parse(text, false) {
                    Ok(value) => self.set(index, value, Some(node.mark)),
                    Err(message) => self.fail(node.mark, spec.path, message),
                }
            }
            (_, kind) => {
                self.fail(node.mark, spec.path, format!("this is {}; write {}", node.kind(), kind.describe()));
            }
        }
    }

    fn read_list(&mut self, index: usize, spec: &KeySpec, mark: Mark, items: &[Node]) {
        let mut list = Vec::new();
        for (at, item) in items.iter().enumerate() {
            let path = format!("{}[{at}]", spec.path);
            let Content::Scalar { text, .. } = &item.content else {
                self.fail(item.mark, &path, format!("this is {}; write a single value", item.kind()));
                continue;
            };
            match spec.kind.parse_item(text) {
                Ok(item) => list.push(item),
                Err(message) => self.fail(item.mark, &path, message),
            }
        }
        self.set(index, Value::List(list), Some(mark));
    }

    /// OpenTelemetry demands that a wrong value is reported and ignored, and that an empty one counts as unset.
    fn read_environment(&mut self, env: &dyn Fn(&str) -> Option<String>) {
        for (index, spec) in KEYS.iter().enumerate() {
            let Some(name) = spec.env else { continue };
            let Some(text) = env(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()) else {
                continue;
            };
            let parsed = if spec.kind.is_list() {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                items.map(|item| spec.kind.parse_item(item)).collect::<Result<_, _>>().map(Value::List)
            } else if spec.kind.is_map() {
                parse_pairs(&text)
            } else {
                spec.kind.parse(&text, true)
            };
            match parsed {
                Ok(value) => self.set(index, value, None),
                Err(message) => self.warnings.push(format!("{name}: {message}; ignored")),
            }
        }
    }

    fn read_flags(&mut self, overrides: &Overrides) {
        let single = [
            ("mode", "--mode", &overrides.mode),
            ("otlp.endpoint", "--otlp-endpoint", &overrides.otlp_endpoint),
            ("otlp.protocol", "--otlp-protocol", &overrides.otlp_protocol),
            ("admin.address", "--admin", &overrides.admin),
        ];
        for (path, flag, text) in single {
            if let Some(text) = text {
                self.read_flag(path, flag, text);
            }
        }
        for (path, flag, texts) in
            [("targets", "--target", &overrides.targets), ("exclude", "--exclude", &overrides.exclude)]
        {
            if texts.is_empty() {
                continue;
            }
            let mut list = Vec::new();
            for text in texts {
                match Kind::Targets.parse_item(text) {
                    Ok(item) => list.push(item),
                    Err(message) => self.fail_flag(flag, path, message),
                }
            }
            if let Some(index) = index_of(path) {
                self.set(index, Value::List(list), None);
            }
        }
        for text in &overrides.export {
            match text.split_once(':') {
                None if text == "console" => self.read_flag("export.console", "--export", "true"),
                Some(("jsonl", path)) if !path.is_empty() => {
                    // Unlike in a file, a relative path is plain on a command line.
                    if let Some(index) = index_of("export.jsonl") {
                        self.set(index, Value::Text(path.to_owned()), None);
                    }
                }
                _ => self.fail_flag("--export", "", format!("{text:?} is no exporter; write console or jsonl:PATH")),
            }
        }
    }

    fn read_flag(&mut self, path: &str, flag: &'static str, text: &str) {
        let Some((index, spec)) = index_of(path).and_then(|index| Some((index, KEYS.get(index)?))) else { return };
        match spec.kind.parse(text, false) {
            Ok(value) => self.set(index, value, None),
            Err(message) => self.fail_flag(flag, path, message),
        }
    }

    fn fail_flag(&mut self, flag: &'static str, key: &str, message: String) {
        self.errors.push(ConfigError { source: Source::Flag(flag), key: key.to_owned(), message });
    }

    /// Values that are right alone and wrong together.
    fn check_together(&mut self) {
        if self.integer("capture.ringBuffer") > self.integer("memoryLimit") / 2 {
            let message = "the ring buffer is more than half of memoryLimit; make it smaller, or raise memoryLimit";
            self.fail_pair("capture.ringBuffer", "memoryLimit", message);
        }
        if let Some((index, spec)) = index_of("otlp.traces.batch").and_then(|index| Some((index, KEYS.get(index)?)))
            && self.integer("otlp.traces.batch") > self.integer("otlp.traces.queue")
        {
            if self.values.get(index) == Some(&default_of(spec)) {
                // Nobody asked for that size.
                self.set(index, self.value("otlp.traces.queue").clone(), None);
            } else {
                let message = "a batch is larger than the queue and would never fill; make it smaller, or the queue \
                               larger";
                self.fail_pair("otlp.traces.batch", "otlp.traces.queue", message);
            }
        }
    }

    /// At the first of the two keys that the file sets.
    fn fail_pair(&mut self, key: &'static str, other: &'static str, message: &str) {
        let mark = |path| index_of(path).and_then(|index| self.marks.get(index).copied().flatten());
        if let Some((path, mark)) = mark(key).map(|mark| (key, mark)).or_else(|| mark(other).map(|mark| (other, mark)))
        {
            self.fail(mark, path, message.to_owned());
            return;
        }
        // Only the environment can set either without a file, and it may not stop the agent.
        self.warnings.push(format!("{key}: {message}; the default is used"));
        for path in [key, other] {
            if let Some((index, spec)) = index_of(path).and_then(|index| Some((index, KEYS.get(index)?))) {
                self.set(index, default_of(spec), None);
            }
        }
    }

    fn value(&self, path: &str) -> &Value {
        let index = index_of(path);
        debug_assert!(index.is_some(), "{path} is not in the table");
        index.and_then(|index| self.values.get(index)).unwrap_or(&Value::Absent)
    }

    fn text(&self, path: &str) -> Option<&str> {
        match self.value(path) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn integer(&self, path: &str) -> u64 {
        match self.value(path) {
            Value::Integer(number) => *number,
            _ => 0,
        }
    }

    fn size(&self, path: &str) -> usize {
        usize::try_from(self.integer(path)).unwrap_or(usize::MAX)
    }

    fn duration(&self, path: &str) -> Duration {
        Duration::from_nanos(self.integer(path))
    }

    fn number(&self, path: &str) -> f64 {
        match self.value(path) {
            Value::Number(number) => *number,
            _ => 0.0,
        }
    }

    fn bool(&self, path: &str) -> bool {
        matches!(self.value(path), Value::Bool(true))
    }

    fn list(&self, path: &str) -> Vec<String> {
        match self.value(path) {
            Value::List(items) => items.clone(),
            _ => Vec::new(),
        }
    }

    fn targets(&self, path: &str) -> Vec<Target> {
        self.list(path).iter().filter_map(|text| text.parse().ok()).collect()
    }

    fn path(&self, path: &str) -> Option<PathBuf> {
        self.text(path).filter(|text| *text != "off").map(PathBuf::from)
    }

    fn build(mut self, env: &dyn Fn(&str) -> Option<String>) -> Config {
        let exporters = self.exporters(env);
        let export = self.export(exporters.console);
        Config {
            mode: match self.text("mode") {
                Some("enforce") => Mode::Enforce,
                Some("audit") => Mode::Audit,
                _ => Mode::Observe,
            },
            filter: Filter { targets: self.targets("targets"), exclude: self.targets("exclude") },
            memory_limit: self.integer("memoryLimit"),
            cpu_limit: self.number("cpuLimit"),
            otlp: Otlp {
                traces: exporters.traces.then(|| self.signal("traces")).flatten(),
                metrics: exporters.metrics.then(|| self.signal("metrics")).flatten(),
                queue: self.size("otlp.traces.queue"),
                batch: self.size("otlp.traces.batch"),
                delay: self.duration("otlp.traces.delay"),
                batch_timeout: self.duration("otlp.traces.batchTimeout"),
                interval: self.duration("otlp.metrics.interval"),
            },
            export,
            admin: Admin {
                address: self.text("admin.address").and_then(|text| text.parse().ok()),
                socket: self.path("admin.socket"),
                token_file: self.path("admin.tokenFile"),
                hosts: self.list("admin.hosts"),
                open_metrics: self.bool("admin.openMetrics"),
            },
            capture: Capture {
                budget: u32::try_from(self.integer("capture.budget")).unwrap_or(u32::MAX),
                body_prefix: self.size("capture.bodyPrefix"),
                backend: match self.text("capture.backend") {
                    Some("sock_tracepoint") => Backend::SockTracepoint,
                    Some("sys_exit") => Backend::SysExit,
                    _ => Backend::Auto,
                },
                ring_buffer: u32::try_from(self.integer("capture.ringBuffer")).unwrap_or(u32::MAX),
                tls: self.bool("capture.tls"),
                tls_sweep: self.duration("capture.tlsSweep"),
            },
            limits: Limits {
                connections: self.size("limits.connections"),
                processes: self.size("limits.processes"),
                routes: self.size("limits.routes"),
                routes_per_service: self.size("limits.routesPerService"),
                metric_series: self.size("limits.metricSeries"),
                head: self.size("limits.headBytes"),
                response_timeout: self.duration("limits.responseTimeout"),
            },
            store_calls: self.size("store.calls"),
            warnings: self.warnings,
            values: self.values,
        }
    }

    fn export(&self, console: bool) -> Export {
        let sampler = self.text("export.sampler").unwrap_or_default();
        let (parent_based, root) = match sampler.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, sampler),
        };
        Export {
            console: console || self.bool("export.console"),
            jsonl: self.path("export.jsonl"),
            deduplicate: match self.text("export.deduplicate") {
                Some("suppress") => Deduplicate::Suppress,
                Some("off") => Deduplicate::Off,
                _ => Deduplicate::Mark,
            },
            sampler: Sampler {
                parent_based,
                ratio: match root {
                    "always_off" => 0.0,
                    "traceidratio" => self.number("export.samplerRatio"),
                    _ => 1.0,
                },
            },
            redaction: RedactionConfig {
                query: match self.text("export.query") {
                    Some("all") => QueryRedaction::All,
                    Some("off") => QueryRedaction::Off,
                    _ => QueryRedaction::Sensitive,
                },
                sensitive_query_keys: self.list("export.sensitiveQueryKeys"),
                mask_paths: self.bool("export.maskPaths"),
                request_headers: self.list("export.requestHeaders"),
                response_headers: self.list("export.responseHeaders"),
                credential_headers: self.list("export.credentialHeaders"),
                known_methods: self.list("export.knownMethods"),
            },
        }
    }

    /// The signal `name`, or `None` without an endpoint.
    fn signal(&self, name: &str) -> Option<OtlpSignal> {
        let own = |key: &str| format!("otlp.{name}.{key}");
        if !self.bool(&own("enabled")) {
            return None;
        }
        let either = |key: &str| {
            let path = own(key);
            if *self.value(&path) == Value::Absent { format!("otlp.{key}") } else { path }
        };
        let (endpoint, whole) = match self.text(&own("endpoint")) {
            Some(endpoint) => (endpoint, true),
            None => (self.text("otlp.endpoint")?, false),
        };
        let protocol = match self.text(&either("protocol")) {
            Some("grpc") => OtlpProtocol::Grpc,
            Some("http/protobuf") => OtlpProtocol::HttpProtobuf,
            _ if has_port(endpoint, "4317") => OtlpProtocol::Grpc,
            _ => OtlpProtocol::HttpProtobuf,
        };
        let url = if whole || protocol == OtlpProtocol::Grpc {
            endpoint.to_owned()
        } else {
            format!("{}/v1/{name}", endpoint.trim_end_matches('/'))
        };
        let headers = match self.value(&either("headers")) {
            Value::Pairs(pairs) => pairs.iter().map(|(name, value)| (name.clone(), Secret(value.clone()))).collect(),
            _ => Vec::new(),
        };
        Some(OtlpSignal {
            url,
            protocol,
            headers,
            timeout: self.duration(&either("timeout")),
            gzip: self.text(&either("compression")) == Some("gzip"),
        })
    }

    /// `OTEL_TRACES_EXPORTER` and the like, which have no key of their own.
    fn exporters(&mut self, env: &dyn Fn(&str) -> Option<String>) -> Exporters {
        let mut exporters = Exporters { traces: true, metrics: true, console: false };
        if env("OTEL_SDK_DISABLED").is_some_and(|text| text.trim().eq_ignore_ascii_case("true")) {
            (exporters.traces, exporters.metrics) = (false, false);
        }
        for name in ["OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER"] {
            let traces = name == "OTEL_TRACES_EXPORTER";
            let text = env(name).unwrap_or_default();
            let names: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
            let mut wanted = names.is_empty();
            for item in names {
                match item {
                    "otlp" => wanted = true,
                    "none" => {}
                    "console" if traces => exporters.console = true,
                    "prometheus" if !traces => {}
                    _ => {
                        wanted = true;
                        self.warnings.push(format!("{name}: {item:?} is no exporter of this agent; ignored"));
                    }
                }
            }
            if !wanted {
                *(if traces { &mut exporters.traces } else { &mut exporters.metrics }) = false;
            }
        }
        exporters
    }
}

/// What the environment leaves of each exporter.
struct Exporters {
    traces: bool,
    metrics: bool,
    console: bool,
}

fn has_port(url: &str, port: &str) -> bool {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest).split('/').next().unwrap_or_default();
    authority.rsplit_once(':').is_some_and(|(_, found)| found == port)
}

/// `name=value,name=value`, values percent-encoded (W3C Baggage). Messages do not repeat a value.
fn parse_pairs(text: &str) -> Result<Value, String> {
    let mut pairs = Vec::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            return Err("a part has no `=`; write name=value,name=value".to_owned());
        };
        let (name, value) = (name.trim(), decode(value.trim()));
        check_header(name, &value)?;
        pairs.push((name.to_ascii_lowercase(), value));
    }
    Ok(Value::Pairs(pairs))
}

fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after
            .get(..2)
            .filter(|digits| byte == b'%' && digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        out.push(code.unwrap_or(byte));
        rest = if code.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The key below `prefix` that `name` was probably meant to be.
fn similar(prefix: &str, name: &str) -> Option<&'static str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['_', '-'], "");
    let wanted = plain(name);
    KEYS.iter()
        .filter_map(|spec| spec.path.strip_prefix(prefix))
        .filter_map(|rest| rest.split('.').next())
        .map(|candidate| (distance(&wanted, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= TYPO_MAX && *distance * 2 < candidate.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance; long texts are not compared.
fn distance(one: &str, two: &str) -> usize {
    if one.len() > 64 || two.len() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=two.len()).collect();
    for (at, a) in one.bytes().enumerate() {
        let mut diagonal = at;
        let mut left = at + 1;
        for (slot, b) in row.iter_mut().skip(1).zip(two.bytes()) {
            let replaced = diagonal + usize::from(a != b);
            diagonal = *slot;
            left = replaced.min(left + 1).min(*slot + 1);
            *slot = left;
        }
        if let Some(first) = row.first_mut() {
            *first = at + 1;
        }
    }
    row.last().copied().unwrap_or(usize::MAX)
}
