//! One call, one JSON object, one line. The keys are a promise: dashboards and scripts rely on them.

use std::{
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{
    Serialize, Serializer,
    ser::{SerializeMap, SerializeSeq},
};
use tokio::{fs::File, io::AsyncWriteExt as _};

use super::{
    Complaint, Delivery, Exporter, Queue,
    application::{self, Value},
    tls,
};
use crate::model::CallReport;

/// A batch is one write, so this is also the longest time a line waits: well under the promised 200 ms.
const DELAY: Duration = Duration::from_millis(100);

/// Appends to a file that only its owner can read.
#[derive(Debug)]
pub struct Jsonl {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    /// The last write failed in the middle of a line.
    torn: bool,
    complaint: Complaint,
}

impl Jsonl {
    /// Opens `path` for appending; a new file gets mode 600. Must be called within a Tokio runtime.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        Ok(Self {
            file: File::from_std(file),
            path: path.to_owned(),
            buffer: Vec::new(),
            torn: false,
            complaint: Complaint::default(),
        })
    }

    /// The queue that keeps the promise of at most 200 ms.
    pub fn queue() -> Queue {
        Queue { delay: DELAY, ..Queue::default() }
    }
}

impl Exporter for Jsonl {
    fn name(&self) -> &'static str {
        "jsonl"
    }

    async fn export(&mut self, batch: &[Arc<CallReport>]) -> Delivery {
        self.buffer.clear();
        if self.torn {
            self.buffer.push(b'\n');
        }
        let mut written = 0;
        for report in batch {
            let start = self.buffer.len();
            match serde_json::to_writer(&mut self.buffer, &Line(report)) {
                Ok(()) => {
                    self.buffer.push(b'\n');
                    written += 1;
                }
                Err(error) => {
                    self.buffer.truncate(start);
                    self.complaint.raise("jsonl", &error);
                }
            }
        }
        let failed = batch.len() as u64 - written;
        let result = match self.file.write_all(&self.buffer).await {
            Ok(()) => self.file.flush().await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => {
                self.torn = false;
                Delivery { exported: written, failed, ..Delivery::default() }
            }
            Err(error) => {
                self.torn = true;
                self.complaint.raise("jsonl", &format_args!("{}: {error}", self.path.display()));
                Delivery { failed: batch.len() as u64, ..Delivery::default() }
            }
        }
    }

    async fn flush(&mut self) {
        if let Err(error) = self.file.flush().await {
            self.complaint.raise("jsonl", &error);
        }
    }
}

