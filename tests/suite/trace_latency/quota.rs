//! A server that has too little CPU.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{TOOL, row, us, watched};
use crate::{
    harness::{delayed::Quota, *},
    processes::Process,
};

#[test]
fn quota_is_throttled_and_runnable_to_running() {
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.a);
    let quota = Quota::new(&format!("nmt-latency-{}", std::process::id()));
    let mut server = Process::in_cgroup(&pair.b, &quota.folder, &format!("tcp-work {B} 7405 30"));
    assert_eq!(server.hear(), "listening");
    let mut stream = connect(&pair.a, SocketAddr::new(B.parse().unwrap(), 7_405)).unwrap();
    let mut longest = Duration::ZERO;
    let answer = watched(&daemon, 7_405, || {
        for _ in 0..5 {
            let sent = Instant::now();
            stream.write_all(&[1]).unwrap();
            stream.read_exact(&mut [0]).unwrap();
            longest = longest.max(sent.elapsed());
        }
    });
    let waited = row(&answer, "runnable_to_running", "server");
    // 90 ms of 100 ms, and on a busy machine more.
    let range = 50_000.0..longest.as_secs_f64() * 1e6;
    assert!(range.contains(&us(waited, "max")), "{range:?} µs: {answer:#}");
    assert!(us(row(&answer, "request_to_reply", "server"), "p50") > 150_000.0, "{answer:#}");
    let throttled = &answer["throttled"][0];
    assert_eq!(throttled["owner"]["pid"], server.pid(), "{answer:#}");
    assert!(throttled["cgroup"].as_str().unwrap().contains("nmt-latency"), "{answer:#}");
    assert!(throttled["throttled_us"].as_u64().unwrap() > 500_000, "{answer:#}");
    drop(server);
}
