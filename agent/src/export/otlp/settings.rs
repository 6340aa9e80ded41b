//! What the OTLP exporters need to know, beyond what the configuration says: certificates and resource attributes come
//! from the standard variables alone. Pure: the environment is an argument.

use std::{collections::BTreeMap, path::PathBuf, str::FromStr as _, time::Duration};

use http::{HeaderName, HeaderValue, Uri};

use super::Sampler;

/// Wire protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Grpc,
    Http,
}

/// Settings of the OTLP exporters; a signal that is `None` is not exported.
#[derive(Clone, Debug, PartialEq)]
pub struct OtlpSettings {
    pub traces: Option<SignalSettings>,
    pub metrics: Option<SignalSettings>,
    /// Chooses spans; metrics and counts see every call.
    pub sampler: Sampler,
    /// For one batch with its retries. Default: 30 s.
    pub export_timeout: Duration,
    /// Between exports of metrics. Default: 60 s.
    pub metric_interval: Duration,
    /// `service.name` of the agent's own metrics. Default: `weir`.
    pub service_name: String,
    /// The agent's resource attributes; those of the host go on every service.
    pub resource: BTreeMap<String, String>,
}

impl Default for OtlpSettings {
    fn default() -> Self {
        Self {
            traces: None,
            metrics: None,
            sampler: Sampler::default(),
            export_timeout: Duration::from_secs(30),
            metric_interval: Duration::from_mins(1),
            service_name: "weir".to_owned(),
            resource: BTreeMap::new(),
        }
    }
}

