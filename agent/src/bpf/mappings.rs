//! Executable mappings as they appear on the whole machine: `PERF_RECORD_MMAP2` of a dummy event on every processor.
//! Costs nothing but at a mapping, and tells which process maps which inode.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use anyhow::{Context as _, Result};
use perf_event::data::Record;
use perf_event::events::Software;
use perf_event::{Builder, Sampler};

/// Pages of each processor's buffer, a power of two: some 300 mappings.
const PAGES: usize = 16;
/// `PROT_EXEC`, asm-generic/mman-common.h.
const PROT_EXEC: u32 = 4;

/// An executable part of a file was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    pub pid: u32,
    pub start: u64,
    pub end: u64,
    /// Of the device of the file system.
    pub major: u32,
    pub minor: u32,
    pub inode: u64,
}

/// The events; dropping it ends them.
pub struct Mappings(Vec<Sampler>);

impl Mappings {
    /// Watch all processors.
    ///
    /// # Errors
    /// The kernel refuses the events (`perf_event_open`, needs CAP_PERFMON).
    pub fn open(processors: &[usize]) -> Result<Self> {
        let mut samplers = Vec::new();
        for &processor in processors {
            let mut sampler = Builder::new(Software::DUMMY)
                .any_pid()
                .one_cpu(processor)
                .mmap(true)
                .mmap2(true)
                .wakeup_watermark(1)
                .include_kernel()
                .build()
                .and_then(|counter| counter.sampled(PAGES))
                .with_context(|| format!("the kernel refused to tell of mappings on processor {processor}"))?;
            sampler.enable().with_context(|| format!("cannot start the events of processor {processor}"))?;
            samplers.push(sampler);
        }
        Ok(Self(samplers))
    }

    /// Readable when something was mapped.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        // SAFETY: the descriptors are the samplers', which `self` owns for at least as long as the borrow.
        self.0.iter().map(|sampler| unsafe { BorrowedFd::borrow_raw(sampler.as_raw_fd()) })
    }

    /// What was mapped since the last call. True: some events were lost, look everywhere.
    pub fn drain(&mut self, each: &mut dyn FnMut(Mapped)) -> bool {
        let mut lost = false;
        for sampler in &mut self.0 {
            while let Some(record) = sampler.next_record() {
                match record.parse_record() {
                    Ok(Record::Mmap2(mapped)) => {
                        // Memory without a file has no inode.
                        let inode = mapped.ino().filter(|inode| *inode != 0);
                        if let (true, Some(inode)) = (mapped.prot & PROT_EXEC != 0, inode) {
                            each(Mapped {
                                pid: mapped.pid,
                                start: mapped.addr,
                                end: mapped.addr.saturating_add(mapped.len),
                                major: mapped.maj().unwrap_or_default(),
                                minor: mapped.min().unwrap_or_default(),
                                inode,
                            });
                        }
                    }
                    Ok(Record::Lost(_) | Record::LostSamples(_)) => lost = true,
                    _ => {}
                }
            }
        }
        lost
    }
}
