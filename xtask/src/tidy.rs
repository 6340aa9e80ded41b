//! `cargo xtask tidy`: the rules that no compiler checks. Reads the sources, runs nothing.
//!
//! Each rule is a function of one file (or of all) and is tested with a planted offender.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// A file of the workspace: its path from the root, with `/`, and its text.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    fn has_extension(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|found| found == extension)
    }
}

/// One broken rule: where, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    path: String,
    line: usize,
    what: String,
}

/// Who may not use what. `places` are path prefixes; `forbidden` are paths in code, however imported.
struct Layer {
    places: &'static [&'static str],
    forbidden: &'static [&'static str],
    instead: &'static str,
}

const OUTSIDE_WORLD: &[&str] = &[
    "tokio",
    "axum",
    "tonic",
    "opentelemetry",
    "std::fs",
    "std::io",
    "std::env",
    "std::process",
    "std::thread",
    "std::sync::mpsc",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::os",
    "std::time::Instant",
    "std::time::SystemTime",
    "tracing",
];

const LAYERS: &[Layer] = &[
    Layer {
        places: &["agent-common/src/", "agent/src/model/"],
        forbidden: OUTSIDE_WORLD,
        instead: "types know nothing of the outside world; move the code to the module that does",
    },
    Layer {
        places: &["agent/src/model/"],
        forbidden: &[
            "crate::admin",
            "crate::bpf",
            "crate::capture",
            "crate::config",
            "crate::conn",
            "crate::enrich",
            "crate::event",
            "crate::export",
            "crate::inventory",
            "crate::pipeline",
            "crate::protocol",
            "crate::redact",
            "crate::run",
            "crate::workloads",
        ],
        instead: "the model stands below everything; let the other module convert",
    },
    Layer {
        places: PURE,
        forbidden: OUTSIDE_WORLD,
        instead: "the core is pure: take the value (or the time) as an argument and return what happened",
    },
    Layer {
        places: PURE,
        forbidden: &[
            "crate::admin",
            "crate::bpf",
            "crate::cli",
            "crate::config",
            "crate::enrich",
            "crate::export",
            "crate::pipeline",
            "crate::record",
            "crate::run",
            "crate::telemetry",
        ],
        instead: "the core does not know its shell; pass the value in from the pipeline",
    },
    Layer {
        places: &["agent/src/protocol/", "agent/src/conn/", "agent/src/conn.rs", "agent/src/event.rs"],
        forbidden: &["crate::inventory", "crate::workloads", "crate::redact", "crate::assess"],
        instead: "a protocol never sees a process, a route or a policy; add the fact where the call is assessed",
    },
    Layer {
        places: &["agent/src/bpf/"],
        forbidden: &["crate::admin", "crate::enrich", "crate::export", "crate::pipeline", "crate::run"],
        instead: "adapters do not know each other; the pipeline passes messages between them",
    },
    Layer {
        places: &["agent/src/enrich/"],
        forbidden: &["crate::admin", "crate::bpf", "crate::export", "crate::pipeline", "crate::run"],
        instead: "adapters do not know each other; the pipeline passes messages between them",
    },
    Layer {
        places: &["agent/src/discover/"],
        forbidden: &[
            "crate::admin",
            "crate::capture",
            "crate::enrich",
            "crate::export",
            "crate::pipeline",
            "crate::run",
        ],
        instead: "adapters do not know each other; the pipeline passes messages between them",
    },
    Layer {
        places: &["agent/src/export/"],
        forbidden: &["crate::admin", "crate::bpf", "crate::enrich", "crate::pipeline", "crate::run", "crate::capture"],
        instead: "an exporter sees redacted calls and nothing else",
    },
    Layer {
        places: &["agent/src/admin/"],
        forbidden: &["crate::bpf", "crate::enrich", "crate::pipeline", "crate::run", "crate::capture"],
        instead: "adapters do not know each other; the pipeline passes messages between them",
    },
    Layer {
        places: &["xtask/src/", "agent-common/src/"],
        forbidden: &["agent"],
        instead: "xtask and agent-common depend on nothing of the product",
    },
];

