//! MCP over HTTP: both eras of the protocol, access, and shutdown.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::Command,
    thread,
    time::Instant,
};

use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::{harness::*, http_harness::*};

#[test]
fn both_protocol_eras_are_served() {
    let daemon = Daemon::light();
    let server = Server::start(&daemon.socket, &[]);
    let modern = server.call("status", json!({}));
    assert_eq!(modern.header("content-type"), Some("application/json"), "nothing streams: {modern:?}");
    assert!(modern.header("content-length").is_some(), "{modern:?}");
    assert_eq!(modern.json()["result"]["structuredContent"]["daemon"]["connected"], true, "{modern:?}");
    let begun = server.initialize();
    let session = begun.header("mcp-session-id").unwrap();
    assert_eq!(begun.json()["result"]["protocolVersion"], LEGACY);
    let headers = format!("Mcp-Session-Id: {session}\r\nMCP-Protocol-Version: {LEGACY}\r\n");
    server.post(&headers, &json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string());
    let call = message("tools/call", json!({"name": "status", "arguments": {}}));
    let legacy = server.post(&headers, &call);
    assert_eq!(legacy.json()["result"]["structuredContent"]["daemon"]["connected"], true, "{legacy:?}");
    assert_eq!(server.post("Mcp-Session-Id: another\r\n", &call).status, 404);
}

#[test]
fn progress_is_streamed_before_the_answer() {
    let daemon = Daemon::light();
    let server = Server::start(&daemon.socket, &[]);
    let arguments = json!({"operation": "incoming", "interface": "lo", "duration": 1.2, "progress": "p"});
    let reply = server.call("network-monitor", arguments);
    assert_eq!(reply.header("content-type"), Some("text/event-stream"), "{reply:?}");
    let messages = reply.messages();
    assert_eq!(messages[0]["method"], "notifications/progress", "{reply:?}");
    assert_eq!(messages.last().unwrap()["result"]["structuredContent"]["interface"], "lo", "{reply:?}");
}

#[test]
fn foreign_host_or_origin_is_refused_on_every_path() {
    let daemon = Daemon::light();
    let server =
        Server::start(&daemon.socket, &["--allowed-host", "netmon.example", "--allowed-origin", "https://app.example"]);
    let (headers, body) = modern_call("status", json!({}));
    let status = |more: &str| server.post(&format!("{headers}{more}"), &body).status;
    for good in [
        "",
        "Host: 127.0.0.1:8080\r\n",
        "Host: [::1]\r\n",
        "Host: NETMON.example\r\n",
        "Origin: https://app.example\r\n",
        "Origin: http://localhost:6274\r\n",
    ] {
        assert_eq!(status(good), 200, "{good}");
    }
    for evil in [
        "Host: evil.example\r\n",
        "Host: localhost.evil.example\r\n",
        "Origin: https://evil.example\r\n",
        "Origin: null\r\n",
        "Origin: https://localhost.evil.example\r\n",
    ] {
        assert_eq!(status(evil), 403, "{evil}");
    }
    assert_eq!(server.get("/metrics", "Origin: https://evil.example\r\n").status, 403);
    server.until_logged(&["refused", "host=\"evil.example\"", "status=403"]);
    server.until_logged(&["refused", "origin=\"https://evil.example\"", "status=403"]);
    let reply = server.post(&format!("{headers}Origin: https://app.example\r\n"), &body);
    assert_eq!(reply.header("access-control-allow-origin"), None);
}

#[test]
fn tcp_listener_requires_credentials() {
    for arguments in [
        &["http", "--listen", "0.0.0.0:0"][..],
        &["http", "--listen", "127.0.0.1:0"],
        &["http", "--listen", "[::1]:0", "--allowed-host", "netmon.example"],
        &["http", "--port", "0"],
    ] {
        let output = Command::new(GATEWAY).args(arguments).output().unwrap();
        let reason = String::from_utf8(output.stderr).unwrap();
        let helps = ["--tokens", "ssh -L", "--insecure-no-auth"].iter().all(|way| reason.contains(way));
        assert!(!output.status.success() && helps, "{arguments:?}: {reason}");
    }
}

#[test]
fn insecure_no_auth_warns_at_every_start() {
    let daemon = Daemon::light();
    let server = Server::start(&daemon.socket, &[]);
    server.until_logged(&["WARN", "--insecure-no-auth", "every user and program of this host"]);
    assert_eq!(server.call("status", json!({})).status, 200);
    server.until_logged(&["call", "who=anonymous:loopback"]);
}

