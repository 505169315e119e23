#![no_main]

#[path = "../parsers.rs"]
#[allow(dead_code)] // shared with the other targets
mod parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| parsers::head(bytes));
