//! Header blocks of other encoders (tests/fixtures/hpack/README.md), from the first block, from every block, and with
//! losses in between: what is decoded is what was encoded, or nothing.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::Value;

use super::super::{Decoder, Fields};
use super::{Tally, bytes, compare};

const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/hpack");
const ENCODERS: [&str; 4] = ["go-hpack", "haskell-http2-linear-huffman", "nghttp2", "nghttp2-change-table-size"];
/// The share of `:path` that is known to one who joins late or misses a block: none of these encoders adds it to the table.
const PATHS_KNOWN: f64 = 0.98;

struct Block {
    limit: Option<u32>,
    wire: Vec<u8>,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The blocks of one connection.
struct Story {
    name: String,
    blocks: Vec<Block>,
}

fn stories(encoder: &str) -> Vec<Story> {
    let directory = Path::new(STORIES).join(encoder);
    let mut stories: Vec<_> = fs::read_dir(&directory)
        .expect("the fixtures are there")
        .map(|entry| {
            let path = entry.unwrap().path();
            let story: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let blocks = story["cases"].as_array().unwrap().iter().map(block).collect();
            Story { name: path.display().to_string(), blocks }
        })
        .collect();
    stories.sort_by(|left, right| left.name.cmp(&right.name));
    assert!(stories.len() > 10, "{}", directory.display());
    stories
}

fn block(case: &Value) -> Block {
    let fields = case["headers"].as_array().unwrap().iter().flat_map(|field| field.as_object().unwrap());
    Block {
        limit: case["header_table_size"].as_u64().map(|bytes| bytes as u32),
        wire: bytes(case["wire"].as_str().unwrap()),
        fields: fields.map(|(name, value)| (name.clone().into(), value.as_str().unwrap().into())).collect(),
    }
}

/// Decode the blocks from `first`; before those in `lost` comes one that is not seen.
fn play(story: &Story, first: usize, mut decoder: Decoder, lost: impl Fn(usize) -> bool) -> Tally {
    let mut tally = Tally::default();
    let mut fields = Fields::default();
    for (number, block) in story.blocks.iter().enumerate().skip(first) {
        if let Some(limit) = block.limit {
            decoder.set_limit(limit);
        }
        if lost(number) {
            decoder.lose();
            continue;
        }
        fields.clear();
        let decoded = decoder.decode(&block.wire, &mut fields);
        assert_eq!(decoded, Ok(()), "{} from {first}, block {number}", story.name);
        tally += compare(&fields, &block.fields);
    }
    tally
}

#[test]
fn every_block_of_every_encoder_is_decoded_from_the_beginning() {
    let mut blocks = 0;
    for story in ENCODERS.into_iter().flat_map(stories) {
        let tally = play(&story, 0, Decoder::new(), |_| false);
        assert_eq!((tally.known, tally.paths_known), (tally.fields, tally.paths), "{}", story.name);
        blocks += story.blocks.len();
    }
    assert!(blocks >= 500, "{blocks}");
}

#[test]
fn whoever_joins_at_any_block_knows_most_and_nothing_wrong() {
    for encoder in ENCODERS {
        let stories = stories(encoder);
        let (mut joined, mut joins) = (Tally::default(), 0);
        for story in &stories {
            for first in 0..story.blocks.len() {
                joined += play(story, first, Decoder::joined(), |_| false);
                joins += 1;
            }
        }
        let share = joined.paths_known as f64 / joined.paths as f64;
        println!(
            "{encoder:30} {joins:4} joins  fields {:5.1} %  :path {:5.1} %",
            100.0 * joined.known as f64 / joined.fields as f64,
            100.0 * share
        );
        assert!(share >= PATHS_KNOWN, "{encoder}: {share}");
    }
}

#[test]
fn whoever_misses_any_one_block_knows_most_and_nothing_wrong() {
    for encoder in ENCODERS {
        let mut missed = Tally::default();
        for story in stories(encoder) {
            for lost in 0..story.blocks.len() {
                missed += play(&story, 0, Decoder::new(), |number| number == lost);
            }
        }
        let share = missed.paths_known as f64 / missed.paths as f64;
        assert!(share >= PATHS_KNOWN, "{encoder}: {share}");
    }
}

#[test]
fn a_block_that_ends_early_costs_no_more_than_a_lost_one() {
    for encoder in ENCODERS {
        let mut after = Tally::default();
        for story in stories(encoder).iter().take(4) {
            for cut in 0..story.blocks[0].wire.len() {
                let (mut decoder, mut fields) = (Decoder::new(), Fields::default());
                let first = &story.blocks[0];
                // It may end between two fields: only the frames tell that more was to come.
                let whole = decoder.decode(&first.wire[..cut], &mut fields).is_ok();
                assert!(whole || cut > 0);
                assert!(fields.fields.len() <= first.fields.len());
                compare(&fields, &first.fields[..fields.fields.len()]);
                decoder.lose();
                after += play(story, 1, decoder, |_| false);
            }
        }
        let share = after.paths_known as f64 / after.paths as f64;
        assert!(share >= PATHS_KNOWN, "{encoder}: {share}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn losses_anywhere_never_make_a_value_wrong(encoder in 0..ENCODERS.len(), lost in any::<u64>(), joins: bool) {
        for story in stories(ENCODERS[encoder]) {
            let decoder = if joins { Decoder::joined() } else { Decoder::new() };
            play(&story, 0, decoder, |number| lost >> (number % 64) & 1 == 1);
        }
    }
}
