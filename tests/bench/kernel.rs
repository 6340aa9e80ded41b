//! What the kernel programs cost an operation: CPU time of a thread that talks to itself over loopback TCP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use agent::bpf::{self, Attached, Settings, SocketBackend, Wanted};
use agent_common::config::Config;
use agent_common::counters::Counter;
use agent_common::limits;
use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::driver::{Driver, Exchange, pin};
use crate::floor::Floor;
use crate::report;
use crate::spread::{Spread, is_quiet, shuffled};

const ROUNDS: u64 = 7;
/// The same pause as the agent's capture thread makes, so that the kernel finds as few readers to wake.
const LAZY: Duration = Duration::from_millis(1);
/// Four times the agent's, so that a reader which a busy machine holds up loses nothing: a lost record costs less.
const RING_BYTES: u32 = 4 * limits::RING_BYTES;
/// An exchange is four operations: two ends, a request and a response on each.
const ENDS: f64 = 2.0;
/// Aims of the project, on a machine like the one where they were set.
const REQUEST_NS_MAX: f64 = 400.0;
const OTHER_RATIO_MAX: f64 = 1.3;

const EXCHANGES: [Exchange; 4] = [
    Exchange { name: "http 600 B", is_http: true, request: 300, response: 600 },
    Exchange { name: "http 4000 B", is_http: true, request: 300, response: 4000 },
    Exchange { name: "http 16000 B", is_http: true, request: 300, response: 16_000 },
    Exchange { name: "not http", is_http: false, request: 300, response: 600 },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing, as in the run before and after: what the machine's noise makes of no difference.
    Same,
    Floor,
    Weir,
    Walk,
}

/// One kind of exchange in one state.
#[derive(Default)]
struct Cost {
    ratio: Spread,
    added_ns: Spread,
}

/// Weir's programs, and a thread that empties their ring buffer.
pub(crate) struct Reader {
    pub(crate) attached: Attached,
    stop: Arc<AtomicBool>,
    read: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    pub(crate) fn start(backend: SocketBackend) -> Result<Self> {
        let features = bpf::detect();
        let plan = bpf::plan(&features, Wanted::Only(backend)).map_err(|refused| anyhow!("{refused}"))?;
        let (attached, mut ring) = bpf::attach(&features, &plan, Settings::new(RING_BYTES, Config::default()))?;
        let (stop, read) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&read));
        let thread = thread::spawn(move || {
            // Unpinned it would only be noisier.
            _ = pin(0, 0);
            while !stopped.load(Ordering::Relaxed) {
                let count = ring.drain(&mut |record| {
                    std::hint::black_box(record.first());
                });
                counted.fetch_add(count as u64, Ordering::Relaxed);
                thread::sleep(LAZY);
            }
        });
        Ok(Self { attached, stop, read, thread: Some(thread) })
    }

    /// Records read and lost so far.
    pub(crate) fn counts(&self) -> Result<(u64, u64)> {
        let counters = self.attached.counters()?;
        let lost = counters.get(Counter::RingFull as usize).copied().unwrap_or(0);
        Ok((self.read.load(Ordering::Relaxed), lost))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        _ = self.thread.take().map(JoinHandle::join);
    }
}

fn all(driver: &mut Driver) -> Result<[f64; EXCHANGES.len()]> {
    let mut costs = [0.0; EXCHANGES.len()];
    for (cost, exchange) in costs.iter_mut().zip(EXCHANGES) {
        *cost = driver.exchange(exchange)?;
    }
    Ok(costs)
}

