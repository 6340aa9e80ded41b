//! The standard samplers (`OTEL_TRACES_SAMPLER`), decided from the trace identity alone. They choose spans; metrics and
//! counts see every call.

use crate::model::TraceContext;

/// What decides where no parent has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    AlwaysOn,
    AlwaysOff,
    /// Traces whose identity, read as 63 bits, is below this are kept.
    Ratio(u64),
}

/// A sampler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    root: Root,
    /// The decision a `traceparent` carries comes first.
    parent_based: bool,
}

impl Default for Sampler {
    fn default() -> Self {
        Self { root: Root::AlwaysOn, parent_based: true }
    }
}

impl Sampler {
    /// `ratio` is the share of traces kept where no parent has decided: 0 is `always_off`, 1 `always_on`, between them
    /// `traceidratio`. Outside of 0 to 1 the nearest of them.
    pub fn new(parent_based: bool, ratio: f64) -> Self {
        let root = if ratio >= 1.0 {
            Root::AlwaysOn
        } else if ratio > 0.0 {
            Root::Ratio((ratio * (1_u64 << 63) as f64) as u64)
        } else {
            Root::AlwaysOff
        };
        Self { root, parent_based }
    }

    /// Whether the span of this context is exported. All spans of a trace get the same answer.
    pub fn samples(self, trace: &TraceContext) -> bool {
        if self.parent_based
            && let Some(sampled) = trace.sampled
        {
            return sampled;
        }
        match self.root {
            Root::AlwaysOn => true,
            Root::AlwaysOff => false,
            Root::Ratio(limit) => {
                let low = trace.trace_id.0.last_chunk::<8>().map_or(0, |low| u64::from_be_bytes(*low));
                low >> 1 < limit
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanKind, TraceId as OtelTraceId};
    use opentelemetry_sdk::trace::{Sampler as OtelSampler, SamplingDecision, ShouldSample as _};
    use proptest::prelude::*;

    use super::*;
    use crate::model::{SpanId, TraceId};

    fn context(trace_id: u128, sampled: Option<bool>) -> TraceContext {
        let trace_id = TraceId(trace_id.to_be_bytes());
        TraceContext { trace_id, span_id: SpanId([1; 8]), parent: None, parent_remote: false, sampled }
    }

    #[test]
    fn a_parent_decides_first_where_the_sampler_says_so() {
        for (parent_based, ratio, without, sampled, unsampled) in [
            (false, 1.0, true, true, true),
            (false, 0.0, false, false, false),
            (true, 1.0, true, true, false),
            (true, 0.0, false, true, false),
            (true, f64::NAN, false, true, false),
            (false, 7.0, true, true, true),
        ] {
            let sampler = Sampler::new(parent_based, ratio);
            let decisions = [None, Some(true), Some(false)].map(|flag| sampler.samples(&context(7, flag)));
            assert_eq!(decisions, [without, sampled, unsampled], "{parent_based} {ratio}");
        }
    }

    proptest! {
        #[test]
        fn the_ratio_decides_as_the_sdk_does(id in 1_u128.., ratio in 0.0..1.0_f64) {
            let sdk = OtelSampler::TraceIdRatioBased(ratio)
                .should_sample(None, OtelTraceId::from(id), "", &SpanKind::Server, &[], &[]);
            let ours = Sampler::new(false, ratio).samples(&context(id, None));
            prop_assert_eq!(ours, sdk.decision == SamplingDecision::RecordAndSample);
        }
    }
}
