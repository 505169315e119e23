//! The gateway and its daemon: absent, killed, restarted, foreign, forbidden; the command line; ad hoc.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener, process::CommandExt},
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::*;

/// Nobody's ids: what an ordinary user is here.
const NOBODY: u32 = 65534;

fn as_user(mut command: Command) -> Command {
    command.uid(NOBODY).gid(NOBODY);
    command
}

fn cli(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(GATEWAY);
    command.arg("--socket").arg(socket).args(arguments).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// One clear line on stderr, nothing on stdout, exit code 1.
fn fails_with(output: &Output, words: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!((output.status.code(), stderr.lines().count(), output.stdout.len()), (Some(1), 1, 0), "{stderr}");
    assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
}

/// The binaries where an ordinary user can run them.
fn public_binaries() -> (TempDir, std::path::PathBuf) {
    let folder = TempDir::new().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    for binary in [GATEWAY, DAEMON] {
        // By a process of its own: a child of another test would inherit the open file, and Linux would not start it.
        run(&format!("cp {binary} {}", folder.path().display()));
    }
    let gateway = folder.path().join("netmon-mcp");
    (folder, gateway)
}

#[test]
fn without_a_daemon_a_user_hears_of_the_two_ways_out() {
    require_root();
    let (_folder, gateway) = public_binaries();
    let mut command = Command::new(gateway);
    command.args(["--socket", "/nonexistent/netmond.sock", "call", "network-monitor", "operation=incoming"]);
    let output = as_user(command).output().unwrap();
    fails_with(&output, &["not running", "systemctl start netmond", "sudo"]);
}

#[test]
fn who_is_not_in_the_group_hears_how_to_join_it() {
    let daemon = Daemon::start();
    let folder = daemon.socket.parent().unwrap();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (_folder, gateway) = public_binaries();
    let mut command = Command::new(gateway);
    command.arg("--socket").arg(&daemon.socket).args(["call", "network-monitor", "operation=incoming"]);
    let output = as_user(command).output().unwrap();
    fails_with(&output, &["may not ask", "usermod -aG netmon", "sudo"]);
}

#[test]
fn a_member_of_the_group_just_works() {
    let daemon = Daemon::start(); // whose socket is the group root's
    std::fs::set_permissions(daemon.socket.parent().unwrap(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (_folder, gateway) = public_binaries();
    let mut command = Command::new(gateway);
    command.arg("--socket").arg(&daemon.socket).args(["call", "status", "--json"]).uid(NOBODY).gid(0);
    let output = command.output().unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(status["daemon"]["connected"], true);
}

#[test]
fn status_answers_without_a_daemon() {
    require_root();
    let (_folder, gateway) = public_binaries();
    let mut command = Command::new(gateway);
    command.args(["--socket", "/nonexistent/netmond.sock", "call", "status", "--json"]);
    let output = as_user(command).output().unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["daemon"]["connected"], false);
    assert!(status["daemon"]["reason"].as_str().unwrap().contains("not running"), "{status}");
}

#[test]
fn the_gateway_outlives_its_daemon_and_finds_the_next_one() {
    let mut daemon = Daemon::start();
    let mut client = Client::connect(&daemon.socket);
    let mut other = Client::connect(&daemon.socket);
    let id = client.begin_call("network-monitor", json!({"operation": "incoming", "interface": "lo", "duration": 60}));
    other.until_open("network-monitor", 1);
    daemon.kill();
    let text = client.end_call(id).unwrap_err();
    assert!(text.contains("went away in the middle") && text.contains("call again"), "{text}");
    let text = client.call("snapshot_interfaces", json!({"duration_ms": 100})).unwrap_err();
    assert!(text.contains("not running"), "{text}");
    daemon.restart();
    assert!(client.call("snapshot_interfaces", json!({"duration_ms": 100})).is_ok());
}

#[test]
fn a_daemon_that_is_told_to_stop_says_so_to_open_windows() {
    let mut daemon = Daemon::start();
    let mut client = Client::connect(&daemon.socket);
    let mut other = Client::connect(&daemon.socket);
    let id = client.begin_call("network-monitor", json!({"operation": "incoming", "interface": "lo", "duration": 60}));
    other.until_open("network-monitor", 1);
    run(&format!("kill -TERM {}", daemon.pid()));
    let text = client.end_call(id).unwrap_err();
    assert!(text.contains("shutting down"), "{text}");
    let status = until("netmond ends", || daemon.child().try_wait().unwrap());
    assert!(status.success(), "{status}");
}

/// A daemon that answers every request with `line`.
fn fake_daemon(line: &'static str) -> (TempDir, std::path::PathBuf) {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("netmond.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = String::new();
            let _ = BufReader::new(&stream).read_line(&mut request);
            let _ = stream.write_all(line.as_bytes());
        }
    });
    (folder, socket)
}

#[test]
fn a_daemon_of_another_release_or_none_at_all_is_told_apart() {
    let cases = [
        ("{\"version\":99,\"sample\":{}}\n", "restart whichever"),
        ("{\"version\":1,\"error\":{\"version\":{\"daemon\":1,\"gateway\":2}}}\n", "restart whichever"),
        ("HTTP/1.1 400 Bad Request\n", "not netmond"),
        ("", "went away"),
    ];
    for (line, expected) in cases {
        let (_folder, socket) = fake_daemon(line);
        let output = cli(&socket, &["call", "snapshot_interfaces", "duration_ms=100"]).output().unwrap();
        fails_with(&output, &[expected]);
    }
}

