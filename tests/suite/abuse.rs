//! Hostile clients of an HTTP gateway, and their effect on other clients.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use netmon_mcp::limits;
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use serde_json::json;

use crate::{harness::*, http_harness::*};

/// A client outside the others' identity: it has its own address, and so its own name.
fn bystander(server: &Server) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from(([127, 0, 0, 2], 0))).unwrap();
    connect(&socket, &server.address).unwrap();
    socket.into()
}

/// The median time of another client's call that asks the daemon, in ms.
fn usual_ms(server: &Server) -> f64 {
    let (headers, body) = modern_call("status", json!({}));
    let request = server.request(&headers, &body);
    let mut times: Vec<f64> = (0..31)
        .map(|_| {
            let asked = Instant::now();
            let reply = exchange(bystander(server), &request);
            assert_eq!(reply.status, 200, "{reply:?}");
            asked.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[15]
}

/// The baseline that other clients must keep.
struct Usual {
    ms: f64,
    resident_mb: f64,
}

impl Usual {
    fn of(server: &Server) -> Usual {
        Usual { ms: usual_ms(server), resident_mb: server.resident_mb() }
    }

    /// Others are served in the usual time: at most twice as long, with some tolerance for a busy machine.
    fn is_kept(&self, server: &Server, what: &str) {
        let now = usual_ms(server);
        assert!(now < self.ms * 2.0 + 20.0, "{what}: {now:.1} ms, and {:.1} ms before", self.ms);
    }

    /// Memory is freed, except for what a connection and a session may leave in tables and in the allocator.
    fn returns(&self, server: &Server, what: &str) {
        let limit = self.resident_mb + 8.0;
        until(&format!("{what}: memory is below {limit:.1} MB again"), || (server.resident_mb() < limit).then_some(()));
    }
}

#[test]
fn half_open_connections_are_dropped_first() {
    let daemon = Daemon::light();
    let server = Server::start(&daemon.socket, &[]);
    let usual = Usual::of(&server);
    let mut open = Vec::new();
    for _ in 0..5_000 {
        let mut stream = server.connect();
        stream.write_all(b"POST /mcp HT").unwrap();
        open.push(stream);
    }
    usual.is_kept(&server, "half-open connections");
    let connections = || {
        let page = server.get("/metrics", "").body;
        page.lines().find_map(|line| line.strip_prefix("netmon_connections ")?.parse::<usize>().ok()).unwrap()
    };
    assert!(connections() <= limits::CONNECTIONS, "{}", connections());
    drop(open);
    until("they are gone", || (connections() == 1).then_some(()));
    usual.returns(&server, "half-open connections");
}

#[test]
fn large_bodies_are_rejected_unread() {
    let daemon = Daemon::light();
    let server = Server::start(&daemon.socket, &[]);
    let usual = Usual::of(&server);
    let body = " ".repeat(20 << 20);
    for _ in 0..10 {
        let mut stream = server.connect();
        let _ = stream.write_all(server.request("", &body).as_bytes()); // it disconnects in the middle
    }
    let mut chunked = server.connect();
    let head = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    chunked.write_all(head.as_bytes()).unwrap();
    for _ in 0..20 {
        if write!(chunked, "100000\r\n{}\r\n", &body[..1 << 20]).is_err() {
            break;
        }
    }
    server.until_logged(&["refused", "status=413"]);
    usual.is_kept(&server, "large bodies");
    usual.returns(&server, "large bodies");
}

#[test]
fn thousand_parallel_calls_are_answered() {
    let daemon = Daemon::light();
    let server = Server::start(&daemon.socket, &[]);
    let usual = Usual::of(&server);
    let (headers, body) = modern_call("snapshot_interfaces", json!({"duration_ms": 100}));
    let request = server.request(&headers, &body);
    let begin = |_| {
        let mut stream = server.connect();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let mut calls: Vec<TcpStream> = (0..1_000).map(begin).collect();
    usual.is_kept(&server, "a thousand calls");
    for call in calls.drain(..) {
        let reply = exchange(call, "");
        assert!(reply.json()["result"]["structuredContent"]["interfaces"].is_array(), "{reply:?}");
    }
    usual.returns(&server, "a thousand calls");
}

#[test]
fn abandoned_sessions_and_their_memory_are_capped() {
    let daemon = Daemon::light();
    let server = Server::start(&daemon.socket, &[]);
    let usual = Usual::of(&server);
    let (mut refused, mut sessions) = (None, Vec::new());
    for _ in 0..limits::SESSIONS {
        let reply = server.initialize();
        match reply.status {
            429 => refused = Some(reply),
            _ => sessions.extend(reply.header("mcp-session-id").map(str::to_owned)),
        }
    }
    assert_eq!(sessions.len(), limits::SESSIONS / limits::SESSION_SHARES);
    let refused = refused.expect("there is a cap");
    assert_eq!(refused.header("retry-after"), Some("30"));
    assert!(server.resident_mb() < 96.0, "{} MB with debug information", server.resident_mb());
    usual.is_kept(&server, "who needs no session");
    for session in sessions {
        let delete = format!(
            "DELETE /mcp HTTP/1.1\r\nHost: localhost\r\nMcp-Session-Id: {session}\r\nConnection: close\r\n\r\n"
        );
        assert!(exchange(server.connect(), &delete).status < 300);
    }
    usual.returns(&server, "ended sessions");
}

#[test]
fn rate_limited_client_gets_retry_after() {
    let daemon = Daemon::light();
    let server = Server::start(&daemon.socket, &["--rate", "1"]);
    let replies: Vec<_> = (0..limits::BURST_S as usize + 5).map(|_| server.call("status", json!({}))).collect();
    let last = replies.last().unwrap();
    assert_eq!((last.status, last.header("retry-after")), (429, Some("1")), "{last:?}");
}

#[test]
fn client_that_reads_nothing_is_disconnected() {
    let daemon = Daemon::light();
    let server = Server::start(&daemon.socket, &["--rate", "0"]); // it requests the metrics meanwhile
    let usual = Usual::of(&server);
    let (headers, body) = modern_call("tools/list", json!({}));
    let (headers, body) = (headers.replace("tools/call", "tools/list"), body.replace("tools/call", "tools/list"));
    let request = server.request(&headers, &body).replace("Connection: close\r\n", "");
    let mut stream: TcpStream = server.connect();
    // Buffers of fixed size are full soon.
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 4096).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    // Sends requests until the answers fill every buffer on the way and the server stops reading.
    while stream.write_all(request.as_bytes()).is_ok() {}
    let page = || server.get("/metrics", "").body;
    assert!(page().contains("netmon_connections 2"), "{}", page());
    usual.is_kept(&server, "a client that reads nothing");
    until("it is cut off", || page().contains("netmon_connections 1").then_some(()));
    usual.returns(&server, "a client that reads nothing");
}
