//! The gateway and its daemon: absent, killed, restarted, of another release, forbidden; the command line; daemons for
//! one call.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener, process::CommandExt},
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

use netmon_mcp::version::VERSION;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::*;

/// As an ordinary user without the group.
fn as_user(mut command: Command) -> Command {
    command.uid(NOBODY).gid(1);
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

/// One clear line on stderr, nothing on stdout, an exit code.
fn fails_with(code: i32, output: &Output, words: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!((output.status.code(), stderr.lines().count(), output.stdout.len()), (Some(code), 1, 0), "{stderr}");
    assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
}

/// The binaries, in a folder where an ordinary user can run them.
fn public_binaries() -> (TempDir, std::path::PathBuf) {
    let folder = TempDir::new().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    for binary in [GATEWAY, DAEMON] {
        // In a separate process: a child of another test would inherit the open file, and Linux would then refuse to
        // run it.
        run(&format!("cp {binary} {}", folder.path().display()));
    }
    let gateway = folder.path().join("netmon-mcp");
    (folder, gateway)
}

#[test]
fn error_without_daemon_names_systemctl_and_sudo() {
    require_root();
    let (_folder, gateway) = public_binaries();
    let mut command = Command::new(gateway);
    command.args(["--socket", "/nonexistent/netmond.sock", "call", "network-monitor", "operation=incoming"]);
    let output = as_user(command).output().unwrap();
    fails_with(1, &output, &["not running", "systemctl start netmond", "sudo"]);
}

#[test]
fn error_outside_the_group_names_usermod() {
    let daemon = Daemon::light();
    let (_folder, gateway) = public_binaries();
    let mut command = Command::new(gateway);
    command.arg("--socket").arg(&daemon.socket).args(["call", "network-monitor", "operation=incoming"]);
    let output = as_user(command).output().unwrap();
    fails_with(1, &output, &["no permission to use netmond", "usermod -aG netmon", "sudo"]);
}

#[test]
fn group_member_needs_no_root() {
    let daemon = Daemon::light(); // its socket has the group nogroup
    let (_folder, gateway) = public_binaries();
    let mut command = Command::new(gateway);
    command.arg("--socket").arg(&daemon.socket).args(["call", "status", "--json"]).uid(NOBODY).gid(NOBODY);
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
fn gateway_reconnects_to_a_restarted_daemon() {
    let mut daemon = Daemon::light();
    let mut client = Client::connect(&daemon.socket);
    let mut other = Client::connect(&daemon.socket);
    let id = client.begin_call("network-monitor", json!({"operation": "incoming", "interface": "lo", "duration": 60}));
    other.until_open("network-monitor", 1);
    daemon.kill();
    let text = client.end_call(id).unwrap_err();
    assert!(text.contains("disconnected during the measurement") && text.contains("call again"), "{text}");
    let text = client.call("snapshot_interfaces", json!({"duration_ms": 100})).unwrap_err();
    assert!(text.contains("not running"), "{text}");
    daemon.restart();
    assert!(client.call("snapshot_interfaces", json!({"duration_ms": 100})).is_ok());
}

#[test]
fn stopping_daemon_answers_open_windows() {
    let mut daemon = Daemon::light();
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
    let folder = open_folder();
    let socket = folder.path().join("netmond.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
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
fn other_release_and_absent_daemon_have_own_errors() {
    let cases = [
        ("{\"version\":99,\"sample\":{}}\n", "restart the older"),
        ("{\"version\":1,\"error\":{\"version\":{\"daemon\":1,\"gateway\":2}}}\n", "restart the older"),
        ("HTTP/1.1 400 Bad Request\n", "not from netmond"),
        ("", "disconnected"),
    ];
    for (line, expected) in cases {
        let (_folder, socket) = fake_daemon(line);
        let output = cli(&socket, &["call", "snapshot_interfaces", "duration_ms=100"]).output().unwrap();
        fails_with(1, &output, &[expected]);
    }
}

#[test]
fn root_starts_its_daemon_and_drops_privileges() {
    require_root();
    let folder = open_folder();
    let mut command = Command::new(GATEWAY);
    command.arg("--socket").arg(folder.path().join("none.sock")).env("EVIL", "1").env("RUST_LOG", "debug");
    command.current_dir(folder.path()).stderr(Stdio::null());
    let mut client = Client::connect_to(command);
    client.request("tools/list", json!({}));
    let gateway = client_pid(&client);
    let starter = std::fs::read_to_string(format!("/proc/{gateway}/task/{gateway}/children")).unwrap();
    let starter: u32 = starter.trim().parse().expect("one child, that waits");
    assert_eq!(
        std::fs::read_to_string(format!("/proc/{starter}/comm")).unwrap(),
        "netmon-mcp\n",
        "nothing is started yet"
    );
    let held = |pid: u32, name: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find(|l| l.starts_with(name)).unwrap().split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!((held(gateway, "Uid:").as_str(), held(gateway, "CapPrm:").as_str()), ("65534", "0000000000000000"));
    let status = client.call("status", json!({})).unwrap();
    assert_eq!((&status["daemon"]["connected"], &status["daemon"]["uid"]), (&json!(true), &json!(NOBODY)), "{status}");
    // The starter became the daemon, and has nothing of the caller.
    let daemon = status["daemon"]["pid"].as_u64().unwrap();
    assert_eq!(daemon, u64::from(starter));
    let environment = std::fs::read_to_string(format!("/proc/{daemon}/environ")).unwrap();
    let mut names: Vec<_> = environment.split_terminator('\0').map(|one| one.split('=').next().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["PATH", "RUST_LOG"], "{environment}");
    assert!(environment.contains("RUST_LOG=warn") && environment.contains("PATH=/usr/"), "{environment}");
    assert_eq!(std::fs::read_link(format!("/proc/{daemon}/cwd")).unwrap(), Path::new("/"));
    let arguments = std::fs::read_to_string(format!("/proc/{daemon}/cmdline")).unwrap();
    assert_eq!(arguments, "netmond\0--parent\0\u{30}\0");
    assert!(client.call("snapshot_interfaces", json!({"duration_ms": 100})).is_ok(), "again, without root");
    client.child.kill().unwrap();
    until("the daemon ends with its gateway", || (!Path::new(&format!("/proc/{daemon}")).exists()).then_some(()));
}

/// In every mode: before the gateway can read anything, it is not root.
#[test]
fn root_is_dropped_before_the_first_read() {
    require_root();
    let folder = open_folder();
    let (settings, socket) = (folder.path().join("settings"), folder.path().join("none.sock"));
    run(&format!("mkfifo {}", settings.display())); // a reader of the FIFO blocks, so the process stays in this state
    for mode in [&[][..], &["stdio"], &["http"], &["call", "status"], &["doctor"], &["--check-config"], &["tools"]] {
        let mut command = Command::new(GATEWAY);
        command.arg("--config").arg(&settings).arg("--socket").arg(&socket).args(mode);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = Ended(command.spawn().unwrap());
        let pid = child.0.id();
        let is_reading = || std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap().contains("wait_for_partner"); // the other end of the pipe
        until(&format!("{mode:?} reads its settings"), || is_reading().then_some(()));
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = |name: &str| {
            status.lines().find(|line| line.starts_with(name)).unwrap().split('\t').skip(1).collect::<Vec<_>>()
        };
        assert_eq!(line("Uid:"), ["65534"; 4], "{mode:?}");
        assert_eq!(line("Gid:"), ["65534"; 4], "{mode:?}");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(line(set), ["0000000000000000"], "{mode:?}: {set}");
        }
        assert_eq!(line("NoNewPrivs:"), ["1"], "{mode:?}");
    }
}

#[test]
fn root_refuses_remote_hosts() {
    require_root();
    let hosts = ["--host=a=ssh:x", "--ssh-config=/dev/null", "call", "status"];
    fails_with(1, &cli(Path::new("/none"), &hosts).output().unwrap(), &["not available as root", "without sudo"]);
}

/// Data that only root can read is neither sent nor shown.
#[test]
fn root_opens_no_caller_files() {
    require_root();
    for file in ["--config=/etc/shadow", "--tokens=/etc/shadow"] {
        let output = cli(Path::new("/none"), &[file, "--check-config"]).output().unwrap();
        fails_with(1, &output, &["/etc/shadow", "Permission denied"]);
    }
}

fn client_pid(client: &Client) -> u32 {
    client.child.id()
}

#[test]
fn refused_program_leaves_other_tools_working() {
    require_root();
    let folder = open_folder();
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
    until("netmond serves", || ask(&socket, "{\"version\":2,\"tool\":\"status\",\"input\":{}}").ok());
    let mut client = Client::connect(&socket);
    let status = client.tool_status("network-monitor");
    assert_eq!(status["available"], false, "{status}");
    assert!(status["reason"].as_str().unwrap().contains("lacks CAP_PERFMON"), "{status}");
    let text = client.call("network-monitor", json!({"operation": "incoming"})).unwrap_err();
    assert!(text.contains("network-monitor is not available on this host"), "{text}");
    assert!(client.call("snapshot_interfaces", json!({"duration_ms": 100})).is_ok());
}

#[test]
fn command_line_prints_tables_json_and_errors() {
    let daemon = Daemon::light();
    let output = cli(&daemon.socket, &["call", "snapshot_interfaces", "duration_ms=100"]).output().unwrap();
    let table = text(&output.stdout);
    assert!(output.status.success() && table.starts_with("interface") && table.contains("lo"), "{table}");
    assert_eq!(text(&output.stderr), "", "no progress bar where there is no terminal");
    let output = cli(&daemon.socket, &["call", "snapshot_interfaces", "duration_ms=100", "--json"]).output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["interfaces"].as_array().unwrap().iter().any(|i| i["name"] == "lo"));
    let output = cli(&daemon.socket, &["call", "snapshot_interfaces", "duration_ms=1"]).output().unwrap();
    fails_with(2, &output, &["duration_ms", "from 100 to 60000"]);
    let output = cli(&daemon.socket, &["call", "snapshot_interfaces", "interface=nosuch0"]).output().unwrap();
    fails_with(2, &output, &["unknown interface", "lo"]);
    let output = cli(&daemon.socket, &["call", "nosuch"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "a usage error");
    assert!(text(&output.stderr).contains("snapshot_interfaces"));
}

#[test]
fn interface_flag_overrides_net_iface() {
    let daemon = Daemon::light();
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
fn doctor_reports_passed_and_failed_checks() {
    let daemon = Daemon::start();
    let output = cli(&daemon.socket, &["doctor"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("ok   cgroup v2 "), "{output:?}");
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
fn doctor_notes_what_the_host_hides() {
    use rustix::net::{AddressFamily, SocketType, socket};
    let (netns, daemon) = (Netns::new(), Daemon::start());
    let _sends = netns.enter(|| socket(AddressFamily::PACKET, SocketType::RAW, None).unwrap());
    let output = cli(&daemon.socket, &["doctor"]).output().unwrap();
    let report = text(&output.stdout);
    let mut lines = report.lines().skip_while(|line| !(line.starts_with("note ") && line.contains("AF_PACKET")));
    assert!(lines.next().is_some() && lines.next() == Some("     limits top_traffic"), "{report}");
    assert!(output.status.success() && report.ends_with("on this host.\n"), "{report}");
}

#[test]
fn help_completions_and_manual_agree() {
    let print = |arguments: &[&str]| text(&cli(Path::new("/none"), arguments).output().unwrap().stdout);
    assert!(print(&["--help"]).contains("netmon-mcp snapshot_sockets"));
    assert!(print(&["--version"]).contains(VERSION.as_str()));
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        assert!(print(&["completions", shell]).contains("netmon-mcp"), "{shell}");
    }
    assert!(print(&["man"]).contains(".TH netmon-mcp"));
    assert!(
        print(&["tools"]).contains("network-monitor") && print(&["tools", "network-monitor"]).contains("operation")
    );
}
