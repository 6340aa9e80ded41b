//! Container facts from cgroup paths. Pure: text in, facts out; it never reads a file.

/// What a process's cgroup membership tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupFacts {
    /// The cgroup v2 path; without one, the v1 path that names a container, else the first.
    pub path: Option<String>,
    /// The innermost container: 64 hexadecimal digits, or the name of an LXC container.
    pub container_id: Option<String>,
    /// With dashes, whatever the cgroup driver made of them. The UID of a static pod has none.
    pub pod_uid: Option<String>,
    /// `docker`, `containerd`, `crio`, `podman`, `lxc`; not known where the path says only the id.
    pub runtime: Option<&'static str>,
}

/// Facts from the text of `/proc/PID/cgroup` (cgroups(7)): lines `hierarchy:controllers:path`.
pub fn parse(cgroup_file_text: &str) -> CgroupFacts {
    let mut unified = None;
    let mut first = None;
    let mut named: Option<CgroupFacts> = None;
    for line in cgroup_file_text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(hierarchy), Some(_), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        // cgroups(7): appended when the directory is gone but the process still runs.
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        let facts = of_path(path);
        if hierarchy == "0" {
            unified = Some(facts);
        } else {
            if named.is_none() && facts.container_id.is_some() {
                named = Some(facts.clone());
            }
            first.get_or_insert(facts);
        }
    }
    match (unified, named) {
        // Hybrid hosts: the runtime may have placed the container in the v1 hierarchies alone.
        (Some(unified), Some(named)) if unified.container_id.is_none() => CgroupFacts { path: unified.path, ..named },
        (Some(unified), _) => unified,
        (None, Some(named)) => named,
        (None, None) => first.unwrap_or_default(),
    }
}

/// Facts from one cgroup path.
pub fn of_path(path: &str) -> CgroupFacts {
    let mut facts = CgroupFacts { path: Some(path.to_owned()), ..CgroupFacts::default() };
    let mut inner = "";
    // Innermost first: a container in a container (kind), or a service in a container.
    for component in path.rsplit('/') {
        if facts.container_id.is_none()
            && let Some((id, runtime)) = container(component, parent_of(path, component))
        {
            facts.container_id = Some(id.to_owned());
            facts.runtime = runtime;
        }
        if facts.container_id.is_none() && component.starts_with("lxc.payload.") {
            facts.container_id = component.strip_prefix("lxc.payload.").map(str::to_owned);
            facts.runtime = Some("lxc");
        }
        if facts.container_id.is_none() && matches!(component, "lxc" | "lxc.payload") && !inner.is_empty() {
            facts.container_id = Some(inner.to_owned());
            facts.runtime = Some("lxc");
        }
        if facts.pod_uid.is_none() {
            facts.pod_uid = pod_uid(component);
        }
        inner = component;
    }
    facts
}

/// The component before `component`, which is a part of `path`; empty at the root.
fn parent_of<'a>(path: &'a str, component: &str) -> &'a str {
    let offset = (component.as_ptr() as usize).saturating_sub(path.as_ptr() as usize);
    let before = path.get(..offset).unwrap_or_default().trim_end_matches('/');
    before.rsplit('/').next().unwrap_or_default()
}

/// `docker-<id>.scope`, `cri-containerd-<id>.scope`, `crio-<id>`, `slice:cri-containerd:<id>`, `<id>`.
fn container<'a>(component: &'a str, parent: &str) -> Option<(&'a str, Option<&'static str>)> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    let at = name.rfind(['-', ':']).map_or(0, |at| at + 1);
    let (prefix, id) = name.split_at_checked(at)?;
    if id.len() != 64 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let prefix = prefix.trim_end_matches(['-', ':']);
    // conmon watches a container from outside of it.
    if prefix.ends_with("conmon") {
        return None;
    }
    let prefix = prefix.rsplit(':').next().unwrap_or_default();
    let runtime = match prefix {
        "docker" => Some("docker"),
        "cri-containerd" | "containerd" | "nerdctl" => Some("containerd"),
        "crio" => Some("crio"),
        "libpod" => Some("podman"),
        "" => match parent {
            "docker" => Some("docker"),
            "libpod_parent" => Some("podman"),
            _ => None,
        },
        _ => None,
    };
    Some((id, runtime))
}

