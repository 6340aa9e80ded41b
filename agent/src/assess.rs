//! The second half of the core: exchanges and process facts in, redacted reports out, in a fixed order.
//!
//! Pure: no clock, no I/O, no thread. What is left out is counted by reason.

use std::borrow::Cow;
use std::sync::Arc;

use crate::application::recognise;
use crate::filter::Filter;
use crate::inventory::route::{RouteCounts, RouteInference, TypedSegments};
use crate::model::{Application, CallReport, Exchange, ProcessRef, Timestamp, Workload};
use crate::redact::Redactor;
use crate::workloads::{WorkloadCounts, Workloads};

/// What happens to calls of a process that exports OTLP spans itself (`export.deduplicate`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deduplicate {
    /// They are reported; their workload says so.
    #[default]
    Mark,
    /// They are not reported.
    Suppress,
    /// They are reported as any other.
    Off,
}

/// What became of exchanges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AssessCounts {
    pub reported: u64,
    /// Not a target, or excluded.
    pub filtered: u64,
    /// The process asked not to be observed.
    pub opted_out: u64,
    /// The process exports spans itself.
    pub suppressed: u64,
    pub routes: RouteCounts,
    pub workloads: WorkloadCounts,
}

/// What decides about every exchange; replaced as a whole when the configuration changes.
#[derive(Debug)]
pub struct Rules {
    pub filter: Filter,
    pub redactor: Redactor,
    pub deduplicate: Deduplicate,
}

/// Turns exchanges into reports.
#[derive(Debug)]
pub struct Assessor<R = TypedSegments> {
    workloads: Workloads,
    routes: R,
    rules: Rules,
    counts: AssessCounts,
}

impl Assessor {
    pub fn new(workloads: Workloads, routes: TypedSegments, rules: Rules) -> Self {
        Self { workloads, routes, rules, counts: AssessCounts::default() }
    }

    pub fn counts(&self) -> AssessCounts {
        AssessCounts { routes: self.routes.counts(), workloads: self.workloads.counts(), ..self.counts }
    }
}

impl<R: RouteInference> Assessor<R> {
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// True when nothing but connections told of this process: a look-up is worth its cost.
    pub fn wants_facts(&self, process: ProcessRef) -> bool {
        self.workloads.wants_facts(process)
    }

    /// Facts of a process: new, or changed by a new program.
    pub fn on_process(&mut self, workload: Workload, now: Timestamp) {
        self.workloads.update(workload, now.0);
    }

    /// The process was seen to export OTLP spans. True when this matters and was not known before.
    pub fn on_self_instrumented(&mut self, process: ProcessRef, now: Timestamp) -> bool {
        self.rules.deduplicate != Deduplicate::Off && self.workloads.mark_self_instrumented(process, now.0)
    }

    /// The report of one exchange, or `None` when it is not to be reported. `wall` turns kernel time into nanoseconds
    /// since the Unix epoch.
    pub fn on_exchange(&mut self, exchange: &Exchange, wall: impl FnOnce(Timestamp) -> u64) -> Option<CallReport> {
        let workload = match self.admit(exchange) {
            Ok(workload) => workload,
            Err(left_out) => {
                *left_out(&mut self.counts) += 1;
                return None;
            }
        };
        let application = recognise(exchange);
        let route = self.route(exchange, application.as_ref(), &workload);
        self.counts.reported += 1;
        Some(self.rules.redactor.report(exchange, application, &workload, route, wall(exchange.timing.start)))
    }

    /// The report of an exchange that goes on, or `None` when it is not to be reported. Counts nothing.
    pub fn on_progress(&mut self, exchange: &Exchange, wall: impl FnOnce(Timestamp) -> u64) -> Option<CallReport> {
        let workload = self.admit(exchange).ok()?;
        let application = recognise(exchange);
        let route = self.route(exchange, application.as_ref(), &workload);
        Some(self.rules.redactor.progress(exchange, application, &workload, route, wall(exchange.timing.start)))
    }

