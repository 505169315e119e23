//! Clients that flood, stall, die or lack permission: they leave nothing behind, and others are served.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::{net::UnixStream, process::CommandExt},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use netmon_mcp::limits;
use serde_json::{Value, json};

use crate::harness::*;

const STATUS: &str = "{\"version\":2,\"tool\":\"status\",\"input\":{}}";
const WINDOW: &str = "{\"version\":2,\"tool\":\"network-monitor\",\"input\":{\"operation\":\"incoming\",\"interface\":\"lo\",\"duration\":60}}\n";

/// The daemon's count in `/proc` of a resource that must not grow.
fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

fn threads(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().count()
}

/// The only error in a line of the daemon.
fn error(line: &str) -> Value {
    serde_json::from_str::<Value>(line).unwrap()["error"].clone()
}

#[test]
fn killed_clients_leave_nothing_attached() {
    let daemon = Daemon::light();
    let before = descriptors(&daemon);
    let mut client = Client::connect(&daemon.socket);
    let mut open: Vec<UnixStream> = Vec::new();
    for _ in 0..20 {
        let mut stream = UnixStream::connect(&daemon.socket).unwrap();
        stream.write_all(WINDOW.as_bytes()).unwrap();
        open.push(stream);
    }
    client.until_open("network-monitor", 20);
    assert!(!client.links("network-monitor").is_empty());
    drop(open);
    client.until_open("network-monitor", 0);
    client.until_detached("network-monitor");
    until("descriptors and threads are given back", || {
        (descriptors(&daemon) <= before && threads(&daemon) == 1).then_some(())
    });
}

#[test]
fn request_flood_is_refused_and_others_are_served() {
    let daemon = Daemon::light();
    // The maximal number of silent connections of one user.
    let silent: Vec<_> =
        (0..limits::REQUESTS_OF_A_USER).map(|_| UnixStream::connect(&daemon.socket).unwrap()).collect();
    let refused =
        until("the flood is refused", || ask(&daemon.socket, STATUS).ok().filter(|line| line.contains("busy")));
    assert!(error(&refused)["busy"].as_str().unwrap().contains("uid 0 reached the limit"), "{refused}");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", GATEWAY, "--socket"]).arg(&daemon.socket);
    let other = command.args(["call", "status", "--json"]).output().unwrap();
    let other: Value = serde_json::from_slice(&other.stdout).unwrap_or_else(|_| panic!("{other:?}"));
    assert_eq!(other["daemon"]["connected"], true, "another user is served");
    let begun = Instant::now();
    drop(silent);
    until("places are given back", || ask(&daemon.socket, STATUS).ok().filter(|line| line.contains("sample")));
    assert!(begun.elapsed() < limits::REQUEST_TIME, "they were given back when the flood ended");
}

#[test]
fn silent_connection_times_out() {
    let daemon = Daemon::light();
    let mut stream = UnixStream::connect(&daemon.socket).unwrap();
    stream.write_all(b"{\"version\"").unwrap();
    let begun = Instant::now();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer); // an end, or a reset for unread data
    assert!(begun.elapsed() < limits::REQUEST_TIME + Duration::from_secs(5), "{:?}", begun.elapsed());
    until("the thread is given back", || (threads(&daemon) == 1).then_some(()));
}

/// An error behind a part of an answer would read as the rest of it.
#[test]
fn client_that_is_too_slow_gets_a_part_of_an_answer_and_no_more() {
    let daemon = Daemon::light();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let open = |_| (TcpStream::connect(listener.local_addr().unwrap()).unwrap(), listener.accept().unwrap());
    // Of more than a kilobyte each, so that the answer is longer than a socket takes without being read.
    let room: usize = std::fs::read_to_string("/proc/sys/net/core/wmem_default").unwrap().trim().parse().unwrap();
    let _open: Vec<_> = (0..500 + room / 1_000).map(open).collect();
    let mut stream = UnixStream::connect(&daemon.socket).unwrap();
    stream.write_all(b"{\"version\":2,\"tool\":\"snapshot_sockets\",\"input\":{\"limit\":10000}}\n").unwrap();
    let (mut answer, mut part) = (Vec::new(), [0; 20_000]);
    while let Ok(bytes @ 1..) = stream.read(&mut part) {
        answer.extend(&part[..bytes]);
        std::thread::sleep(Duration::from_millis(500)); // at this speed it takes more than 12 s
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("{\"version\":2,\"sample\""), "{answer}");
    assert!(!answer.ends_with('\n') && !answer.contains("\"error\""), "{}", &answer[answer.len() - 300..]);
}

#[test]
fn client_that_reads_nothing_gives_its_thread_back() {
    let daemon = Daemon::light();
    let mut stream = UnixStream::connect(&daemon.socket).unwrap();
    let asked = "{\"version\":2,\"tool\":\"status\",\"input\":{},\"tell_opened\":true}\n";
    stream.write_all(asked.repeat(1_000).as_bytes()).unwrap(); // two lines for each, and a socket takes some hundred
    until("it answers", || (threads(&daemon) > 1).then_some(()));
    until("the thread is given back", || (threads(&daemon) == 1).then_some(()));
}

#[test]
fn overlong_request_line_is_refused() {
    let daemon = Daemon::light();
    let mut stream = UnixStream::connect(&daemon.socket).unwrap();
    let _ = stream.write_all(&vec![b'x'; limits::REQUEST_BYTES]);
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert!(error(&line)["invalid_input"].as_str().unwrap().contains("65536 bytes"), "{line}");
}

#[test]
fn only_listed_users_are_admitted() {
    let daemon = Daemon::start_with(&["--allow-uid", "12345"]);
    let ask_as = |uid: u32| {
        let mut command = Command::new(GATEWAY);
        command.arg("--socket").arg(&daemon.socket).args(["call", "snapshot_interfaces", "duration_ms=100"]);
        command.uid(uid).gid(NOBODY).output().unwrap()
    };
    assert!(ask_as(12345).status.success());
    let refused = ask_as(12346);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && text.contains("uid 12346 may not use netmond") && text.contains("--allow-uid"),
        "{text}"
    );
}

#[test]
fn request_is_one_structured_log_line() {
    require_root();
    let folder = open_folder();
    let socket = folder.path().join("netmond.sock");
    let mut child = Command::new(DAEMON)
        .arg("--socket")
        .arg(&socket)
        .args(["--group", GROUP, "--log-format", "json"])
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let serving = log.find(|line| line.contains("\"serving\"")).unwrap();
    assert!(serde_json::from_str::<Value>(&serving).is_ok(), "{serving}");
    let question = json!({"version": 2, "tool": "snapshot_interfaces", "input": {"interface": "payload0"}});
    until("netmond answers", || ask(&socket, &question.to_string()).ok());
    let line = log.next().unwrap();
    let fields: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&fields["message"], &fields["tool"], &fields["uid"]),
        (&json!("request"), &json!("snapshot_interfaces"), &json!(0)),
        "{line}"
    );
    assert!(fields["error"] == "invalid input" && !line.contains("payload0"), "{line}");
    assert_eq!(fields["pid"], std::process::id(), "{line}");
    assert!(fields["ms"].is_u64() && fields["bytes"].is_u64(), "{line}");
    // Ten times the log's limit per second.
    for _ in 0..limits::LOG_LINES_PER_SECOND * 10 {
        ask(&socket, STATUS).unwrap();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let lines = log.filter(|line| line.contains("\"request\"")).count() as u32;
    assert!((1..limits::LOG_LINES_PER_SECOND * 10).contains(&lines), "{lines}");
}