/// The pure core: modules and files whose output depends on their input alone.
const PURE: &[&str] = &[
    "agent/src/application/",
    "agent/src/coding/",
    "agent/src/assess.rs",
    "agent/src/assess/",
    "agent/src/capture.rs",
    "agent/src/capture/",
    "agent/src/conn.rs",
    "agent/src/conn/",
    "agent/src/detect/",
    "agent/src/enforce.rs",
    "agent/src/event.rs",
    "agent/src/event/",
    "agent/src/filter.rs",
    "agent/src/handshake.rs",
    "agent/src/handshake/",
    "agent/src/inventory/",
    "agent/src/metrics/",
    "agent/src/policy/",
    "agent/src/protocol/",
    "agent/src/redact.rs",
    "agent/src/redact/",
    "agent/src/tls_targets/",
    "agent/src/trace.rs",
    "agent/src/trace/",
    "agent/src/workloads.rs",
];

/// Of the agent's modules `aya` is named here alone.
const KERNEL_SIDE: &[&str] = &["agent/src/bpf/", "agent-ebpf/", "agent-common/", "agent/build.rs"];

/// `unsafe` is written here alone; the kernel tests make the very system calls that libraries wrap.
const UNSAFE: &[&str] = &[
    "agent/src/bpf/",
    "agent/src/memory.rs",
    "agent-ebpf/",
    "agent-common/",
    "agent/build.rs",
    "tests/bench/",
    "tests/it/",
];

/// Hosts that packages come from: which mirror is used is the machine's affair, not the tree's.
const REGISTRY_HOSTS: &[&str] = &[
    "static.crates.io",
    "index.crates.io",
    "deb.debian.org",
    "security.debian.org",
    "files.pythonhosted.org",
    "registry.npmjs.org",
    "proxy.golang.org",
];

/// The list of everything Weir emits.
const REGISTRY: &str = "agent/docs/registry.yaml";

/// Directories that hold no source.
const NOT_SOURCE: &[&str] = &[".git", "target", "corpus", "artifacts", "node_modules"];

/// Check the whole tree.
///
/// # Errors
/// Any complaint; each is printed with file, line and what to do.
pub(crate) fn run() -> Result<()> {
    let root = shell::root();
    let mut files = Vec::new();
    collect(&root, &root, &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let complaints = check(&files, &root.to_string_lossy());
    for complaint in &complaints {
        println!("{}:{}: {}", complaint.path, complaint.line, complaint.what);
    }
    match complaints.len() {
        0 => {
            println!("tidy: {} files, no complaint", files.len());
            Ok(())
        }
        count => bail!("tidy: {count} complaints"),
    }
}

fn collect(root: &Path, dir: &Path, files: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry.with_context(|| format!("cannot read {}", dir.display()))?;
        let path = entry.path();
        let kind = entry.file_type().with_context(|| format!("cannot read {}", path.display()))?;
        if kind.is_dir() {
            if !NOT_SOURCE.iter().any(|name| entry.file_name() == *name) {
                collect(root, &path, files)?;
            }
        } else if kind.is_file() {
            // Not text: a picture, a capture; no rule speaks of it.
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            files.push(Source { path: relative, text });
        }
    }
    Ok(())
}

/// All complaints about a tree that was checked out at `root`.
fn check(files: &[Source], root: &str) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for file in files {
        if file.has_extension("rs") {
            first_line_says_what_it_is(file, &mut complaints);
            let code = Code::of(file);
            layers(file, &code, &mut complaints);
            unsafe_has_a_home(file, &code, &mut complaints);
            nothing_left_undone(file, &code, &mut complaints);
        }
        no_place_of_one_machine(file, root, &mut complaints);
    }
    everything_emitted_is_registered(files, &mut complaints);
    changelog(files, &mut complaints);
    complaints
}

fn complain(complaints: &mut Vec<Complaint>, path: &str, line: usize, what: impl Into<String>) {
    complaints.push(Complaint { path: path.to_owned(), line, what: what.into() });
}

fn first_line_says_what_it_is(file: &Source, complaints: &mut Vec<Complaint>) {
    if !file.text.starts_with("//! ") {
        complain(complaints, &file.path, 1, "begin the file with `//! `: what it is, what it must never do");
    }
}

fn layers(file: &Source, code: &Code, complaints: &mut Vec<Complaint>) {
    if is_test(&file.path) {
        return;
    }
    for layer in LAYERS.iter().filter(|layer| layer.places.iter().any(|place| file.path.starts_with(place))) {
        for (line, used) in &code.paths {
            if let Some(word) = layer.forbidden.iter().find(|word| is_within(used, word)) {
                let what = format!("`{word}` does not belong here: {}", layer.instead);
                complain(complaints, &file.path, *line, what);
            }
        }
    }
    if file.path.starts_with("agent/src/") && !KERNEL_SIDE.iter().any(|place| file.path.starts_with(place)) {
        for (line, used) in &code.paths {
            if is_within(used, "aya") {
                complain(complaints, &file.path, *line, "only agent/src/bpf names `aya`; add what you need there");
            }
        }
    }
}

