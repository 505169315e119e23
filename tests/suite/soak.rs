//! Fifty windows at once, of every tool, for as long as one likes, while connections, floods, namespaces, processes and
//! clients come and go: every question is answered, and at the end the daemon has what it had at the beginning.
//! `make soak` runs it for half an hour; the suite, for some seconds.

use std::{
    io::Write,
    net::{SocketAddr, UdpSocket},
    os::unix::net::UnixStream,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::*;

/// Windows at once; a gateway takes 64.
const WINDOWS: usize = 50;

/// What must not grow.
#[derive(Debug)]
struct Held {
    memory_kb: u64,
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn by(daemon: &Daemon) -> Held {
        let entries = |what| std::fs::read_dir(format!("/proc/{}/{what}", daemon.pid())).unwrap().count();
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let memory = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        Held {
            memory_kb: memory.split_whitespace().nth(1).unwrap().parse().unwrap(),
            descriptors: entries("fd"),
            threads: entries("task"),
        }
    }

    /// When nothing is measured any more: what lingers for a next call takes a second to go.
    fn at_rest(daemon: &Daemon, client: &mut Client) -> Held {
        until("nothing is open or attached", || {
            let status = client.call("status", json!({})).unwrap();
            let at_rest = |tool: &Value| tool["windows"] == 0 && tool["links"].as_array().unwrap().is_empty();
            (status["tools"].as_array().unwrap().iter().all(at_rest) && Held::by(daemon).threads == 1).then_some(())
        });
        Held::by(daemon)
    }
}

/// Every tool with the arguments of a short window.
fn questions(client: &mut Client) -> Vec<(String, Value)> {
    let tools = client.request("tools/list", json!({}))["result"]["tools"].clone();
    let question = |tool: &Value| {
        let arguments = match (tool["name"].as_str().unwrap(), tool["inputSchema"]["properties"].get("duration_ms")) {
            ("network-monitor", _) => json!({"operation": "incoming", "interface": "lo", "duration": 0.7}),
            (_, Some(_)) => json!({"duration_ms": 700}),
            _ => json!({}),
        };
        (tool["name"].as_str().unwrap().to_owned(), arguments)
    };
    tools.as_array().unwrap().iter().map(question).collect()
}

/// Does `turn` every so often until it is told to stop, and counts.
fn repeat(stop: &AtomicBool, done: &AtomicU64, every: Duration, mut turn: impl FnMut()) {
    while !stop.load(Ordering::Relaxed) {
        turn();
        done.fetch_add(1, Ordering::Relaxed);
        thread::sleep(every);
    }
}

fn flood(pair: &Pair) {
    pair.a.enter(|| {
        let socket = UdpSocket::bind((A, 0)).unwrap();
        (0..100).for_each(|_| drop(socket.send_to(&[0; 200], (B, 9))));
    });
}

fn die_in_the_middle(daemon: &Daemon) {
    let question = json!({"version": 1, "tool": "snapshot_interfaces", "input": {"duration_ms": 5000}});
    let mut stream = UnixStream::connect(&daemon.socket).unwrap();
    writeln!(stream, "{question}").unwrap();
    thread::sleep(Duration::from_millis(50));
}

/// What comes and goes while windows are open.
struct Traffic<'a> {
    pair: &'a Pair,
    to: SocketAddr,
    daemon: &'a Daemon,
    stop: AtomicBool,
    connects: AtomicU64,
    floods: AtomicU64,
    namespaces: AtomicU64,
    processes: AtomicU64,
    deaths: AtomicU64,
}

impl Traffic<'_> {
    fn run<'scope>(&'scope self, scope: &'scope thread::Scope<'scope, '_>) {
        let ms = Duration::from_millis;
        scope.spawn(move || repeat(&self.stop, &self.connects, ms(10), || drop(connect(&self.pair.a, self.to))));
        scope.spawn(move || repeat(&self.stop, &self.floods, ms(50), || flood(self.pair)));
        scope.spawn(move || repeat(&self.stop, &self.namespaces, ms(500), || drop(Netns::new())));
        scope.spawn(move || repeat(&self.stop, &self.processes, ms(100), || drop(Command::new("true").status())));
        scope.spawn(move || repeat(&self.stop, &self.deaths, ms(200), || die_in_the_middle(self.daemon)));
    }
}

/// Keeps [`WINDOWS`] calls under way until `end`; returns how many were answered, and what went wrong.
fn measure(client: &mut Client, questions: &[(String, Value)], end: Instant) -> (u64, Vec<String>) {
    let mut turn = questions.iter().cycle();
    let (mut open, mut answers, mut errors) = (std::collections::VecDeque::new(), 0, Vec::new());
    while Instant::now() < end || !open.is_empty() {
        while open.len() < WINDOWS && Instant::now() < end {
            let (tool, arguments) = turn.next().unwrap();
            open.push_back((tool, client.begin_call(tool, arguments.clone())));
        }
        if let Some((tool, id)) = open.pop_front() {
            match client.end_call(id) {
                Ok(_) => answers += 1,
                Err(e) => errors.push(format!("{tool}: {e}")),
            }
        }
    }
    (answers, errors)
}

#[test]
fn nothing_grows_and_no_answer_is_lost() {
    let seconds = std::env::var("NETMON_SOAK_SECONDS").map_or(6, |text| text.parse().expect("a number of seconds"));
    let (daemon, pair) = (Daemon::start(), Pair::new());
    let mut client = Client::connect(&daemon.socket);
    let questions = questions(&mut client);
    // Once through everything: what is kept for later is there now.
    measure(&mut client, &questions, Instant::now() + Duration::from_secs(1));
    let before = Held::at_rest(&daemon, &mut client);
    let traffic = Traffic {
        pair: &pair,
        to: echo_server(&pair.b, B),
        daemon: &daemon,
        stop: AtomicBool::new(false),
        connects: AtomicU64::default(),
        floods: AtomicU64::default(),
        namespaces: AtomicU64::default(),
        processes: AtomicU64::default(),
        deaths: AtomicU64::default(),
    };
    let begun = Instant::now();
    let (answers, errors) = thread::scope(|scope| {
        traffic.run(scope);
        let measured = measure(&mut client, &questions, begun + Duration::from_secs(seconds));
        traffic.stop.store(true, Ordering::Relaxed);
        measured
    });
    let after = Held::at_rest(&daemon, &mut client);
    let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
    println!("{:.0} s, {WINDOWS} windows at once of {} tools", begun.elapsed().as_secs_f64(), questions.len());
    println!("{answers} answers, {} errors", errors.len());
    println!(
        "{} connections, {} UDP packets, {} namespaces, {} processes, {} clients that died",
        count(&traffic.connects),
        count(&traffic.floods) * 100,
        count(&traffic.namespaces),
        count(&traffic.processes),
        count(&traffic.deaths),
    );
    println!("before: {before:?}\nafter:  {after:?}");
    assert_eq!(errors, Vec::<String>::new());
    assert_eq!((after.descriptors, after.threads), (before.descriptors, before.threads));
    // Give or take what attribution has learnt in the meantime.
    assert!(after.memory_kb < before.memory_kb * 5 / 4 + 1_024, "{before:?} {after:?}");
}
