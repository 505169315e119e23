//! A new tool needs one folder and one line in a list: a copy of the source with one more tool shows it everywhere.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::harness::*;

/// The tool; the folder of that name beside this file has its files.
const ADDED: &str = "host_load";
/// Its registration: its module, and its line in the list.
const LINES: [(&str, &str); 2] = [
    ("pub mod network_monitor;", "pub mod host_load;"),
    ("    network_monitor::NetworkMonitor,", "    host_load::HostLoad,"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Writes a file unless it is unchanged, so that cargo does not rebuild it.
fn write(path: &Path, bytes: &[u8]) {
    if fs::read(path).ok().as_deref() != Some(bytes) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// The package's test programs: the folders of `tests` with a main.rs.
fn programs() -> Vec<String> {
    let folders = fs::read_dir(root().join("tests")).unwrap().flatten();
    let programs = folders.filter(|folder| folder.path().join("main.rs").exists());
    programs.map(|folder| folder.file_name().into_string().unwrap()).collect()
}

/// A copy of the source with the tool, below the suite's build folder.
fn source(build: &Path) -> PathBuf {
    let copy = build.join("source");
    let listed = Command::new("git")
        .args(["-C", root().to_str().unwrap(), "ls-files", "-z", "Cargo.*", "src", "bpf", "docs/skills", "clippy.toml"])
        .output();
    let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
    for file in listed.split_terminator('\0').filter(|file| *file != "src/tools/mod.rs") {
        write(&copy.join(file), &fs::read(root().join(file)).unwrap());
    }
    // The package's other programs are not built here, and its manifest names their files.
    for program in programs() {
        write(&copy.join(format!("tests/{program}/main.rs")), b"");
    }
    for file in fs::read_dir(root().join("tests/suite/adding").join(ADDED)).unwrap().flatten() {
        write(&copy.join("src/tools").join(ADDED).join(file.file_name()), &fs::read(file.path()).unwrap());
    }
    let mut list = fs::read_to_string(root().join("src/tools/mod.rs")).unwrap();
    for (before, line) in LINES {
        assert!(list.contains(before), "{before}");
        list = list.replacen(before, &format!("{line}\n{before}"), 1);
    }
    write(&copy.join("src/tools/mod.rs"), list.as_bytes());
    copy
}

/// Reuses the suite's built dependencies, by name: everything that is not the package's own. Libraries are linked,
/// since nothing writes to an existing one; cargo writes to the other files.
fn dependencies(from: &Path, to: &Path) {
    let mut own = programs();
    own.extend(["netmon".to_owned(), "libnetmon".to_owned()]);
    let is_own = |name: &str| own.iter().any(|own| name.starts_with(own));
    let is_library = |name: &String| [".rlib", ".rmeta", ".so"].iter().any(|ending| name.ends_with(ending));
    for part in [".fingerprint", "build", "deps"] {
        fs::create_dir_all(to.join(part)).unwrap();
        let names =
            fs::read_dir(from.join(part)).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
        let (libraries, others): (Vec<_>, Vec<_>) = names.filter(|name| !is_own(name)).partition(is_library);
        for (how, names) in [("-al", libraries), ("-a", others)] {
            let mut copy = Command::new("cp");
            copy.arg(how).args(names).arg(to.join(part)).current_dir(from.join(part)).stderr(Stdio::null());
            copy.status().unwrap(); // a kind may have no files
        }
    }
}

/// Builds the programs of the copy, with the suite's built dependencies.
fn build() -> PathBuf {
    let suite = Path::new(GATEWAY).parent().unwrap();
    let folder = suite.parent().unwrap().join("adding");
    let copy = source(&folder);
    let target = folder.join("target");
    if !target.exists() {
        dependencies(suite, &target.join("debug"));
    }
    let mut command = Command::new(env!("CARGO"));
    // These programs are not measured: optimizing them would take half a minute.
    command.args([
        "build",
        "--offline",
        "--locked",
        "--bins",
        "--config",
        "profile.dev.package.netmon-mcp.opt-level=0",
    ]);
    command.args(["--config", "profile.dev.package.netmon-mcp.debug=false", "--target-dir"]).arg(&target);
    let output = command.current_dir(&copy).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    target.join("debug")
}

#[test]
fn new_tool_needs_one_folder_and_one_line() {
    require_root();
    let programs = build();
    let folder = open_folder();
    let socket = folder.path().join("netmond.sock");
    let mut daemon = Command::new(programs.join("netmond"));
    daemon.arg("--socket").arg(&socket).args(["--group", GROUP]).env("RUST_LOG", "warn").stdin(Stdio::null());
    let _daemon = Ended(daemon.spawn().unwrap());
    let gateway = |arguments: &[&str]| {
        let mut command = Command::new(programs.join("netmon-mcp"));
        command.arg("--socket").arg(&socket).args(arguments);
        command
    };
    until("netmond serves", || ask(&socket, "{\"version\":2,\"tool\":\"status\",\"input\":{}}").ok());
    let prints = |line: &str| {
        let output = gateway(&line.split(' ').collect::<Vec<_>>()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for line in ["tools", "tools host_load", "call --help", "--help", "call status"] {
        assert!(prints(line).contains(ADDED), "{line}");
    }
    let mut completing = gateway(&[]);
    completing.args(["--", "netmon-mcp", "host_"]).env("COMPLETE", "bash");
    let offered = completing.stdin(Stdio::null()).output().unwrap();
    assert!(String::from_utf8_lossy(&offered.stdout).contains(ADDED), "{offered:?}");
    let answer: Value = serde_json::from_str(&prints("host_load --json")).unwrap();
    assert!(answer["load_1_minute"].is_number(), "{answer}");

    let mut client = Client::spawn(gateway(&[]));
    let params =
        json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}});
    let hello = client.request("initialize", params);
    client.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
    let instructions = hello["result"]["instructions"].as_str().unwrap();
    assert!(instructions.contains("how many threads want a CPU: host_load"), "{instructions}");
    let listed = client.request("tools/list", json!({}));
    let tool = listed["result"]["tools"].as_array().unwrap().iter().find(|tool| tool["name"] == ADDED).unwrap();
    assert_eq!(tool["annotations"]["readOnlyHint"], true, "{tool}");
    assert!(tool["outputSchema"]["properties"]["load_1_minute"].is_object(), "{tool}");
    assert!(client.call(ADDED, json!({})).unwrap()["load_1_minute"].is_number());
    assert_eq!(client.tool_status(ADDED)["available"], true);
    // diagnose has no other checks. How many of them can judge depends on the traffic of other tests.
    let checks = client.call("diagnose", json!({"duration_ms": 100})).unwrap()["checks"]["total"].clone();
    let ours = Daemon::start();
    let before = Client::connect(&ours.socket).call("diagnose", json!({"duration_ms": 100})).unwrap();
    assert_eq!(checks, before["checks"]["total"]);
}
