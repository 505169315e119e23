//! The parsers of bytes from outside, on the seeds of the fuzzer: real questions, answers and names, and whatever
//! has ever made one of them fail.

use std::{collections::BTreeMap, path::Path};

#[path = "../../fuzz/parsers.rs"]
mod parsers;

fn seeds(target: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let read =
        |entry: std::fs::DirEntry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
    std::fs::read_dir(folder).unwrap().flatten().map(read).collect()
}

#[test]
fn every_seed_is_read_without_a_panic() {
    let mut count = 0;
    for (target, parse) in [
        ("wire", parsers::wire as fn(&[u8])),
        ("records", parsers::records),
        ("dns", parsers::dns),
        ("packet", parsers::packet),
        ("settings", |bytes| parsers::settings(&String::from_utf8_lossy(bytes))),
        ("reports", |bytes| parsers::reports(&String::from_utf8_lossy(bytes))),
    ] {
        for (name, bytes) in seeds(target) {
            println!("{target}/{name}");
            parse(&bytes);
            count += 1;
        }
    }
    assert!(count > 10, "{count} seeds");
}
