//! Tests of the configuration as a whole.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn load(text: &str) -> Result<Config, Vec<ConfigError>> {
    Config::load(Some(("weir.yaml", text)), &|_| None, &Overrides::default())
}

fn errors(text: &str) -> Vec<String> {
    load(text).unwrap_err().iter().map(ToString::to_string).collect()
}

fn with_env(text: &str, variables: &[(&str, &str)]) -> Config {
    let variables: HashMap<String, String> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Config::load(Some(("weir.yaml", text)), &|name| variables.get(name).cloned(), &Overrides::default()).unwrap()
}

fn default() -> Config {
    Config::load(None, &|_| None, &Overrides::default()).unwrap()
}

/// A value other than the default for every key.
const OTHER: &[(&str, &str)] = &[
    ("mode", "audit"),
    ("targets", "[pid:1]"),
    ("exclude", "[port:1]"),
    ("memoryLimit", "512MiB"),
    ("cpuLimit", "2.5"),
    ("otlp.endpoint", "http://a:4317"),
    ("otlp.protocol", "http/protobuf"),
    ("otlp.headers", "{a: b}"),
    ("otlp.timeout", "3s"),
    ("otlp.compression", "gzip"),
    ("otlp.traces.enabled", "false"),
    ("otlp.traces.endpoint", "http://b:4317"),
    ("otlp.traces.protocol", "http/protobuf"),
    ("otlp.traces.headers", "{c: d}"),
    ("otlp.traces.timeout", "4s"),
    ("otlp.traces.compression", "gzip"),
    ("otlp.traces.queue", "2000"),
    ("otlp.traces.batch", "100"),
    ("otlp.traces.delay", "5s"),
    ("otlp.traces.batchTimeout", "7s"),
    ("otlp.metrics.enabled", "false"),
    ("otlp.metrics.endpoint", "http://b:4317"),
    ("otlp.metrics.protocol", "http/protobuf"),
    ("otlp.metrics.headers", "{e: f}"),
    ("otlp.metrics.timeout", "4s"),
    ("otlp.metrics.compression", "gzip"),
    ("otlp.metrics.interval", "10s"),
    ("export.console", "true"),
    ("export.jsonl", "/tmp/calls.jsonl"),
    ("export.deduplicate", "suppress"),
    ("export.sampler", "always_off"),
    ("export.samplerRatio", "0.5"),
    ("export.query", "all"),
    ("export.sensitiveQueryKeys", "[pin]"),
    ("export.maskPaths", "false"),
    ("export.requestHeaders", "[x-request-id]"),
    ("export.responseHeaders", "[server]"),
    ("export.credentialHeaders", "[x-tenant-key]"),
    ("export.knownMethods", "[GET]"),
    ("admin.address", "off"),
    ("admin.socket", "off"),
    ("admin.tokenFile", "/etc/weir/token"),
    ("admin.hosts", "[weir.example.org]"),
    ("admin.openMetrics", "true"),
    ("capture.budget", "8KiB"),
    ("capture.bodyPrefix", "0"),
    ("capture.backend", "sys_exit"),
    ("capture.tls", "false"),
    ("capture.tlsSweep", "5s"),
    ("capture.ringBuffer", "16MiB"),
    ("limits.connections", "100"),
    ("limits.processes", "100"),
    ("limits.routes", "100"),
    ("limits.routesPerService", "100"),
    ("limits.metricSeries", "100"),
    ("limits.headBytes", "16KiB"),
    ("limits.responseTimeout", "1m"),
    ("store.calls", "5"),
];

/// `a.b.c` and a value as a flow mapping.
fn nested(path: &str, value: &str) -> String {
    let depth = path.split('.').count();
    format!("{{{}: {value}{}", path.replace('.', ": {"), "}".repeat(depth))
}

#[test]
fn every_key_is_in_the_table_once_with_a_default_of_its_kind() {
    for (at, spec) in KEYS.iter().enumerate() {
        assert!(KEYS.iter().skip(at + 1).all(|other| other.path != spec.path), "{}", spec.path);
        let written = !matches!(spec.default, "" | "[]" | "{}");
        assert!(!written || spec.kind.parse(spec.default, false).is_ok(), "{}", spec.path);
        assert!(spec.effect.ends_with('.'), "{}", spec.path);
    }
}

