//! The numbers that the eBPF programs name, by C file: `bpf/build.rs` takes them from there, so each is written once.

#![allow(dead_code, non_upper_case_globals)] // they are the kernel's as well

include!(concat!(env!("OUT_DIR"), "/numbers.rs"));