impl OtlpSettings {
    /// Takes `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` and the certificate variables from `env`. What is set
    /// already in `resource` stays. All errors at once; an empty variable counts as unset.
    pub fn read_env(&mut self, env: &dyn Fn(&str) -> Option<String>) -> Result<(), Vec<String>> {
        let mut errors = Vec::new();
        let text = |name: &str| env(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        for pair in
            text("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default().split(',').filter(|pair| !pair.trim().is_empty())
        {
            match pair.split_once('=').map(|(key, value)| (key.trim(), percent_decode(value.trim()))) {
                Some((key, Some(value))) if !key.is_empty() => {
                    self.resource.entry(key.to_owned()).or_insert(value);
                }
                // The entry itself may be a secret.
                _ => errors.push("OTEL_RESOURCE_ATTRIBUTES: an entry is not of the form key=value".to_owned()),
            }
        }
        if let Some(name) = text("OTEL_SERVICE_NAME").or_else(|| self.resource.get("service.name").cloned()) {
            self.service_name = name;
        }
        for (signal, name) in [(&mut self.traces, "TRACES"), (&mut self.metrics, "METRICS")] {
            let Some(signal) = signal else { continue };
            let file = |kind: &str| {
                let own = format!("OTEL_EXPORTER_OTLP_{name}_{kind}");
                text(&own).or_else(|| text(&format!("OTEL_EXPORTER_OTLP_{kind}"))).map(PathBuf::from)
            };
            signal.certificate = file("CERTIFICATE").or(signal.certificate.take());
            match (file("CLIENT_CERTIFICATE"), file("CLIENT_KEY")) {
                (Some(certificate), Some(key)) => signal.identity = Some((certificate, key)),
                (None, None) => {}
                _ => errors.push(format!(
                    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY ({}) go together",
                    name.to_ascii_lowercase()
                )),
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

/// Where and how one signal is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct SignalSettings {
    pub protocol: Protocol,
    /// For HTTP/protobuf the whole URL, for gRPC the server.
    pub uri: Uri,
    /// Values are marked sensitive, so that `Debug` does not show them.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// For one attempt.
    pub timeout: Duration,
    pub gzip: bool,
    /// PEM file of the certificates to trust. `None`: those of the system, else Mozilla's.
    pub certificate: Option<PathBuf>,
    /// PEM files of the agent's own certificate and key, for mutual TLS.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl SignalSettings {
    /// Errors say what is wrong with the URL or with a header's name; never a value.
    pub fn new<'a>(
        url: &str,
        protocol: Protocol,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        timeout: Duration,
        gzip: bool,
    ) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("the OTLP endpoint is no URL: {error}"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err("the OTLP endpoint needs http:// or https://".to_owned());
        }
        let authority = uri.authority().ok_or("the OTLP endpoint has no host")?;
        if authority.as_str().contains('@') {
            return Err("the OTLP endpoint holds credentials: put them into a header".to_owned());
        }
        let mut valid: Vec<(HeaderName, HeaderValue)> = Vec::new();
        for (name, value) in headers {
            match (HeaderName::from_str(name), HeaderValue::from_str(value)) {
                (Ok(name), Ok(mut value)) => {
                    value.set_sensitive(true);
                    valid.retain(|(known, _)| *known != name);
                    valid.push((name, value));
                }
                _ => return Err(format!("OTLP header `{}` is not valid", name.escape_debug())),
            }
        }
        Ok(Self { protocol, uri, headers: valid, timeout, gzip, certificate: None, identity: None })
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let mut ahead = bytes.clone();
        let digits = (ahead.next().map(char::from), ahead.next().map(char::from));
        match digits {
            (Some(high), Some(low)) if byte == b'%' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let value = high.to_digit(16)? * 16 + low.to_digit(16)?;
                decoded.push(u8::try_from(value).ok()?);
                bytes = ahead;
            }
            _ => decoded.push(byte),
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(url: &str, headers: &[(&str, &str)]) -> Result<SignalSettings, String> {
        SignalSettings::new(url, Protocol::Http, headers.iter().copied(), Duration::from_secs(1), false)
    }

    #[test]
    fn endpoints_and_headers_are_checked_without_showing_secrets() {
        let good = signal("https://c:4318/v1/traces", &[("api-key", "hunter2"), ("API-Key", "hunter3")]).unwrap();
        assert_eq!((good.uri.port_u16(), good.headers.len()), (Some(4318), 1));
        assert!(!format!("{good:?}").contains("hunter"), "{good:?}");
        for (url, headers) in [
            ("collector:4317", &[][..]),
            ("ftp://c", &[]),
            ("http://user:hunter2@c", &[]),
            ("/v1/traces", &[]),
            ("http://c", &[("bad name", "hunter2")]),
            ("http://c", &[("name", "hunter2\n")]),
        ] {
            let error = signal(url, headers).unwrap_err();
            assert!(!error.contains("hunter"), "{error}");
        }
    }

    #[test]
    fn the_environment_fills_resource_and_certificates() {
        let env = |name: &str| {
            let value = match name {
                "OTEL_RESOURCE_ATTRIBUTES" => "host.name=n1, service.name=agent,k8s.node.name=a%3Db,set=no",
                "OTEL_EXPORTER_OTLP_CERTIFICATE" => "/ca.pem",
                "OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE" => "/m.pem",
                "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE" => "/c.pem",
                "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY" => "/k.pem",
                "OTEL_SERVICE_NAME" => "",
                _ => return None,
            };
            Some(value.to_owned())
        };
        let one = signal("https://c", &[]).unwrap();
        let mut settings = OtlpSettings { traces: Some(one.clone()), metrics: Some(one), ..OtlpSettings::default() };
        settings.resource.insert("set".to_owned(), "yes".to_owned());
        settings.read_env(&env).unwrap();
        let shown: Vec<_> = settings.resource.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(shown, ["host.name=n1", "k8s.node.name=a=b", "service.name=agent", "set=yes"]);
        assert_eq!(settings.service_name, "agent");
        let (traces, metrics) = (settings.traces.unwrap(), settings.metrics.unwrap());
        assert_eq!((traces.certificate, metrics.certificate), (Some("/ca.pem".into()), Some("/m.pem".into())));
        assert_eq!((traces.identity, metrics.identity), (Some(("/c.pem".into(), "/k.pem".into())), None));
    }

    #[test]
    fn errors_of_the_environment_come_together() {
        let env = |name: &str| match name {
            "OTEL_RESOURCE_ATTRIBUTES" => Some("hunter2,=x,a=%ff".to_owned()),
            "OTEL_EXPORTER_OTLP_CLIENT_KEY" => Some("/k.pem".to_owned()),
            _ => None,
        };
        let mut settings = OtlpSettings { traces: Some(signal("http://c", &[]).unwrap()), ..OtlpSettings::default() };
        let errors = settings.read_env(&env).unwrap_err();
        assert_eq!(errors.len(), 4, "{errors:?}");
        assert!(!format!("{errors:?}").contains("hunter2"));
    }
}
