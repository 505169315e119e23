//! The MCP server over standard input and output: both protocol eras, progress, cancellation, shutdown.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::*;

const WATCH: &str = "network-monitor";

fn window(seconds: f64) -> Value {
    json!({"operation": "incoming", "interface": "lo", "duration": seconds})
}

/// The `_meta` that a client of the stateless era sends with every request.
fn meta() -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "0"},
    })
}

fn gateway(daemon: &Daemon) -> Command {
    let mut command = Command::new(GATEWAY);
    command.arg("--socket").arg(&daemon.socket);
    command
}

#[test]
fn every_handshake_version_is_supported() {
    let daemon = Daemon::light();
    for version in ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"] {
        let mut client = Client::spawn(gateway(&daemon));
        let params =
            json!({"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}});
        let answer = client.request("initialize", params);
        assert_eq!(answer["result"]["protocolVersion"], version, "{answer}");
        assert!(answer["result"]["instructions"].as_str().unwrap().len() < 2_048);
        client.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        assert_eq!(client.call("status", json!({})).unwrap()["daemon"]["connected"], true);
    }
}

#[test]
fn stateless_era_works_without_a_handshake() {
    let daemon = Daemon::light();
    let mut client = Client::spawn(gateway(&daemon));
    let answer = client.request("server/discover", json!({"_meta": meta()}));
    let versions = answer["result"]["supportedVersions"].as_array().unwrap();
    assert!(versions.contains(&json!("2026-07-28")), "{answer}");
    let params = json!({"name": "status", "arguments": {}, "_meta": meta()});
    let answer = client.request("tools/call", params);
    assert_eq!(answer["result"]["structuredContent"]["daemon"]["connected"], true, "{answer}");
}

/// Clients rely on names, descriptions and schemas, so tests/suite/tools.json makes a change visible.
fn is_reviewed(tools: &Value) {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/tools.json");
    let now = format!("{}\n", serde_json::to_string_pretty(tools).unwrap());
    if std::env::var_os("NETMON_REVIEW").is_some() {
        std::fs::write(&file, &now).unwrap();
    }
    let reviewed = std::fs::read_to_string(&file).unwrap();
    let differs = now.lines().zip(reviewed.lines()).find(|(now, reviewed)| now != reviewed);
    let hint = "if that is meant, run `make reviewed` and review the difference of the file";
    assert!(now == reviewed, "tools/list is not what tests/suite/tools.json says, first at {differs:?}; {hint}");
}

#[test]
fn every_tool_has_schemas_title_and_annotations() {
    let daemon = Daemon::light();
    let mut client = Client::connect(&daemon.socket);
    let list = client.request("tools/list", json!({}));
    assert!(list["result"].to_string().len() < 24_000);
    is_reviewed(&list["result"]["tools"]);
    for tool in list["result"]["tools"].as_array().unwrap() {
        let annotations = &tool["annotations"];
        assert_eq!(
            (&annotations["readOnlyHint"], &annotations["destructiveHint"]),
            (&json!(true), &json!(false)),
            "{tool}"
        );
        assert!(annotations["idempotentHint"] == true && annotations["openWorldHint"].is_boolean(), "{tool}");
        assert!(tool["title"].is_string() && tool["description"].as_str().unwrap().len() < 2_048, "{tool}");
        assert_eq!((&tool["inputSchema"]["type"], &tool["outputSchema"]["type"]), (&json!("object"), &json!("object")));
        assert!(!tool.to_string().contains("\"format\":\"uint"), "{tool}");
    }
}

#[test]
fn result_has_structured_and_text_content() {
    let daemon = Daemon::light();
    let mut client = Client::connect(&daemon.socket);
    let answer = client.request("tools/call", json!({"name": "status", "arguments": {}}));
    let text = answer["result"]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("netmond pid") && !text.contains('{'), "{text}");
    assert!(answer["result"]["structuredContent"].is_object());
}

