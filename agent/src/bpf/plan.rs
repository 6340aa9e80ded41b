//! Which programs to attach on this kernel, why, and what is lost without the others. Pure: features in, plan out.

use std::fmt;

use super::features::Features;

/// A way to see plaintext bytes of sockets, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketBackend {
    /// `tp_btf/sock_send_length` and `sock_recv_length`.
    SockTracepoint,
    /// `tp_btf/sys_exit` and a walk of the descriptor table.
    SysExit,
}

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// The best that loads.
    #[default]
    Auto,
    Only(SocketBackend),
}

/// One kernel program of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Name in the kernel object.
    pub name: &'static str,
    /// Kernel tracepoint it attaches to.
    pub tracepoint: &'static str,
    /// Without it nothing can be observed.
    pub required: bool,
    /// What is not seen when it is missing.
    pub lost: &'static str,
}

/// The programs to attach, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub backend: SocketBackend,
    pub programs: Vec<Program>,
    /// What this kernel or these privileges cost, each with the way out.
    pub lost: Vec<String>,
}

/// Nothing can be observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub Vec<String>);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Refused {}

impl SocketBackend {
    pub const ALL: [Self; 2] = [Self::SockTracepoint, Self::SysExit];

    pub const fn name(self) -> &'static str {
        match self {
            Self::SockTracepoint => "sock_tracepoint",
            Self::SysExit => "sys_exit",
        }
    }

    /// Programs of this backend.
    pub const fn programs(self) -> &'static [Program] {
        match self {
            Self::SockTracepoint => &[
                Program {
                    name: "sock_send_length",
                    tracepoint: "sock_send_length",
                    required: true,
                    lost: "everything that processes send",
                },
                Program {
                    name: "sock_recv_length",
                    tracepoint: "sock_recv_length",
                    required: true,
                    lost: "everything that processes receive",
                },
                Program {
                    name: "inet_sock_set_state",
                    tracepoint: "inet_sock_set_state",
                    required: false,
                    lost: "ends of connections: a response that only the connection's end delimits is reported late",
                },
            ],
            Self::SysExit => &[
                Program {
                    name: "sys_exit",
                    tracepoint: "sys_exit",
                    required: true,
                    lost: "everything that processes send and receive",
                },
                Program {
                    name: "inet_sock_set_state_walked",
                    tracepoint: "inet_sock_set_state",
                    required: false,
                    lost: "ends of connections: a response that only the connection's end delimits is reported late",
                },
            ],
        }
    }

    /// Why this backend cannot be used here, if so.
    fn obstacle(self, features: &Features) -> Option<String> {
        for program in self.programs().iter().filter(|program| program.required) {
            if !features.tracepoints.contains(program.tracepoint) {
                return Some(format!("this kernel has no tracepoint {} in its BTF", program.tracepoint));
            }
        }
        if let Some(missing) = features.missing_socket_fields.first() {
            return Some(missing.clone());
        }
        if self == Self::SysExit {
            if !features.probe_read_kernel {
                return Some(
                    "lockdown=confidentiality refuses bpf_probe_read_kernel, which the descriptor walk needs"
                        .to_owned(),
                );
            }
            if let Some(missing) = features.missing_walk_fields.first() {
                return Some(missing.clone());
            }
        }
        None
    }
}

const EXEC: Program = Program {
    name: "sched_process_exec",
    tracepoint: "sched_process_exec",
    required: false,
    lost: "executables of processes that end within milliseconds",
};