fn unsafe_has_a_home(file: &Source, code: &Code, complaints: &mut Vec<Complaint>) {
    if UNSAFE.iter().any(|place| file.path.starts_with(place)) {
        return;
    }
    for (line, text) in &code.lines {
        if words(text).any(|word| word == "unsafe") {
            let what = format!("`unsafe` has its home in {}; use a safe wrapper here", UNSAFE.join(", "));
            complain(complaints, &file.path, *line, what);
        }
    }
}

fn nothing_left_undone(file: &Source, code: &Code, complaints: &mut Vec<Complaint>) {
    if file.path == SELF {
        return;
    }
    for (line, text) in file.text.lines().enumerate() {
        for mark in ["TODO", "FIXME", "XXX"] {
            if words(text).any(|word| word == mark) {
                complain(complaints, &file.path, line + 1, format!("{mark}: do it, or write down that it is not done"));
            }
        }
    }
    for (line, text) in &code.lines {
        if text.trim_start().starts_with("#[ignore") {
            let what = "an ignored test tests nothing: skip with a reason that the runner counts, or delete it";
            complain(complaints, &file.path, *line, what);
        }
    }
}

const SELF: &str = "xtask/src/tidy.rs";

fn no_place_of_one_machine(file: &Source, root: &str, complaints: &mut Vec<Complaint>) {
    if file.path == SELF || file.path.contains("fixtures/") || file.has_extension("lock") {
        return;
    }
    for (line, text) in file.text.lines().enumerate() {
        // A tree at `/` or `/src` would find itself in innocent words.
        if root.len() > 5 && text.contains(root) {
            complain(
                complaints,
                &file.path,
                line + 1,
                format!("`{root}` exists on this machine only; derive the path"),
            );
        }
        for host in REGISTRY_HOSTS {
            if text.contains(host) {
                let what = format!("`{host}` is named: leave the choice of a mirror to the machine's own settings");
                complain(complaints, &file.path, line + 1, what);
            }
        }
    }
}

/// Every `weir.` attribute and `weir_` metric in the agent's sources stands in the registry.
fn everything_emitted_is_registered(files: &[Source], complaints: &mut Vec<Complaint>) {
    let emitters = || files.iter().filter(|file| file.path.starts_with("agent/src/") && file.has_extension("rs"));
    let Some(registry) = files.iter().find(|file| file.path == REGISTRY) else {
        if emitters().next().is_some() {
            complain(complaints, REGISTRY, 1, "missing: it lists every attribute and metric that Weir emits");
        }
        return;
    };
    let registered: Vec<&str> = registry.text.split(|c: char| !is_name(c)).filter(|word| !word.is_empty()).collect();
    for file in emitters().filter(|file| !is_test(&file.path)) {
        for (line, name) in Code::of(file).emitted {
            if !registered.contains(&name.as_str()) {
                complain(complaints, &file.path, line, format!("`{name}` is not in {REGISTRY}: add it, with its type"));
            }
        }
    }
}

