//! MCP prompts and the completion of their arguments.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use serde_json::json;

use crate::harness::*;

#[test]
fn prompts_are_listed_and_validated() {
    let daemon = Daemon::light();
    let mut client = Client::connect(&daemon.socket);
    let list = client.request("prompts/list", json!({}));
    let names: Vec<_> = list["result"]["prompts"].as_array().unwrap().iter().map(|prompt| &prompt["name"]).collect();
    assert_eq!(names, ["diagnose_host", "explain_slow_connection"]);
    let filled = client.request("prompts/get", json!({"name": "diagnose_host", "arguments": {"seconds": "5"}}));
    let text = filled["result"]["messages"][0]["content"]["text"].as_str().unwrap();
    assert!(text.contains("{\"duration_ms\":5000}"), "{text}");
    let refused = client.request("prompts/get", json!({"name": "diagnose_host", "arguments": {"seconds": "500"}}));
    assert!(refused["error"]["message"].as_str().unwrap().contains("from 1 to 60"), "{refused}");
}

#[test]
fn prompt_arguments_are_completed_from_open_sockets() {
    let daemon = Daemon::light();
    let mut client = Client::connect(&daemon.socket);
    let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 77), 0)).unwrap();
    let _open = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let reference = json!({"type": "ref/prompt", "name": "explain_slow_connection"});
    let argument = json!({"name": "remote", "value": "127.0.0.7"});
    let answer = client.request("completion/complete", json!({"ref": reference, "argument": argument}));
    let values = answer["result"]["completion"]["values"].as_array().unwrap();
    assert!(values.iter().any(|value| value == "127.0.0.77"), "{answer}");
    assert!(values.iter().all(|value| value.as_str().unwrap().starts_with("127.0.0.7")), "{answer}");
}
