//! Rules of the source.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use netmon_mcp::tools::QUESTIONS;

/// The maximal length of a file.
const FILE_LINES: usize = 400;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` with one of these suffixes.
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

#[test]
fn every_bpf_object_has_a_tool() {
    for path in files("bpf", &[".bpf.c"]) {
        let object = path.file_name().unwrap().to_string_lossy().replace(".bpf.c", "");
        let (tool, part) = object.rsplit_once('_').unwrap_or((&object, ""));
        let modules = [format!("src/tools/{object}/mod.rs"), format!("src/tools/{tool}/{part}.rs")];
        // The hub belongs to no tool.
        let has = object == "hub" || modules.iter().any(|module| root().join(module).exists());
        assert!(has, "{} has none of {modules:?}", name(&path));
    }
}

#[test]
fn readme_lists_exactly_the_tools() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let row = |line: &str| line.strip_prefix("| [`")?.split_once('`').map(|(tool, _)| tool.to_owned());
    let table = readme.split("## The tools\n").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let listed: BTreeSet<String> = table.lines().filter_map(row).collect();
    let served: BTreeSet<String> = QUESTIONS.iter().map(|question| question.name.to_owned()).collect();
    assert_eq!(listed, served);
}

fn text(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap()
}

#[test]
fn changelog_has_the_version_and_unreleased_section() {
    let changelog = text("CHANGELOG.md");
    for version in ["Unreleased", env!("CARGO_PKG_VERSION")] {
        assert!(changelog.contains(&format!("\n## [{version}]")), "{version}");
    }
}

/// Every target that README.md, other documents and the CI name.
#[test]
fn documented_make_targets_exist() {
    let files = ["CONTRIBUTING.md", "README.md", "SECURITY.md", "docs/verification.md", ".ci/run"];
    let make: Vec<String> = ["Makefile", "packaging/install.mk"].iter().map(|file| text(file)).collect();
    let is_target =
        |name: &str| make.iter().any(|rules| rules.lines().any(|line| line.starts_with(&format!("{name}:"))));
    for file in files {
        let text = text(file);
        let words = |command: &str| {
            command.split([' ', '`', '\n']).next().unwrap().trim_end_matches(['.', ',', ';', ')', ':']).to_owned()
        };
        let named: BTreeSet<String> = text
            .split("\nmake ")
            .skip(1)
            .chain(text.split("`make ").skip(1))
            .map(words)
            .filter(|name| !name.is_empty())
            .collect();
        assert!(!named.is_empty() || file == "SECURITY.md", "{file}");
        for name in named {
            assert!(is_target(&name), "{file} names `make {name}`");
        }
    }
    let workflow = text(".github/workflows/ci.yml");
    let jobs = workflow.split("target: [").nth(1).unwrap().split(']').next().unwrap();
    let jobs: Vec<_> = jobs.split(", ").map(|name| format!("make {name}")).collect();
    let ran: Vec<_> = text(".ci/run").lines().filter(|line| line.starts_with("make ")).map(str::to_owned).collect();
    assert_eq!(jobs, ran, "the workflow runs what .ci/run runs");
}

#[test]
fn no_test_is_ignored() {
    for path in files("tests", &[".rs"]) {
        let ignored = ["#[", "ignore"].concat();
        assert!(!fs::read_to_string(&path).unwrap().contains(&ignored), "{}", name(&path));
    }
}

/// NixOS has only sh and env in these folders, and `make test` also runs in the flake's shell.
#[test]
fn tests_find_programs_by_path() {
    for path in files("tests", &[".rs"]) {
        let text = fs::read_to_string(&path).unwrap();
        for folder in ["bin", "usr/bin", "usr/sbin"] {
            assert!(!text.contains(&format!("\"/{folder}/")), "{}: a program in /{folder}", name(&path));
        }
    }
}

/// The tests with `// In guests.` above them, each by its name, with its first kernel if given.
fn guest_tests(folder: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in files(folder, &[".rs"]) {
        let module = path.strip_prefix(root().join(folder)).unwrap().with_extension("");
        let module: Vec<_> = module.iter().map(|part| part.to_str().unwrap()).filter(|part| *part != "main").collect();
        let text = fs::read_to_string(&path).unwrap();
        for test in text.split("\n// In guests").skip(1) {
            let (since, code) = test.split_once(".\n").unwrap();
            let name = code.split_once("\nfn ").unwrap().1.split('(').next().unwrap();
            let since = since.strip_prefix(", since Linux").unwrap_or_default();
            found.insert(format!("{}{since}", [&module[..], &[name]].concat().join("::")));
        }
    }
    found
}

/// A test marks itself with the comment, and `make reviewed` updates the list.
#[test]
fn guest_test_list_is_up_to_date() {
    let file = root().join("tests/vm/kernel-tests");
    let listed = fs::read_to_string(&file).unwrap();
    let head = listed.lines().filter(|line| line.starts_with('#')).map(str::to_owned);
    let tests = guest_tests("tests/stock").into_iter().chain(guest_tests("tests/suite"));
    let now: String = head.chain(tests).map(|line| line + "\n").collect();
    if std::env::var_os("NETMON_REVIEW").is_some() {
        fs::write(&file, &now).unwrap();
    }
    assert!(
        now == fs::read_to_string(&file).unwrap(),
        "run `make reviewed` and review the difference of {}",
        name(&file)
    );
}

/// The packages that a target of the Makefile would install.
fn installs(target: &str) -> BTreeSet<String> {
    let output = Command::new("make").args(["-n", "-C"]).arg(root()).arg(target).output().unwrap();
    assert!(output.status.success(), "{target}: {}", String::from_utf8_lossy(&output.stderr));
    let recipe = String::from_utf8(output.stdout).unwrap();
    let lines = recipe.lines().filter_map(|line| line.trim().strip_prefix("scripts/prerequisites "));
    lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
}

#[test]
fn make_targets_install_only_their_needs() {
    let build = installs("build");
    let expected = ["clang-19", "gcc", "libelf-dev", "make", "pkg-config", "zlib1g-dev"];
    assert_eq!(build, expected.map(str::to_owned).into(), "as a build in a root with only these has shown");
    assert_eq!(installs("run"), build);
    let more = |target| installs(target).difference(&build).cloned().collect::<Vec<_>>();
    assert_eq!(more("lint"), ["clang-format-19", "python3"]);
    // The programs of the tests, with npm and Python's venv if they are missing.
    let tests = more("test");
    for package in ["curl", "iproute2", "nftables", "openssh-client", "openssh-server", "openssl", "procps"] {
        assert!(tests.iter().any(|installed| installed == package), "{package}: {tests:?}");
    }
}
