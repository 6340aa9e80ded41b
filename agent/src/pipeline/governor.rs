//! Keeps the agent's processor time under its limit: copies less of each message before any call is given up. Pure.

/// Smallest budget: most heads fit; what does not is counted as a gap.
const BUDGET_MIN: u32 = 512;
/// The budget grows back only well below the limit, so that it does not swing.
const CALM: f64 = 0.5;
/// Seconds below [`CALM`] before it grows.
const PATIENCE: u32 = 10;

/// Halves the copied prefix while over the limit, doubles it after a while well below.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Governor {
    limit_cores: f64,
    full: u32,
    budget: u32,
    calm: u32,
}

/// A change of the budget, to be applied and said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    pub budget: u32,
    pub used_cores: f64,
}

impl Governor {
    pub fn new(limit_cores: f64, budget: u32) -> Self {
        Self { limit_cores, full: budget, budget, calm: 0 }
    }

    /// New limits; the budget starts over.
    pub fn reset(&mut self, limit_cores: f64, budget: u32) {
        *self = Self::new(limit_cores, budget);
    }

    /// Bytes copied of each message now.
    pub const fn budget(&self) -> u32 {
        self.budget
    }

    /// The configured budget is not what is copied.
    pub const fn is_throttled(&self) -> bool {
        self.budget < self.full
    }

    /// The agent used `cpu_ns` in the last `wall_ns`. Called about once a second.
    pub fn on_tick(&mut self, cpu_ns: u64, wall_ns: u64) -> Option<Change> {
        if wall_ns == 0 {
            return None;
        }
        let used_cores = cpu_ns as f64 / wall_ns as f64;
        if used_cores > self.limit_cores {
            self.calm = 0;
            let budget = (self.budget / 2).max(BUDGET_MIN.min(self.full));
            return self.change(budget, used_cores);
        }
        if used_cores > self.limit_cores * CALM {
            self.calm = 0;
            return None;
        }
        self.calm += 1;
        if self.calm < PATIENCE {
            return None;
        }
        self.calm = 0;
        self.change(self.budget.saturating_mul(2).min(self.full), used_cores)
    }

    fn change(&mut self, budget: u32, used_cores: f64) -> Option<Change> {
        if budget == self.budget {
            return None;
        }
        self.budget = budget;
        Some(Change { budget, used_cores })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn it_halves_over_the_limit_down_to_the_least() {
        let mut governor = Governor::new(1.0, 4096);
        let budgets: Vec<u32> =
            (0..5).filter_map(|_| governor.on_tick(2 * SECOND, SECOND)).map(|change| change.budget).collect();
        assert_eq!(budgets, [2048, 1024, 512]);
        assert!(governor.is_throttled());
    }

    #[test]
    fn it_grows_back_only_after_calm_seconds_in_a_row() {
        let mut governor = Governor::new(1.0, 4096);
        governor.on_tick(2 * SECOND, SECOND);
        for second in 0..PATIENCE - 1 {
            assert_eq!(governor.on_tick(SECOND / 10, SECOND), None, "second {second}");
        }
        assert_eq!(governor.on_tick(SECOND * 7 / 10, SECOND), None, "not calm: the count starts over");
        for _ in 0..PATIENCE - 1 {
            assert_eq!(governor.on_tick(0, SECOND), None);
        }
        assert_eq!(governor.on_tick(0, SECOND).map(|change| change.budget), Some(4096));
        assert!(!governor.is_throttled());
    }

    #[test]
    fn a_budget_below_the_least_is_left_alone() {
        let mut governor = Governor::new(1.0, 256);
        assert_eq!(governor.on_tick(9 * SECOND, SECOND), None);
        assert_eq!(governor.budget(), 256);
    }

    #[test]
    fn a_second_of_no_length_says_nothing() {
        assert_eq!(Governor::new(1.0, 4096).on_tick(1, 0), None);
    }
}
