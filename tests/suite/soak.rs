//! Fifty windows of all tools at once for a chosen time, while connections, floods, namespaces, processes and clients
//! come and go. Every request is answered, and the daemon ends with the resources that it started with. `make soak`
//! runs it for half an hour; the suite, for some seconds.

use std::{
    collections::VecDeque,
    io::Write,
    net::{SocketAddr, UdpSocket},
    os::unix::net::UnixStream,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use netmon_mcp::limits;
use serde_json::{Value, json};

use crate::harness::*;

/// Windows at once; a gateway takes 64 calls.
const WINDOWS: usize = 50;

/// The resources that must not grow.
#[derive(Debug)]
struct Held {
    memory_kb: u64,
    /// Kernel memory for programs and maps.
    ebpf_kb: u64,
    links: usize,
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn by(pid: u32) -> Held {
        let folder = |what| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().flatten();
        let number = |line: &str| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let descriptors: Vec<_> =
            folder("fdinfo").filter_map(|entry| std::fs::read_to_string(entry.path()).ok()).collect();
        let lines =
            |field| descriptors.iter().flat_map(|text| text.lines()).filter(move |line| line.starts_with(field));
        Held {
            memory_kb: number(status.lines().find(|line| line.starts_with("VmRSS:")).unwrap()),
            ebpf_kb: lines("memlock:").map(number).sum::<u64>() / 1_024,
            links: lines("link_type:").count(),
            descriptors: descriptors.len(),
            threads: folder("task").count(),
        }
    }

    /// Both processes' resources after the last measurement: lingering data is freed within a second.
    fn at_rest(daemon: &Daemon, client: &mut Client) -> [Held; 2] {
        until("nothing is open or attached", || {
            let status = client.call("status", json!({})).unwrap();
            let at_rest = |tool: &Value| tool["windows"] == 0 && tool["links"].as_array().unwrap().is_empty();
            // Its own connection, and the one that the client keeps for its next request.
            (status["tools"].as_array().unwrap().iter().all(at_rest) && Held::by(daemon.pid()).threads <= 2)
                .then_some(())
        });
        [Held::by(daemon.pid()), Held::by(client.child.id())]
    }
}

/// Every tool with the arguments of a short window.
fn questions(client: &mut Client) -> Vec<(String, Value)> {
    let tools = client.request("tools/list", json!({}))["result"]["tools"].clone();
    let question = |tool: &Value| {
        let arguments = match (tool["name"].as_str().unwrap(), tool["inputSchema"]["properties"].get("duration_ms")) {
            ("network-monitor", _) => json!({"operation": "incoming", "interface": "lo", "duration": 2}),
            (_, Some(_)) => json!({"duration_ms": 2000}),
            _ => json!({}),
        };
        (tool["name"].as_str().unwrap().to_owned(), arguments)
    };
    tools.as_array().unwrap().iter().map(question).collect()
}

/// Repeats `turn` at an interval until stopped, and counts.
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
        // The ports are closed: half are dropped directly, half are first parsed by `trace_dns`.
        (0..50).for_each(|_| [9, 53].into_iter().for_each(|port| drop(socket.send_to(&[0; 200], (B, port)))));
    });
}

fn die_in_the_middle(daemon: &Daemon) {
    let question = json!({"version": 2, "tool": "snapshot_interfaces", "input": {"duration_ms": 5000}});
    let mut stream = UnixStream::connect(&daemon.socket).unwrap();
    writeln!(stream, "{question}").unwrap();
    thread::sleep(Duration::from_millis(50));
}

/// The load while windows are open.
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
        scope.spawn(move || repeat(&self.stop, &self.namespaces, ms(500), || drop(Pair::new())));
        scope.spawn(move || repeat(&self.stop, &self.processes, ms(100), || drop(Command::new("true").status())));
        scope.spawn(move || repeat(&self.stop, &self.deaths, ms(200), || die_in_the_middle(self.daemon)));
    }

    fn print(&self) {
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        println!(
            "{} connections, {} UDP packets, {} namespaces with an interface, {} processes, {} clients that died",
            count(&self.connects),
            count(&self.floods) * 100,
            count(&self.namespaces) * 2,
            count(&self.processes),
            count(&self.deaths),
        );
    }
}

/// Stops the traffic and joins its threads when dropped, also if the test fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The results of the requests.
#[derive(Default)]
struct Outcome {
    answers: u64,
    errors: Vec<String>,
    /// Windows that were open at each `status` call.
    windows: Vec<u64>,
    lost_events: u64,
}

