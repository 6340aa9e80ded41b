//! A small encoder that does whatever is lawful, with the table as RFC 7541 has it: what it says is decoded exactly, and
//! after joining or losses never wrongly.

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::super::table::STATIC;
use super::super::{Decoder, Fields, huffman};
use super::compare;

/// What the encoder does next; an `Index` picks among the entries that there are.
#[derive(Clone, Debug)]
enum Step {
    Indexed(Index),
    Literal { name: Name, value: Vec<u8>, how: How, coded: bool },
    Resize(usize),
    EndBlock,
}

#[derive(Clone, Debug)]
enum Name {
    Of(Index),
    New(Vec<u8>),
}

#[derive(Clone, Copy, Debug)]
enum How {
    Inserted,
    NotInserted,
    NeverIndexed,
}

type Pair = (Vec<u8>, Vec<u8>);

struct Encoder {
    entries: VecDeque<Pair>,
    limit: usize,
    block: Vec<u8>,
    fields: Vec<Pair>,
}

impl Encoder {
    fn new() -> Self {
        Self { entries: VecDeque::new(), limit: 4096, block: Vec::new(), fields: Vec::new() }
    }

    fn pick(&self, index: Index) -> (usize, Pair) {
        let at = index.index(STATIC.len() + self.entries.len());
        let entry = match STATIC.get(at) {
            Some((name, value)) => (name.to_vec(), value.to_vec()),
            None => self.entries[at - STATIC.len()].clone(),
        };
        (at + 1, entry)
    }

    fn evict(&mut self, room: usize) {
        while self.entries.iter().map(size).sum::<usize>() + room > self.limit && self.entries.pop_back().is_some() {}
    }

    /// The block that a step ended, with its fields.
    fn step(&mut self, step: Step) -> Option<(Vec<u8>, Vec<Pair>)> {
        match step {
            Step::Indexed(index) => {
                let (index, entry) = self.pick(index);
                self.integer(0x80, 7, index);
                self.fields.push(entry);
            }
            Step::Literal { name, value, how, coded } => {
                let (first, bits) = match how {
                    How::Inserted => (0x40, 6),
                    How::NotInserted => (0, 4),
                    How::NeverIndexed => (0x10, 4),
                };
                let name = match name {
                    Name::Of(index) => {
                        let (index, (name, _)) = self.pick(index);
                        self.integer(first, bits, index);
                        name
                    }
                    Name::New(name) => {
                        self.integer(first, bits, 0);
                        self.string(&name, coded);
                        name
                    }
                };
                self.string(&value, coded);
                let entry = (name, value);
                if matches!(how, How::Inserted) {
                    self.evict(size(&entry));
                    if size(&entry) <= self.limit {
                        self.entries.push_front(entry.clone());
                    }
                }
                self.fields.push(entry);
            }
            Step::Resize(limit) => {
                self.limit = limit;
                self.evict(0);
                self.integer(0x20, 5, limit);
            }
            Step::EndBlock => return Some((std::mem::take(&mut self.block), std::mem::take(&mut self.fields))),
        }
        None
    }

