//! When an open exchange is told of before its end: streams can stay open for days.

/// Age at which an exchange is told of first: most calls are over by then.
const FIRST_NS: u64 = 2_000_000_000;
/// Longest time between two tellings.
const MOST_NS: u64 = 16_000_000_000;

/// The schedule of one exchange: after 2, 4, 8, 16 seconds, and every 16 seconds from there on.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    age_ns: u64,
}

impl Default for Due {
    fn default() -> Self {
        Self { age_ns: FIRST_NS }
    }
}

impl Due {
    /// Longest time between two tellings of an exchange, with a tick's delay: without word for longer it is gone.
    pub const SILENCE_NS: u64 = MOST_NS + 2_000_000_000;

    /// True when an exchange of that age is to be told of now.
    pub fn take(&mut self, age_ns: u64) -> bool {
        if age_ns < self.age_ns {
            return false;
        }
        self.age_ns = age_ns.saturating_add(age_ns.min(MOST_NS));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_is_told_of_at_growing_intervals() {
        let mut due = Due::default();
        let seconds: Vec<u64> = (0..70).filter(|second| due.take(second * 1_000_000_000)).collect();
        assert_eq!(seconds, [2, 4, 8, 16, 32, 48, 64]);
        assert!(seconds.windows(2).all(|pair| (pair[1] - pair[0]) * 1_000_000_000 < Due::SILENCE_NS));
        assert!(due.take(u64::MAX) && due.take(u64::MAX));
    }
}