fn changelog(files: &[Source], complaints: &mut Vec<Complaint>) {
    let text = files.iter().find(|file| file.path == "CHANGELOG.md").map(|file| file.text.as_str());
    if !text.is_some_and(|text| text.lines().any(|line| line.starts_with("## Unreleased"))) {
        complain(
            complaints,
            "CHANGELOG.md",
            1,
            "needs a section `## Unreleased` on top: user-visible changes go there",
        );
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}

fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// Is the path `used` the path `word` or something below it?
fn is_within(used: &str, word: &str) -> bool {
    used.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The code of a file, without comments, the content of strings, and the tests at its end.
#[derive(Default)]
struct Code {
    lines: Vec<(usize, String)>,
    /// Paths used (`std::fs::read`), by line; grouped imports are expanded.
    paths: Vec<(usize, String)>,
    /// String literals that are names of ours, by line.
    emitted: Vec<(usize, String)>,
}

impl Code {
    fn of(file: &Source) -> Self {
        let mut code = Self::default();
        for (number, line) in file.text.lines().enumerate() {
            // By our order in a file, nothing but tests follows.
            if line.starts_with("#[cfg(test)]") {
                break;
            }
            let (text, strings) = split_strings(line);
            let ours = strings.into_iter().filter(|s| is_ours(s));
            code.emitted.extend(ours.map(|name| (number + 1, name)));
            code.lines.push((number + 1, text));
        }
        code.find_paths();
        code
    }

    fn find_paths(&mut self) {
        let mut tree: Option<(usize, String)> = None;
        for (number, line) in &self.lines {
            let trimmed = line.trim();
            let declaration = trimmed.strip_prefix("use ").or_else(|| {
                trimmed.starts_with("pub").then(|| trimmed.split_once(" use ").map(|(_, rest)| rest)).flatten()
            });
            let text = match (&mut tree, declaration) {
                (Some((_, text)), _) => {
                    text.push_str(trimmed);
                    trimmed
                }
                (None, Some(rest)) => {
                    tree = Some((*number, rest.to_owned()));
                    rest
                }
                (None, None) => {
                    let is_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
                    let used = line.split(|c| !is_path(c)).filter(|word| word.contains("::"));
                    self.paths.extend(used.map(|path| (*number, path.trim_start_matches("::").to_owned())));
                    continue;
                }
            };
            if text.ends_with(';')
                && let Some((start, text)) = tree.take()
            {
                let mut paths = Vec::new();
                expand("", text.trim_end_matches(';'), &mut paths);
                self.paths.extend(paths.into_iter().map(|path| (start, path)));
            }
        }
    }
}

/// The paths of a use tree: `std::{fs, io::{self, Read}}` names four.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let mut depth = 0_u32;
    let mut start = 0;
    let ends = tree.char_indices().filter_map(|(at, c)| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => return Some(at),
            _ => {}
        }
        None
    });
    for end in ends.collect::<Vec<_>>().into_iter().chain([tree.len()]) {
        let part = tree.get(start..end).unwrap_or_default().trim();
        start = end + 1;
        if let Some((head, group)) = part.split_once('{') {
            let group = group.strip_suffix('}').unwrap_or(group);
            expand(&format!("{prefix}{}", head.trim()), group, paths);
        } else if let Some(name) = part.split(" as ").next().filter(|name| !name.is_empty()) {
            let path = format!("{prefix}{name}");
            paths.push(path.trim_end_matches("::self").trim_start_matches("::").to_owned());
        }
    }
}

/// The code of a line with its strings emptied and its comment removed, and the strings.
fn split_strings(line: &str) -> (String, Vec<String>) {
    let mut code = String::new();
    let mut strings = Vec::new();
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => break,
            // A quote as a character, not the start of a string.
            '\'' if chars.peek() == Some(&'"') => {
                chars.next();
            }
            '"' => {
                let mut string = String::new();
                while let Some(c) = chars.next() {
                    match c {
                        '\\' => string.extend(chars.next()),
                        '"' => break,
                        c => string.push(c),
                    }
                }
                code.push_str("\"\"");
                strings.push(string);
            }
            c => code.push(c),
        }
    }
    (code, strings)
}

