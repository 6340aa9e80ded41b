//! Which calls are observed: targets and exclusions. Pure: facts in, a decision out.

use std::fmt;
use std::str::FromStr;

use globset::{Glob, GlobBuilder, GlobMatcher};

use crate::model::{Connection, Role, Workload};

/// One selector, written `pid:N`, `exe:GLOB`, `cgroup:GLOB` or `port:N`.
///
/// In a glob `*` stands for any characters, `/` included, `?` for one, `[abc]` for one of these, `{a,b}` for either.
#[derive(Clone, Debug)]
pub enum Target {
    /// The process with this id.
    Pid(u32),
    /// Path of the executable; its base name when the glob has no `/`.
    Exe(GlobMatcher),
    /// cgroup path.
    Cgroup(GlobMatcher),
    /// The server's port, whichever side is observed.
    Port(u16),
}

/// Targets and exclusions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Without any, everything is a target.
    pub targets: Vec<Target>,
    /// Wins over a target.
    pub exclude: Vec<Target>,
}

impl Filter {
    /// True when a call on `connection`, in which the process plays `role`, is to be observed.
    pub fn selects(&self, workload: &Workload, connection: &Connection, role: Role) -> bool {
        let matches = |target: &Target| target.matches(workload, connection, role);
        (self.targets.is_empty() || self.targets.iter().any(matches)) && !self.exclude.iter().any(matches)
    }
}

impl Filter {
    /// True when no call of the process can be selected, whatever its connection: the kernel need not follow it.
    pub fn excludes_process(&self, workload: &Workload) -> bool {
        let by_process = |target: &Target| target.matches_process(workload);
        let hopeless =
            !self.targets.is_empty() && !self.targets.iter().any(|target| by_process(target).unwrap_or(true));
        hopeless || self.exclude.iter().any(|target| by_process(target).unwrap_or(false))
    }
}

impl Target {
    /// What the process alone decides; `None` when the connection decides.
    fn matches_process(&self, workload: &Workload) -> Option<bool> {
        match self {
            Self::Pid(pid) => Some(workload.process.pid == *pid),
            Self::Exe(glob) => {
                let with_path = glob.glob().glob().contains('/');
                let name = if with_path { &workload.executable_path } else { &workload.executable_name };
                Some(name.as_deref().is_some_and(|name| glob.is_match(name)))
            }
            Self::Cgroup(glob) => Some(workload.cgroup_path.as_deref().is_some_and(|path| glob.is_match(path))),
            Self::Port(_) => None,
        }
    }

    fn matches(&self, workload: &Workload, connection: &Connection, role: Role) -> bool {
        match self {
            Self::Pid(pid) => connection.process.pid == *pid,
            Self::Port(port) => {
                let server = match role {
                    Role::Server => &connection.local,
                    Role::Client => &connection.remote,
                };
                server.port() == Some(*port)
            }
            Self::Exe(_) | Self::Cgroup(_) => self.matches_process(workload).unwrap_or(false),
        }
    }
}

/// The error says what is wrong and what would be right.
impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((kind, value)) = text.split_once(':') else {
            return Err(format!("{text:?} names no kind; write pid:N, exe:GLOB, cgroup:GLOB or port:N"));
        };
        if value.is_empty() {
            return Err(format!("{text:?} has nothing after the colon; write pid:N, exe:GLOB, cgroup:GLOB or port:N"));
        }
        match kind {
            "pid" => value
                .parse()
                .ok()
                .filter(|pid| *pid > 0)
                .map(Self::Pid)
                .ok_or_else(|| format!("{value:?} is not a process id; write a number above 0, such as pid:4711")),
            "port" => {
                value.parse().ok().filter(|port| *port > 0).map(Self::Port).ok_or_else(|| {
                    format!("{value:?} is not a port; write a number from 1 to 65535, such as port:8080")
                })
            }
            "exe" => glob(value).map(Self::Exe),
            "cgroup" => glob(value).map(Self::Cgroup),
            _ => Err(format!("{kind:?} is not a kind of target; write pid:N, exe:GLOB, cgroup:GLOB or port:N")),
        }
    }
}

fn glob(text: &str) -> Result<GlobMatcher, String> {
    GlobBuilder::new(text).literal_separator(false).build().map(|glob: Glob| glob.compile_matcher()).map_err(|error| {
        format!("{text:?} is not a glob: {}; correct it, or escape the character with \\", error.kind())
    })
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "pid:{pid}"),
            Self::Exe(glob) => write!(f, "exe:{}", glob.glob()),
            Self::Cgroup(glob) => write!(f, "cgroup:{}", glob.glob()),
            Self::Port(port) => write!(f, "port:{port}"),
        }
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pid(one), Self::Pid(two)) => one == two,
            (Self::Port(one), Self::Port(two)) => one == two,
            (Self::Exe(one), Self::Exe(two)) | (Self::Cgroup(one), Self::Cgroup(two)) => one.glob() == two.glob(),
            _ => false,
        }
    }
}

