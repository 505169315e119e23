//! The cost of other programs with the same load: tcpdump, and comparable bpftrace scripts.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use crate::{
    Figure, cost,
    harness::{Ended, Pair},
    workload::Load,
};

/// Rounds; bpftrace takes a second to start.
const ROUNDS: usize = 7;

/// Bytes of each process, like `top_traffic`.
pub const BYTES: &str = "tracepoint:sock:sock_send_length { @tx[pid] = sum(args->ret); } \
    tracepoint:sock:sock_recv_length { @rx[pid] = sum(args->ret); } interval:ms:100 { printf(\"on\\n\"); }";

/// Every change of a connection's state, by process.
pub const STATES: &str = "tracepoint:sock:inet_sock_set_state { @[comm, args->oldstate, args->newstate] = count(); } \
    interval:ms:100 { printf(\"on\\n\"); }";

/// The same load with each of them; `pair` is the network of the load.
pub fn beside(what: &str, pair: &Pair, program: &str, load: impl Fn() -> Load) -> Vec<Figure> {
    let tcpdump = || {
        let mut command = pair.b.command("tcpdump");
        command.args(["-i", "v0", "-w", "/dev/null"]).stdout(Stdio::null()).stderr(Stdio::piped());
        started(command, |child| Box::new(BufReader::new(child.stderr.take().unwrap())), "listening on")
    };
    let bpftrace = || {
        // With tracefs in a separate mount namespace, since it may not be mounted.
        let script = "mount -t tracefs none /sys/kernel/tracing && exec bpftrace -B line -e \"$0\"";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script, program]).stdout(Stdio::piped()).stderr(Stdio::null());
        // It attaches in order: when the last program runs, all do.
        started(command, |child| Box::new(BufReader::new(child.stdout.take().unwrap())), "on")
    };
    vec![
        cost::compare_in(ROUNDS, &format!("… {what}, tcpdump to a null file"), load(), (0.0, "-"), tcpdump, drop),
        cost::compare_in(ROUNDS, &format!("… {what}, bpftrace"), load(), (0.0, "-"), bpftrace, drop),
    ]
}

/// Waits for the line that announces the start; continues to read, so that the program can write.
fn started(mut command: Command, lines: fn(&mut Child) -> Box<dyn BufRead + Send>, says: &str) -> Ended {
    let mut child = command.stdin(Stdio::null()).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let mut lines = lines(&mut child).lines();
    let ended = Ended(child);
    let said = lines.by_ref().map_while(Result::ok).any(|line| line.contains(says));
    assert!(said, "{command:?} did not start");
    std::thread::spawn(move || lines.for_each(drop));
    ended
}
