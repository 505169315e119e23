//! Compiles every `bpf/NAME.bpf.c` to a Rust skeleton, `$OUT_DIR/NAME.rs`. It names no program.

use std::{env, ffi::OsString, fs, path::PathBuf};

use libbpf_cargo::SkeletonBuilder;

/// The compiler that the object bytes are pinned to; `CLANG` names another one (Nix sets it).
const CLANG: &str = "clang-19";

fn main() {
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-env-changed=CLANG");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    for entry in fs::read_dir("bpf").expect("bpf/ is readable") {
        let source = entry.expect("bpf/ is readable").path();
        let file = source.file_name().unwrap_or_default().to_string_lossy();
        let Some(name) = file.strip_suffix(".bpf.c") else { continue };
        SkeletonBuilder::new()
            .source(&source)
            .obj(out.join(format!("{name}.bpf.o")))
            .clang(env::var_os("CLANG").unwrap_or_else(|| OsString::from(CLANG)))
            // -mcpu=v3 is what Linux 5.10 runs; the prefix map keeps this folder's path out of the object.
            .clang_args(["-Ibpf", "-Wall", "-Werror", "-mcpu=v3", &format!("-ffile-prefix-map={root}=.")])
            .build_and_generate(out.join(format!("{name}.rs")))
            .unwrap_or_else(|e| panic!("{file}: {e:#} (the BPF compiler is {CLANG}, or what CLANG names)"));
    }
}