#[test]
fn invalid_calls_name_the_allowed_values() {
    let daemon = Daemon::light();
    let mut client = Client::connect(&daemon.socket);
    let text = client.call("status", json!({"verbose": true})).unwrap_err();
    assert!(text.contains("verbose"), "{text}");
    for duration in [json!(99), json!(60_001), json!("long"), json!(1.5e3 + 0.5)] {
        let text = client.call("snapshot_interfaces", json!({"duration_ms": duration})).unwrap_err();
        assert!(text.contains("duration_ms") && text.contains("from 100 to 60000"), "{text}");
    }
    let answer = client.request("tools/call", json!({"name": "nope", "arguments": {}}));
    assert_eq!(answer["error"]["code"], -32602, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("network-monitor"), "{answer}");
    for params in [json!({}), json!({"name": 7}), json!({"name": "status", "arguments": [1]})] {
        let answer = client.request("tools/call", params);
        assert_eq!(answer["error"]["code"], -32602, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().starts_with("tools/call: "), "{answer}");
    }
    let answer = client.request("no/such/method", json!({}));
    assert_eq!(answer["error"]["code"], -32601, "{answer}");
    assert!(client.call("status", json!({})).is_ok(), "it lives on");
}

#[test]
fn null_argument_means_absent() {
    let daemon = Daemon::light();
    let mut client = Client::connect(&daemon.socket);
    let answer = client.call("snapshot_sockets", json!({"port": null, "limit": null, "process": null})).unwrap();
    assert!(answer["states"].is_object(), "{answer}");
    let text = client.call("network-monitor", json!({"operation": null})).unwrap_err();
    assert!(text.contains("operation is missing"), "{text}");
}

#[test]
fn window_sends_progress() {
    let daemon = Daemon::light();
    let mut client = Client::connect(&daemon.socket);
    let params = json!({"name": WATCH, "arguments": window(1.8), "_meta": {"progressToken": "p"}});
    let answer = client.request("tools/call", params);
    assert!(answer["result"]["structuredContent"].is_object(), "{answer}");
    let progress: Vec<f64> = client
        .notifications
        .iter()
        .filter(|n| n["method"] == "notifications/progress" && n["params"]["progressToken"] == "p")
        .map(|n| n["params"]["progress"].as_f64().unwrap())
        .collect();
    assert!(progress.len() >= 2 && progress.is_sorted_by(|a, b| a < b), "{progress:?}");
}

#[test]
fn cancelled_call_ends_its_measurement() {
    // Nobody else connects in this namespace, and a connect ends a call.
    let netns = Netns::new();
    let daemon = daemon_for(WATCH, &netns);
    let mut client = Client::connect(&daemon.socket);
    let mut other = Client::connect(&daemon.socket);
    for arguments in [window(60.0), json!({"operation": "outgoing", "duration": 60, "interface": "lo"})] {
        let id = client.begin_call(WATCH, arguments);
        other.until_open(WATCH, 1);
        assert!(!other.links(WATCH).is_empty());
        let began = Instant::now();
        client.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}}));
        other.until_detached(WATCH);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    assert!(client.call("status", json!({})).is_ok());
}

/// The time until a process ends.
fn end_of(client: &mut Client) -> Duration {
    let began = Instant::now();
    until("the gateway ends", || client.child.try_wait().unwrap());
    began.elapsed()
}

#[test]
fn eof_and_sigterm_end_an_open_window() {
    let daemon = Daemon::light();
    let mut other = Client::connect(&daemon.socket);
    for by_signal in [false, true] {
        let mut client = Client::connect(&daemon.socket);
        client.begin_call(WATCH, window(60.0));
        other.until_open(WATCH, 1);
        if by_signal {
            run(&format!("kill -TERM {}", client.child.id()));
        } else {
            client.close();
        }
        let took = end_of(&mut client);
        assert!(took < Duration::from_millis(1_500), "it took {took:?} (by signal: {by_signal})");
        other.until_detached(WATCH);
    }
}

