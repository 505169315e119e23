//! What rude clients do to an HTTP gateway, and what the others notice of it.

use std::{
    io::Write,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use netmon_mcp::limits;
use serde_json::json;

use crate::{harness::*, http_harness::*};

/// The median time of a call that asks the daemon, in ms.
fn usual_ms(server: &Server) -> f64 {
    let mut times: Vec<f64> = (0..31)
        .map(|_| {
            let asked = Instant::now();
            let reply = server.call("status", json!({}));
            assert_eq!(reply.status, 200, "{reply:?}");
            asked.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[15]
}

/// Others are served in the usual time: twice as long, and some room for a busy machine.
fn not_slower(server: &Server, before: f64, what: &str) {
    let now = usual_ms(server);
    assert!(now < before * 2.0 + 20.0, "{what}: {now:.1} ms, and {before:.1} ms before");
}

#[test]
fn half_open_connections_make_room() {
    let daemon = Daemon::start();
    let server = Server::start(&daemon.socket, &["--max-connections", "256"]);
    let before = usual_ms(&server);
    let mut open = Vec::new();
    for _ in 0..2_000 {
        let mut stream = server.connect();
        stream.write_all(b"POST /mcp HT").unwrap();
        open.push(stream);
    }
    not_slower(&server, before, "half-open connections");
    let page = server.get("/metrics", "").body;
    let connections = page.lines().find_map(|line| line.strip_prefix("netmon_connections ")).unwrap();
    assert!(connections.parse::<usize>().unwrap() <= 256, "{connections}");
}

#[test]
fn large_bodies_are_refused_unread_and_unkept() {
    let daemon = Daemon::start();
    let server = Server::start(&daemon.socket, &[]);
    let before = usual_ms(&server);
    let body = " ".repeat(20 << 20);
    let memory = server.resident_mb();
    for _ in 0..10 {
        let mut stream = server.connect();
        let _ = stream.write_all(server.request("", &body).as_bytes()); // it hangs up in the middle
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
    not_slower(&server, before, "large bodies");
    assert!(server.resident_mb() < memory + 32.0, "{} MB, {memory} MB before", server.resident_mb());
}

#[test]
fn a_thousand_parallel_calls_are_all_answered() {
    let daemon = Daemon::start();
    let server = Server::start(&daemon.socket, &[]);
    thread::scope(|scope| {
        let calls: Vec<_> = (0..50)
            .map(|_| scope.spawn(|| (0..20).map(|_| server.call("status", json!({}))).collect::<Vec<_>>()))
            .collect();
        for reply in calls.into_iter().flat_map(|call| call.join().unwrap()) {
            assert_eq!(reply.json()["result"]["structuredContent"]["daemon"]["connected"], true, "{reply:?}");
        }
    });
}

#[test]
fn abandoned_sessions_are_capped_and_memory_with_them() {
    let daemon = Daemon::start();
    let server = Server::start(&daemon.socket, &[]);
    let mut refused = None;
    for _ in 0..limits::SESSIONS + 500 {
        let reply = server.initialize();
        if reply.status == 503 {
            refused = Some(reply);
        }
    }
    let refused = refused.expect("there is a cap");
    assert_eq!(refused.header("retry-after"), Some("30"));
    assert!(server.resident_mb() < 96.0, "{} MB with debug information", server.resident_mb());
    assert_eq!(server.call("status", json!({})).status, 200, "who needs no session is served");
}

#[test]
fn a_client_beyond_its_rate_is_told_when_to_come_back() {
    let daemon = Daemon::start();
    let server = Server::start(&daemon.socket, &["--rate", "1"]);
    let replies: Vec<_> = (0..limits::BURST_S as usize + 5).map(|_| server.call("status", json!({}))).collect();
    let last = replies.last().unwrap();
    assert_eq!((last.status, last.header("retry-after")), (429, Some("1")), "{last:?}");
}

#[test]
fn a_client_that_reads_nothing_is_cut_off() {
    let daemon = Daemon::start();
    let server = Server::start(&daemon.socket, &[]);
    let (headers, body) = modern_call("tools/list", json!({}));
    let (headers, body) = (headers.replace("tools/call", "tools/list"), body.replace("tools/call", "tools/list"));
    let request = server.request(&headers, &body).replace("Connection: close\r\n", "");
    let mut stream: TcpStream = server.connect();
    // Buffers that do not grow are full soon.
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 4096).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    // Requests until its answers fill every buffer on the way, and ours stop being taken.
    while stream.write_all(request.as_bytes()).is_ok() {}
    let page = || server.get("/metrics", "").body;
    assert!(page().contains("netmon_connections 2"), "{}", page());
    until("it is cut off", || page().contains("netmon_connections 1").then_some(()));
}
