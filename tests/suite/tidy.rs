//! The rules of the source itself.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use netmon_mcp::tools::QUESTIONS;

/// A file is read in one sitting.
const FILE_LINES: usize = 400;
/// A function is seen at once.
const FUNCTION_LINES: usize = 70;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` with one of these endings.
fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if endings.iter().any(|ending| entry.to_string_lossy().ends_with(ending)) {
                found.push(entry);
            }
        }
    }
    found
}

fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The source of the product, without its unit tests: files called `tests.rs`, and what follows `#[cfg(test)]`.
fn product() -> impl Iterator<Item = (PathBuf, String)> {
    files("src", &[".rs"]).into_iter().filter(|path| !path.ends_with("tests.rs")).map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("\n#[cfg(test)]\n").next().unwrap_or(&text).to_owned();
        (path, code)
    })
}

#[test]
fn files_are_short() {
    let long: Vec<String> = ["src", "bpf", "tests"]
        .iter()
        .flat_map(|folder| files(folder, &[".rs", ".c", ".h", ".py", ".nix"]))
        .filter_map(|path| {
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            (lines > FILE_LINES).then(|| format!("{}: {lines} lines", name(&path)))
        })
        .collect();
    assert!(long.is_empty(), "longer than {FILE_LINES} lines:\n{}", long.join("\n"));
}

/// The functions of Rust code, with their lengths: from `fn` to the brace of the same depth.
fn functions(text: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    for (start, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words: Vec<&str> = line.split_whitespace().take_while(|word| !word.starts_with("//")).collect();
        let Some(at) = words.iter().position(|word| *word == "fn") else { continue };
        if !words[..at].iter().all(|word| word.starts_with("pub") || ["const", "async", "unsafe"].contains(word)) {
            continue;
        }
        let closing = format!("{}}}", " ".repeat(indent));
        if let Some(length) = lines[start..].iter().position(|line| *line == closing) {
            found.push((words.get(at + 1).copied().unwrap_or_default().to_owned(), length + 1));
        }
    }
    found
}

#[test]
fn functions_are_short() {
    let mut lengths = Vec::new();
    let mut long = Vec::new();
    for (path, code) in product() {
        for (function, lines) in functions(&code) {
            lengths.push(lines);
            if lines > FUNCTION_LINES {
                long.push(format!("{}: {function} has {lines} lines", name(&path)));
            }
        }
    }
    assert!(long.is_empty(), "longer than {FUNCTION_LINES} lines:\n{}", long.join("\n"));
    lengths.sort_unstable();
    assert!(
        lengths[lengths.len() / 2] <= 10,
        "half of the functions have more than {} lines",
        lengths[lengths.len() / 2]
    );
}

#[test]
fn every_bpf_object_has_its_tool() {
    for path in files("bpf", &[".bpf.c"]) {
        let object = path.file_name().unwrap().to_string_lossy().replace(".bpf.c", "");
        let (tool, part) = object.rsplit_once('_').unwrap_or((&object, ""));
        let modules = [format!("src/tools/{object}.rs"), format!("src/tools/{tool}/{part}.rs")];
        let has = modules.iter().any(|module| root().join(module).exists());
        assert!(has, "{} has none of {modules:?}", name(&path));
    }
}

#[test]
fn the_readme_lists_exactly_the_tools() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let row = |line: &str| line.strip_prefix("| `")?.split_once('`').map(|(tool, _)| tool.to_owned());
    let table = readme.split("## The tools\n").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let listed: BTreeSet<String> = table.lines().filter_map(row).collect();
    let served: BTreeSet<String> = QUESTIONS.iter().map(|question| question.name.to_owned()).collect();
    assert_eq!(listed, served);
}

#[test]
fn nothing_panics_on_purpose_and_every_unsafe_says_why_it_is_sound() {
    let mut trouble = Vec::new();
    for (path, code) in product() {
        let lines: Vec<&str> = code.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let at = || format!("{}:{}: {}", name(&path), i + 1, line.trim());
            let comment = line.trim_start().starts_with("//");
            if !comment
                && [".unwrap()", ".expect(", "todo!(", "unimplemented!(", "panic!("].iter().any(|p| line.contains(p))
            {
                trouble.push(at());
            }
            let is_unsafe = line.contains("unsafe {") || line.contains("unsafe impl");
            if !comment && is_unsafe && !lines[i.saturating_sub(4)..i].iter().any(|line| line.contains("SAFETY")) {
                trouble.push(at());
            }
        }
    }
    assert!(trouble.is_empty(), "{}", trouble.join("\n"));
}

#[test]
fn no_test_is_ignored() {
    for path in files("tests", &[".rs"]) {
        let ignored = ["#[", "ignore"].concat();
        assert!(!fs::read_to_string(&path).unwrap().contains(&ignored), "{}", name(&path));
    }
}