/// Run it; the result as JSON.
pub(crate) fn run(cpus: usize) -> Result<Value> {
    let mut driver = Driver::start(cpus - 1)?;
    let states = [State::Same, State::Floor, State::Weir, State::Walk];
    let mut costs: [[Cost; EXCHANGES.len()]; 4] = Default::default();
    let mut base: [Spread; EXCHANGES.len()] = Default::default();
    let (mut read, mut lost) = (0, 0);
    // Tells machines apart: the aims were set where this took 74 ns and the first exchange 3 us.
    let call_ns = driver.system_call()?;
    all(&mut driver)?;
    for round in 1..=ROUNDS {
        for state in shuffled(states, round) {
            let before = all(&mut driver)?;
            let measured = match state {
                State::Same => all(&mut driver)?,
                State::Floor => {
                    let _floor = Floor::attach()?;
                    all(&mut driver)?
                }
                State::Weir | State::Walk => {
                    let backend =
                        if state == State::Weir { SocketBackend::SockTracepoint } else { SocketBackend::SysExit };
                    let reader = Reader::start(backend)?;
                    let measured = all(&mut driver)?;
                    let counts = reader.counts()?;
                    ensure!(counts.0 > 0, "the programs reported nothing");
                    read += counts.0;
                    lost += counts.1;
                    measured
                }
            };
            let after = all(&mut driver)?;
            let Some(of_state) = costs.get_mut(state as usize) else { continue };
            for (index, cost) in of_state.iter_mut().enumerate() {
                let (Some(&before), Some(&measured), Some(&after)) =
                    (before.get(index), measured.get(index), after.get(index))
                else {
                    continue;
                };
                let around = f64::midpoint(before, after);
                cost.ratio.push(measured / around);
                cost.added_ns.push(measured - around);
                if let Some(base) = base.get_mut(index) {
                    base.push(around);
                }
            }
        }
        report(format_args!("round {round} of {ROUNDS}"))?;
    }
    let mut result = tell(&costs, &base, read, lost)?;
    report(format_args!("the cheapest system call takes {call_ns:.0} ns here"))?;
    if let Some(fields) = result.as_object_mut() {
        fields.insert("system_call_ns".to_owned(), call_ns.into());
    }
    Ok(result)
}

fn tell(
    [same, floor, weir, walk]: &[[Cost; EXCHANGES.len()]; 4],
    base: &[Spread],
    read: u64,
    lost: u64,
) -> Result<Value> {
    let mut exchanges = Vec::new();
    let mut valid = true;
    report(format_args!("ratio to nothing attached (min/median/max), CPU time of four socket operations"))?;
    for ((((exchange, same), floor), (weir, walk)), base) in
        EXCHANGES.iter().zip(same).zip(floor).zip(weir.iter().zip(walk)).zip(base)
    {
        valid &= is_quiet(&same.ratio);
        let above = (weir.added_ns.median() - floor.added_ns.median()) / ENDS;
        let to_floor = weir.ratio.median() / floor.ratio.median();
        let verdict = if exchange.is_http { above <= REQUEST_NS_MAX } else { to_floor <= OTHER_RATIO_MAX };
        report(format_args!(
            "{}: base {:.0} ns; same {}; floor {} ({:+.0} ns); weir {} ({:+.0} ns); sys_exit {} ({:+.0} ns); weir above \
             floor: {above:.0} ns a request and end, x{to_floor:.3} ({})",
            exchange.name,
            base.median(),
            same.ratio.show(3),
            floor.ratio.show(3),
            floor.added_ns.median(),
            weir.ratio.show(3),
            weir.added_ns.median(),
            walk.ratio.show(3),
            walk.added_ns.median(),
            if verdict { "within the aim" } else { "above the aim" },
        ))?;
        let state = |cost: &Cost| json!({ "ratio": cost.ratio.json(), "added_ns": cost.added_ns.json() });
        exchanges.push(json!({
            "name": exchange.name,
            "request_bytes": exchange.request,
            "response_bytes": exchange.response,
            "base_ns": base.json(),
            "same": state(same),
            "floor": state(floor),
            "weir": state(weir),
            "sys_exit": state(walk),
            "above_floor_ns_per_request_and_end": above,
            "ratio_to_floor": to_floor,
            "within_aim": verdict,
        }));
    }
    // Failing to hand over a record costs less than doing so.
    valid &= lost * 1000 <= read;
    report(format_args!("{read} records read, {lost} lost to a full ring buffer"))?;
    Ok(json!({ "valid": valid, "rounds": ROUNDS, "records": read, "lost": lost, "exchanges": exchanges }))
}