    fn integer(&mut self, first: u8, bits: u8, value: usize) {
        let most = (1 << bits) - 1;
        self.block.push(first | value.min(most) as u8);
        if value >= most {
            let mut rest = value - most;
            while rest > 127 {
                self.block.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            self.block.push(rest as u8);
        }
    }

    fn string(&mut self, text: &[u8], coded: bool) {
        let coded_text = huffman::encode(text);
        let (first, text) = if coded { (0x80, &coded_text[..]) } else { (0, text) };
        self.integer(first, 7, text.len());
        self.block.extend_from_slice(text);
    }
}

fn size((name, value): &Pair) -> usize {
    name.len() + value.len() + 32
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = prop_oneof![
        3 => any::<Index>().prop_map(Name::Of),
        3 => vec(any::<u8>(), 0..12).prop_map(Name::New),
        // Longer than a name that is kept.
        1 => (1000..1400_usize).prop_map(|len| Name::New(vec![b'n'; len])),
    ];
    let value = prop_oneof![
        8 => vec(any::<u8>(), 0..40),
        // Around the sizes at which tables are emptied.
        1 => (any::<u8>(), 3900..4200_usize).prop_map(|(byte, len)| vec![byte; len]),
        1 => (any::<u8>(), 15_000..17_000_usize).prop_map(|(byte, len)| vec![byte; len]),
        1 => (any::<u8>(), 64_000..66_000_usize).prop_map(|(byte, len)| vec![byte; len]),
    ];
    let how = prop_oneof![4 => Just(How::Inserted), 1 => Just(How::NotInserted), 1 => Just(How::NeverIndexed)];
    let literal = (name, value, how, any::<bool>()).prop_map(|(name, value, how, coded)| Step::Literal {
        name,
        value,
        how,
        coded,
    });
    let limit = prop_oneof![Just(0), 32..200_usize, Just(4096), Just(16_384), 60_000..70_000_usize, Just(200_000)];
    let step = prop_oneof![
        8 => any::<Index>().prop_map(Step::Indexed),
        8 => literal,
        1 => limit.prop_map(Step::Resize),
        4 => Just(Step::EndBlock),
    ];
    vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn whatever_is_lawful_is_decoded_and_never_wrongly_after_losses(
        steps in steps(),
        joins_at in 0..40_usize,
        lost in any::<u64>(),
    ) {
        let mut encoder = Encoder::new();
        let (mut whole, mut joined, mut losing) = (Decoder::new(), Decoder::joined(), Decoder::new());
        let decoders = [&mut whole, &mut joined, &mut losing];
        for decoder in decoders {
            decoder.set_limit(200_000);
        }
        let mut fields = Fields::default();
        // Within 64 KiB nothing is unknown to one who saw everything, but names that nobody uses.
        let mut within = true;
        let blocks = steps.into_iter().chain([Step::EndBlock]).filter_map(|step| {
            within &= !matches!(step, Step::Resize(limit) if limit > 64 * 1024);
            encoder.step(step).map(|block| (block, within))
        });
        for (number, ((block, expected), within)) in blocks.enumerate() {
            fields.clear();
            prop_assert_eq!(whole.decode(&block, &mut fields), Ok(()));
            let kept = fields.fields.len();
            prop_assert!(kept == expected.len() || fields.truncated);
            let known = compare(&fields, &expected[..kept]).known;
            let named = expected[..kept].iter().filter(|(name, _)| name.len() <= 1024).count();
            prop_assert!(!within || known >= named, "{known} of {named}");
            if number >= joins_at {
                fields.clear();
                prop_assert_eq!(joined.decode(&block, &mut fields), Ok(()));
                compare(&fields, &expected[..fields.fields.len()]);
            }
            if lost >> (number % 64) & 1 == 1 {
                losing.lose();
            } else {
                fields.clear();
                prop_assert_eq!(losing.decode(&block, &mut fields), Ok(()));
                compare(&fields, &expected[..fields.fields.len()]);
            }
            for decoder in [&whole, &joined, &losing] {
                prop_assert!(decoder.memory() <= super::MOST_MEMORY, "{}", decoder.memory());
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_keep_more_than_its_bounds(blocks in vec(vec(any::<u8>(), 0..200), 0..20), joins: bool) {
        let mut decoder = if joins { Decoder::joined() } else { Decoder::new() };
        let mut fields = Fields::default();
        for block in blocks {
            fields.clear();
            let failed = decoder.decode(&block, &mut fields).is_err();
            prop_assert!(!failed || !block.is_empty());
            for field in &fields.fields {
                prop_assert_eq!(fields.text(field.name).is_some(), field.name.is_some());
                prop_assert_eq!(fields.text(field.value).is_some(), field.value.is_some());
            }
            prop_assert!(decoder.memory() <= super::MOST_MEMORY);
        }
    }
}
