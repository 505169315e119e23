//! The shares of each client: connections, sessions, ids, log lines.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use netmon_mcp::limits;
use serde_json::json;
use tempfile::TempDir;

use crate::{harness::*, http_harness::*};

const ONE: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";

/// A gateway with two clients, and the folder of its token file.
fn two_clients(daemon: &Daemon) -> (Server, TempDir) {
    let folder = open_folder();
    let path = folder.path().join("tokens");
    fs::write(&path, format!("one {ONE}\nother {OTHER}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&path, Some(NOBODY), None).unwrap();
    let mut server = Server::start_with_credentials(&daemon.socket, &["--tokens", path.to_str().unwrap()]);
    server.token = Some(ONE.into());
    (server, folder)
}

/// Opens connections that send `text`, an incomplete request.
fn slow(server: &Server, count: usize, text: &str) -> Vec<TcpStream> {
    let open = |_| {
        let mut stream = server.connect();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    (0..count).map(open).collect()
}

/// More than the available places, with a token and without.
#[test]
fn slow_requests_leave_others_and_healthz_served() {
    let daemon = Daemon::light();
    let (mut server, _folder) = two_clients(&daemon);
    let head = format!(
        "POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ONE}\r\nContent-Length: 100\r\n\r\n{{"
    );
    let _known = slow(&server, limits::CONNECTIONS / 2, &head);
    let _strangers = slow(&server, limits::CONNECTIONS, "POST /mcp HT");
    server.token = Some(OTHER.into());
    for _ in 0..50 {
        assert_eq!(server.get("/healthz", "").body, "ok\n");
        assert_eq!(server.call("status", json!({})).status, 200);
    }
}

#[test]
fn sessions_are_limited_per_client() {
    let daemon = Daemon::light();
    let (mut server, _folder) = two_clients(&daemon);
    let begun: Vec<u16> = (0..limits::SESSIONS / 4).map(|_| server.initialize().status).collect();
    assert_eq!(begun.iter().filter(|status| **status == 200).count(), limits::SESSIONS / limits::SESSION_SHARES);
    assert_eq!(begun.last(), Some(&429));
    server.token = Some(OTHER.into());
    assert_eq!(server.initialize().status, 200);
}

/// rmcp would never answer the first of the two.
#[test]
fn duplicate_pending_request_id_is_rejected() {
    let daemon = Daemon::light();
    let server = Server::start(&daemon.socket, &[]);
    let session = server.initialize().header("mcp-session-id").unwrap().to_owned();
    let headers = format!("Mcp-Session-Id: {session}\r\n");
    server.post(&headers, &json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string());
    let mut client = Client::connect(&daemon.socket);
    let window = json!({"operation": "incoming", "interface": "lo", "duration": 2});
    let call = message("tools/call", json!({"name": "network-monitor", "arguments": window}));
    thread::scope(|scope| {
        let first = scope.spawn(|| server.post(&headers, &call));
        client.until_open("network-monitor", 1);
        let asked = Instant::now();
        let second = server.post(&headers, &call);
        assert!(second.status == 409 && second.body.contains("id"), "{second:?}");
        assert!(asked.elapsed().as_secs() < 2);
        let first = first.join().unwrap();
        assert_eq!(first.json()["result"]["structuredContent"]["interface"], "lo", "{first:?}");
    });
    assert_eq!(server.post(&headers, &call).status, 200, "the id is free again");
}

/// Every field of a line is cut, and the lines of one unauthenticated source are counted.
#[test]
fn unauthenticated_log_lines_are_limited() {
    let daemon = Daemon::light();
    let (server, _folder) = two_clients(&daemon);
    let before = server.log().len();
    let long = "x".repeat(4_000);
    for _ in 0..200 {
        let request = format!("{long} /{long} HTTP/1.1\r\nHost: {long}\r\nOrigin: {long}\r\nConnection: close\r\n\r\n");
        let mut stream = server.connect();
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let written = server.log().len() - before;
    assert!(written < 200 * 1_024, "{written} bytes");
    let refused: u64 = server
        .get("/metrics", &format!("Authorization: Bearer {ONE}\r\n"))
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("netmon_refused_total{")?.split(' ').nth(1)?.parse::<u64>().ok())
        .sum();
    assert_eq!(refused, 200);
}

/// A client's calls fill only its own share of the log.
#[test]
fn call_log_lines_are_limited_per_client() {
    let daemon = Daemon::light();
    let (mut server, _folder) = two_clients(&daemon);
    let arguments = json!({"interface": "y".repeat(100_000)});
    let before = server.log().len();
    (0..100).for_each(|_| drop(server.call("snapshot_interfaces", arguments.clone())));
    assert!(server.log().len() - before < 100 * 2_048, "{} bytes", server.log().len() - before);
    server.token = Some(OTHER.into());
    server.call("status", json!({}));
    server.until_logged(&["call", "tool=\"status\"", "who=token:other"]);
}

/// For any answer of another gateway: its token goes nowhere else, in one step or two.
#[test]
fn host_token_is_not_sent_to_redirects() {
    let (daemon, folder) = (Daemon::light(), open_folder());
    let path = folder.path().join("token");
    fs::write(&path, format!("{ONE}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&path, Some(NOBODY), None).unwrap();
    let (thief, host) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (to, at) = (thief.local_addr().unwrap(), host.local_addr().unwrap());
    thread::spawn(move || {
        for (n, mut stream) in host.incoming().flatten().enumerate() {
            let _ = stream.read(&mut [0; 4096]);
            // A redirect to itself, then elsewhere.
            let place = if n == 0 { format!("http://{at}/again") } else { format!("http://{to}/mcp") };
            let status = ["307 Temporary Redirect", "308 Permanent Redirect"][n % 2];
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\nLocation: {place}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
    });
    thief.set_nonblocking(true).unwrap();
    let mut command = daemon.gateway_of_a_user();
    command.arg(format!("--host=far=http://user:hidden@{at}/mcp")).arg(format!("--host-token=far={}", path.display()));
    let mut client = Client::connect_to(command);
    let reason = client.call("status", json!({"host": "far"})).unwrap_err();
    assert!(reason.contains("host far is unreachable") && !reason.contains("hidden"), "{reason}");
    let hosts = client.call("hosts", json!({})).unwrap().to_string();
    assert!(hosts.contains(&format!("http://{at}/mcp")) && !hosts.contains("hidden"), "{hosts}");
    thread::sleep(Duration::from_millis(200));
    assert!(thief.accept().is_err(), "somebody asked the thief");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    thread::sleep(limits::HOST_RETRY + Duration::from_secs(1));
    let reason = client.call("status", json!({"host": "far"})).unwrap_err();
    assert!(reason.contains("chmod o="), "{reason}");
    let wrong = Command::new(GATEWAY).args(["--host", "a=ftp://user:hidden@x", "tools"]).output().unwrap();
    assert!(!wrong.status.success() && !String::from_utf8_lossy(&wrong.stderr).contains("hidden"), "{wrong:?}");
}

#[test]
fn netmond_survives_sighup() {
    let daemon = Daemon::own();
    let mut client = Client::connect(&daemon.socket);
    run(&format!("kill -HUP {}", daemon.pid()));
    assert!(client.call("snapshot_interfaces", json!({"duration_ms": 100})).is_ok());
    assert_eq!(client.call("status", json!({})).unwrap()["daemon"]["pid"], daemon.pid());
}
