//! Delays of the peer, of the path and of the scheduler, alone and two at a time.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
    mpsc::{Receiver, Sender},
};

use rustix::thread::{CpuSet, sched_setaffinity};

use super::*;

/// Only the client's host is watched.
#[test]
fn peer_that_delays_is_only_in_the_reply() {
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.a);
    let mut ends = Ends::new(&pair.a, &pair.b, B);
    let question = json!({"port": ends.to.port(), "netns": pair.a.inode(), "limit": 100});
    let window = daemon.watch(TOOL, question);
    let [late, thought] = [10, 30].map(Duration::from_millis);
    let times = ends.exchange(10, late, thought);
    let answer = window.end();
    let (reply, injected) = (row(&answer, "request_to_reply", "client"), times.late[4] + times.thought[4]);
    let injected = injected.as_secs_f64() * 1e6;
    assert!((us(reply, "p50") - injected).abs() <= injected * 0.1 + small(), "{injected} µs: {answer:#}");
    assert_eq!(reply["owner"]["netns"], pair.a.inode(), "{reply:#}");
    let slow = |row: &&Value| us(row, "p50") > small() && row["stage"] != "request_to_reply";
    let others: Vec<_> = answer["stages"].as_array().unwrap().iter().filter(slow).collect();
    assert!(others.is_empty(), "{answer:#}");
}

#[test]
fn slow_path_and_slow_server_are_two_stages() {
    let pair = SlowPair::new(Duration::from_millis(10));
    let daemon = daemon_for(TOOL, &pair.a);
    let mut ends = Ends::new(&pair.a, &pair.b, SLOW_B);
    let mut times = Took::default();
    let [late, thought] = [20, 50].map(Duration::from_millis);
    let answer = watched(&daemon, ends.to.port(), || times = ends.exchange(10, late, thought));
    is_injected(row(&answer, "socket_to_read", "server"), &times.late);
    is_injected(row(&answer, "request_to_reply", "server"), &times.thought);
    for side in ["server", "client"] {
        assert!((18_700.0..24_000.0).contains(&us(row(&answer, "wire_to_ack", side), "p50")), "{answer:#}");
    }
    assert!(us(row(&answer, "socket_to_read", "client"), "p50") < small(), "{answer:#}");
    let all = us(row(&answer, "request_to_reply", "client"), "p50");
    assert!((84_000.0..104_000.0).contains(&all), "all three: {answer:#}");
}

/// How long the real-time thread takes the CPU.
const TAKES: Duration = Duration::from_millis(30);

/// Takes the CPU at real-time priority each time that it is told to, and says when it has begun and ended.
fn hog(told: &Receiver<()>, began: &AtomicBool, ended: &Sender<Instant>) {
    while told.recv().is_ok() {
        let begin = Instant::now();
        began.store(true, Ordering::Release);
        while begin.elapsed() < TAKES {
            std::hint::spin_loop();
        }
        ended.send(Instant::now()).unwrap();
    }
}

fn to_cpu(cpu: usize) {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).unwrap();
}

fn become_real_time() -> bool {
    let priority = libc::sched_param { sched_priority: 10 };
    // SAFETY: the parameter is valid for the call, which is about this thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &priority) == 0 }
}

/// Arriving packets are handled on the CPU of the real-time thread, if the kernel lets a test choose it.
fn steer(netns: &Netns, cpu: usize) {
    let line = format!("echo {:x} > /sys/class/net/v0/queues/rx-0/rps_cpus", 1 << cpu);
    let done = std::process::Command::new("ip").args(["netns", "exec", netns.name(), "sh", "-c", &line]).status();
    if !done.unwrap().success() {
        eprintln!("packets are handled on any CPU: no RPS");
    }
}

/// Softirqs interrupt a real-time thread, so packets arrive in time. The reader waits for the CPU.
#[test]
fn real_time_thread_delays_the_reader_and_not_the_packets() {
    assert!(thread::available_parallelism().unwrap().get() >= 2, "it needs two CPUs");
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.a);
    let mut ends = Ends::new(&pair.a, &pair.b, B);
    steer(&pair.b, 1);
    let (tell, told) = channel();
    let (end, ended) = channel();
    let (is_real_time, began) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (mut hogged, mut waited, mut whole) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let answer = watched(&daemon, ends.to.port(), || {
        let begun = Instant::now();
        thread::scope(|scope| {
            let (began_there, is_real_time_there) = (Arc::clone(&began), Arc::clone(&is_real_time));
            let thread = scope.spawn(move || {
                to_cpu(1);
                is_real_time_there.store(become_real_time(), Ordering::Release);
                end.send(Instant::now()).unwrap();
                hog(&told, &began_there, &end);
            });
            ended.recv().unwrap();
            let mut server = ends.server.try_clone().unwrap();
            let reader = scope.spawn(move || {
                to_cpu(1);
                while server.read_exact(&mut [0; BYTES]).is_ok() {
                    server.write_all(&[2; BYTES]).unwrap();
                }
            });
            to_cpu(0);
            for n in 0..6 {
                if n > 0 {
                    began.store(false, Ordering::Release);
                    tell.send(()).unwrap();
                    while !began.load(Ordering::Acquire) {}
                }
                let sent = Instant::now();
                ends.client.write_all(&[1; BYTES]).unwrap();
                ends.client.read_exact(&mut [0; BYTES]).unwrap();
                waited = waited.max(sent.elapsed());
                if n > 0 {
                    hogged = hogged.max(ended.recv().unwrap() - sent);
                }
            }
            drop(tell);
            let closed = Instant::now();
            ends.client.shutdown(std::net::Shutdown::Write).unwrap();
            reader.join().unwrap();
            waited = waited.max(closed.elapsed());
            thread.join().unwrap();
        });
        whole = begun.elapsed();
    });
    assert!(is_real_time.load(Ordering::Acquire), "it needs the right to real-time priority");
    // The reader waits until the real-time thread ends, and on a busy machine for others: also before the first exchange.
    let least = hogged.as_secs_f64() * 1e6;
    for (stage, most) in [("runnable_to_running", whole), ("socket_to_read", waited)] {
        let found = us(row(&answer, stage, "server"), "max");
        let range = least * 0.9 - small()..most.as_secs_f64() * 1.1e6 + small();
        assert!(range.contains(&found), "{stage}: {range:?} µs: {answer:#}");
        assert_eq!(row(&answer, stage, "server")["owner"]["netns"], pair.b.inode(), "{answer:#}");
    }
    for stage in ["arrival_to_socket", "request_to_reply", "write_to_wire", "wire_to_ack"] {
        let rows = answer["stages"].as_array().unwrap().iter();
        let mut here = rows.filter(|row| row["stage"] == stage && row["side"] == "server");
        assert!(here.all(|row| us(row, "p50") < small()), "not {stage}: {answer:#}");
    }
}
