//! The start of a daemon: the order of loading, and the holders of capabilities meanwhile.

use std::{
    io::{BufRead, BufReader, IoSlice, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    process::{Command, Stdio},
    time::Duration,
};

use netmon_mcp::wire;
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};

use serde_json::{Value, json};

use crate::harness::*;

/// The tools whose programs a gateway's own daemon has loaded by the end of its only request.
fn loaded_by(tool: &str, input: Value) -> Vec<String> {
    require_root();
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let mut command = Command::new(DAEMON);
    command.args(["--parent", "0", "--log-format", "json"]).env("RUST_LOG", "netmon_mcp=debug");
    let child = command.stdin(Stdio::from(theirs)).stderr(Stdio::piped()).spawn().unwrap();
    drop(command); // closes its end of the channel
    let (mut stream, given) = UnixStream::pair().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let (mut rights, fds) = (SendAncillaryBuffer::new(&mut space), [given.as_fd()]);
    rights.push(SendAncillaryMessage::ScmRights(&fds));
    let last = [IoSlice::new(&[wire::LAST])];
    rustix::net::sendmsg(&ours, &last, &mut rights, SendFlags::empty()).unwrap();
    drop(given);
    writeln!(stream, "{}", json!({"version": wire::VERSION, "tool": tool, "input": input})).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    assert!(answer.contains("\"sample\""), "{answer}");
    drop(ours); // it ends with its gateway
    let log = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let loaded = lines.filter(|line| line["message"] == "loaded").map(|line| line["tool"].as_str().unwrap().to_owned());
    let without_bpf = ["diagnose", "snapshot_interfaces", "status"];
    let mut tools: Vec<_> = loaded.filter(|name| !without_bpf.contains(&name.as_str())).collect();
    tools.sort();
    tools
}

#[test]
fn single_call_loads_only_its_tool() {
    assert_eq!(loaded_by("snapshot_interfaces", json!({"duration_ms": 100})), Vec::<String>::new());
    assert_eq!(loaded_by("top_traffic", json!({"duration_ms": 100})), ["top_traffic"]);
    let incoming = json!({"operation": "incoming", "interface": "lo", "duration": 0.1});
    assert_eq!(loaded_by("network-monitor", incoming), ["network-monitor"]);
    assert_eq!(loaded_by("status", json!({})).len(), 8);
}

/// A field of every thread of a process.
fn of_threads(pid: u64, field: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let status = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    let value = |status: String| status.lines().find_map(|line| Some(line.strip_prefix(field)?.trim().to_owned()));
    status.filter_map(value).collect()
}

#[test]
fn server_loads_the_called_tool_first() {
    require_root();
    let folder = open_folder();
    let mut client = Client::connect(&folder.path().join("none.sock"));
    let answer = client.call("top_traffic", json!({"duration_ms": 100})).unwrap();
    assert!(answer["rows"].is_array(), "{answer}");
    let status = client.call("status", json!({})).unwrap(); // it waits for all tools
    for tool in status["tools"].as_array().unwrap() {
        assert_eq!(tool["available"], true, "{tool}");
    }
    let daemon = status["daemon"]["pid"].as_u64().unwrap();
    let none = "0000000000000000";
    until("what loaded has ended", || {
        of_threads(daemon, "Name:").iter().all(|name| !name.starts_with("load")).then_some(())
    });
    for field in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"] {
        let held = of_threads(daemon, field);
        assert!(!held.is_empty() && held.iter().all(|set| set == none), "{field} {held:?}");
    }
    assert!(of_threads(daemon, "Seccomp:").iter().all(|mode| mode == "2"));
}

#[test]
fn requests_are_read_without_capabilities() {
    require_root();
    let folder = open_folder();
    let mut client = Client::connect(&folder.path().join("none.sock"));
    let window = client.begin_call("snapshot_interfaces", json!({"duration_ms": 1_000}));
    let gateway = client.child.id();
    let children = || std::fs::read_to_string(format!("/proc/{gateway}/task/{gateway}/children")).unwrap();
    let serving = |pid: u64| {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
        let status = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
        status.into_iter().find(|status| status.starts_with("Name:\trequest"))
    };
    let status = until("the request is read", || serving(children().trim().parse().ok()?));
    for line in ["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "Seccomp:\t2", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{line} in {status}");
    }
    assert!(client.end_call(window).is_ok());
}

#[test]
fn daemon_killed_while_loading_leaves_nothing() {
    require_root();
    let folder = open_folder();
    let socket = folder.path().join("netmond.sock");
    let netns = Netns::new();
    for step in 0..8 {
        let mut command = netns.command(DAEMON);
        command.arg("--socket").arg(&socket).args(["--group", GROUP]).env("RUST_LOG", "error").stdin(Stdio::null());
        let mut child = Ended(command.spawn().unwrap());
        std::thread::sleep(Duration::from_millis(60 * step)); // at some moment of its load
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        let left = netns.run("tc filter show dev lo ingress") + &netns.run("tc filter show dev lo egress");
        assert!(left.is_empty(), "after {} ms: {left}", 60 * step);
    }
    let mut daemon = Ended({
        let mut command = netns.command(DAEMON);
        command.arg("--socket").arg(&socket).args(["--group", GROUP]).env("RUST_LOG", "error").stdin(Stdio::null());
        command.spawn().unwrap()
    });
    let status = until("the next one serves", || ask(&socket, "{\"version\":2,\"tool\":\"status\",\"input\":{}}").ok());
    let status: Value = serde_json::from_str(&status).unwrap();
    assert!(status["sample"]["tools"].as_array().unwrap().iter().all(|tool| tool["available"] == true), "{status}");
    daemon.0.kill().unwrap();
}

#[test]
fn daemon_announces_an_open_window_on_request() {
    let daemon = Daemon::start();
    let window = daemon.watch("snapshot_interfaces", json!({}));
    assert!(window.end()["measured"]["window_ms"].as_f64().unwrap() < 60_000.0);
    let line = "{\"version\":2,\"tool\":\"snapshot_interfaces\",\"input\":{\"duration_ms\":100}}";
    let first: Value = serde_json::from_str(&ask(&daemon.socket, line).unwrap()).unwrap();
    assert!(first["sample"].is_object() && first.get("opened").is_none(), "{first}");
}
