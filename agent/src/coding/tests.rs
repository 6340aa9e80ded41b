//! Every coding whole, cut at every byte, damaged, and made to burst. Tests only.

use proptest::prelude::*;

use super::*;

/// What is coded below: `[{"id":0,"name":"item 0"},...]`, 200 times.
fn document() -> Vec<u8> {
    let items: Vec<_> = (0..200).map(|id| format!("{{\"id\":{id},\"name\":\"item {id}\"}}")).collect();
    format!("[{}]", items.join(",")).into_bytes()
}

fn codings() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("gzip", include_bytes!("samples/document.gz").to_vec()),
        ("X-GZIP", include_bytes!("samples/named.gz").to_vec()),
        ("deflate", include_bytes!("samples/document.zlib").to_vec()),
        ("deflate", include_bytes!("samples/document.deflate").to_vec()),
        ("br", include_bytes!("samples/document.br").to_vec()),
        ("zstd", include_bytes!("samples/document.zst").to_vec()),
        ("zstd", include_bytes!("samples/streamed.zst").to_vec()),
    ]
}

fn undo(coding: &str, coded: &[u8], most: usize) -> Option<Vec<u8>> {
    decode([coding.as_bytes()].into_iter(), coded, most).map(Cow::into_owned)
}

#[test]
fn every_coding_is_undone_as_far_as_it_was_seen() {
    let document = document();
    for (coding, coded) in codings() {
        assert_eq!(undo(coding, &coded, 1 << 20).unwrap(), document, "{coding}");
        for most in [0, 1, 100, 4096] {
            assert_eq!(undo(coding, &coded, most).unwrap(), document[..most], "{coding} {most}");
        }
        let mut longest = 0;
        for cut in 0..coded.len() {
            let found = undo(coding, &coded[..cut], 1 << 20).unwrap_or_default();
            assert!(document.starts_with(&found), "{coding} {cut}");
            longest = longest.max(found.len());
        }
        // A block of zstd is all or nothing.
        assert!(longest > 0 || coding == "zstd", "{coding}");
    }
}

#[test]
fn a_cut_zstd_frame_yields_the_blocks_before_the_cut() {
    let coded = include_bytes!("samples/streamed.zst");
    let found = undo("zstd", &coded[..coded.len() - 9], 1 << 20).unwrap();
    assert!(found.len() > 1000 && document().starts_with(&found));
}

#[test]
fn content_that_is_not_coded_stays_as_it_is() {
    for coding in ["", "identity", " , identity"] {
        assert_eq!(undo(coding, b"abc", 2).unwrap(), b"ab");
    }
    assert_eq!(decode([].into_iter(), b"abc", 9).unwrap(), &b"abc"[..]);
}

#[test]
fn codings_on_top_of_each_other_are_undone_last_first() {
    let coded = include_bytes!("samples/twice.gz.br");
    assert_eq!(undo("gzip, br", coded, 1 << 20).unwrap(), document());
    let lines = [&b"gzip"[..], b"br"];
    assert_eq!(decode(lines.into_iter(), coded, 1 << 20).unwrap(), document());
    assert_eq!(undo("br, gzip", coded, 1 << 20), None);
    assert_eq!(undo("gzip, gzip, br", coded, 1 << 20), None);
}

#[test]
fn what_is_no_coding_we_know_or_not_of_it_gives_nothing() {
    for (coding, coded) in [
        ("compress", &b"\x1f\x9d"[..]),
        ("gzip", b"{\"jsonrpc\""),
        ("gzip", b"\x1f\x8b\x08\xff\0\0\0\0\0\0"),
        ("deflate", b"\xff\xff\xff\xff"),
        ("br", b"\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("zstd", b"\x28\xb5\x2f\xfd"),
        ("zstd", b"{}"),
    ] {
        assert_eq!(undo(coding, coded, 100), None, "{coding}");
    }
}

#[test]
fn a_bomb_gives_no_more_than_was_asked_for() {
    // A megabyte of one byte in each, and repeated blocks of zstd of 128 KiB from four bytes.
    for (coding, coded) in [
        ("gzip", include_bytes!("samples/bomb.gz").to_vec()),
        ("br", include_bytes!("samples/bomb.br").to_vec()),
        ("zstd", include_bytes!("samples/bomb.zst").to_vec()),
        ("zstd", [&b"\x28\xb5\x2f\xfd\0\x58"[..], &b"\x02\0\x10A".repeat(10_000)].concat()),
    ] {
        let found = undo(coding, &coded, 4096).unwrap();
        assert_eq!(found.len(), 4096, "{coding}");
        assert!(found.iter().all(|byte| *byte == found[0]), "{coding}");
    }
}

proptest! {
    #[test]
    fn damaged_content_never_panics_and_stays_within_bounds(
        which in 0usize..7,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        most in 0usize..9000,
    ) {
        let (coding, mut coded) = codings().swap_remove(which);
        for (at, value) in edits {
            let at = at.index(coded.len());
            coded[at] = value;
        }
        if let Some(found) = undo(coding, &coded, most) {
            prop_assert!(found.len() <= most);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(coded in prop::collection::vec(any::<u8>(), 0..200), which in 0usize..4) {
        let coding = ["gzip", "deflate", "br", "zstd"][which];
        for magic in [&b""[..], b"\x1f\x8b\x08\0\0\0\0\0\0\0", b"\x28\xb5\x2f\xfd\0\x58"] {
            let coded = [magic, &coded].concat();
            if let Some(found) = undo(coding, &coded, 100) {
                prop_assert!(found.len() <= 100);
            }
        }
    }
}
