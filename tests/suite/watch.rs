//! `--watch`: each reading, and what it says at the end.

use std::io::{BufRead, BufReader};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    command_line::{begin, interrupt},
    harness::*,
};

#[test]
fn watch_prints_each_reading_then_the_sum() {
    let (pair, daemon) = (Pair::new(), Daemon::start());
    let to = echo_server(&pair.b, B);
    let connect_once = || drop(connect(&pair.a, to).unwrap());
    let asked = format!("trace_connections port={} direction=outbound --watch=0.2", to.port());
    let mut child = begin(&daemon.socket, &format!("{asked} -o ndjson"));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut seen = 0;
    let mut count = |line: String| {
        seen += serde_json::from_str::<Value>(&line).unwrap()["connections"].as_array().unwrap().len();
        seen
    };
    count(lines.next().unwrap()); // it measures
    connect_once();
    while count(lines.next().unwrap()) == 0 {}
    connect_once();
    interrupt(&child);
    let last = lines.map(&mut count).last();
    assert_eq!((child.wait().unwrap().code(), last), (Some(0), Some(2)), "each is told in one reading");

    // If the sum says that events were lost, connects may be missing from it.
    until("a watch loses no event", || {
        let mut child = begin(&daemon.socket, &asked);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        lines.find(|line| line.is_empty()).unwrap(); // the first reading has ended
        (0..3).for_each(|_| connect_once());
        lines.find(|line| line.contains(&to.to_string())).unwrap();
        interrupt(&child);
        let sum: Vec<_> = lines.skip_while(|line| !line.starts_with("Total, ")).collect();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        let rows: Vec<_> = sum.iter().filter(|line| line.contains(&to.to_string())).collect();
        let is_whole = !sum.iter().any(|line| line.contains("lost"));
        assert!(!is_whole || (rows.len() == 1 && rows[0].contains(" 3× ")), "{sum:#?}");
        is_whole.then_some(())
    });
}

#[test]
fn watch_reports_a_lost_daemon_after_its_readings() {
    let daemon = Daemon::own();
    let mut child = begin(&daemon.socket, "snapshot_interfaces --watch=0.1");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line.is_empty()).unwrap(); // the first reading has ended
    kill_process(Pid::from_raw(daemon.pid() as i32).unwrap(), Signal::KILL).unwrap();
    assert!(lines.any(|line| line.starts_with("Total, ")));
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.contains("netmond disconnected"), "{error}");
}
