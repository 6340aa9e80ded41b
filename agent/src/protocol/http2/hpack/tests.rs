//! The standard's own examples, hostile blocks, and what other encoders and a small one made here produce.

mod encoder;
mod stories;

use std::ops::AddAssign;

use super::{Decoder, Error, Field, Fields};

/// Three times the largest table (what is kept, as much that was evicted, an entry on its way) and twice that, which vectors
/// reserve as they grow; and an entry for each 32 bytes of it.
const MOST_MEMORY: usize = 2 * 3 * 64 * 1024 + 4096 * 16;

/// What came out of some blocks.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    fields: usize,
    /// With name and value.
    known: usize,
    paths: usize,
    paths_known: usize,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.fields += other.fields;
        self.known += other.known;
        self.paths += other.paths;
        self.paths_known += other.paths_known;
    }
}

/// As many fields as were encoded, and none that says anything else.
fn compare(fields: &Fields, expected: &[(Vec<u8>, Vec<u8>)]) -> Tally {
    assert_eq!(fields.fields.len(), expected.len());
    let mut tally = Tally { fields: expected.len(), ..Tally::default() };
    for (field, (name, value)) in fields.fields.iter().zip(expected) {
        let (known_name, known_value) = (fields.text(field.name), fields.text(field.value));
        assert!(known_name.is_none_or(|it| it == name), "{known_name:?} for {name:?}");
        assert!(known_value.is_none_or(|it| it == value), "{known_value:?} for {value:?}");
        let known = known_name.is_some() && known_value.is_some();
        let path = name == b":path";
        tally.known += usize::from(known);
        tally.paths += usize::from(path);
        tally.paths_known += usize::from(path && known);
    }
    tally
}

