//! Third-party clients: the official SDKs, the Inspector, the agents, over standard input and over HTTP.
//! `tests/clients/install` has their versions.

use std::process::Command;

use crate::{
    harness::{installed::*, *},
    http_harness::*,
};

/// Runs a driver against a server of each kind.
fn visits(driver: impl Fn() -> Command) {
    let daemon = Daemon::light();
    let server = Server::start(&daemon.socket, &[]);
    let mut http = driver();
    http.arg(format!("http://{}/mcp", server.address));
    succeeds(http);
    let mut stdio = driver();
    stdio.arg(GATEWAY).arg("--socket").arg(&daemon.socket);
    succeeds(stdio);
}

#[test]
fn python_sdk_works_in_both_eras() {
    visits(|| python("python_sdk.py"));
}

#[test]
fn fastmcp_works() {
    visits(|| python("fastmcp_client.py"));
}

#[test]
fn typescript_sdks_work_in_both_eras() {
    visits(|| {
        let mut command = node();
        command.arg(driver("typescript_sdk.mjs")).arg(packages().join("node"));
        command
    });
}

#[test]
fn inspector_accepts_the_server() {
    let (daemon, folder) = (Daemon::light(), tempfile::TempDir::new().unwrap());
    let inspect = |era: &str, arguments: &[&str]| {
        let mut command = program(".bin/mcp-inspector");
        command.env("MCP_CATALOG_PATH", folder.path().join("catalog")).arg("--cli").arg(GATEWAY).arg("--socket");
        command.arg(&daemon.socket).args(["--protocol-era", era, "--format", "json", "-q"]).args(arguments);
        String::from_utf8(succeeds(command).stdout).unwrap()
    };
    for era in ["legacy", "modern"] {
        inspect(era, &["--method", "tools/list", "--strict"]);
        let called = inspect(era, &["--method", "tools/call", "--tool-name", "status"]);
        assert!(called.contains("structuredContent"), "{called}");
    }
}

#[test]
fn server_survives_a_request_fuzzer() {
    let (daemon, folder) = (Daemon::light(), tempfile::TempDir::new().unwrap());
    let server = Server::start(&daemon.socket, &[]);
    let mut fuzzer = Command::new(packages().join("python/bin/mcp-fuzzer"));
    fuzzer.current_dir(folder.path()).args(["--mode", "all", "--phase", "both", "--seed", "1", "--runs", "1"]);
    fuzzer.args(["--runs-per-type", "2", "--no-runtime-probe", "--tool-timeout", "2", "--log-level", "ERROR"]);
    fuzzer.args(["--protocol", "streamablehttp", "--endpoint", &format!("http://{}/mcp", server.address)]);
    let report = String::from_utf8(succeeds(fuzzer).stdout).unwrap();
    let crashes: Vec<_> = report.lines().filter(|line| line.contains(" crashes)")).collect();
    assert!(crashes.len() > 5 && crashes.iter().all(|line| line.contains(" 0 crashes)")), "{report}");
    assert!(!server.log().contains("panicked"), "{}", server.log());
    assert_eq!(server.call("status", serde_json::json!({})).status, 200);
}

#[test]
fn agents_connect() {
    let (daemon, home) = (Daemon::light(), tempfile::TempDir::new().unwrap());
    let server = Server::start(&daemon.socket, &[]);
    let url = format!("http://{}/mcp", server.address);
    let socket = daemon.socket.to_str().unwrap();
    let agent = |script: &str, arguments: &[&str]| {
        let mut command = Command::new(packages().join("node/node_modules/.bin").join(script));
        command.args(arguments).env_clear().env("HOME", home.path()).current_dir(home.path());
        command
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("DISABLE_TELEMETRY", "1")
            .env("DISABLE_AUTOUPDATER", "1");
        String::from_utf8(succeeds(command).stdout).unwrap()
    };
    agent("claude", &["mcp", "add", "--scope", "user", "stdio", "--", GATEWAY, "--socket", socket]);
    agent("claude", &["mcp", "add", "--scope", "user", "--transport", "http", "http", &url]);
    let listed = agent("claude", &["mcp", "list"]);
    assert_eq!(listed.matches('✔').count() + listed.matches('✓').count(), 2, "{listed}");
    let settings = serde_json::json!({"mcp": {
        "stdio": {"type": "local", "command": [GATEWAY, "--socket", socket]},
        "http": {"type": "remote", "url": url, "oauth": false},
    }});
    std::fs::write(home.path().join("opencode.json"), settings.to_string()).unwrap();
    let listed = agent("opencode", &["mcp", "list"]);
    assert_eq!(listed.matches("connected").count(), 2, "{listed}");
}