/// The JSON object of a call. What is not known is absent.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a>(pub &'a CallReport);

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let report = self.0;
        let workload = &*report.workload;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("timestamp", &Rfc3339(report.start_unix_ns))?;
        map.serialize_entry("duration_ns", &report.duration_ns)?;
        map.serialize_entry("span_kind", report.role.name())?;
        map.serialize_entry("trace_id", &Hex(&report.trace.trace_id.0))?;
        map.serialize_entry("span_id", &Hex(&report.trace.span_id.0))?;
        if let Some(parent) = &report.trace.parent {
            map.serialize_entry("parent_span_id", &Hex(&parent.0))?;
        }
        let mut known = |key: &str, value: Option<&str>| match value {
            Some(value) => map.serialize_entry(key, value),
            None => Ok(()),
        };
        known("http.request.method", report.method.as_deref())?;
        known("http.request.method_original", report.method_original.as_deref())?;
        known("url.scheme", Some(report.scheme))?;
        known("url.path", report.path.as_deref())?;
        known("url.query", report.query.as_deref())?;
        known("http.route", report.route.as_deref())?;
        known("server.address", report.server_address.as_deref())?;
        known("client.address", report.client_address.as_deref())?;
        known("network.peer.address", report.peer_address.as_deref())?;
        known("network.protocol.name", Some("http"))?;
        known("network.protocol.version", Some(report.version.name()))?;
        known("network.transport", Some(report.transport.name()))?;
        if let Some(handshake) = &report.tls {
            tls::attributes(handshake, report.version, |key, value| match value {
                tls::Value::Text(text) => map.serialize_entry(key, &*text),
                tls::Value::Bool(truth) => map.serialize_entry(key, &truth),
            })?;
        }
        let mut known = |key: &str, value: Option<&str>| match value {
            Some(value) => map.serialize_entry(key, value),
            None => Ok(()),
        };
        known("user_agent.original", report.user_agent.as_deref())?;
        known("error.type", report.error_type.as_deref())?;
        known("process.executable.name", workload.executable_name.as_deref())?;
        known("process.executable.path", workload.executable_path.as_deref())?;
        known("container.id", workload.container_id.as_deref())?;
        known("k8s.pod.uid", workload.pod_uid.as_deref())?;
        known("service.name", workload.service_name.as_deref())?;
        known("service.namespace", workload.service_namespace.as_deref())?;
        known("weir.capture.backend", Some(report.backend.name()))?;
        known("weir.auth.scheme", report.auth_scheme)?;
        known("weir.incomplete", report.incomplete.map(crate::model::Incomplete::name))?;
        application::attributes(report, |key, value| match value {
            Value::Text(text) => map.serialize_entry(key, &*text),
            Value::Int(int) => map.serialize_entry(key, &int),
            Value::Bool(truth) => map.serialize_entry(key, &truth),
        })?;
        let mut number = |key: &str, value: Option<u64>| match value {
            Some(value) => map.serialize_entry(key, &value),
            None => Ok(()),
        };
        number("http.response.status_code", report.status.map(u64::from))?;
        number("http.request.body.size", report.request_body_size)?;
        number("http.response.body.size", report.response_body_size)?;
        number("server.port", report.server_port.map(u64::from))?;
        number("client.port", report.client_port.map(u64::from))?;
        number("network.peer.port", report.peer_port.map(u64::from))?;
        number("process.pid", Some(u64::from(report.pid)))?;
        number("thread.id", Some(u64::from(report.tid)))?;
        number("weir.time_to_first_byte_ns", report.time_to_first_byte_ns)?;
        if report.in_progress {
            map.serialize_entry("weir.in_progress", &true)?;
        }
        if workload.self_instrumented {
            map.serialize_entry("weir.instrumented", &true)?;
        }
        for group in report.headers.chunk_by(|(name, _), (next, _)| name == next) {
            if let Some((name, _)) = group.first() {
                map.serialize_entry(&**name, &Values(group))?;
            }
        }
        map.end()
    }
}

/// The values of one header, as the conventions want them: always an array.
struct Values<'a>(&'a [(Arc<str>, Arc<str>)]);

impl Serialize for Values<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut values = serializer.serialize_seq(Some(self.0.len()))?;
        for (_, value) in self.0 {
            values.serialize_element(&**value)?;
        }
        values.end()
    }
}

struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Hex<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Nanoseconds since the Unix epoch as `2023-11-14T22:13:20.123456789Z`.
#[derive(Clone, Copy, Debug)]
pub struct Rfc3339(pub u64);

impl std::fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:09}Z", Civil(self.0 / 1_000_000_000), self.0 % 1_000_000_000)
    }
}

/// Seconds since the Unix epoch as `2023-11-14T22:13:20`, without the zone.
pub(super) struct Civil(pub(super) u64);

impl std::fmt::Display for Civil {
    /// Civil date by Howard Hinnant's days-to-civil, for days since 1970 only.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0;
        let (days, time) = (seconds / 86_400, seconds % 86_400);
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (time / 3_600, time / 60 % 60, time % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
    }
}

