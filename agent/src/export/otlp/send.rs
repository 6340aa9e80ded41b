//! Delivery to a collector: one attempt, and the retries the OTLP specification asks for. Connects lazily; a collector
//! that is away costs time and counted reports, never the agent.

use std::{
    fmt, fs,
    future::Future,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io::Write as _,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use flate2::{Compression as Level, write::GzEncoder};
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use opentelemetry_proto::tonic::collector::{
    metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse, metrics_service_client::MetricsServiceClient,
    },
    trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse, trace_service_client::TraceServiceClient},
};
use prost::Message;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{
    Code,
    codec::CompressionEncoding,
    metadata::MetadataMap,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::{
    super::Complaint,
    settings::{Protocol, SignalSettings},
};

const USER_AGENT: &str = concat!("OTel-OTLP-Exporter-Weir/", env!("CARGO_PKG_VERSION"));
/// First wait before a retry; doubles up to [`MAX_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A collector's answer is a few bytes; more is not read.
const MAX_ANSWER: usize = 64 * 1024;
/// Connections idle for longer are closed, under the keep-alive of common proxies.
const IDLE: Duration = Duration::from_secs(30);

/// A connection to one collector for one signal.
#[derive(Debug)]
pub(super) struct Client {
    transport: Transport,
    headers: Vec<(HeaderName, HeaderValue)>,
    timeout: Duration,
    gzip: bool,
}

#[derive(Debug)]
enum Transport {
    Grpc(Channel),
    Http { client: Box<HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>>, uri: Uri },
}

/// A delivered request; the collector may have refused parts of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) rejected: u64,
    pub(super) message: String,
}

/// A failed attempt.
#[derive(Debug)]
pub(super) struct Failure {
    reason: String,
    /// `None`: do not try again.
    retry: Option<Retry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    /// By our own backoff.
    Backoff,
    /// When the collector said.
    After(Duration),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl Client {
    /// Reads certificates; does not connect. Must be called within a Tokio runtime.
    pub(super) fn new(settings: &SignalSettings) -> anyhow::Result<Self> {
        let transport = match settings.protocol {
            Protocol::Grpc => Transport::Grpc(channel(settings)?),
            Protocol::Http => Transport::Http { client: Box::new(http_client(settings)?), uri: settings.uri.clone() },
        };
        Ok(Self { transport, headers: settings.headers.clone(), timeout: settings.timeout, gzip: settings.gzip })
    }

    /// Delivers spans, with retries for at most `limit`. `request` is built anew for an attempt over gRPC, which costs
    /// less than keeping a copy of every one.
    pub(super) async fn send_traces(
        &mut self,
        request: impl Fn() -> ExportTraceServiceRequest,
        limit: Duration,
        complaint: &mut Complaint,
    ) -> Result<Sent, Failure> {
        let body = self.encode(&request)?;
        with_retries(
            limit,
            self.timeout,
            |failure| complaint.raise("otlp", failure),
            || async {
                match &self.transport {
                    Transport::Grpc(channel) => {
                        let mut client = TraceServiceClient::new(channel.clone());
                        if self.gzip {
                            client = client.send_compressed(CompressionEncoding::Gzip);
                        }
                        let answer = client.export(self.grpc_request(request())).await;
                        Ok(traces_sent(answer.map_err(|status| refused(&status))?.into_inner()))
                    }
                    Transport::Http { .. } => Ok(traces_sent(decode(self.post(body.clone()).await?))),
                }
            },
        )
        .await
    }

    /// Delivers metrics, with retries for at most `limit`.
    pub(super) async fn send_metrics(
        &mut self,
        request: impl Fn() -> ExportMetricsServiceRequest,
        limit: Duration,
        complaint: &mut Complaint,
    ) -> Result<Sent, Failure> {
        let body = self.encode(&request)?;
        with_retries(
            limit,
            self.timeout,
            |failure| complaint.raise("otlp_metrics", failure),
            || async {
                match &self.transport {
                    Transport::Grpc(channel) => {
                        let mut client = MetricsServiceClient::new(channel.clone());
                        if self.gzip {
                            client = client.send_compressed(CompressionEncoding::Gzip);
                        }
                        let answer = client.export(self.grpc_request(request())).await;
                        Ok(metrics_sent(answer.map_err(|status| refused(&status))?.into_inner()))
                    }
                    Transport::Http { .. } => Ok(metrics_sent(decode(self.post(body.clone()).await?))),
                }
            },
        )
        .await
    }

    /// The body for HTTP, encoded once for all attempts; empty for gRPC, where tonic encodes.
    fn encode<T: Message>(&self, request: impl Fn() -> T) -> Result<Bytes, Failure> {
        if matches!(self.transport, Transport::Grpc(_)) {
            return Ok(Bytes::new());
        }
        let plain = request().encode_to_vec();
        if !self.gzip {
            return Ok(plain.into());
        }
        let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Level::fast());
        let packed = encoder.write_all(&plain).and_then(|()| encoder.finish());
        packed.map(Bytes::from).map_err(|error| Failure { reason: format!("gzip: {error}"), retry: None })
    }

