//! Tokens: access, scope and withdrawal.

use std::{fs, os::unix::fs::PermissionsExt, thread, time::Instant};

use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::{harness::*, http_harness::*};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";

/// A token file that only its owner may read: the user that the gateway becomes.
fn token_file(folder: &TempDir, text: &str) -> String {
    let (new, path) = (folder.path().join("new"), folder.path().join("tokens"));
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&new, Some(NOBODY), None).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, &path).unwrap();
    path.to_str().unwrap().into()
}

fn protected(daemon: &Daemon, folder: &TempDir) -> Server {
    let file = token_file(folder, &format!("laptop {TOKEN}\n"));
    let mut server = Server::start_with_credentials(&daemon.socket, &["--tokens", &file]);
    server.token = Some(TOKEN.into());
    server
}

#[test]
fn token_is_required_and_failures_are_logged() {
    let (daemon, folder) = (Daemon::light(), TempDir::new().unwrap());
    let mut server = protected(&daemon, &folder);
    assert_eq!(server.call("status", json!({})).status, 200);
    let line = server.until_logged(&["call", "tool=\"status\"", "who=token:laptop", "outcome=\"ok\"", "rows="]);
    assert!(line.contains("peer=127.0.0.1:") && line.contains("ms="), "{line}");
    server.token = None;
    let none = server.call("status", json!({}));
    assert_eq!((none.status, none.header("www-authenticate")), (401, Some("Bearer realm=\"netmon\"")));
    server.token = Some(OTHER.into());
    let wrong = server.call("status", json!({}));
    assert_eq!(wrong.status, 401);
    assert!(wrong.header("www-authenticate").unwrap().contains("invalid_token"), "{wrong:?}");
    assert_eq!(server.get("/metrics", "").status, 401);
    assert_eq!(server.get("/healthz", "").body, "ok\n");
    server.until_logged(&["refused", "peer=127.0.0.1:", "status=401", "path=\"/mcp\"", "bearer token required"]);
    server.until_logged(&["refused", "peer=127.0.0.1:", "status=401", "path=\"/mcp\"", "not in the token file"]);
    server.until_logged(&["refused", "peer=127.0.0.1:", "status=401", "path=\"/metrics\""]);
    let log = server.log();
    assert!(!log.contains(TOKEN) && !log.contains(OTHER), "a token in the log: {log}");
}

#[test]
fn session_belongs_to_its_opener() {
    let (daemon, folder) = (Daemon::light(), TempDir::new().unwrap());
    let mut server = protected(&daemon, &folder);
    token_file(&folder, &format!("laptop {TOKEN}\ndesk {OTHER}\n"));
    let session = server.initialize().header("mcp-session-id").unwrap().to_owned();
    let ping = message("ping", json!({}));
    let headers = format!("Mcp-Session-Id: {session}\r\n");
    server.post(&headers, &json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string());
    assert_eq!(server.post(&headers, &ping).status, 200);
    server.token = Some(OTHER.into());
    assert_eq!(server.post(&headers, &ping).status, 404);
}

#[test]
fn changed_token_file_takes_effect_at_once() {
    let (daemon, folder) = (Daemon::light(), TempDir::new().unwrap());
    let mut server = protected(&daemon, &folder);
    assert_eq!(server.call("status", json!({})).status, 200);
    token_file(&folder, &format!("desk {OTHER}\n"));
    assert_eq!(server.call("status", json!({})).status, 401);
    server.token = Some(OTHER.into());
    assert_eq!(server.call("status", json!({})).status, 200);
    server.signal(Signal::HUP);
    assert_eq!(server.call("status", json!({})).status, 200);
    token_file(&folder, &format!("desk {OTHER}\nnot a line of tokens at all\n"));
    assert_eq!(server.call("status", json!({})).status, 200, "it is still listed");
    server.until_logged(&["token file", "line 2"]);
}

/// A name without a folder is a file in the working directory.
#[test]
fn relative_token_file_is_reloaded() {
    let (daemon, folder) = (Daemon::light(), TempDir::new().unwrap());
    token_file(&folder, &format!("laptop {TOKEN}\n"));
    let mut command = std::process::Command::new(GATEWAY);
    command.args(["http", "--listen", "127.0.0.1:0", "--tokens", "tokens", "--socket"]).arg(&daemon.socket);
    command.current_dir(folder.path());
    let mut server = Server::spawn(command);
    server.token = Some(TOKEN.into());
    assert_eq!(server.call("status", json!({})).status, 200);
    token_file(&folder, &format!("desk {OTHER}\n"));
    server.token = Some(OTHER.into());
    assert_eq!(server.call("status", json!({})).status, 200, "{}", server.log());
}