fn bytes(hexadecimal: &str) -> Vec<u8> {
    let digits: Vec<_> = hexadecimal.chars().filter_map(|it| it.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

fn lines(fields: &Fields) -> Vec<String> {
    let text = |range| fields.text(range).map_or("?".into(), String::from_utf8_lossy);
    fields.fields.iter().map(|field| format!("{}: {}", text(field.name), text(field.value))).collect()
}

/// Section, size of the table, and the blocks of a connection in order with their fields.
type Example<'a> = (&'a str, Option<usize>, &'a [(&'a str, &'a str)]);

/// RFC 7541 appendix C.
#[test]
fn examples_of_the_standard() {
    let request = ":method: GET|:scheme: http|:path: /|:authority: www.example.com";
    let second = ":method: GET|:scheme: http|:path: /|:authority: www.example.com|cache-control: no-cache";
    let third = ":method: GET|:scheme: https|:path: /index.html|:authority: www.example.com|custom-key: custom-value";
    let responses = [
        ":status: 302|cache-control: private|date: Mon, 21 Oct 2013 20:13:21 GMT|location: https://www.example.com",
        ":status: 307|cache-control: private|date: Mon, 21 Oct 2013 20:13:21 GMT|location: https://www.example.com",
        ":status: 200|cache-control: private|date: Mon, 21 Oct 2013 20:13:22 GMT|location: https://www.example.com|\
         content-encoding: gzip|set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
    ];
    let cases: [Example<'_>; 8] = [
        (
            "C.2.1",
            None,
            &[("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572", "custom-key: custom-header")],
        ),
        ("C.2.2", None, &[("040c 2f73 616d 706c 652f 7061 7468", ":path: /sample/path")]),
        ("C.2.3", None, &[("1008 7061 7373 776f 7264 0673 6563 7265 74", "password: secret")]),
        ("C.2.4", None, &[("82", ":method: GET")]),
        (
            "C.3",
            None,
            &[
                ("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", request),
                ("8286 84be 5808 6e6f 2d63 6163 6865", second),
                ("8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65", third),
            ],
        ),
        (
            "C.4",
            None,
            &[
                ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", request),
                ("8286 84be 5886 a8eb 1064 9cbf", second),
                ("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", third),
            ],
        ),
        (
            "C.5",
            Some(256),
            &[
                (
                    "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 \
                     3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                    responses[0],
                ),
                ("4803 3330 37c1 c0bf", responses[1]),
                (
                    "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a \
                     6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d \
                     6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
                    responses[2],
                ),
            ],
        ),
        (
            "C.6",
            Some(256),
            &[
                (
                    "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d \
                     29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
                    responses[0],
                ),
                ("4883 640e ffc1 c0bf", responses[1]),
                (
                    "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d \
                     d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 \
                     3d50 07",
                    responses[2],
                ),
            ],
        ),
    ];
    for (section, size, blocks) in cases {
        let (mut decoder, mut fields) = (Decoder::new(), Fields::default());
        if let Some(size) = size {
            decoder.table.resize(size);
        }
        for (block, expected) in blocks {
            fields.clear();
            assert_eq!(decoder.decode(&bytes(block), &mut fields), Ok(()), "{section}");
            assert_eq!(lines(&fields), expected.split('|').collect::<Vec<_>>(), "{section}");
        }
    }
}

#[test]
fn blocks_that_are_none_are_refused_and_what_came_before_is_kept() {
    // Each behind `:method: GET`.
    for (what, block, error) in [
        ("no index", "80", Error::InvalidIndex),
        ("an index of an empty table", "be", Error::InvalidIndex),
        ("the name of an empty table", "7e 01 61", Error::InvalidIndex),
        ("the largest index believed in", "ff 81 ff ff 7f", Error::InvalidIndex),
        ("an index that does not end", "ff ff ff ff ff ff", Error::IntegerOverflow),
        ("an index of zeros that does not end", "ff 80 80 80 80 80 80 00", Error::IntegerOverflow),
        ("an index that ends with the block", "ff 80", Error::Truncated),
        ("no name", "40", Error::Truncated),
        ("no value", "40 01 61", Error::Truncated),
        ("a name longer than the block", "40 05 61", Error::Truncated),
        ("a value longer than the block", "04 05 61", Error::Truncated),
        ("a string longer than any block", "04 7f ff ff ff ff 7f 61", Error::IntegerOverflow),
        ("padding of eight ones", "04 82 07 ff", Error::InvalidHuffman),
        ("padding that is not ones", "04 81 00", Error::InvalidHuffman),
        ("the end of the string within it", "04 84 ff ff ff ff", Error::InvalidHuffman),
        ("a larger table than allowed", "3f e2 1f", Error::InvalidSizeUpdate),
    ] {
        let (mut decoder, mut fields) = (Decoder::new(), Fields::default());
        assert_eq!(decoder.decode(&bytes(&format!("82 {block}")), &mut fields), Err(error), "{what}");
        assert_eq!(lines(&fields), [":method: GET"], "{what}");
        // As after a loss: old entries may exist, new ones are exact.
        fields.clear();
        assert_eq!(decoder.decode(&bytes("be 40 01 61 01 62 be bf"), &mut fields), Ok(()), "{what}");
        assert_eq!(lines(&fields), ["?: ?", "a: b", "a: b", "?: ?"], "{what}");
    }
}

#[test]
fn the_size_of_the_table_is_bounded_by_what_the_receiver_allowed() {
    // The largest ever allowed counts: when a change takes effect cannot be seen.
    let (mut decoder, mut fields) = (Decoder::new(), Fields::default());
    decoder.set_limit(8192);
    decoder.set_limit(0);
    assert_eq!(decoder.decode(&bytes("3f e1 3f"), &mut fields), Ok(()));
    assert_eq!(decoder.decode(&bytes("3f e2 3f"), &mut fields), Err(Error::InvalidSizeUpdate));
    assert_eq!(decoder.decode(&bytes("3f e2 3f"), &mut fields), Ok(()), "who lost a block may have lost a setting");
}

#[test]
fn a_literal_with_an_unknown_name_keeps_its_value() {
    let (mut decoder, mut fields) = (Decoder::joined(), Fields::default());
    // Added with an unknown name, referred to, its name used anew, and never to be compressed.
    assert_eq!(decoder.decode(&bytes("7f 00 01 78 be 0f 2f 01 79 1f 30 01 7a"), &mut fields), Ok(()));
    assert_eq!(lines(&fields), ["?: x", "?: x", "?: y", "?: z"]);
    assert_eq!(fields.fields.iter().map(|it| it.sensitive).collect::<Vec<_>>(), [false, false, false, true]);
    let Field { name, value, .. } = fields.fields[0];
    assert_eq!((name, fields.text(value)), (None, Some(&b"x"[..])));
}

#[test]
fn a_block_that_stands_for_megabytes_is_cut_and_the_table_stays_right() {
    let mut block = bytes("40 01 61 7f a2 1e");
    block.extend([b'v'; 4001]);
    // Then the entry ten thousand times, and a last one that is added behind the cut.
    block.extend([0xbe; 10_000]);
    block.extend(bytes("40 01 62 01 63"));
    let (mut decoder, mut fields) = (Decoder::new(), Fields::default());
    assert_eq!(decoder.decode(&block, &mut fields), Ok(()));
    assert!(fields.truncated);
    assert!(fields.raw.len() <= super::MAX_BYTES, "{}", fields.raw.len());
    assert!(fields.fields.iter().all(|it| fields.text(it.name) == Some(b"a")));
    assert!(fields.fields.iter().all(|it| fields.text(it.value).is_some_and(|value| value.len() == 4001)));
    fields.clear();
    assert_eq!(decoder.decode(&bytes("be"), &mut fields), Ok(()));
    assert_eq!((lines(&fields), fields.truncated), (vec!["b: c".to_owned()], false));

    fields.clear();
    assert_eq!(decoder.decode(&[0x82; 5000], &mut fields), Ok(()));
    assert_eq!((fields.fields.len(), fields.truncated), (super::MAX_FIELDS, true));
}

#[test]
fn an_entry_that_the_encoder_evicted_is_gone_and_its_memory_too() {
    let large = |name: usize, value: usize| {
        let mut block = vec![0x40];
        for len in [name, value] {
            // 127 and the rest in seven bits each.
            let rest = len - 127;
            block.extend([0x7f, rest as u8 | 0x80, (rest >> 7) as u8]);
            block.extend(std::iter::repeat_n(b'a', len));
        }
        block
    };
    for (what, evicting, left) in [
        ("a small one evicts nothing", bytes("40 01 63 01 64"), &["c: d", "a: b"][..]),
        ("a size of zero", bytes("20"), &[]),
        ("a size for none", bytes("3f 02"), &[]),
        ("a size for one", bytes("3f 03"), &["a: b"]),
        ("a size of zero for a while", bytes("20 3f e1 1f 40 01 63 01 64"), &["c: d"]),
        ("an entry larger than the table", large(128, 3937), &[]),
    ] {
        let (mut decoder, mut fields) = (Decoder::new(), Fields::default());
        assert_eq!(decoder.decode(&bytes("40 01 61 01 62"), &mut fields), Ok(()));
        assert_eq!(decoder.decode(&evicting, &mut fields), Ok(()), "{what}");
        fields.clear();
        // All that there are, from the newest.
        let refused = (0xbe..0xff).find_map(|index| decoder.decode(&[index], &mut fields).err());
        assert_eq!(refused, Some(Error::InvalidIndex), "{what}");
        assert_eq!(lines(&fields), left, "{what}");
    }

    let (mut decoder, mut fields) = (Decoder::new(), Fields::default());
    for _ in 0..10_000 {
        fields.clear();
        assert_eq!(decoder.decode(&large(127, 200), &mut fields), Ok(()));
    }
    assert!(decoder.memory() <= 4 * 4096 + 64 * 16, "{}", decoder.memory());
}

#[test]
fn a_name_too_long_to_be_copied_for_three_bytes_is_not_known_but_counts() {
    let (mut decoder, mut fields) = (Decoder::new(), Fields::default());
    let mut long = bytes("40 7f 82 07");
    long.extend([b'n'; 1025]);
    long.push(0);
    assert_eq!(decoder.decode(&bytes("40 01 61 01 62"), &mut fields), Ok(()));
    for _ in 0..3 {
        assert_eq!(decoder.decode(&long, &mut fields), Ok(()));
    }
    fields.clear();
    assert_eq!(decoder.decode(&bytes("be c1"), &mut fields), Ok(()));
    assert_eq!(lines(&fields), ["?: ", "a: b"]);
    // With 1057 bytes each there is no room for a fourth and the first small one.
    assert_eq!(decoder.decode(&long, &mut fields), Ok(()));
    assert_eq!(decoder.decode(&bytes("c1"), &mut fields), Err(Error::InvalidIndex));
}