/// Decide. `Err` names every reason at once.
pub fn plan(features: &Features, wanted: Wanted) -> Result<Plan, Refused> {
    let mut reasons = features.obstacles.clone();
    if !features.btf {
        reasons.push(
            "this kernel has no BTF at /sys/kernel/btf/vmlinux; it must be built with CONFIG_DEBUG_INFO_BTF=y"
                .to_owned(),
        );
    }
    if !reasons.is_empty() {
        return Err(Refused(reasons));
    }
    let candidates: &[SocketBackend] = match &wanted {
        Wanted::Auto => &SocketBackend::ALL,
        Wanted::Only(backend) => std::slice::from_ref(backend),
    };
    let mut lost = Vec::new();
    for &backend in candidates {
        if let Some(obstacle) = backend.obstacle(features) {
            reasons.push(format!("{}: {obstacle}", backend.name()));
            continue;
        }
        lost.extend(reasons.iter().map(|reason| format!("not the best backend: {reason}")));
        let mut programs = Vec::new();
        for &program in backend.programs() {
            if features.tracepoints.contains(program.tracepoint) {
                programs.push(program);
            } else {
                lost.push(format!("no tracepoint {}: {}", program.tracepoint, program.lost));
            }
        }
        if backend == SocketBackend::SysExit {
            lost.push("sys_exit: bytes moved by splice and io_uring are not seen".to_owned());
        }
        lost.push("sendfile, splice and io_uring: bytes are counted, their content is not seen".to_owned());
        if !features.probe_read_kernel {
            lost.push(
                "lockdown=confidentiality: names of Unix sockets and executables of short-lived processes".to_owned(),
            );
        } else if features.tracepoints.contains(EXEC.tracepoint) {
            programs.push(EXEC);
        } else {
            lost.push(format!("no tracepoint {}: {}", EXEC.tracepoint, EXEC.lost));
        }
        return Ok(Plan { backend, programs, lost });
    }
    Err(Refused(reasons))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(tracepoints: &[&str]) -> Features {
        Features {
            btf: true,
            tracepoints: tracepoints.iter().map(|name| (*name).to_owned()).collect(),
            probe_read_kernel: true,
            ..Features::default()
        }
    }

    const ALL: [&str; 5] =
        ["sock_send_length", "sock_recv_length", "inet_sock_set_state", "sys_exit", "sched_process_exec"];

    #[test]
    fn the_socket_tracepoints_are_preferred() {
        let plan = plan(&features(&ALL), Wanted::Auto).unwrap();
        assert_eq!(plan.backend, SocketBackend::SockTracepoint);
        assert_eq!(plan.programs.len(), 4);
    }

    #[test]
    fn without_them_the_descriptor_walk_is_used_and_the_reason_told() {
        let plan = plan(&features(&ALL[2..]), Wanted::Auto).unwrap();
        assert_eq!(plan.backend, SocketBackend::SysExit);
        assert!(plan.lost.iter().any(|line| line.contains("no tracepoint sock_send_length")), "{:?}", plan.lost);
    }

    #[test]
    fn an_asked_for_backend_is_not_replaced() {
        let refused = plan(&features(&ALL[2..]), Wanted::Only(SocketBackend::SockTracepoint)).unwrap_err();
        assert_eq!(refused.0.len(), 1);
        assert_eq!(
            plan(&features(&ALL), Wanted::Only(SocketBackend::SysExit)).unwrap().backend,
            SocketBackend::SysExit
        );
    }

    #[test]
    fn confidentiality_leaves_the_tracepoints_but_not_the_walk() {
        let mut locked = features(&ALL);
        locked.probe_read_kernel = false;
        let plan_of = plan(&locked, Wanted::Auto).unwrap();
        assert_eq!(plan_of.backend, SocketBackend::SockTracepoint);
        assert!(!plan_of.programs.iter().any(|program| program.name == "sched_process_exec"));
        let refused = plan(&locked, Wanted::Only(SocketBackend::SysExit)).unwrap_err();
        assert!(refused.to_string().contains("confidentiality"));
    }

    #[test]
    fn missing_fields_name_the_field() {
        let mut old = features(&ALL);
        old.missing_socket_fields = vec!["struct sock of this kernel has no member sk_type".to_owned()];
        assert!(plan(&old, Wanted::Auto).unwrap_err().to_string().contains("sk_type"));
    }

    #[test]
    fn no_btf_and_missing_privileges_are_told_together() {
        let none = Features { obstacles: vec!["CAP_BPF is missing".to_owned()], ..Features::default() };
        assert_eq!(plan(&none, Wanted::Auto).unwrap_err().0.len(), 2);
    }

    #[test]
    fn optional_programs_only_cost_what_they_show() {
        let plan = plan(&features(&["sock_send_length", "sock_recv_length"]), Wanted::Auto).unwrap();
        assert_eq!(plan.programs.len(), 2);
        assert!(plan.lost.iter().any(|line| line.contains("inet_sock_set_state")));
        assert!(plan.lost.iter().any(|line| line.contains("sched_process_exec")));
    }
}