#[test]
fn every_key_changes_the_configuration() {
    // Without an endpoint the keys of its export have no effect, nor has the ratio with another sampler.
    let base = "otlp: {endpoint: 'http://x:4317'}\nexport: {sampler: traceidratio}\n";
    let before = load(base).unwrap();
    for spec in KEYS.iter().filter(|spec| spec.path != "policies") {
        let (_, value) = OTHER.iter().find(|(path, _)| *path == spec.path).unwrap();
        let mut variant = nested(spec.path, value);
        if spec.path.starts_with("otlp.") && spec.path != "otlp.endpoint" {
            variant = variant.replacen("{otlp: {", "{otlp: {endpoint: 'http://x:4317', ", 1);
        }
        if spec.path == "export.samplerRatio" {
            variant = variant.replacen("{export: {", "{export: {sampler: traceidratio, ", 1);
        }
        let after = load(&variant).unwrap_or_else(|errors| panic!("{variant}: {errors:?}"));
        assert!(diff(&before, &after).iter().any(|change| change.key == spec.path), "{variant}");
        let show = |config: &Config| format!("{:?}", Config { values: Vec::new(), ..config.clone() });
        let reference = match spec.path {
            path if path.starts_with("otlp.") => load("otlp: {endpoint: 'http://x:4317'}").unwrap(),
            "export.samplerRatio" => load("export: {sampler: traceidratio}").unwrap(),
            _ => default(),
        };
        assert_ne!(show(&after), show(&reference), "{} has no effect", spec.path);
    }
}

#[test]
fn the_defaults_are_safe() {
    let config = default();
    assert_eq!(config.mode, Mode::Observe);
    assert_eq!(config.filter, Filter::default());
    assert_eq!(config.memory_limit, 256 << 20);
    assert!((config.cpu_limit - 1.0).abs() < f64::EPSILON);
    assert!(config.otlp.traces.is_none() && config.otlp.metrics.is_none());
    assert_eq!(config.admin.address, Some(SocketAddr::from(([127, 0, 0, 1], 9464))));
    assert_eq!(config.admin.socket.as_deref(), Some(Path::new("/run/weir/weir.sock")));
    assert_eq!(config.export.redaction, RedactionConfig::default());
    assert_eq!(config.export.jsonl, None);
    assert!(!config.export.console && !config.admin.open_metrics);
    assert_eq!(config.export.sampler, Sampler { parent_based: true, ratio: 1.0 });
    assert_eq!(
        config.capture,
        Capture {
            budget: agent_common::limits::BUDGET_DEFAULT,
            body_prefix: 4096,
            backend: Backend::Auto,
            ring_buffer: agent_common::limits::RING_BYTES,
            tls: true,
            tls_sweep: Duration::from_mins(1),
        }
    );
    assert_eq!(config.store_calls, 10_000);
    assert!(config.warnings.is_empty());
    for text in ["", "# nothing\n", "otlp:\n", "mode: null\nadmin:\n  address: ~\n", "policies: []", "policies:"] {
        assert_eq!(diff(&config, &load(text).unwrap()), [], "{text:?}");
    }
}

#[test]
fn all_errors_are_told_at_once_each_with_its_place_and_a_remedy() {
    let text = "\
mode: enforced
memory_limit: 1GiB
targets: [exe:nginx, 'uid:3', {a: b}]
otlp:
  endpoint: collector:4317
  headers:
    'bad name': x
    authorization: [secret]
  timeout: 10
export:
  console: yes
  query: none
  jsonl: calls.jsonl
admin: 127.0.0.1:9464
capture:
  budget: 4KB
  ringBuffer: 9MiB
  ringbuffer: 8MiB
cpuLimit: 0
policies:
  - name: shop
";
    let got = errors(text);
    let want = [
        "weir.yaml:1:7: mode: \"enforced\" is not one of `observe`, `audit`, `enforce`; write one of these",
        "weir.yaml:2:1: memory_limit: there is no such key; write memoryLimit",
        "weir.yaml:3:22: targets[1]: \"uid\" is not a kind of target; write pid:N, exe:GLOB, cgroup:GLOB or port:N",
        "weir.yaml:3:31: targets[2]: this is a mapping; write a single value",
        "weir.yaml:5:13: otlp.endpoint: the URL does not begin with http:// or https://; \
         write for example http://127.0.0.1:4317",
        "weir.yaml:7:5: otlp.headers.bad name: \"bad name\" is not a header name; use letters, digits and - _ . only",
        "weir.yaml:8:20: otlp.headers.authorization: this is a list; write a single value",
        "weir.yaml:9:12: otlp.timeout: \"10\" is not right here; write a duration, 1ms to 10m, such as `10s`",
        "weir.yaml:11:12: export.console: \"yes\" is not right here; write `true` or `false`",
        "weir.yaml:12:10: export.query: \"none\" is not one of `sensitive`, `all`, `off`; write one of these",
        "weir.yaml:13:10: export.jsonl: \"calls.jsonl\" is not an absolute path; begin it with /",
        "weir.yaml:14:8: admin: this is a single value; write a mapping, `key: value`",
        "weir.yaml:17:15: capture.ringBuffer: \"9MiB\" is not a power of two; write 16MiB",
        "weir.yaml:18:3: capture.ringbuffer: there is no such key; write ringBuffer",
        "weir.yaml:19:11: cpuLimit: \"0\" is not right here; write a number, 0.05 to 1024",
        "weir.yaml:21:3: policies: policies are not supported by this version, nothing would enforce them; remove them",
    ];
    assert_eq!(got, want, "{got:#?}");
}