/// The default socket admits exactly the users that may ask netmond.
#[test]
fn default_listener_is_a_unix_socket_for_the_group() {
    let (daemon, folder) = (Daemon::light(), TempDir::new().unwrap());
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = Command::new(GATEWAY);
    command
        .env("RUNTIME_DIRECTORY", folder.path())
        .args(["http", "--unix-group", GROUP, "--socket"])
        .arg(&daemon.socket);
    let server = Server::spawn(command);
    let path = folder.path().join("mcp.sock");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let (headers, body) = modern_call("status", json!({}));
    assert_eq!(exchange(unix(&path), &server.request(&headers, &body)).status, 200);
    let outsider = Command::new("setpriv")
        .args(["--reuid", "1", "--regid", "1", "--clear-groups", "curl", "-sS", "--unix-socket"])
        .arg(&path)
        .arg("http://localhost/healthz")
        .output()
        .unwrap();
    assert!(!outsider.status.success(), "{outsider:?}");
}

/// A wrong path does no harm.
#[test]
fn only_a_socket_file_is_replaced() {
    let (daemon, folder) = (Daemon::light(), TempDir::new().unwrap());
    let path = folder.path().join("precious");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(&path, "data").unwrap();
    let refused = |mut command: Command| {
        let output = command.output().unwrap();
        let reason = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && reason.contains("not a socket"), "{reason}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    };
    let mut gateway = Command::new(GATEWAY);
    gateway.args(["http", "--listen", &format!("unix:{}", path.display()), "--socket"]).arg(&daemon.socket);
    refused(gateway);
    let mut netmond = Command::new(DAEMON);
    netmond.args(["--group", GROUP, "--socket"]).arg(&path);
    refused(netmond);
}

#[test]
fn unix_socket_has_its_mode_and_logs_its_peer() {
    let (daemon, folder) = (Daemon::light(), TempDir::new().unwrap());
    let path = folder.path().join("mcp.sock");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = Command::new(GATEWAY);
    command.arg("http").arg("--listen").arg(format!("unix:{}", path.display())).arg("--socket").arg(&daemon.socket);
    command.args(["--unix-mode", "0600", "--unix-group", GROUP]);
    let server = Server::spawn(command);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let (headers, body) = modern_call("status", json!({}));
    assert_eq!(exchange(unix(&path), &server.request(&headers, &body)).status, 200);
    server.until_logged(&["call", "who=uid:0", "peer=uid:0"]);
}

#[test]
fn systemd_socket_activation_works() {
    let daemon = Daemon::light();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new("sh");
    // After exec, the shell's pid is the gateway's.
    let line = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" http --insecure-no-auth --socket \"$1\"";
    command.args(["-c", line, GATEWAY]).arg(&daemon.socket);
    let fd = std::os::fd::AsRawFd::as_raw_fd(&listener);
    // SAFETY: both calls are async-signal-safe, and the descriptor is open as long as `listener` is.
    unsafe {
        command.pre_exec(move || {
            if libc::dup2(fd, 3) == 3 && libc::fcntl(3, libc::F_SETFD, 0) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    let server = Server::spawn(command);
    assert_eq!(server.address, listener.local_addr().unwrap());
    drop(listener);
    assert_eq!(server.call("status", json!({})).status, 200);
}

#[test]
fn shutdown_answers_pending_calls() {
    let daemon = Daemon::light();
    let mut server = Server::start(&daemon.socket, &[]);
    let mut client = Client::connect(&daemon.socket);
    thread::scope(|scope| {
        let long = json!({"operation": "incoming", "interface": "lo", "duration": 60});
        let waiting = scope.spawn(|| server.call("network-monitor", long));
        client.until_open("network-monitor", 1);
        let told = Instant::now();
        server.signal(Signal::TERM);
        let reply = waiting.join().unwrap();
        let result = &reply.json()["result"];
        assert_eq!(result["isError"], true, "{reply:?}");
        assert!(result["content"][0]["text"].as_str().unwrap().contains("shutting down"), "{reply:?}");
        assert!(told.elapsed().as_secs() < 3, "{:?}", told.elapsed());
    });
    client.until_detached("network-monitor");
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn disconnected_client_ends_its_window() {
    let daemon = Daemon::light();
    let server = Server::start(&daemon.socket, &[]);
    let mut client = Client::connect(&daemon.socket);
    let (headers, body) =
        modern_call("network-monitor", json!({"operation": "incoming", "interface": "lo", "duration": 60}));
    let mut stream = server.connect();
    std::io::Write::write_all(&mut stream, server.request(&headers, &body).as_bytes()).unwrap();
    client.until_open("network-monitor", 1);
    drop(stream);
    client.until_detached("network-monitor");
    server.until_logged(&["call", "outcome=\"cancelled\""]);
}

#[test]
fn metrics_cover_calls_and_the_daemon() {
    let daemon = Daemon::light();
    let server = Server::start(&daemon.socket, &[]);
    server.call("status", json!({}));
    server.call("network-monitor", json!({"operation": "nonsense"}));
    let page = server.get("/metrics", "").body;
    for line in [
        "netmon_calls_total{tool=\"status\",outcome=\"ok\"} 1",
        "netmon_calls_total{tool=\"network-monitor\",outcome=\"invalid_input\"} 1",
        "netmond_up 1",
        "netmond_tool_available{tool=\"network-monitor\"} 1",
        "netmond_windows_open{tool=\"network-monitor\"} 0",
    ] {
        assert!(page.lines().any(|l| l == line), "{line}\n{page}");
    }
    // It has the programs that ran while the kernel counted: the sysctl is the host's.
    assert!(page.contains("# TYPE netmond_bpf_runs_total counter"), "{page}");
}

#[test]
fn mcp_transport_variable_selects_the_transport() {
    let daemon = Daemon::light();
    let mut command = Command::new(GATEWAY);
    command
        .env("MCP_TRANSPORT", "sse")
        .env("MCP_PORT", "0")
        .arg("--insecure-no-auth")
        .arg("--socket")
        .arg(&daemon.socket);
    let server = Server::spawn(command);
    server.until_logged(&["sse", "serving http"]);
    assert_eq!(server.call("status", json!({})).status, 200);
    let output = Command::new(GATEWAY).env("MCP_TRANSPORT", "pigeon").output().unwrap();
    let reason = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && reason.contains("stdio or http"), "{reason}");
}

#[test]
fn check_config_syntax_opens_no_other_file() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("netmon.toml");
    let check = |depth: &str, text: &str| {
        fs::write(&file, text).unwrap();
        let output = Command::new(GATEWAY).arg(depth).arg("--config").arg(&file).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let absent = "[http]\nlisten = [\"0.0.0.0:8443\"]\ntokens = \"/absent/t\"\ntls_certificate = \"/absent/c\"\ntls_key = \"/absent/k\"\n";
    assert!(check("--check-config=syntax", absent).0);
    let (good, reason) = check("--check-config", absent);
    assert!(!good && reason.contains("/absent/t"), "{reason}");
    for (text, expected) in [
        ("[http]\nport = 70000\n", "netmon.toml:2: http.port"),
        ("[http]\ntls_key = \"/absent/k\"\n", "must both be set"),
        ("[http]\noauth_issuer = \"https://a\"\n", "must both be set"),
        (
            "[http]\noauth_issuer = \"http://a.example\"\noauth_audience = \"https://b.example/mcp\"\n",
            "expected an https URL",
        ),
    ] {
        let (good, reason) = check("--check-config=syntax", text);
        assert!(!good && reason.contains(expected), "{text}: {reason}");
    }
}

#[test]
fn check_config_names_the_line_and_the_key() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("netmon.toml");
    let check = |text: &str| {
        fs::write(&file, text).unwrap();
        let output = Command::new(GATEWAY).arg("--check-config").arg("--config").arg(&file).output().unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap(),
        )
    };
    assert!(check("interface = \"lo\"\n[http]\nlisten = [\"unix:/run/netmon-mcp/mcp.sock\"]\n").0);
    assert!(check("[http]\nlisten = [\"127.0.0.1:8080\"]\ninsecure_no_auth = true\n").0);
    let (good, said) = check("[http]\nlisten = [\"127.0.0.1:8080\"]\n");
    assert!(!good && said.contains("--insecure-no-auth"), "{said}");
    let (good, said) = check("[http]\n# where\nlisten = [\"somewhere\"]\n");
    assert!(!good && said.contains("netmon.toml:3: http.listen[0]: invalid address somewhere"), "{said}");
    let (good, said) = check("[http]\nlisten = [\"0.0.0.0:8080\"]\n");
    assert!(!good && said.contains("tokens"), "{said}");
    let (good, said) = check("[http]\ntokens = \"/nowhere\"\n");
    assert!(!good && said.contains("/nowhere"), "{said}");
}
