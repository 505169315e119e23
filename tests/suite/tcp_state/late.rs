//! Remotes with late acknowledgements on a short path.

use std::{
    io::Write,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::remote::{Acknowledges, THERE, remote};
use crate::harness::*;

/// Findings of `diagnose` above info about round trips to such a remote, for an old connection with regular writes of
/// this size.
fn high_rtt(acknowledges: Acknowledges, bytes: usize, every: Duration) -> Vec<Value> {
    let netns = Netns::new();
    remote(&netns, acknowledges);
    let mut stream = connect(&netns, SocketAddr::from((THERE, 7_140))).unwrap();
    stream.set_nodelay(true).unwrap();
    let daemon = Daemon::own();
    let window = daemon.watch("diagnose", json!({"duration_ms": 5_000, "limit": 1_000}));
    let end = Instant::now() + Duration::from_millis(4_500);
    while Instant::now() < end {
        stream.write_all(&vec![7; bytes]).unwrap();
        thread::sleep(every);
    }
    let answer = window.answer();
    let findings = answer["findings"].as_array().unwrap().iter();
    let is_meant = |finding: &&Value| {
        finding["code"] == "high_rtt"
            && finding["severity"] != "info"
            && finding["evidence"]["owner"]["netns"] == netns.inode()
    };
    findings.filter(is_meant).cloned().collect()
}

const NONE: [Value; 0] = [];

#[test]
fn delayed_ack_timer_is_not_high_rtt() {
    let late = Acknowledges { after: Duration::from_millis(200), at_once: 2 };
    assert_eq!(high_rtt(late, 14, Duration::from_millis(300)), NONE, "one small segment at a time");
    assert_eq!(high_rtt(late, 1_460, Duration::from_millis(300)), NONE, "one full segment at a time");
    assert_eq!(high_rtt(late, 14, Duration::from_millis(150)), NONE, "the second one is acknowledged at once");
    let never_at_once = Acknowledges { after: Duration::from_millis(400), at_once: 1_000 };
    assert_eq!(high_rtt(never_at_once, 200, Duration::from_millis(450)), NONE, "the slowest timer of Windows");
}