    /// The workload of an exchange that is to be reported, else what counts those that are not.
    fn admit(&mut self, exchange: &Exchange) -> Result<Arc<Workload>, fn(&mut AssessCounts) -> &mut u64> {
        let workload = self.workloads.of_connection(&exchange.connection, exchange.timing.end.0);
        if workload.opted_out {
            return Err(|counts| &mut counts.opted_out);
        }
        if !self.rules.filter.selects(&workload, &exchange.connection, exchange.role) {
            return Err(|counts| &mut counts.filtered);
        }
        if workload.self_instrumented && self.rules.deduplicate == Deduplicate::Suppress {
            return Err(|counts| &mut counts.suppressed);
        }
        Ok(workload)
    }

    /// No call of this process will ever be reported under these rules: the kernel need not follow it.
    pub fn excludes_process(&mut self, process: ProcessRef, now: Timestamp) -> bool {
        !self.workloads.wants_facts(process)
            && self
                .workloads
                .get(process, now.0)
                .is_some_and(|workload| workload.opted_out || self.rules.filter.excludes_process(&workload))
    }

    /// Forget what was not used for long. Called about once a second.
    pub fn on_tick(&mut self, now: Timestamp) {
        self.workloads.on_tick(now.0);
    }

    /// Give memory back: keep at most `processes`.
    pub fn shrink(&mut self, processes: usize) {
        self.workloads.shrink_to(processes);
    }

    fn route(
        &mut self,
        exchange: &Exchange,
        application: Option<&Application>,
        workload: &Workload,
    ) -> Option<Arc<str>> {
        let request = exchange.request.as_ref()?;
        if matches!(application, Some(Application::Grpc(_))) {
            // Its path is its route.
            return None;
        }
        let method = str::from_utf8(&request.method).ok()?;
        let path = path_of(&request.target)?;
        let service = workload.service_name.as_deref().unwrap_or_default();
        let status = exchange.response.as_ref().map(|response| response.status);
        self.routes.template(service, method, &path, status)
    }
}