impl Eq for Target {}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::model::{Backend, ConnId, ProcessRef, SocketAddress, Timestamp, Transport};

    fn nginx() -> (Workload, Connection) {
        let process = ProcessRef { pid: 7, start_ns: 1 };
        let workload = Workload {
            process,
            executable_name: Some("nginx".into()),
            executable_path: Some("/usr/sbin/nginx".into()),
            cgroup_path: Some("/system.slice/nginx.service".into()),
            ..Workload::default()
        };
        let address = |port| SocketAddress::Ip(SocketAddr::from(([127, 0, 0, 1], port)));
        let connection = Connection {
            id: ConnId(1),
            transport: Transport::Tcp,
            local: address(8080),
            remote: address(50000),
            backend: Backend::SockTracepoint,
            tls: None,
            process,
            comm: "nginx".into(),
            cgroup: 0,
            uid: 0,
            netns: 0,
            first_seen: Timestamp(0),
        };
        (workload, connection)
    }

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    fn filter(targets: &[&str], exclude: &[&str]) -> Filter {
        let parse = |texts: &[&str]| texts.iter().map(|text| target(text)).collect();
        Filter { targets: parse(targets), exclude: parse(exclude) }
    }

    #[test]
    fn a_target_matches_its_kind_of_fact() {
        let (workload, connection) = nginx();
        for (text, matches) in [
            ("pid:7", true),
            ("pid:8", false),
            ("port:8080", true),
            ("port:50000", false),
            ("exe:nginx", true),
            ("exe:ngin?", true),
            ("exe:{apache,nginx}", true),
            ("exe:/usr/sbin/nginx", true),
            ("exe:/usr/*", true),
            ("exe:/usr/*/nginx", true),
            ("exe:*nginx", true),
            ("exe:sbin/nginx", false),
            ("exe:/usr/sbin", false),
            ("exe:python*", false),
            ("cgroup:/system.slice/*", true),
            ("cgroup:*nginx*", true),
            ("cgroup:/kubepods*", false),
        ] {
            assert_eq!(target(text).matches(&workload, &connection, Role::Server), matches, "{text}");
            assert_eq!(target(text).to_string(), text);
        }
        assert!(target("port:50000").matches(&workload, &connection, Role::Client), "a client's server is remote");
        assert!(!target("exe:*").matches(&Workload::default(), &connection, Role::Server), "unknown is no match");
    }

    #[test]
    fn an_exclusion_wins_over_a_target() {
        let (workload, connection) = nginx();
        for (targets, exclude, selected) in [
            (&[][..], &[][..], true),
            (&["pid:7"], &[], true),
            (&["pid:8"], &[], false),
            (&["pid:8", "port:8080"], &[], true),
            (&[], &["exe:nginx"], false),
            (&["exe:nginx"], &["port:8080"], false),
            (&["exe:nginx"], &["port:9"], true),
        ] {
            let filter = filter(targets, exclude);
            assert_eq!(filter.selects(&workload, &connection, Role::Server), selected, "{targets:?} {exclude:?}");
        }
    }

    #[test]
    fn a_bad_target_says_what_would_be_right() {
        for (text, part) in [
            ("nginx", "write pid:N"),
            ("", "write pid:N"),
            ("pid:", "nothing after the colon"),
            ("pid:x", "not a process id"),
            ("pid:0", "not a process id"),
            ("port:70000", "1 to 65535"),
            ("port:0", "1 to 65535"),
            ("uid:3", "not a kind"),
            ("exe:[a", "not a glob"),
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_process_is_excluded_as_a_whole_only_when_no_connection_could_save_it() {
        let workload = Workload {
            process: ProcessRef { pid: 7, start_ns: 1 },
            executable_name: Some("wrk".into()),
            ..Workload::default()
        };
        let of = |targets: &[&str], exclude: &[&str]| {
            let parse = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
            Filter { targets: parse(targets), exclude: parse(exclude) }.excludes_process(&workload)
        };
        assert!(!of(&[], &[]));
        assert!(of(&[], &["exe:wrk"]));
        assert!(!of(&[], &["port:80"]), "only its calls to that port");
        assert!(of(&["exe:nginx"], &[]));
        assert!(!of(&["exe:nginx", "port:80"], &[]), "its calls to that port are targets");
        assert!(!of(&["pid:7"], &[]));
        assert!(of(&["pid:7"], &["pid:7"]));
    }
}