#[test]
fn a_syntax_error_stands_alone() {
    let got = errors("mode: [observe\nfoo: 1\n");
    assert_eq!(got.len(), 1, "{got:?}");
    assert!(got[0].starts_with("weir.yaml:2:") && got[0].contains("this is not YAML"), "{got:?}");
}

#[test]
fn values_that_are_wrong_together_are_refused() {
    for (text, part) in [
        ("memoryLimit: 64MiB\ncapture: {ringBuffer: 64MiB}", "weir.yaml:2:23: capture.ringBuffer: the ring buffer"),
        ("otlp: {traces: {queue: 10, batch: 20}}", "weir.yaml:1:35: otlp.traces.batch: a batch is larger"),
    ] {
        let got = errors(text);
        assert!(got.len() == 1 && got[0].starts_with(part), "{got:?}");
    }
    assert_eq!(load("otlp: {traces: {queue: 10}}").unwrap().otlp.batch, 10, "a batch nobody asked for adapts");
    let config = with_env("", &[("OTEL_BSP_MAX_QUEUE_SIZE", "10"), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "20")]);
    assert_eq!((config.otlp.queue, config.otlp.batch), (16_384, 1024));
    assert!(config.warnings[0].contains("a batch is larger"), "{:?}", config.warnings);
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = "otlp: {endpoint: 'http://file:4318', timeout: 1s}\ntargets: [pid:1]\nmode: audit\n";
    let env = |name: &str| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some("http://env:4318".to_owned()),
        "OTEL_EXPORTER_OTLP_TIMEOUT" => Some("2500".to_owned()),
        _ => None,
    };
    let config = Config::load(Some(("f", file)), &env, &Overrides::default()).unwrap();
    let traces = config.otlp.traces.unwrap();
    assert_eq!(traces.url, "http://env:4318/v1/traces");
    assert_eq!(traces.timeout, Duration::from_millis(2500));
    let overrides = Overrides {
        mode: Some("observe".into()),
        otlp_endpoint: Some("http://flag:4317".into()),
        export: vec!["console".into(), "jsonl:calls/a:b".into()],
        admin: Some("off".into()),
        targets: vec!["pid:2".into(), "port:3".into()],
        exclude: vec!["exe:curl".into()],
        ..Overrides::default()
    };
    let config = Config::load(Some(("f", file)), &env, &overrides).unwrap();
    assert_eq!(config.otlp.traces.unwrap().url, "http://flag:4317");
    assert_eq!(config.mode, Mode::Observe);
    assert!(config.export.console);
    assert_eq!(config.export.jsonl.as_deref(), Some(Path::new("calls/a:b")));
    assert_eq!(config.admin.address, None);
    assert_eq!(config.filter.targets, ["pid:2".parse().unwrap(), "port:3".parse().unwrap()]);
    assert_eq!(config.filter.exclude.len(), 1);
}

#[test]
fn wrong_flags_are_told_with_those_of_the_file() {
    let overrides = Overrides {
        mode: Some("on".into()),
        export: vec!["kafka".into()],
        targets: vec!["nginx".into()],
        ..Overrides::default()
    };
    let got = Config::load(Some(("f", "foo: 1")), &|_| None, &overrides).unwrap_err();
    let got: Vec<String> = got.iter().map(ToString::to_string).collect();
    assert_eq!(
        got,
        [
            "f:1:1: foo: there is no such key; remove it",
            "--mode: mode: \"on\" is not one of `observe`, `audit`, `enforce`; write one of these",
            "--target: targets: \"nginx\" names no kind; write pid:N, exe:GLOB, cgroup:GLOB or port:N",
            "--export: \"kafka\" is no exporter; write console or jsonl:PATH",
        ]
    );
}

