//! The parsers of bytes from outside, on the fuzzer's seeds: real requests, answers and names, and every input that has
//! made one fail.

use std::{collections::BTreeMap, path::Path};

use netmon_mcp::tools::Question;

#[path = "../../fuzz/parsers.rs"]
mod parsers;

fn seeds(target: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let read =
        |entry: std::fs::DirEntry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
    std::fs::read_dir(folder).unwrap().flatten().map(read).collect()
}

#[test]
fn every_fuzz_seed_parses_without_panic() {
    let mut count = 0;
    for (target, parse) in [
        ("wire", parsers::wire as fn(&[u8])),
        ("records", parsers::records),
        ("attribution", parsers::attribution),
        ("dns", parsers::dns),
        ("packet", parsers::packet),
        ("settings", |bytes| parsers::settings(&String::from_utf8_lossy(bytes))),
        ("tokens", |bytes| parsers::tokens(&String::from_utf8_lossy(bytes))),
        ("jwt", |bytes| parsers::jwt(&String::from_utf8_lossy(bytes))),
        ("head", parsers::head),
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

#[test]
fn reports_of_real_samples_do_not_panic() {
    for (name, bytes) in seeds("reports") {
        let text = String::from_utf8(bytes).unwrap();
        let [tool, input, sample] = text.splitn(3, '\n').collect::<Vec<_>>()[..] else { panic!("{name}") };
        let question = Question::named(tool).unwrap_or_else(|| panic!("{name}: no tool {tool}"));
        let input = serde_json::from_str(input).unwrap();
        // An invalid seed is useless for the fuzzer.
        assert!((question.report)(input, sample).is_ok(), "{name} is of another version: capture it again");
    }
}
