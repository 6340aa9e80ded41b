//! Calls that go on: streams are shown before they end, until their end comes or nothing was heard of them for long.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::{CallReport, SpanId};

/// Calls that go on, by their span.
#[derive(Debug, Default)]
pub(super) struct Open {
    table: HashMap<SpanId, Arc<CallReport>>,
    /// Reports that had no room.
    overflow: u64,
}

impl Open {
    /// Keep the newest report of a call, of at most `limit` calls.
    pub(super) fn show(&mut self, report: &Arc<CallReport>, limit: usize) {
        let span = report.trace.span_id;
        if self.table.len() >= limit && !self.table.contains_key(&span) {
            self.overflow += 1;
            return;
        }
        self.table.insert(span, Arc::clone(report));
    }

    /// The call is over.
    pub(super) fn end(&mut self, span: SpanId) {
        self.table.remove(&span);
    }

    /// Forget the calls that were last heard of before `unix_ns`: their end was lost.
    pub(super) fn expire(&mut self, unix_ns: u64) {
        self.table.retain(|_, report| report.start_unix_ns.saturating_add(report.duration_ns) >= unix_ns);
    }

    /// Oldest first.
    pub(super) fn all(&self) -> Vec<Arc<CallReport>> {
        let mut all: Vec<_> = self.table.values().cloned().collect();
        all.sort_by_key(|report| (report.start_unix_ns, report.trace.span_id.0));
        all
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) const fn overflow(&self) -> u64 {
        self.overflow
    }

    pub(super) fn bytes(&self) -> usize {
        self.table.values().map(|report| super::estimated_bytes(report)).sum()
    }
}
