//! Conversations made at random: cut anywhere, joined anywhere, with anything lost. What is said is true of one stream.

use std::collections::HashSet;

use proptest::prelude::*;

use super::world::{Random, World};
use super::{Connection, Feed, SECOND};
use crate::model::{Direction, Outcome, Timestamp};
use crate::protocol::{Done, End, Limits, Protocol as _};

/// Each exchange is of one stream, and of another than all others.
fn check(world: &World, done: &[&Done]) -> Result<(), TestCaseError> {
    let mut streams = HashSet::new();
    for done in done {
        let Some(truth) = world.explain(done) else {
            return Err(TestCaseError::fail(format!("true of no stream: {done:#?}")));
        };
        if done.request.as_ref().is_some_and(|request| request.headers.get("x-stream").is_some()) {
            prop_assert!(streams.insert(truth.stream), "twice: {done:#?}");
        }
    }
    Ok(())
}

/// Feed one operation in records; `lost` of those are not seen. Who walks from frame to frame says where one begins.
fn records(feed: &mut Feed, direction: Direction, frames: &[Vec<u8>], random: &mut Random, lost: usize, loss: bool) {
    let bytes = frames.concat();
    let mut starts = HashSet::new();
    let mut at = 0;
    for frame in frames {
        starts.insert(at);
        at += frame.len();
    }
    let mut cuts: Vec<usize> = (0..random.below(4)).map(|_| random.below(bytes.len())).collect();
    // Most records begin with a frame.
    cuts.extend(starts.iter().copied().filter(|_| random.below(3) == 0));
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    for cut in cuts.windows(2) {
        let (start, end) = (cut[0], cut[1]);
        if random.below(100) >= lost {
            if starts.contains(&start) {
                feed.boundary(direction);
            }
            feed.bytes(direction, &bytes[start..end]);
        } else if loss && start != end {
            feed.position[usize::from(direction == super::SERVER)] += (end - start) as u64;
            let time = Timestamp(feed.time);
            feed.connection.on_loss(time, &mut feed.events);
        } else {
            feed.gap(direction, (end - start) as u64);
        }
    }
}

proptest! {
    #[test]
    fn what_was_seen_whole_is_told_whole_however_it_was_cut(seed: u64, size in 1..200_usize) {
        let world = World::new(seed, 12);
        let mut feed = Feed::of(Connection::new(Limits::default()));
        for moved in &world.moves {
            for piece in moved.bytes().chunks(size) {
                feed.bytes(moved.direction, piece);
            }
        }
        let done = feed.done();
        prop_assert_eq!(done.len(), world.truths.len());
        check(&world, &done)?;
        for done in done {
            prop_assert!(world.truths.iter().any(|truth| truth.is_told(done)), "{done:#?}");
            prop_assert_eq!(done.outcome, Outcome::Complete);
        }
        prop_assert!(feed.connection.streams.is_empty());
    }

    #[test]
    fn holes_in_content_and_in_what_says_nothing_hide_nothing(seed: u64) {
        let world = World::new(seed, 12);
        let mut random = Random(seed | 1);
        let mut feed = Feed::of(Connection::new(Limits::default()));
        for moved in &world.moves {
            for frame in &moved.frames {
                let is_free = match frame[3] {
                    // Behind the length of the padding.
                    0 => Some(10),
                    2 | 6 | 8 | 0xf0 => Some(9),
                    _ => None,
                };
                let Some(first) = is_free.filter(|first| *first < frame.len()) else {
                    feed.bytes(moved.direction, frame);
                    continue;
                };
                let start = first + random.below(frame.len() - first);
                let end = start + random.below(frame.len() - start + 1);
                feed.bytes(moved.direction, &frame[..start]);
                feed.gap(moved.direction, (end - start) as u64);
                feed.bytes(moved.direction, &frame[end..]);
            }
        }
        for done in feed.done() {
            prop_assert!(world.truths.iter().any(|truth| truth.is_told(done)), "{done:#?}");
        }
        prop_assert_eq!(feed.done().len(), world.truths.len());
    }

    #[test]
    fn whatever_is_lost_nothing_is_wrong(seed: u64, lost in 1..40_usize, loss: bool, joins_at in 0..30_usize) {
        let world = World::new(seed, 20);
        let mut random = Random(seed | 1);
        let joins_at = joins_at.saturating_sub(15).min(world.moves.len());
        let connection = if joins_at > 0 {
            Connection::joined(Limits::default())
        } else {
            Connection::new(Limits::default())
        };
        let mut feed = Feed::of(connection);
        for moved in &world.moves[joins_at..] {
            records(&mut feed, moved.direction, &moved.frames, &mut random, lost, loss);
            feed.tick(SECOND / 10);
        }
        feed.end(End::Closed);
        prop_assert!(feed.connection.streams.is_empty());
        check(&world, &feed.done())?;
        let heads = feed.heads().len();
        prop_assert!(feed.done().iter().filter(|done| done.request.is_some()).count() == heads);
    }
}

#[test]
fn joined_at_any_operation_what_begins_later_is_paired_and_named() {
    let (mut requests, mut named, mut whole) = (0, 0, 0);
    for seed in 1..40 {
        let world = World::new(seed * 7919, 20);
        for joins_at in 0..world.moves.len() {
            let mut feed = Feed::of(Connection::joined(Limits::default()));
            for moved in &world.moves[joins_at..] {
                feed.boundary(moved.direction);
                feed.bytes(moved.direction, &moved.bytes());
            }
            check(&world, &feed.done()).unwrap();
            let begun = world.moves[joins_at..]
                .iter()
                .filter(|moved| moved.direction == super::CLIENT && moved.frames.iter().any(|frame| frame[3] == 1))
                .count();
            let with_request: Vec<_> = feed.done().into_iter().filter(|done| done.request.is_some()).collect();
            assert!(with_request.len() >= begun.saturating_sub(1), "{} of {begun}", with_request.len());
            requests += with_request.len();
            named += with_request.iter().filter(|done| !done.request.as_ref().unwrap().target.is_empty()).count();
            whole += with_request.iter().filter(|done| world.truths.iter().any(|truth| truth.is_told(done))).count();
        }
    }
    // These encoders index paths that do not come again, and whose table is small.
    assert!(named == requests && whole * 100 >= requests * 25, "{named} and {whole} of {requests}");
}
