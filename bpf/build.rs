//! Compiles every `bpf/NAME.bpf.c` to a Rust skeleton, `$OUT_DIR/NAME.rs`, and writes the numbers of every `enum` as
//! Rust constants to `$OUT_DIR/numbers.rs`. It finds the programs itself.

// Cargo shows a panic of a build script as the reason for a failed build.
#![allow(clippy::expect_used, clippy::panic)]

use std::{
    env,
    ffi::OsString,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use libbpf_cargo::SkeletonBuilder;

/// The compiler that the object bytes depend on; `CLANG` overrides it (Nix sets it).
const CLANG: &str = "clang-19";

fn main() {
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-env-changed=CLANG");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut sources: Vec<_> =
        fs::read_dir("bpf").expect("bpf/ is readable").map(|entry| entry.expect("bpf/ is readable").path()).collect();
    sources.sort();
    fs::write(out.join("numbers.rs"), sources.iter().map(|source| numbers(source)).collect::<String>())
        .expect("OUT_DIR is writable");
    for source in sources {
        let file = source.file_name().unwrap_or_default().to_string_lossy();
        let Some(name) = file.strip_suffix(".bpf.c") else { continue };
        SkeletonBuilder::new()
            .source(&source)
            .obj(out.join(format!("{name}.bpf.o")))
            .clang(env::var_os("CLANG").unwrap_or_else(|| OsString::from(CLANG)))
            // Linux 5.10 runs -mcpu=v3. The last one keeps this folder's path out of the object.
            .clang_args(["-Ibpf", "-Wall", "-Werror", "-mcpu=v3", "-fdebug-compilation-dir=."])
            .build_and_generate(out.join(format!("{name}.rs")))
            .unwrap_or_else(|e| panic!("{file}: {e:#} (the BPF compiler is {CLANG}, or what CLANG names)"));
    }
}

/// The values of every `enum` of a C file, as constants in a module with its name, so that C and Rust share one
/// definition. Rust evaluates them, and rejects a value that it cannot evaluate.
fn numbers(source: &Path) -> String {
    let file = source.file_name().unwrap_or_default().to_string_lossy();
    let Some(module) = file.strip_suffix(".bpf.c").or_else(|| file.strip_suffix(".h")) else { return String::new() };
    let text = without_comments(&fs::read_to_string(source).expect("bpf/ is readable"));
    // Only `enum` and an optional name precede the brace of a definition.
    let is_name = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let bodies = text.split("enum ").skip(1).filter_map(|rest| {
        let (name, body) = rest.split_once('{')?;
        is_name(name.trim()).then(|| body.split('}').next().unwrap_or_default())
    });
    let mut constants = String::new();
    for body in bodies {
        let mut next = "0".to_owned();
        for item in body.split(',').map(str::trim).filter(|item| item.starts_with(|c: char| c.is_ascii_uppercase())) {
            let (name, value) = item.split_once('=').unwrap_or((item, &next));
            let _ = writeln!(constants, "    pub const {}: i64 = {};", name.trim(), value.trim());
            next = format!("{} + 1", name.trim());
        }
    }
    if constants.is_empty() { constants } else { format!("/// Of `{file}`.\npub mod {module} {{\n{constants}}}\n") }
}

fn without_comments(text: &str) -> String {
    let mut parts = text.split("/*");
    let code = parts.next().unwrap_or_default().to_owned();
    code + &parts.filter_map(|part| part.split_once("*/").map(|(_, code)| code)).collect::<String>()
}
