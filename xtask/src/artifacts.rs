//! What cargo built, from its own report.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::shell;

/// A program that cargo built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Artifact {
    /// Name of the target: the program's, the library's or the test's.
    pub(crate) target: String,
    /// Directory of the package.
    pub(crate) package_dir: PathBuf,
    /// A test binary, of whatever kind of target.
    pub(crate) is_test: bool,
    pub(crate) executable: PathBuf,
}

/// Run a cargo command that has `--message-format=json-render-diagnostics`; its diagnostics are shown.
///
/// # Errors
/// It could not be started, or the build failed.
pub(crate) fn build(cargo: &mut Command) -> Result<Vec<Artifact>> {
    let mut child =
        cargo.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {}", shell::line(cargo)))?;
    let stdout = child.stdout.take().context("no pipe to cargo")?;
    let lines = BufReader::new(stdout).lines();
    let artifacts = lines.map_while(Result::ok).filter_map(|line| parse(&line)).collect();
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("{} failed ({status})", shell::line(cargo));
    }
    Ok(artifacts)
}

/// The program a message is about, if it is about one.
fn parse(message: &str) -> Option<Artifact> {
    let message: Value = serde_json::from_str(message).ok()?;
    if message.get("reason")?.as_str()? != "compiler-artifact" {
        return None;
    }
    let target = message.get("target")?;
    let kinds: Vec<_> = target.get("kind")?.as_array()?.iter().filter_map(Value::as_str).collect();
    let manifest = Path::new(message.get("manifest_path")?.as_str()?);
    Some(Artifact {
        target: target.get("name")?.as_str()?.to_owned(),
        package_dir: manifest.parent()?.to_owned(),
        // Benchmarks are built in the test profile too, and are not tests.
        is_test: message.pointer("/profile/test")?.as_bool()? && !kinds.contains(&"bench"),
        executable: message.get("executable")?.as_str()?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_libraries_and_tests_from_benchmarks() {
        let message = |kind: &str, test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/agent/Cargo.toml","target":{{"kind":["{kind}"],
                "name":"x"}},"profile":{{"test":{test}}},"executable":{executable}}}"#
            )
        };
        let artifact = |is_test| Artifact {
            target: "x".to_owned(),
            package_dir: "/w/agent".into(),
            is_test,
            executable: "/w/target/x".into(),
        };
        let program = r#""/w/target/x""#;
        assert_eq!(parse(&message("bin", false, program)), Some(artifact(false)));
        assert_eq!(parse(&message("lib", true, program)), Some(artifact(true)));
        assert_eq!(parse(&message("bench", true, program)), Some(artifact(false)));
        assert_eq!(parse(&message("lib", false, "null")), None);
        assert_eq!(parse(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(parse("not JSON"), None);
    }
}