fn is_ours(string: &str) -> bool {
    let rest = string.strip_prefix("weir.").or_else(|| string.strip_prefix("weir_"));
    rest.is_some_and(|rest| !rest.is_empty() && rest.chars().all(is_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What tidy says about one file in an otherwise perfect tree, as `line: what`.
    fn about(path: &str, text: &str) -> Vec<String> {
        let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
        let files = [
            source(path, text),
            source("CHANGELOG.md", "# Changelog\n\n## Unreleased\n"),
            source(REGISTRY, "- name: weir.capture.backend\n- name: weir_calls_total\n"),
        ];
        check(&files, "/home/somebody/weir").into_iter().map(|c| format!("{}: {}", c.line, c.what)).collect()
    }

    #[track_caller]
    fn planted(path: &str, text: &str, line: usize, what: &str) {
        let complaints = about(path, text);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        let complaint = &complaints[0];
        assert!(complaint.starts_with(&format!("{line}: ")) && complaint.contains(what), "{complaint}");
    }

    #[test]
    fn a_planted_offender_is_found_with_its_line() {
        for (path, text, line, what) in [
            ("agent/src/protocol/x.rs", "//! X.\nuse tokio::net::TcpStream;\n", 2, "`tokio`"),
            ("agent/src/protocol/x.rs", "//! X.\n\nuse std::{\n    fs,\n    mem,\n};\n", 3, "`std::fs`"),
            (
                "agent/src/event.rs",
                "//! X.\nuse std::{collections::HashMap, time::{Duration, Instant}};\n",
                2,
                "Instant",
            ),
            ("agent/src/redact.rs", "//! X.\nfn f() {\n    let _ = std::env::var(\"A\");\n}\n", 3, "`std::env`"),
            ("agent/src/conn/mod.rs", "//! X.\npub(crate) use crate::export::Span;\n", 2, "`crate::export`"),
            ("agent/src/conn/mod.rs", "//! X.\nuse crate::{model::Conn, inventory};\n", 2, "`crate::inventory`"),
            ("agent/src/model/conn.rs", "//! X.\nuse crate::bpf::Map;\n", 2, "`crate::bpf`"),
            ("agent/src/event.rs", "//! X.\nuse aya::Pod;\n", 2, "`aya`"),
            ("agent/src/export/otlp.rs", "//! X.\nuse aya::maps::Map;\n", 2, "`aya`"),
            ("agent/src/bpf/mod.rs", "//! X.\nuse crate::export;\n", 2, "`crate::export`"),
            ("xtask/src/x.rs", "//! X.\nuse agent::config;\n", 2, "depend on nothing"),
            ("agent/src/run.rs", "use std::fs;\n", 1, "begin the file"),
            ("agent/src/run.rs", "//! X.\nfn f() { unsafe { g() } }\n", 2, "`unsafe`"),
            ("agent/src/run.rs", "//! X.\n// TODO: more\n", 2, "TODO"),
            ("tests/it/x.rs", "//! X.\n#[ignore = \"slow\"]\n", 2, "ignored test"),
            ("README.md", "see /home/somebody/weir/target\n", 1, "this machine only"),
            ("agent/Dockerfile", "FROM x\nRUN curl https://static.crates.io/x\n", 2, "mirror"),
            ("agent/src/run.rs", "//! X.\nconst A: &str = \"weir.new.name\";\n", 2, "`weir.new.name`"),
            ("agent/src/run.rs", "//! X.\nconst A: &str = \"weir_new_total\";\n", 2, "`weir_new_total`"),
        ] {
            planted(path, text, line, what);
        }
    }

    #[test]
    fn what_is_right_is_left_alone() {
        for (path, text) in [
            ("agent/src/protocol/x.rs", "//! X: never use tokio::net.\nuse std::{mem, net::IpAddr};\n"),
            ("agent/src/protocol/x.rs", "//! X.\n// unlike std::fs this is pure\nconst A: &str = \"tokio::x\";\n"),
            ("agent/src/protocol/x.rs", "//! X.\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n"),
            ("agent/src/protocol/x/tests.rs", "//! X.\nuse std::fs;\n"),
            ("agent/src/bpf/mod.rs", "//! X.\nuse aya::Ebpf;\nfn f() { unsafe { g() } }\n"),
            ("agent/src/conn/mod.rs", "//! X.\nuse crate::protocol::Segment;\n"),
            ("agent/src/run.rs", "//! X.\nuse crate::{bpf, export};\nuse tokio::net;\n"),
            ("agent/src/run.rs", "//! X.\nconst A: &str = \"weir.capture.backend\";\n"),
            ("agent/src/run.rs", "//! X.\nconst A: &str = \"weir_calls_total\";\nconst Q: char = '\"';\n"),
            ("agent-common/src/x.rs", "//! X.\nuse core::mem;\nuse agent_common::Y;\n"),
            ("agent-common/src/x.rs", "//! X.\nunsafe impl aya::Pod for X {}\n"),
            ("Cargo.lock", "source = \"registry+https://index.crates.io/\"\n"),
        ] {
            assert_eq!(about(path, text), Vec::<String>::new(), "{path}: {text}");
        }
    }

    #[test]
    fn a_tree_without_registry_or_changelog_is_told_so() {
        let files = [Source { path: "agent/src/run.rs".to_owned(), text: "//! X.\n".to_owned() }];
        let complaints: Vec<_> = check(&files, "/home/somebody/weir").into_iter().map(|c| c.path).collect();
        assert_eq!(complaints, [REGISTRY, "CHANGELOG.md"]);
    }

    #[test]
    fn a_use_tree_names_each_of_its_paths() {
        let mut paths = Vec::new();
        expand("", "std::{fs, io::{self, Read as _}, net::IpAddr}", &mut paths);
        assert_eq!(paths, ["std::fs", "std::io", "std::io::Read", "std::net::IpAddr"]);
    }
}