impl Serialize for Rfc3339 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::Value;

    use super::*;
    use crate::{
        export::spawn,
        model::{Role, fixture},
    };

    fn value(report: &CallReport) -> Value {
        serde_json::from_str(&serde_json::to_string(&Line(report)).unwrap()).unwrap()
    }

    #[test]
    fn the_line_has_the_promised_keys() {
        assert_eq!(
            value(&fixture::maximal(Role::Server)),
            serde_json::from_str::<Value>(
                r#"{
                "timestamp": "2023-11-14T22:13:20.123456789Z", "duration_ns": 12345678, "span_kind": "server",
                "trace_id": "abababababababababababababababab", "span_id": "cdcdcdcdcdcdcdcd",
                "parent_span_id": "efefefefefefefef",
                "http.request.method": "_OTHER", "http.request.method_original": "PROPFIND",
                "url.scheme": "https", "url.path": "/users/42", "url.query": "q=a&sig=REDACTED",
                "http.route": "/users/{id}", "http.response.status_code": 503,
                "http.request.body.size": 3, "http.response.body.size": 1000,
                "server.address": "shop.example", "server.port": 8080,
                "client.address": "10.0.0.7", "client.port": 50000,
                "network.peer.address": "10.0.0.7", "network.peer.port": 50000,
                "network.protocol.name": "http", "network.protocol.version": "1.1", "network.transport": "tcp",
                "tls.protocol.name": "tls", "tls.protocol.version": "1.2",
                "tls.cipher": "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "tls.curve": "x25519",
                "tls.next_protocol": "http/1.1", "tls.established": true, "tls.resumed": false,
                "tls.client.server_name": "shop.example",
                "tls.server.subject": "CN=shop.example", "tls.server.issuer": "CN=Weir Test CA,O=Weir Test",
                "tls.server.not_before": "2023-11-14T22:13:20Z", "tls.server.not_after": "2024-11-13T22:13:20Z",
                "user_agent.original": "curl/8", "error.type": "503",
                "process.pid": 42, "thread.id": 43,
                "process.executable.name": "nginx", "process.executable.path": "/usr/sbin/nginx",
                "container.id": "0123456789abcdef", "k8s.pod.uid": "6dd2c9fe-6a3d-4d3e-9d6c-5a5b7c9b2f10",
                "service.name": "shop", "service.namespace": "retail",
                "weir.capture.backend": "sock_tracepoint", "weir.auth.scheme": "bearer",
                "weir.incomplete": "records_lost", "weir.instrumented": true,
                "weir.time_to_first_byte_ns": 4000000,
                "rpc.system": "grpc", "rpc.system.name": "grpc", "rpc.service": "shop.Cart", "rpc.method": "AddItem",
                "rpc.grpc.status_code": 14, "rpc.response.status_code": "UNAVAILABLE",
                "weir.rpc.streaming": "client_stream", "weir.messages.kind": "grpc",
                "weir.request.messages": 2, "weir.request.messages_exact": false,
                "weir.response.messages": 1, "weir.response.messages_exact": false,
                "weir.websocket.close_code": 1001,
                "http.request.header.x-id": ["7", "8"], "http.response.header.x-kind": ["plain"]
                }"#
            )
            .unwrap()
        );
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let line = value(&fixture::minimal(Role::Client));
        assert!(line.as_object().unwrap().values().all(|value| !value.is_null()));
        for key in ["parent_span_id", "url.query", "http.route", "error.type", "service.name", "weir.incomplete"] {
            assert!(line.get(key).is_none(), "{key}");
        }
    }

    #[test]
    fn times_are_civil_dates_in_utc() {
        for (nanos, shown) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399_999_999_999, "2000-02-28T23:59:59.999999999Z"),
            (951_782_400_000_000_000, "2000-02-29T00:00:00.000000000Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z"),
            (u64::MAX, "2554-07-21T23:34:33.709551615Z"),
        ] {
            assert_eq!(Rfc3339(nanos).to_string(), shown);
        }
    }

    #[tokio::test]
    async fn the_file_is_private_and_appended_to() {
        let path = std::env::temp_dir().join(format!("weir-jsonl-{}", std::process::id()));
        for _ in 0..2 {
            let handle = spawn(Jsonl::open(&path).unwrap(), Jsonl::queue());
            for _ in 0..3 {
                handle.offer(Arc::new(fixture::maximal(Role::Server)));
            }
            handle.shutdown(Duration::from_secs(5)).await;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        std::fs::remove_file(&path).unwrap();
        assert_eq!(mode, 0o600);
        assert_eq!(text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count(), 6);
    }

    #[tokio::test]
    async fn a_failed_write_is_counted_and_does_not_tear_the_next_line() {
        let mut full = Jsonl::open(Path::new("/dev/full")).unwrap();
        let batch = [Arc::new(fixture::maximal(Role::Server))];
        assert_eq!(full.export(&batch).await, Delivery { failed: 1, ..Delivery::default() });
        assert!(full.torn);
    }
}