#[test]
fn root_starts_a_daemon_for_itself_and_gives_root_up() {
    require_root();
    let folder = TempDir::new().unwrap();
    let mut client = Client::connect(&folder.path().join("none.sock"));
    let uid = |pid: u32, key: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find(|l| l.starts_with(key)).unwrap().split_whitespace().nth(1).unwrap().to_owned()
    };
    client.request("tools/list", json!({}));
    let children = || std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", client_pid(&client))).unwrap();
    assert_eq!(children().trim(), "", "a client that only looks starts nothing");
    let gateway = client.child.id();
    let status = client.call("status", json!({})).unwrap();
    assert_eq!((&status["daemon"]["connected"], &status["daemon"]["uid"]), (&json!(true), &json!(NOBODY)), "{status}");
    assert_eq!((uid(gateway, "Uid:").as_str(), uid(gateway, "CapPrm:").as_str()), ("65534", "0000000000000000"));
    let daemon = status["daemon"]["pid"].as_u64().unwrap();
    assert!(client.call("snapshot_interfaces", json!({"duration_ms": 100})).is_ok(), "again, without root");
    client.child.kill().unwrap();
    until("the daemon ends with its gateway", || (!Path::new(&format!("/proc/{daemon}")).exists()).then_some(()));
}

fn client_pid(client: &Client) -> u32 {
    client.child.id()
}

#[test]
fn what_the_kernel_refuses_does_not_stop_the_rest() {
    require_root();
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("netmond.sock");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let (_binaries, gateway) = public_binaries();
    // Without CAP_PERFMON the kernel loads no tracing program.
    let child = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all,+bpf,+net_admin"])
        .args(["--ambient-caps=-all,+bpf,+net_admin", "--bounding-set=-all,+bpf,+net_admin"])
        .arg(gateway.with_file_name("netmond"))
        .arg("--socket")
        .arg(&socket)
        .env("RUST_LOG", "error")
        .spawn()
        .unwrap();
    let _child = Ended(child);
    until("netmond serves", || ask(&socket, "{\"version\":1,\"tool\":\"status\",\"input\":{}}").ok());
    let mut client = Client::connect(&socket);
    let status = client.tool_status("network-monitor");
    assert_eq!(status["available"], false, "{status}");
    assert!(status["reason"].as_str().unwrap().contains("it needs Linux"), "{status}");
    let text = client.call("network-monitor", json!({"operation": "incoming"})).unwrap_err();
    assert!(text.contains("network-monitor is not available on this host"), "{text}");
    assert!(client.call("snapshot_interfaces", json!({"duration_ms": 100})).is_ok());
}

#[test]
fn the_command_line_prints_tables_json_and_clear_errors() {
    let daemon = Daemon::start();
    let output = cli(&daemon.socket, &["call", "snapshot_interfaces", "duration_ms=100"]).output().unwrap();
    let table = text(&output.stdout);
    assert!(output.status.success() && table.starts_with("interface") && table.contains("lo"), "{table}");
    assert_eq!(text(&output.stderr), "", "no progress bar where there is no terminal");
    let output = cli(&daemon.socket, &["call", "snapshot_interfaces", "duration_ms=100", "--json"]).output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["interfaces"].as_array().unwrap().iter().any(|i| i["name"] == "lo"));
    let output = cli(&daemon.socket, &["call", "snapshot_interfaces", "duration_ms=1"]).output().unwrap();
    fails_with(&output, &["duration_ms", "from 100 to 60000"]);
    let output = cli(&daemon.socket, &["call", "snapshot_interfaces", "interface=nosuch0"]).output().unwrap();
    fails_with(&output, &["no interface is named", "lo"]);
    let output = cli(&daemon.socket, &["call", "nosuch"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "a usage error");
    assert!(text(&output.stderr).contains("snapshot_interfaces"));
}

#[test]
fn net_iface_sets_the_interface_and_the_flag_wins_over_it() {
    let daemon = Daemon::start();
    let interface = |arguments: &[&str]| {
        let mut command = cli(&daemon.socket, arguments);
        let output = command.env("NET_IFACE", "nosuch0").output().unwrap();
        text(&output.stdout) + &text(&output.stderr)
    };
    let call = ["call", "network-monitor", "operation=incoming", "duration=0.1"];
    assert!(interface(&call).contains("\"nosuch0\""));
    assert!(interface(&[&["--interface", "lo"], &call[..]].concat()).starts_with("lo in"));
    assert!(interface(&[&call[..], &["interface=lo"]].concat()).starts_with("lo in"));
}

#[test]
fn the_doctor_says_what_is_well_and_what_is_not() {
    let daemon = Daemon::start();
    let output = cli(&daemon.socket, &["doctor"]).output().unwrap();
    let report = text(&output.stdout);
    assert!(output.status.success() && report.contains("ok   netmond answers") && !report.contains("FAIL"), "{report}");
    let (_folder, gateway) = public_binaries();
    let mut command = Command::new(gateway);
    command.args(["--socket", "/nonexistent/netmond.sock", "doctor"]);
    let output = as_user(command).output().unwrap();
    let report = text(&output.stdout);
    assert!(output.status.code() == Some(1) && report.contains("FAIL") && report.contains("sudo"), "{report}");
}

#[test]
fn help_completions_and_the_manual_come_from_one_definition() {
    let print = |arguments: &[&str]| text(&cli(Path::new("/none"), arguments).output().unwrap().stdout);
    assert!(print(&["--help"]).contains("netmon-mcp call snapshot_interfaces"));
    assert!(print(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh"] {
        assert!(print(&["completions", shell]).contains("snapshot_interfaces"), "{shell}");
    }
    assert!(print(&["completions", "fish"]).contains("doctor"));
    assert!(print(&["man"]).contains(".TH netmon-mcp"));
    assert!(
        print(&["tools"]).contains("network-monitor") && print(&["tools", "network-monitor"]).contains("operation")
    );
}