    fn grpc_request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        let mut headers = http::HeaderMap::new();
        headers.extend(self.headers.iter().cloned());
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        request
    }

    async fn post(&self, body: Bytes) -> Result<Bytes, Failure> {
        let Transport::Http { client, uri } = &self.transport else { return Ok(Bytes::new()) };
        let mut request = Request::post(uri.clone())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, USER_AGENT);
        if self.gzip {
            request = request.header(header::CONTENT_ENCODING, "gzip");
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request =
            request.body(Full::new(body)).map_err(|error| Failure { reason: error.to_string(), retry: None })?;
        let again = |reason: String| Failure { reason, retry: Some(Retry::Backoff) };
        let response = client.request(request).await.map_err(|error| again(chain(&error)))?;
        let status = response.status();
        let after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        if !status.is_success() {
            return Err(Failure { reason: format!("collector answered {status}"), retry: http_retry(status, after) });
        }
        let answer = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        // Delivered, whatever came of the answer's body.
        Ok(answer.map(http_body_util::Collected::to_bytes).unwrap_or_default())
    }
}

/// Attempts until one succeeds, cannot succeed, or the time is up. `failed` hears of each failed attempt at once: an
/// operator should not have to wait for the last.
async fn with_retries<F: Future<Output = Result<Sent, Failure>>>(
    limit: Duration,
    attempt_timeout: Duration,
    mut failed: impl FnMut(&Failure),
    mut attempt: impl FnMut() -> F,
) -> Result<Sent, Failure> {
    let start = Instant::now();
    let mut backoff = FIRST_BACKOFF;
    loop {
        let result = timeout(attempt_timeout, attempt()).await.unwrap_or_else(|_| {
            Err(Failure { reason: format!("no answer within {attempt_timeout:?}"), retry: Some(Retry::Backoff) })
        });
        let Err(failure) = result else { return result };
        failed(&failure);
        let wait = match failure.retry {
            None => return Err(failure),
            Some(Retry::After(wait)) => wait,
            Some(Retry::Backoff) => jittered(backoff),
        };
        if start.elapsed() + wait >= limit {
            return Err(failure);
        }
        sleep(wait).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// Between half and all of `backoff`, so that agents do not return in step. `RandomState` is seeded by the system.
fn jittered(backoff: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() as u32;
    backoff.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

/// OTLP/HTTP: 429, 502, 503 and 504 may be retried, nothing else.
const fn http_retry(status: StatusCode, after: Option<Duration>) -> Option<Retry> {
    match (status.as_u16(), after) {
        (429 | 502..=504, Some(after)) => Some(Retry::After(after)),
        (429 | 502..=504, None) => Some(Retry::Backoff),
        _ => None,
    }
}

/// OTLP/gRPC: the retryable codes; `RESOURCE_EXHAUSTED` only when the collector says when.
fn refused(status: &tonic::Status) -> Failure {
    let after = retry_info(status.details());
    let retry = match (status.code(), after) {
        (Code::ResourceExhausted | Code::Unavailable, Some(after)) => Some(Retry::After(after)),
        (
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss,
            _,
        ) => Some(Retry::Backoff),
        _ => None,
    };
    let source = std::error::Error::source(status).map(chain).unwrap_or_default();
    Failure { reason: format!("{:?}: {} {source}", status.code(), status.message()).trim_end().to_owned(), retry }
}

/// `google.rpc.Status`, as far as it is needed.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<RpcDetail>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct RpcDetail {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<RetryDelay>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, Message)]
struct RetryDelay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

fn retry_info(details: &[u8]) -> Option<Duration> {
    let status = RpcStatus::decode(details).ok()?;
    let info = status.details.iter().find(|detail| detail.type_url.ends_with("google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(&*info.value).ok()?.retry_delay.unwrap_or_default();
    Some(Duration::new(u64::try_from(delay.seconds).unwrap_or(0), u32::try_from(delay.nanos).unwrap_or(0)))
}

fn traces_sent(response: ExportTraceServiceResponse) -> Sent {
    let partial = response.partial_success.unwrap_or_default();
    Sent { rejected: u64::try_from(partial.rejected_spans).unwrap_or(0), message: partial.error_message }
}

fn metrics_sent(response: ExportMetricsServiceResponse) -> Sent {
    let partial = response.partial_success.unwrap_or_default();
    Sent { rejected: u64::try_from(partial.rejected_data_points).unwrap_or(0), message: partial.error_message }
}

/// Some collectors answer 200 with an empty or foreign body: delivered all the same.
fn decode<T: Message + Default>(body: Bytes) -> T {
    T::decode(body).unwrap_or_default()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}

fn channel(settings: &SignalSettings) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from(settings.uri.clone())
        .user_agent(USER_AGENT)
        .context("the exporter's user agent")?
        .connect_timeout(settings.timeout);
    if settings.uri.scheme_str() != Some("https") {
        return Ok(endpoint.connect_lazy());
    }
    let mut tls = ClientTlsConfig::new();
    if let Some((certificate, key)) = &settings.identity {
        let read = |path: &std::path::PathBuf| fs::read(path).with_context(|| format!("read {}", path.display()));
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    let endpoint = if let Some(path) = &settings.certificate {
        let pem = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        endpoint.tls_config(tls.ca_certificate(Certificate::from_pem(pem)))
    } else {
        // Images without certificates of their own are common.
        endpoint
            .clone()
            .tls_config(tls.clone().with_native_roots())
            .or_else(|_| endpoint.tls_config(tls.with_webpki_roots()))
    };
    Ok(endpoint.context("TLS for the OTLP endpoint")?.connect_lazy())
}

fn http_client(settings: &SignalSettings) -> anyhow::Result<HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = || ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = if let Some(path) = &settings.certificate {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).with_context(|| format!("read {}", path.display()))? {
            roots.add(certificate.with_context(|| format!("read {}", path.display()))?).context("trust certificate")?;
        }
        builder()?.with_root_certificates(roots)
    } else {
        match builder()?.with_native_roots() {
            Ok(builder) => builder,
            Err(_) => builder()?.with_webpki_roots(),
        }
    };
    let config = match &settings.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect)
                .with_context(|| format!("read {}", certificate.display()))?;
            let key = PrivateKeyDer::from_pem_file(key).with_context(|| format!("read {}", key.display()))?;
            builder.with_client_auth_cert(chain, key).context("client certificate for the OTLP endpoint")?
        }
    };
    let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build();
    Ok(HyperClient::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE)
        .pool_timer(TokioTimer::new())
        .build(connector))
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// A collector that gives these answers, one connection each; returns the heads and bodies it got.
    async fn collector(answers: Vec<&'static str>) -> (String, tokio::task::JoinHandle<Vec<(String, Vec<u8>)>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut bytes = Vec::new();
                let (head, body) = loop {
                    let mut buffer = [0; 4096];
                    let len = stream.read(&mut buffer).await.unwrap();
                    assert!(len > 0, "the client closed");
                    bytes.extend_from_slice(&buffer[..len]);
                    let text = String::from_utf8_lossy(&bytes).to_lowercase();
                    let Some(end) = text.find("\r\n\r\n") else { continue };
                    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
                    let field = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                    let expected: usize = field.parse().unwrap();
                    if bytes.len() >= end + 4 + expected {
                        break (head, bytes[end + 4..].to_vec());
                    }
                };
                requests.push((head, body));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            requests
        });
        (url, task)
    }

    fn client(url: &str, gzip: bool) -> Client {
        let headers = [("api-key", "secret")];
        Client::new(&SignalSettings::new(url, Protocol::Http, headers, Duration::from_secs(5), gzip).unwrap()).unwrap()
    }

    fn request() -> ExportTraceServiceRequest {
        ExportTraceServiceRequest { resource_spans: vec![ResourceSpans::default()] }
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

    #[tokio::test]
    async fn a_request_is_protobuf_with_the_headers_and_packed_when_asked() {
        for gzip in [false, true] {
            let (url, task) = collector(vec![OK]).await;
            let sent = client(&url, gzip).send_traces(request, Duration::from_secs(5), &mut Complaint::default()).await;
            assert_eq!(sent.map_err(|error| error.to_string()), Ok(Sent::default()));
            let requests = task.await.unwrap();
            let (head, body) = &requests[0];
            for line in ["post /v1/traces http/1.1", "content-type: application/x-protobuf", "api-key: secret"] {
                assert!(head.contains(line), "{head}");
            }
            assert_eq!(head.contains("content-encoding: gzip"), gzip);
            assert_eq!(body.starts_with(&[0x1f, 0x8b]), gzip);
        }
    }

    #[tokio::test]
    async fn retryable_answers_are_retried_and_partial_success_is_read() {
        // partial_success { rejected_spans: 3, error_message: "no" }
        let partial = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 8\r\n\r\n\x0a\x06\x08\x03\x12\x02no";
        let later = "HTTP/1.1 503 X\r\nretry-after: 0\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let (url, task) = collector(vec![later, later, partial]).await;
        let sent = client(&url, false).send_traces(request, Duration::from_secs(5), &mut Complaint::default()).await;
        let expected = Sent { rejected: 3, message: "no".to_owned() };
        assert_eq!(sent.map_err(|error| error.to_string()), Ok(expected));
        assert_eq!(task.await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn other_answers_are_final() {
        let (url, task) = collector(vec!["HTTP/1.1 400 Bad\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"]).await;
        let sent = client(&url, false).send_traces(request, Duration::from_mins(1), &mut Complaint::default()).await;
        assert!(sent.map_err(|error| error.to_string()).unwrap_err().contains("400"));
        assert_eq!(task.await.unwrap().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_is_away_is_retried_until_the_limit() {
        let start = Instant::now();
        let (mut attempts, mut heard) = (0, 0);
        let result = with_retries(
            Duration::from_secs(30),
            Duration::from_secs(10),
            |_| heard += 1,
            || {
                attempts += 1;
                async { Err(Failure { reason: "away".to_owned(), retry: Some(Retry::Backoff) }) }
            },
        )
        .await;
        assert!(result.is_err());
        assert!(start.elapsed() < Duration::from_secs(30));
        assert_eq!(heard, attempts);
        assert!((4..=9).contains(&attempts), "{attempts}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_without_answer_ends_by_its_own_limit() {
        let start = Instant::now();
        let result = with_retries(
            Duration::from_secs(12),
            Duration::from_secs(10),
            |_| (),
            std::future::pending::<Result<Sent, Failure>>,
        )
        .await;
        assert!(result.unwrap_err().reason.contains("no answer"));
        assert!(start.elapsed() <= Duration::from_secs(22));
    }

    #[test]
    fn grpc_codes_are_retried_as_the_specification_says() {
        let info = RetryInfo { retry_delay: Some(RetryDelay { seconds: 2, nanos: 500_000_000 }) };
        let detail =
            RpcDetail { type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(), value: info.encode_to_vec() };
        let details = RpcStatus { details: vec![detail] }.encode_to_vec();
        let after = Some(Retry::After(Duration::from_millis(2_500)));
        for (code, with_info, retry) in [
            (Code::Unavailable, false, Some(Retry::Backoff)),
            (Code::Unavailable, true, after),
            (Code::ResourceExhausted, false, None),
            (Code::ResourceExhausted, true, after),
            (Code::DeadlineExceeded, false, Some(Retry::Backoff)),
            (Code::InvalidArgument, false, None),
            (Code::Unauthenticated, true, None),
            (Code::Unimplemented, false, None),
        ] {
            let details = if with_info { details.clone() } else { Vec::new() };
            let status = tonic::Status::with_details(code, "x", details.into());
            assert_eq!(refused(&status).retry, retry, "{code:?} {with_info}");
        }
    }

    #[test]
    fn backoff_is_jittered_within_bounds() {
        let all: std::collections::HashSet<_> = (0..50).map(|_| jittered(FIRST_BACKOFF)).collect();
        assert!(all.len() > 10);
        assert!(all.iter().all(|wait| (FIRST_BACKOFF / 2..=FIRST_BACKOFF).contains(wait)));
    }
}