#[test]
fn the_endpoint_of_each_signal_follows_the_otlp_exporter_specification() {
    use OtlpProtocol::{Grpc, HttpProtobuf};
    for (text, protocol, traces, metrics) in [
        ("{endpoint: 'http://c:4317'}", Grpc, "http://c:4317", "http://c:4317"),
        ("{endpoint: 'http://c:4318'}", HttpProtobuf, "http://c:4318/v1/traces", "http://c:4318/v1/metrics"),
        ("{endpoint: 'https://c/otlp/'}", HttpProtobuf, "https://c/otlp/v1/traces", "https://c/otlp/v1/metrics"),
        ("{endpoint: 'http://[::1]:4317'}", Grpc, "http://[::1]:4317", "http://[::1]:4317"),
        ("{endpoint: 'http://c:9', protocol: grpc}", Grpc, "http://c:9", "http://c:9"),
        (
            "{endpoint: 'http://c:4318', traces: {endpoint: 'http://t:1/x'}}",
            HttpProtobuf,
            "http://t:1/x",
            "http://c:4318/v1/metrics",
        ),
        ("{traces: {endpoint: 'http://t:1/x'}}", HttpProtobuf, "http://t:1/x", ""),
        ("{endpoint: 'http://c:4317', metrics: {enabled: false}}", Grpc, "http://c:4317", ""),
    ] {
        let otlp = load(&format!("otlp: {text}")).unwrap().otlp;
        let signal = otlp.traces.unwrap();
        assert_eq!((signal.url.as_str(), signal.protocol), (traces, protocol), "{text}");
        assert_eq!(otlp.metrics.map_or(String::new(), |signal| signal.url), metrics, "{text}");
    }
}

#[test]
fn otel_variables_are_honoured_and_wrong_ones_ignored_with_a_word() {
    let config = with_env(
        "",
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", " http://c:4318 "),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20abc, x-tenant=7"),
            ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_BSP_SCHEDULE_DELAY", "250"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "5000"),
            ("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", "GET, PURGE"),
            ("OTEL_TRACES_EXPORTER", "console,otlp"),
            ("OTEL_METRICS_EXPORTER", "zipkin"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", ""),
        ],
    );
    let traces = config.otlp.traces.as_ref().unwrap();
    assert_eq!(traces.protocol, OtlpProtocol::HttpProtobuf);
    assert_eq!(traces.headers.len(), 2);
    assert_eq!((traces.headers[0].0.as_str(), traces.headers[0].1.reveal()), ("authorization", "Bearer abc"));
    assert_eq!(traces.timeout, Duration::from_secs(10));
    assert!(!traces.gzip && config.otlp.metrics.as_ref().unwrap().gzip);
    assert_eq!(config.otlp.delay, Duration::from_millis(250));
    assert_eq!(config.otlp.interval, Duration::from_secs(5));
    assert_eq!(config.export.sampler, Sampler { parent_based: true, ratio: 0.25 });
    assert_eq!(config.export.redaction.known_methods, ["GET", "PURGE"]);
    assert!(config.export.console);
    let warned: Vec<&str> = config.warnings.iter().filter_map(|warning| warning.split(':').next()).collect();
    assert_eq!(warned, ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_METRICS_EXPORTER"]);
    for variable in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
        assert_eq!(with_env("otlp: {endpoint: 'http://c:4317'}", &[variable]).otlp.traces, None, "{variable:?}");
    }
}

#[test]
fn secrets_are_neither_in_debug_nor_in_errors() {
    let config = load("otlp: {endpoint: 'http://c:4317', headers: {authorization: Bearer hunter2}}").unwrap();
    assert_eq!(config.otlp.traces.as_ref().unwrap().headers[0].1.reveal(), "Bearer hunter2");
    assert!(!format!("{config:?}").contains("hunter2"));
    for text in [
        "otlp: {endpoint: 'http://user:hunter2@c:4317'}",
        "otlp: {headers: {a b: hunter2}}",
        "otlp: {headers: {a: \"hunter2\\n\"}}",
        "otlp: {headers: hunter2}",
    ] {
        let got = errors(text);
        assert!(!got.is_empty() && got.iter().all(|error| !error.contains("hunter2")), "{got:?}");
    }
    let config = with_env(
        "",
        &[("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:hunter2@c")],
    );
    assert!(config.warnings.len() == 2 && !format!("{config:?}").contains("hunter2"), "{:?}", config.warnings);
}

#[test]
fn a_change_says_whether_it_needs_a_restart() {
    let old = load("mode: audit\nadmin: {address: '127.0.0.1:1'}").unwrap();
    let new = load("mode: enforce\nadmin: {address: '127.0.0.1:2'}\nexclude: []").unwrap();
    assert_eq!(
        diff(&old, &new),
        [Change { key: "mode", restart: false }, Change { key: "admin.address", restart: true }]
    );
    assert_eq!(diff(&old, &old), []);
}

#[test]
fn the_reference_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    if std::env::var_os("WEIR_UPDATE_DOCS").is_some() {
        std::fs::write(&path, reference()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert_eq!(written, reference(), "run the test with WEIR_UPDATE_DOCS=1 and commit docs/configuration.md");
}

proptest! {
    #[test]
    fn any_text_is_a_configuration_or_errors(
        text in "((mode|otlp|export|admin|targets|endpoint|foo): ?|- |\\n|  |\\[|\\{|\\}|\\]|1|'|null|\\PC){0,30}"
    ) {
        if let Err(errors) = load(&text) {
            prop_assert!(!errors.is_empty());
        }
    }
}