impl Outcome {
    fn take(&mut self, tool: &str, answer: Answer) {
        match answer {
            Ok(answer) => {
                self.answers += 1;
                self.lost_events += answer["measured"]["lost_events"].as_u64().unwrap_or(0);
                if tool == "status" {
                    let tools = answer["tools"].as_array().unwrap().iter();
                    self.windows.push(tools.map(|tool| tool["windows"].as_u64().unwrap()).sum());
                }
            }
            Err(e) => self.errors.push(format!("{tool}: {e}")),
        }
    }
}

/// Keeps [`WINDOWS`] windows open until `end`, and calls the tools without a window in between.
fn measure(client: &mut Client, questions: &[(String, Value)], end: Instant) -> Outcome {
    let mut turn = questions.iter().cycle();
    let (mut open, mut outcome) = (VecDeque::new(), Outcome::default());
    while Instant::now() < end || !open.is_empty() {
        while open.len() < WINDOWS && Instant::now() < end {
            let (tool, arguments) = turn.next().unwrap();
            match arguments.as_object().unwrap().is_empty() {
                true => outcome.take(tool, client.call(tool, json!({}))),
                false => open.push_back((tool, client.begin_call(tool, arguments.clone()))),
            }
        }
        if let Some((tool, id)) = open.pop_front() {
            outcome.take(tool, client.end_call(id));
        }
    }
    outcome
}

/// Prints the resources of both processes ten times: growth shows here first.
fn report_on_the_way(processes: [u32; 2], begun: Instant, seconds: u64, stop: &AtomicBool) {
    for tenth in 1..10 {
        while begun.elapsed() < Duration::from_secs(seconds) * tenth / 10 {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        let [daemon, gateway] = processes.map(Held::by);
        println!("{:4.0} s: daemon {daemon:?}, gateway {} kB", begun.elapsed().as_secs_f64(), gateway.memory_kb);
    }
}

#[test]
fn soak_keeps_memory_and_answers() {
    let seconds = std::env::var("NETMON_SOAK_SECONDS").map_or(6, |text| text.parse().expect("a number of seconds"));
    let (daemon, pair) = (Daemon::own(), Pair::new());
    let mut client = Client::connect(&daemon.socket);
    let questions = questions(&mut client);
    // One warm-up of everything: caches are filled now.
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
    let (begun, processes) = (Instant::now(), [daemon.pid(), client.child.id()]);
    let outcome = thread::scope(|scope| {
        let _ending = Ending(&traffic.stop);
        traffic.run(scope);
        scope.spawn(|| report_on_the_way(processes, begun, seconds, &traffic.stop));
        measure(&mut client, &questions, begun + Duration::from_secs(seconds))
    });
    Held::at_rest(&daemon, &mut client);
    // The gateway's threads for long answers end after a time. It keeps some idle connections: no request runs meanwhile.
    let is_back = |after: &Held, before: &Held| {
        after.descriptors <= before.descriptors + limits::IDLE_CONNECTIONS && after.threads <= before.threads.max(2)
    };
    let mut shown = String::new();
    let after = until("threads and connections have ended", || {
        let after = processes.map(Held::by);
        let now = format!("{after:?}");
        if now != shown {
            println!("after {before:?}: {now}");
            shown = now;
        }
        after.iter().zip(&before).all(|(after, before)| is_back(after, before)).then_some(after)
    });
    let Outcome { answers, errors, mut windows, lost_events } = outcome;
    windows.sort_unstable();
    let most = windows.last().copied().unwrap_or_default();
    println!(
        "{:.0} s, {} tools, {answers} answers, {} errors",
        begun.elapsed().as_secs_f64(),
        questions.len(),
        errors.len()
    );
    println!(
        "windows at once: {} at the median, {most} at most; {lost_events} events lost",
        windows[windows.len() / 2]
    );
    traffic.print();
    println!("before, daemon and gateway: {before:?}\nafter:                      {after:?}");
    assert_eq!(errors, Vec::<String>::new());
    assert!(most >= WINDOWS as u64, "{windows:?}");
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(after.links, before.links);
        // Tolerates the hash entries of a program that ran while the last window cleared them.
        assert!(after.ebpf_kb < before.ebpf_kb + 64, "{before:?} {after:?}");
        // Tolerates new attribution data.
        assert!(after.memory_kb < before.memory_kb * 5 / 4 + 1_024, "{before:?} {after:?}");
    }
}