/// A removed token is refused, however it left the file; the log has the fault of the file.
#[test]
fn unlisted_token_is_refused_with_a_broken_file() {
    let (daemon, folder) = (Daemon::light(), TempDir::new().unwrap());
    let server = protected(&daemon, &folder);
    let path = folder.path().join("tokens");
    let good = format!("laptop {TOKEN}\n");
    let cases: [(&str, &dyn Fn()); 6] = [
        ("deleted", &|| fs::remove_file(&path).unwrap()),
        ("empty", &|| drop(token_file(&folder, ""))),
        ("only a comment", &|| drop(token_file(&folder, "# nobody\n"))),
        ("unreadable", &|| fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap()),
        ("open to everybody", &|| fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap()),
        ("a typo elsewhere", &|| drop(token_file(&folder, &format!("desk\nlaptop {OTHER}\n")))),
    ];
    for (what, act) in cases {
        token_file(&folder, &good);
        assert_eq!(server.call("status", json!({})).status, 200, "before: {what}");
        act();
        assert_eq!(server.call("status", json!({})).status, 401, "{what}");
    }
}

/// A pending call, an event stream, and a session: they end within a second after their token.
#[test]
fn withdrawn_token_ends_its_calls_within_a_second() {
    let (daemon, folder) = (Daemon::light(), TempDir::new().unwrap());
    let mut server = protected(&daemon, &folder);
    token_file(&folder, &format!("laptop {TOKEN}\ndesk {OTHER}\n"));
    let session = server.initialize().header("mcp-session-id").unwrap().to_owned();
    let header = format!("Mcp-Session-Id: {session}\r\n");
    server.post(&header, &json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string());
    let stream = format!(
        "GET /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nAccept: text/event-stream\r\n{header}\r\n"
    );
    let mut client = Client::connect(&daemon.socket);
    let long = json!({"operation": "incoming", "interface": "lo", "duration": 60});
    let legacy_call = message("tools/call", json!({"name": "network-monitor", "arguments": long}));
    thread::scope(|scope| {
        let waiting = [
            scope.spawn(|| server.call("network-monitor", long.clone()).status),
            scope.spawn(|| exchange(server.connect(), &stream).status),
            scope.spawn(|| server.post(&header, &legacy_call).status),
        ];
        client.until_open("network-monitor", 2);
        token_file(&folder, &format!("desk {OTHER}\n"));
        let withdrawn = Instant::now();
        waiting.into_iter().for_each(|thread| drop(thread.join()));
        assert!(withdrawn.elapsed().as_secs_f64() < 1.0, "{:?}", withdrawn.elapsed());
        client.until_detached("network-monitor");
    });
    server.token = Some(OTHER.into());
    until("its session is gone", || {
        server
            .get("/metrics", &format!("Authorization: Bearer {OTHER}\r\n"))
            .body
            .contains("netmon_sessions 0")
            .then_some(())
    });
}

#[test]
fn token_is_limited_to_its_tools_and_hosts() {
    let (daemon, folder) = (Daemon::light(), TempDir::new().unwrap());
    let file = token_file(&folder, &format!("laptop {TOKEN} tools=status hosts=local\ndesk {OTHER} hosts=web1\n"));
    let mut command = daemon.gateway_of_a_user();
    command.args(["http", "--listen", "127.0.0.1:0", "--tokens", &file]);
    command.args(["--host", "web1=unix:/nowhere", "--host", "web2=unix:/nowhere"]);
    let mut server = Server::spawn(command);
    let said = |reply: Reply| reply.json()["result"]["content"][0]["text"].as_str().unwrap().to_owned();
    server.token = Some(TOKEN.into());
    assert!(!said(server.call("status", json!({}))).contains("may not"));
    let refused = said(server.call("snapshot_sockets", json!({})));
    assert!(
        refused.contains("token:laptop may not use snapshot_sockets") && refused.contains("allow: status"),
        "{refused}"
    );
    assert!(said(server.call("status", json!({"host": "web1"}))).contains("may not use this host"));
    let (headers, body) = modern_call("tools/list", json!({}));
    let (headers, body) = (headers.replace("tools/call", "tools/list"), body.replace("tools/call", "tools/list"));
    let listed = server.post(&headers, &body).json();
    assert_eq!(listed["result"]["tools"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed["result"]["cacheScope"], "private", "{listed}");
    let completion = json!({
        "ref": {"type": "ref/prompt", "name": "explain_slow_connection"},
        "argument": {"name": "port", "value": ""},
        "_meta": {"io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}},
    });
    let headers = format!("MCP-Protocol-Version: {MODERN}\r\nMcp-Method: completion/complete\r\n");
    let reply = server.post(&headers, &message("completion/complete", completion));
    assert!(reply.body.contains("may not use snapshot_sockets"), "{reply:?}");
    server.until_logged(&["call", "tool=\"completion/complete\"", "who=token:laptop", "outcome=\"forbidden\""]);
    server.token = Some(OTHER.into());
    assert!(said(server.call("status", json!({}))).contains("may not use this host"));
    assert!(said(server.call("status", json!({"host": "web2"}))).contains("may not use this host"));
    assert!(said(server.call("status", json!({"host": "web1"}))).contains("host web1 is unreachable"));
    let hosts = server.call("hosts", json!({})).json();
    let hosts = &hosts["result"]["structuredContent"]["hosts"];
    assert_eq!((hosts.as_array().unwrap().len(), &hosts[0]["name"]), (1, &json!("web1")), "{hosts}");
    assert_eq!(server.get("/metrics", &format!("Authorization: Bearer {OTHER}\r\n")).status, 403);
}
