//! What netmond says where the file system is not as usual.

use std::{io::Write, process::Stdio};

use serde_json::{Value, json};

use crate::{
    faults::{Faulty, reported_connection},
    harness::*,
};

#[test]
fn proc_mounted_with_hidepid() {
    let daemon = Faulty::after("mount -t proc -o hidepid=invisible proc /proc");
    let connection = reported_connection(&daemon.socket);
    assert_eq!(connection["owner"]["pid"], std::process::id(), "the kernel's record needs no /proc: {connection}");
}

#[test]
fn missing_cgroup_mount() {
    let daemon = Faulty::after("mount -t tmpfs none /sys/fs/cgroup");
    let connection = reported_connection(&daemon.socket);
    assert_eq!((&connection["owner"]["pid"], &connection["owner"]["unit"]), (&json!(std::process::id()), &Value::Null));
}

#[test]
fn network_namespaces_named_after_the_start_have_their_names() {
    // The first `ip netns add` of a host makes the folder of the names.
    let daemon = Faulty::after("mount -t tmpfs none /run");
    let (netns, mounts) = (Netns::new(), format!("/proc/{}/ns/mnt", daemon.child.id()));
    let mut inside = netns.command("cat").stdin(Stdio::piped()).spawn().unwrap();
    until("it is inside", || {
        run(&format!("ip netns pids {}", netns.name())).contains(&inside.id().to_string()).then_some(())
    });
    run(&format!("nsenter --mount={mounts} ip netns attach named-late {}", inside.id()));
    inside.kill().unwrap();
    inside.wait().unwrap();
    let stream = connect(&netns, echo_server(&netns, "127.0.0.1")).unwrap();
    let mut client = Client::connect(&daemon.socket);
    let id = client.begin_call("top_traffic", json!({"group_by": "netns", "limit": 10_000, "duration_ms": 1_000}));
    client.until_open("top_traffic", 1);
    (&stream).write_all(&[1; 1000]).unwrap();
    let answer = client.end_call(id).unwrap();
    let ours = answer["rows"].as_array().unwrap().iter().find(|row| row["owner"]["netns"] == netns.inode());
    assert_eq!(ours.unwrap()["netns_name"], "named-late", "{answer}");
}
