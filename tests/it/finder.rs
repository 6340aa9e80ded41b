//! What the finder says of the libraries of this machine: nothing is attached, so it runs without privileges. Debian's
//! `libssl3`, `libgnutls30`, `nodejs` and `curl` are installed where this runs.

use std::fs;
use std::path::{Path, PathBuf};

use agent::tls_targets::elf::Image;
use agent::tls_targets::{Effort, Found, Probe, Program, Stack, Target, find, x86};
use agent_common::event::direction;
use agent_common::tls::{UNKNOWN, form};
use weir_tests::harness::{find as harness_find, skip};

/// The file of a library, wherever the machine's architecture keeps it.
fn library(name: &str) -> Option<PathBuf> {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"];
    folders.map(|folder| Path::new(folder).join(name)).into_iter().find(|path| path.exists())
}

fn found(path: &Path) -> Found {
    let file = fs::read(path).unwrap();
    find(&Image::parse(file.as_slice()).unwrap(), Effort::Symbols)
}

/// The only target, each probe of which is at an instruction that is as cheap as it says.
fn target(path: &Path) -> Target {
    let mut found = found(path);
    assert_eq!(found.unreadable, [], "{}", path.display());
    assert_eq!(found.targets.len(), 1, "{}", path.display());
    let target = found.targets.remove(0);
    let file = fs::read(path).unwrap();
    for probe in &target.probes {
        let bytes = &file[probe.offset as usize..][..16];
        let instruction = x86::Code::prefix(0, bytes).instructions()[0].len();
        assert_eq!(x86::emulated(&bytes[..instruction]), probe.emulated, "{probe:?}");
    }
    target
}

fn of(target: &Target, program: Program, direction: u8) -> Vec<&Probe> {
    target.probes.iter().filter(|probe| probe.program == program && probe.direction == direction).collect()
}

fn functions(probes: &[&Probe]) -> Vec<(&'static str, u8)> {
    probes.iter().map(|probe| (probe.function, probe.form)).collect()
}

#[test]
fn the_machines_openssl_is_probed_where_records_are_read_and_made() {
    let Some(path) = library("libssl.so.3") else {
        return skip("the_machines_openssl_is_probed_where_records_are_read_and_made", "no libssl.so.3");
    };
    let target = target(&path);
    assert_eq!(target.stack, Stack::Openssl);
    assert!(target.probes.iter().all(|probe| probe.emulated), "{:#?}", target.probes);
    let file = fs::read(&path).unwrap();
    let is_older_than_3_2 = Image::parse(file.as_slice()).unwrap().function("SSL_get_handshake_rtt").is_none();
    let pushed = |direction| functions(&of(&target, Program::Push, direction));
    assert_eq!(pushed(direction::RECEIVE), [("ssl3_read_bytes", form::READ_COPY)]);
    if is_older_than_3_2 {
        assert_eq!(pushed(direction::SEND), [("do_ssl3_write", form::RECORDS)]);
        let layout = &target.layout;
        assert_eq!((layout.random_base, layout.random), (UNKNOWN, 0x160), "OpenSSL 3.0 and 3.1");
        assert_eq!((layout.server, layout.server_mask), (0x38, 0xff), "OpenSSL 3.0 and 3.1");
    }
    let called = functions(&of(&target, Program::Return, direction::SEND));
    assert_eq!(called.last(), Some(&("SSL_sendfile", form::NO_BUFFER)));
    assert!([target.layout.object, target.layout.content_type, target.layout.peek].iter().all(|at| *at != UNKNOWN));
    assert_ne!(target.layout.random, UNKNOWN);
    assert_ne!(target.layout.server, UNKNOWN);
    assert_eq!(target.layout.random_base, UNKNOWN, "OpenSSL 3 keeps it in the object");
}

#[test]
fn node_is_probed_at_its_exported_functions_or_the_internal_pair() {
    let Some(path) = harness_find("node") else {
        return skip("node_is_probed_at_its_exported_functions_or_the_internal_pair", "no node");
    };
    let target = target(&path);
    assert_eq!(target.stack, Stack::Openssl);
    assert!(target.probes.iter().all(|probe| probe.emulated), "{:#?}", target.probes);
    for direction in [direction::RECEIVE, direction::SEND] {
        let (enter, back) = (of(&target, Program::Enter, direction), of(&target, Program::Return, direction));
        assert!(!enter.is_empty());
        assert_eq!(functions(&enter), functions(&back));
    }
    assert_ne!(target.layout.random, UNKNOWN);
    assert_ne!(target.layout.server, UNKNOWN);
}

#[test]
fn gnutls_is_probed_once_for_each_direction() {
    let Some(path) = library("libgnutls.so.30") else {
        return skip("gnutls_is_probed_once_for_each_direction", "no libgnutls.so.30");
    };
    let target = target(&path);
    assert_eq!(target.stack, Stack::Gnutls);
    assert!(target.probes.iter().filter(|probe| probe.program == Program::Enter).all(|probe| probe.emulated));
    for program in [Program::Enter, Program::Return] {
        let (received, sent) = (of(&target, program, direction::RECEIVE), of(&target, program, direction::SEND));
        assert_eq!(functions(&received), [("gnutls_record_recv", form::SIZE)]);
        assert_eq!(functions(&sent), [("gnutls_record_send2", form::SIZE)]);
    }
    assert_ne!(target.layout.random, UNKNOWN);
}

#[test]
fn files_without_tls_of_their_own_hold_nothing() {
    let files = [library("libcrypto.so.3"), library("libc.so.6"), harness_find("curl")];
    if files.iter().any(Option::is_none) {
        return skip("files_without_tls_of_their_own_hold_nothing", "no libcrypto.so.3, libc.so.6 or curl");
    }
    for path in files.into_iter().flatten() {
        assert_eq!(found(&path), Found::default(), "{}", path.display());
    }
}