/// The path of a request-target in origin-form or absolute-form (RFC 9112 section 3.2).
fn path_of(target: &[u8]) -> Option<Cow<'_, str>> {
    let path = if target.starts_with(b"/") {
        target
    } else {
        let scheme = [&b"http://"[..], b"https://"]
            .into_iter()
            .find(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))?;
        let rest = target.get(scheme.len()..)?;
        match rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')) {
            Some(at) if rest.get(at) == Some(&b'/') => rest.get(at..)?,
            _ => b"/",
        }
    };
    Some(String::from_utf8_lossy(path))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::{
        Backend, Body, ConnId, Connection, Headers, Outcome, Request, Response, Role, SocketAddress, SpanId, Timing,
        TraceContext, TraceId, Transport, Version,
    };
    use crate::redact::RedactionConfig;

    const PROCESS: ProcessRef = ProcessRef { pid: 7, start_ns: 100 };

    fn exchange(target: &'static str, status: u16) -> Exchange {
        let connection = Connection {
            id: ConnId(1),
            transport: Transport::Tcp,
            local: SocketAddress::Unknown,
            remote: SocketAddress::Unknown,
            backend: Backend::SockTracepoint,
            tls: None,
            process: PROCESS,
            comm: "nginx".into(),
            cgroup: 0,
            uid: 0,
            netns: 0,
            first_seen: Timestamp(0),
        };
        Exchange {
            connection: Arc::new(connection),
            role: Role::Server,
            version: Version::Http11,
            request: Some(Request {
                method: Bytes::from_static(b"GET"),
                target: Bytes::from_static(target.as_bytes()),
                version: Version::Http11,
                headers: Headers::default(),
                body: Body::default(),
            }),
            response: Some(Response {
                status,
                version: Version::Http11,
                headers: Headers::default(),
                trailers: None,
                body: Body::default(),
                interim: 0,
                first_byte: Timestamp(20),
            }),
            timing: Timing { start: Timestamp(10), request_end: None, response_start: None, end: Timestamp(30) },
            outcome: Outcome::Complete,
            incomplete: None,
            pid: 7,
            tid: 7,
            trace: TraceContext {
                trace_id: TraceId([1; 16]),
                span_id: SpanId([1; 8]),
                parent: None,
                parent_remote: false,
                sampled: None,
            },
        }
    }

    fn assessor(filter: Filter, deduplicate: Deduplicate) -> Assessor {
        let rules = Rules { filter, redactor: Redactor::new(RedactionConfig::default()), deduplicate };
        Assessor::new(Workloads::default(), TypedSegments::default(), rules)
    }

    fn report(assessor: &mut Assessor, target: &'static str) -> Option<CallReport> {
        assessor.on_exchange(&exchange(target, 200), |time| time.0 + 1000)
    }

    #[test]
    fn a_report_has_route_workload_and_wall_clock() {
        let mut assessor = assessor(Filter::default(), Deduplicate::Mark);
        let shop = Workload { process: PROCESS, service_name: Some("shop".into()), ..Workload::default() };
        assert!(assessor.wants_facts(PROCESS));
        assessor.on_process(shop, Timestamp(1));
        assert!(!assessor.wants_facts(PROCESS));
        let call = report(&mut assessor, "/users/42?page=1").unwrap();
        assert_eq!(call.route.as_deref(), Some("/users/{user_id}"));
        assert_eq!(call.workload.service_name.as_deref(), Some("shop"));
        assert_eq!(call.start_unix_ns, 1010);
        assert_eq!(assessor.counts().reported, 1);
        assert_eq!(assessor.counts().workloads.unknown, 0);
    }

    #[test]
    fn a_call_of_an_unknown_process_is_reported_with_its_command() {
        let mut assessor = assessor(Filter::default(), Deduplicate::Mark);
        let call = report(&mut assessor, "/users").unwrap();
        assert_eq!(call.workload.service_name.as_deref(), Some("nginx"));
        assert_eq!(assessor.counts().workloads.unknown, 1);
    }

    #[test]
    fn what_is_left_out_is_counted_by_reason() {
        let mut excluding =
            assessor(Filter { exclude: vec!["pid:7".parse().unwrap()], ..Filter::default() }, Deduplicate::Mark);
        assert!(report(&mut excluding, "/a").is_none());
        assert_eq!(excluding.counts().filtered, 1);

        let mut opted = assessor(Filter::default(), Deduplicate::Mark);
        opted.on_process(Workload { process: PROCESS, opted_out: true, ..Workload::default() }, Timestamp(1));
        assert!(report(&mut opted, "/a").is_none());
        assert_eq!(opted.counts().opted_out, 1);
        assert_eq!(opted.counts().reported, 0);
    }

    #[test]
    fn a_process_that_exports_spans_is_marked_suppressed_or_left() {
        for (deduplicate, reported, marked) in
            [(Deduplicate::Mark, true, true), (Deduplicate::Suppress, false, false), (Deduplicate::Off, true, false)]
        {
            let mut assessor = assessor(Filter::default(), deduplicate);
            let matters = deduplicate != Deduplicate::Off;
            assert_eq!(assessor.on_self_instrumented(PROCESS, Timestamp(1)), matters);
            let call = report(&mut assessor, "/a");
            assert_eq!(call.is_some(), reported, "{deduplicate:?}");
            assert_eq!(call.is_some_and(|call| call.workload.self_instrumented), marked, "{deduplicate:?}");
            assert_eq!(assessor.counts().suppressed, u64::from(!reported));
        }
    }

    #[test]
    fn new_rules_apply_to_the_next_call() {
        let mut assessor = assessor(Filter::default(), Deduplicate::Mark);
        assert!(report(&mut assessor, "/a").is_some());
        assessor.set_rules(Rules {
            filter: Filter { targets: vec!["pid:8".parse().unwrap()], ..Filter::default() },
            redactor: Redactor::new(RedactionConfig::default()),
            deduplicate: Deduplicate::Mark,
        });
        assert!(report(&mut assessor, "/a").is_none());
    }

    #[test]
    fn the_path_of_every_form_of_target_is_found() {
        for (target, want) in [
            ("/a?b", Some("/a?b")),
            ("http://example.org/a/b?c", Some("/a/b?c")),
            ("HTTPS://example.org", Some("/")),
            ("http://example.org?a=/b", Some("/")),
            ("*", None),
            ("example.org:443", None),
            ("", None),
        ] {
            assert_eq!(path_of(target.as_bytes()).as_deref(), want, "{target}");
        }
    }
}
