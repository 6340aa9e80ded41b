//! What a test binary printed, read back. Pure: text in, results out.

use std::collections::BTreeMap;

/// How one test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    /// It ran, found that this machine cannot do it, and said why.
    Skipped(String),
}

/// The tests of one or more binaries.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Results {
    outcomes: BTreeMap<String, Outcome>,
    /// Skips said but not yet met by the line of their test (they come by another pipe).
    reasons: BTreeMap<String, String>,
    /// A test whose line has begun and not ended.
    open: Option<String>,
    /// By the binaries' own last lines.
    passed_by_summary: usize,
    failed_by_summary: usize,
}

impl Results {
    /// Read one line, of either output or of both mixed.
    pub(crate) fn line(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some((_, skip)) = line.split_once("skipped: ")
            && let Some((name, why)) = skip.split_once(": ")
        {
            self.reasons.insert(name.trim().to_owned(), why.trim().to_owned());
        }
        if let Some(summary) = line.strip_prefix("test result: ") {
            self.passed_by_summary += count_before(summary, " passed");
            self.failed_by_summary += count_before(summary, " failed");
            self.open = None;
            return;
        }
        if let Some((name, rest)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            let name = name.trim_end_matches(" - should panic").to_owned();
            match outcome(rest) {
                Some(outcome) => self.end(name, outcome),
                None => self.open = Some(name),
            }
            return;
        }
        // The end of a test that printed in between stands at the end of some later line.
        if let Some(outcome) = outcome(line)
            && let Some(name) = self.open.take()
        {
            self.end(name, outcome);
        }
    }

    fn end(&mut self, name: String, outcome: Outcome) {
        self.open = None;
        self.outcomes.insert(name, outcome);
    }

    /// All tests and how they ended.
    pub(crate) fn outcomes(&self) -> BTreeMap<String, Outcome> {
        let mut outcomes = self.outcomes.clone();
        for (name, why) in &self.reasons {
            // A reason may name the test alone or with its modules.
            let same = |full: &str| full == name || full.strip_suffix(name.as_str()).is_some_and(|m| m.ends_with("::"));
            match outcomes.iter_mut().find(|(full, _)| same(full)) {
                Some((_, outcome)) if *outcome == Outcome::Passed => *outcome = Outcome::Skipped(why.clone()),
                Some(_) => {}
                None => {
                    outcomes.insert(name.clone(), Outcome::Skipped(why.clone()));
                }
            }
        }
        outcomes
    }

