//! QUIC on UDP sockets: told of once a socket, and not looked at again. Small datagrams, DNS among them, cost a
//! comparison.

use agent_common::counters::Counter;
use agent_common::event::protocol;
use agent_common::limits::DATAGRAM_LOOKS;
use agent_common::quic::is_initial;

use crate::arch::Source;
use crate::copy;
use crate::emit::count;
use crate::maps::ConnState;
use crate::socket::Socket;
use crate::stream::{self, Moved, verdict};

pub(crate) use agent_common::quic::INITIAL_MIN;

/// Another datagram of the socket is worth a look: of the first, and then of some. A server's socket lives as long as the
/// server, whatever of it the agent met first.
#[inline(always)]
pub(crate) fn is_due(state: &mut ConnState) -> bool {
    const _: () = assert!(DATAGRAM_LOOKS.is_power_of_two() && DATAGRAM_LOOKS < 128);
    if state.turns < 2 * DATAGRAM_LOOKS - 1 {
        state.turns += 1;
    } else {
        state.turns = DATAGRAM_LOOKS;
    }
    state.turns <= DATAGRAM_LOOKS
}

/// Look at a datagram.
#[inline(never)]
pub(crate) fn look<S: Socket>(state: &mut ConnState, socket: S, source: &Source, moved: &Moved) {
    let Some((word, 8)) = copy::first_word(source, moved.len) else { return };
    if !is_initial(word, moved.len) || stream::is_excluded(socket, state, moved.slot) {
        return;
    }
    count(moved.slot, Counter::SocketsQuic, 1);
    stream::open(state, socket, moved, protocol::QUIC, stream::now());
    state.verdict = verdict::SETTLED;
}
