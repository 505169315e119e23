//! Neither process links the other's libraries, and the daemon serves with minimal privileges.

use std::{collections::BTreeSet, process::Command};

use serde_json::json;

use crate::harness::*;

/// The symbols that a binary defines, demangled.
fn symbols(binary: &str) -> String {
    run(&format!("nm --demangle --defined-only {binary}"))
}

/// The shared libraries that it needs.
fn libraries(binary: &str) -> String {
    run(&format!("readelf -d {binary}"))
}

#[test]
fn gateway_does_not_link_libbpf() {
    let symbols = symbols(GATEWAY);
    for name in ["bpf_object__", "bpf_link_create", "libbpf_print", "btf__parse"] {
        assert!(!symbols.contains(name), "{name} is in netmon-mcp");
    }
    assert!(!libraries(GATEWAY).contains("libelf"), "netmon-mcp wants libelf");
    assert!(!run(&format!("readelf -S --wide {GATEWAY}")).contains(".bpf.objs"), "netmon-mcp carries BPF objects");
}

#[test]
fn daemon_links_neither_mcp_nor_async_runtime() {
    let symbols = symbols(DAEMON);
    for name in ["rmcp::", "tokio::", "hyper::", "axum::"] {
        assert!(!symbols.contains(name), "{name} is in netmond");
    }
    assert!(symbols.contains("bpf_object__"), "the symbols of netmond are there to be read");
}

// In guests.
#[test]
fn daemon_capabilities_match_status_and_design() {
    let daemon = Daemon::own();
    let mut client = Client::connect(&daemon.socket);
    let status = client.call("status", json!({})).unwrap();
    let said: BTreeSet<String> =
        status["daemon"]["capabilities"].as_array().unwrap().iter().map(|c| c.as_str().unwrap().to_owned()).collect();
    let proc = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let field = |name: &str| proc.lines().find(|l| l.starts_with(name)).unwrap().split_once('\t').unwrap().1.to_owned();
    let set = |name: &str| u64::from_str_radix(&field(name), 16).unwrap();
    let bits = [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
    let expected = bits.iter().filter(|(name, _)| said.contains(*name)).fold(0u64, |set, (_, bit)| set | 1 << bit);
    assert_eq!((set("CapEff:"), set("CapPrm:")), (expected, expected), "{said:?}");
    assert_eq!((set("CapInh:"), set("CapAmb:")), (0, 0));
    assert_eq!(set("CapBnd:") & !(1 << 12 | 1 << 38 | 1 << 39), 0, "the bounding set");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Groups:").trim(), "", "supplementary groups");
    assert_ne!(field("Uid:").split_whitespace().next().unwrap(), "0");
    // This kernel needs no capability; each tool states the needs on an older one.
    let keeps: BTreeSet<String> = status["tools"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|t| t["keeps"].as_array().unwrap().iter().map(|c| c.as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(keeps, said);
}

#[test]
fn both_binaries_print_their_version() {
    for binary in [GATEWAY, DAEMON] {
        let output = Command::new(binary).arg("--version").output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains(env!("CARGO_PKG_VERSION")));
    }
}

/// Root can ask a netmond without a group, although its gateway has become nobody; an ordinary user cannot.
#[test]
fn root_connects_without_a_group() {
    let folder = open_folder();
    let socket = folder.path().join("netmond.sock");
    let mut daemon = Command::new(DAEMON);
    daemon.args(["--group", "no-such-group", "--without", "diagnose", "--socket"]).arg(&socket);
    let _daemon = Ended(daemon.env("RUST_LOG", "error").spawn().unwrap());
    let call = |command: &mut Command| {
        let output = command.arg("--socket").arg(&socket).args(["call", "snapshot_sockets"]).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    until("root has an answer", || call(&mut Command::new(GATEWAY)).0.then_some(()));
    let (answered, error) = call(Command::new("setpriv").args(["--reuid", "nobody", "--clear-groups", GATEWAY]));
    assert!(!answered && error.contains("no permission to use netmond"), "{error}");
}
