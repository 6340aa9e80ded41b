//! What is known of the process behind a connection.

use std::sync::Arc;

use super::ProcessRef;

/// Facts about one process. Absent fields are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    pub process: ProcessRef,
    /// Base name of the executable, else the command name.
    pub executable_name: Option<Arc<str>>,
    pub executable_path: Option<Arc<str>>,
    /// `/proc/PID/comm`.
    pub command: Option<Arc<str>>,
    pub container_id: Option<Arc<str>>,
    /// Pod UID from the cgroup path, dashes restored.
    pub pod_uid: Option<Arc<str>>,
    /// cgroup v2 path, as the host sees it.
    pub cgroup_path: Option<Arc<str>>,
    /// `OTEL_SERVICE_NAME`, else `service.name` of `OTEL_RESOURCE_ATTRIBUTES`, else the executable's name.
    pub service_name: Option<Arc<str>>,
    /// `service.namespace` of `OTEL_RESOURCE_ATTRIBUTES`.
    pub service_namespace: Option<Arc<str>>,
    /// The process asked not to be observed (`WEIR_OBSERVE=off` in its environment).
    pub opted_out: bool,
    /// The process exports OTLP spans itself.
    pub self_instrumented: bool,
}