    pub(crate) fn count(&self) -> Count {
        let mut count = Count::default();
        for outcome in self.outcomes().values() {
            match outcome {
                Outcome::Passed => count.passed += 1,
                Outcome::Failed => count.failed += 1,
                Outcome::Skipped(_) => count.skipped += 1,
            }
        }
        // Names repeat between binaries and a line may be garbled on a serial console: the binaries' own sums stand.
        count.passed = count.passed.max(self.passed_by_summary.saturating_sub(count.skipped));
        count.failed = count.failed.max(self.failed_by_summary);
        count
    }
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

fn outcome(text: &str) -> Option<Outcome> {
    // Something printed without a line break may stand before.
    let last = text.rsplit(' ').next().unwrap_or(text);
    match last {
        "ok" => Some(Outcome::Passed),
        "FAILED" => Some(Outcome::Failed),
        "ignored" => Some(Outcome::Skipped("ignored".to_owned())),
        _ => None,
    }
}

fn count_before(text: &str, word: &str) -> usize {
    let before = text.split(word).next().unwrap_or_default();
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The committed list of skips: per kernel, the tests that cannot run there.
#[derive(Debug, Default)]
pub(crate) struct ExpectedSkips(Vec<(String, String)>);

impl ExpectedSkips {
    /// `KERNEL[,KERNEL..] TEST` per line; `#` begins a comment.
    pub(crate) fn parse(text: &str) -> Self {
        let mut listed = Vec::new();
        for line in text.lines().filter_map(|line| line.split('#').next()) {
            let mut words = line.split_whitespace();
            if let (Some(kernels), Some(test)) = (words.next(), words.next()) {
                listed.extend(kernels.split(',').map(|kernel| (kernel.to_owned(), test.to_owned())));
            }
        }
        Self(listed)
    }

    fn expects(&self, kernel: &str, test: &str) -> bool {
        let named = |listed: &str| test == listed || test.strip_suffix(listed).is_some_and(|m| m.ends_with("::"));
        self.0.iter().any(|(listed, name)| listed == kernel && named(name))
    }

    /// Skips that the list does not know, with their reasons: a green run must not hide that nothing ran.
    pub(crate) fn unexpected(&self, kernel: &str, results: &Results) -> Vec<(String, String)> {
        let skipped = results.outcomes().into_iter().filter_map(|(name, outcome)| match outcome {
            Outcome::Skipped(why) => Some((name, why)),
            Outcome::Passed | Outcome::Failed => None,
        });
        skipped.filter(|(name, _)| !self.expects(kernel, name)).collect()
    }

    /// Tests on the list that were not skipped: the list promises less than there is.
    pub(crate) fn stale(&self, kernel: &str, results: &Results) -> Vec<String> {
        let outcomes = results.outcomes();
        let ran = |name: &str| {
            outcomes.iter().any(|(full, outcome)| {
                (full == name || full.ends_with(&format!("::{name}"))) && !matches!(outcome, Outcome::Skipped(_))
            })
        };
        let of_kernel = self.0.iter().filter(|(listed, _)| listed == kernel);
        of_kernel.map(|(_, name)| name.clone()).filter(|name| ran(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Results {
        let mut results = Results::default();
        text.lines().for_each(|line| results.line(line));
        results
    }

    const MIXED: &str = "\
running 5 tests
test capture::a_call_is_seen ... ok
test capture::fexit_sees_a_call ... skipped: fexit_sees_a_call: no fentry: refused by this kernel
ok
test loss::a_full_ring_is_counted ... agent: ready
some word FAILED
test tls::nothing ... FAILED
test x::panics - should panic ... ok

test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s
";

    #[test]
    fn a_skip_is_read_out_of_mixed_outputs() {
        let outcomes = read(MIXED).outcomes();
        let skip = Outcome::Skipped("no fentry: refused by this kernel".to_owned());
        assert_eq!(outcomes.get("capture::fexit_sees_a_call"), Some(&skip));
        assert_eq!(outcomes.get("capture::a_call_is_seen"), Some(&Outcome::Passed));
        assert_eq!(outcomes.get("loss::a_full_ring_is_counted"), Some(&Outcome::Failed));
        assert_eq!(outcomes.get("x::panics"), Some(&Outcome::Passed));
        assert_eq!(outcomes.len(), 5);
    }

    #[test]
    fn counts_add_up() {
        assert_eq!(read(MIXED).count(), Count { passed: 2, failed: 2, skipped: 1 });
        assert_eq!(read(MIXED).count().to_string(), "2 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn a_skip_by_another_pipe_is_matched_whichever_comes_first() {
        let skip = "skipped: capture::a: not here";
        let test = "test capture::a ... ok";
        let expected = BTreeMap::from([("capture::a".to_owned(), Outcome::Skipped("not here".to_owned()))]);
        assert_eq!(read(&format!("{skip}\n{test}")).outcomes(), expected);
        assert_eq!(read(&format!("{test}\n{skip}")).outcomes(), expected);
    }

    #[test]
    fn a_failed_test_does_not_become_a_skip() {
        let results = read("skipped: a: not here\ntest a ... FAILED\n");
        assert_eq!(results.count(), Count { passed: 0, failed: 1, skipped: 0 });
    }

    #[test]
    fn the_sums_of_the_binaries_win_over_lines_lost_or_names_repeated() {
        let results = read(
            "test a ... ok\ntest result: ok. 1 passed; 0 failed\ntest a ... ok\ntest result: ok. 1 passed; 0 failed\n",
        );
        assert_eq!(results.count(), Count { passed: 2, failed: 0, skipped: 0 });
    }

    #[test]
    fn a_skip_that_no_list_expects_is_told_and_a_stale_line_too() {
        let list = ExpectedSkips::parse("# why\n6.1,host fexit_sees_a_call  # no BTF\n6.1 capture::a_call_is_seen\n");
        let results = read(MIXED);
        assert_eq!(list.unexpected("6.1", &results), []);
        assert_eq!(list.unexpected("host", &results), []);
        assert_eq!(list.unexpected("6.12", &results).len(), 1);
        assert_eq!(list.stale("6.1", &results), ["capture::a_call_is_seen"]);
        assert_eq!(list.stale("6.12", &results), Vec::<String>::new());
    }
}