/// `pod<uid>`, `kubepods-burstable-pod<uid_with_underscores>.slice`, and the same before `:cri-containerd:<id>`.
fn pod_uid(component: &str) -> Option<String> {
    let slice = component.split(':').next().unwrap_or_default();
    let name = slice.strip_suffix(".slice").unwrap_or(slice);
    let at = name.rfind("pod")?;
    let (prefix, uid) = (name.get(..at)?, name.get(at + 3..)?);
    if !prefix.is_empty() && !prefix.ends_with('-') {
        return None;
    }
    let dashed = uid.len() == 36
        && uid.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => matches!(byte, b'-' | b'_'),
            _ => byte.is_ascii_hexdigit(),
        });
    // The kubelet names a static pod by a hash of its manifest.
    let hash = uid.len() == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit());
    (dashed || hash).then(|| uid.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "40c03570b6f4c30bc8d69923d37ee698f5cfcced92c7b7df1c47f6f7887378a9";
    const OUTER: &str = "0f8dd1e8e0a1b1c5f4f3e7c0a6b8d9e2f1a3c5b7d9e1f3a5b7c9d1e3f5a7b9c1";
    const UID: &str = "7260904b-bd08-4f6d-9d0c-0a1b2c3d4e5f";

    fn expand(text: &str) -> String {
        text.replace("$ID", ID).replace("$OUTER", OUTER).replace("$UID", UID).replace("$U_ID", &UID.replace('-', "_"))
    }

    #[test]
    fn every_runtime_of_the_field_is_recognised() {
        for (text, id, uid, runtime) in [
            (
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod$U_ID.slice/\
                 cri-containerd-$ID.scope",
                "$ID",
                "$UID",
                "containerd",
            ),
            (
                "0::/docker/$OUTER/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/\
                 kubelet-kubepods-besteffort-pod$U_ID.slice/cri-containerd-$ID.scope",
                "$ID",
                "$UID",
                "containerd",
            ),
            ("0::/kubepods/burstable/pod$UID/$ID", "$ID", "$UID", ""),
            ("0::/kubepods/burstable/pod$UID/cri-containerd:$ID", "$ID", "$UID", "containerd"),
            (
                "0::/system.slice/containerd.service/kubepods-burstable-pod$U_ID.slice:cri-containerd:$ID",
                "$ID",
                "$UID",
                "containerd",
            ),
            ("0::/kubepods.slice/kubepods-pod$U_ID.slice/crio-$ID.scope", "$ID", "$UID", "crio"),
            ("0::/kubepods.slice/kubepods-pod$U_ID.slice/crio-$ID.scope/container", "$ID", "$UID", "crio"),
            ("0::/kubepods.slice/kubepods-pod$U_ID.slice/crio-conmon-$ID.scope", "", "$UID", ""),
            ("0::/machine.slice/libpod-conmon-$ID.scope", "", "", ""),
            ("0::/kubepods/besteffort/pod$UID/libpod-$ID", "$ID", "$UID", "podman"),
            ("0::/libpod_parent/libpod-$ID", "$ID", "", "podman"),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-$ID.scope/container",
                "$ID",
                "",
                "podman",
            ),
            ("0::/docker/$ID", "$ID", "", "docker"),
            ("0::/docker/$ID/system.slice/nginx.service", "$ID", "", "docker"),
            ("0::/system.slice/docker-$ID.scope", "$ID", "", "docker"),
            ("0::/../../pod$UID/$ID", "$ID", "$UID", ""),
            ("0::/../cri-containerd-$ID.scope", "$ID", "", "containerd"),
            ("0::/podruntime/kubelet", "", "", ""),
            (
                "0::/kubepods/burstable/pod8a8f5a1e0f3c4b5d6e7f8091a2b3c4d5/$ID",
                "$ID",
                "8a8f5a1e0f3c4b5d6e7f8091a2b3c4d5",
                "",
            ),
            ("0::/lxc/web", "web", "", "lxc"),
            ("0::/lxc.payload.web/system.slice/nginx.service", "web", "", "lxc"),
            ("0::/lxc.payload/web", "web", "", "lxc"),
            ("0::/lxc.monitor.web", "", "", ""),
            ("0::/system.slice/nginx.service", "", "", ""),
            ("0::/user.slice/user-1000.slice/session-3.scope", "", "", ""),
            ("0::/system.slice/podman.service", "", "", ""),
            ("0::/", "", "", ""),
            ("12:memory:/docker/$ID\n1:name=systemd:/docker/$ID\n0::/system.slice/x.service", "$ID", "", "docker"),
            ("12:cpu,cpuacct:/kubepods/pod$UID/$ID\n0::/", "$ID", "$UID", ""),
            ("4:memory:/user.slice\n3:cpu:/docker/$ID", "$ID", "", "docker"),
            ("0::/system.slice/docker-$ID.scope (deleted)", "$ID", "", "docker"),
        ] {
            let text = expand(text);
            let facts = parse(&text);
            assert_eq!(facts.container_id.as_deref().unwrap_or_default(), expand(id), "{text}");
            assert_eq!(facts.pod_uid.as_deref().unwrap_or_default(), expand(uid), "{text}");
            assert_eq!(facts.runtime.unwrap_or_default(), runtime, "{text}");
        }
    }

    #[test]
    fn the_unified_path_is_preferred() {
        for (text, path) in [
            ("0::/system.slice/nginx.service\n", Some("/system.slice/nginx.service")),
            ("3:cpu:/a\n0::/b:c/d", Some("/b:c/d")),
            ("3:cpu:/a\n2:memory:/b", Some("/a")),
            ("nonsense", None),
            ("", None),
        ] {
            assert_eq!(parse(text).path.as_deref(), path, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed(text in "([0-9]:[a-z]*:)?(/|pod|[0-9a-f]{64}|lxc|-|:|.scope|.slice|\\PC){0,12}") {
            let facts = parse(&text);
            prop_assert!(facts.container_id.is_none() || facts.path.is_some());
        }
    }
}