#[test]
fn piped_requests_are_all_answered() {
    let daemon = Daemon::light();
    let mut client = Client::connect(&daemon.socket);
    let id = client.begin_call("status", json!({}));
    client.close();
    assert!(client.end_call(id).is_ok());
}

#[test]
fn sigkill_of_either_process_leaves_nothing_attached() {
    let mut daemon = Daemon::own();
    let mut other = Client::connect(&daemon.socket);
    let mut client = Client::connect(&daemon.socket);
    client.begin_call(WATCH, window(60.0));
    other.until_open(WATCH, 1);
    client.child.kill().unwrap();
    other.until_detached(WATCH);

    let netns = Netns::new();
    let mut inside = daemon_in(&netns);
    let mut client = Client::connect(&inside.socket);
    client.begin_call(WATCH, window(60.0));
    other = Client::connect(&inside.socket);
    other.until_open(WATCH, 1);
    assert!(tcx_programs(&netns) > 0, "the kernel's own list has our programs");
    inside.kill();
    until("the kernel has detached them", || (tcx_programs(&netns) == 0).then_some(()));
    daemon.kill();
}

/// The number of programs on loopback's tcx hooks, by `BPF_PROG_QUERY`.
fn tcx_programs(netns: &Netns) -> u32 {
    netns.enter(|| {
        [libbpf_sys::BPF_TCX_INGRESS, libbpf_sys::BPF_TCX_EGRESS]
            .into_iter()
            .map(|at| {
                let mut options = libbpf_sys::bpf_prog_query_opts {
                    sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as _,
                    ..Default::default()
                };
                // SAFETY: the options are valid for the call, and say their size; loopback has index 1.
                let result = unsafe { libbpf_sys::bpf_prog_query_opts(1, at, &mut options) };
                // A device that never had a program has no list.
                if result != 0 {
                    return 0;
                }
                // SAFETY: every member of the union is an integer, and the call succeeded.
                unsafe { options.__bindgen_anon_1.prog_cnt }
            })
            .sum()
    })
}

/// JSON-RPC wants an answer to a line that is not JSON. A response without an id has no `id` in MCP, instead of null.
#[test]
fn unreadable_line_gets_an_error_without_id() {
    let daemon = Daemon::light();
    let mut client = Client::spawn(gateway(&daemon));
    let long = "x".repeat(netmon_mcp::limits::LINE_BYTES + 1);
    for (line, code, words) in [
        ("this is not JSON", -32700, "not JSON"),
        ("{\"jsonrpc\": \"2.0\", \"id\": 1, ", -32700, "not JSON"),
        ("\u{7f}\u{1b}[2J", -32700, "not JSON"),
        ("[]", -32600, "JSON-RPC"),
        ("7", -32600, "JSON-RPC"),
        (&long, -32600, "1048576 bytes"),
    ] {
        client.send_line(line);
        let answer = client.unasked();
        let fields: Vec<_> = answer.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["jsonrpc", "error"], "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(answer["error"]["code"] == code && message.contains(words), "{answer}");
        assert!(!message.contains('\u{1b}'), "{answer}");
    }
    for nothing in ["", "\r"] {
        client.send_line(nothing);
    }
    let answer = client.request("server/discover", json!({"_meta": meta()}));
    assert!(answer["result"].is_object() && client.notifications.is_empty(), "{answer}");
}

#[test]
fn unreadable_last_line_is_answered_before_the_end() {
    let mut client = Client::spawn(gateway(&Daemon::light()));
    client.send_line("junk");
    client.send_line("more junk");
    client.close();
    let codes = [client.unasked(), client.unasked()].map(|answer| answer["error"]["code"].clone());
    assert_eq!(codes, [json!(-32700), json!(-32700)]);
    assert!(client.child.wait().unwrap().success());
}
