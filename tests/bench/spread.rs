//! Spread of repeated measurements. Nothing here says "average": a shared machine's outliers go one way.

use serde_json::{Value, json};

/// Repeated measurements of one thing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spread(Vec<f64>);

impl Spread {
    pub(crate) fn push(&mut self, value: f64) {
        let at = self.0.partition_point(|have| *have < value);
        self.0.insert(at, value);
    }

    /// The value below which this share of all is.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let at = (share * (self.0.len().saturating_sub(1)) as f64).round() as usize;
        self.0.get(at).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// `min/median/max` with so many decimals.
    pub(crate) fn show(&self, decimals: usize) -> String {
        format!("{:.decimals$}/{:.decimals$}/{:.decimals$}", self.quantile(0.0), self.median(), self.quantile(1.0))
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "min": self.quantile(0.0), "median": self.median(), "max": self.quantile(1.0), "n": self.0.len() })
    }
}

impl FromIterator<f64> for Spread {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut spread = Self(values.into_iter().collect());
        spread.0.sort_by(f64::total_cmp);
        spread
    }
}

/// Most that the median of a thing measured against itself may differ from 1; beyond it the run says nothing.
pub(crate) const NOISE_MAX: f64 = 0.02;

/// Whether measuring a thing against itself gave (nearly) one.
pub(crate) fn is_quiet(same: &Spread) -> bool {
    (same.median() - 1.0).abs() <= NOISE_MAX
}

/// The states in another order each round: xorshift, seeded by the round, so that a run can be repeated.
pub(crate) fn shuffled<T: Copy, const N: usize>(mut states: [T; N], round: u64) -> [T; N] {
    let mut x = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for at in (1..N).rev() {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        states.swap(at, (x % (at as u64 + 1)) as usize);
    }
    states
}
