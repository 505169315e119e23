//! `snapshot_sockets` and `top_traffic`: their cost, and 100,000 sockets.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdout, Stdio},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    Figure, cost,
    floor::{Empty, TRACEPOINTS_OF_TRAFFIC},
    harness::*,
    median, peers,
    workload::{Close, Load},
};

/// The name of a figure, its load, and its target.
type Case = (&'static str, fn(&Pair) -> Load, (f64, &'static str));

pub fn traffic_cost() -> Vec<Figure> {
    let closes: fn(&Pair) -> Load = |pair| Load::connects(pair.clone(), Close::Fin);
    let loads: [Case; 4] = [
        ("TCP 64 KiB over veth, CPU, top_traffic open / not", Load::tcp_bulk, (1.01, "<= 1.01")),
        ("TCP request/response, CPU, top_traffic open / not", Load::tcp_requests, (1.04, "<= 1.04")),
        ("UDP request/response, CPU, top_traffic open / not", Load::udp_requests, (1.07, "<= 1.07")),
        ("connect + accept + close by FIN, CPU, top_traffic open / not", closes, (1.10, "<= 1.10")),
    ];
    let compare = |(name, load, reach): Case| {
        let pair = Pair::new();
        let daemon = Daemon::start();
        let ours = cost::ratio(name, &daemon, &[("top_traffic", json!({"duration_ms": 60_000}))], load(&pair), reach);
        let what = name.split(',').next().unwrap_or_default();
        let empty = || Empty::trace(TRACEPOINTS_OF_TRAFFIC);
        let floor = format!("… {what}, an empty program at its tracepoints");
        let floor = cost::compare(&floor, load(&pair), (0.0, "-"), empty, drop);
        [ours, floor].into_iter().chain(peers::beside(what, &pair, peers::BYTES, || load(&pair))).collect::<Vec<_>>()
    };
    loads.into_iter().flat_map(compare).collect()
}

/// Processes that hold connections: one process may not open enough files.
const HOLDERS: usize = 8;

/// Connections per process, which holds both ends.
const HELD: usize = 6_250;

const CONNECTIONS: usize = HOLDERS * HELD;

/// Connections over loopback, which makes twice this number of sockets, in a separate namespace.
struct Many {
    netns: Netns,
    holders: Vec<(Child, BufReader<ChildStdout>)>,
}

impl Many {
    fn new() -> Many {
        let netns = Netns::new();
        let hold = |_| {
            let mut command = netns.command(std::env::current_exe().unwrap().to_str().unwrap());
            let mut child = command.arg("--hold").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap());
            (child, lines)
        };
        let mut many = Many { holders: (0..HOLDERS).map(hold).collect(), netns };
        many.touch();
        many
    }

    /// A byte over each connection, once all are there.
    fn touch(&mut self) {
        self.holders.iter_mut().for_each(|(child, _)| child.stdin.as_mut().unwrap().write_all(b"\n").unwrap());
        self.holders.iter_mut().for_each(|(_, lines)| assert!(lines.read_line(&mut String::new()).unwrap() > 0));
    }
}

impl Drop for Many {
    fn drop(&mut self) {
        for (child, _) in &mut self.holders {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}

/// The work of a holder until its input ends: for each line, a byte over each connection, then a line of output.
pub fn hold() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let connect = |_| (TcpStream::connect(to).unwrap(), listener.accept().unwrap().0);
    let mut connections: Vec<_> = (0..HELD).map(connect).collect();
    for _ in std::io::stdin().lines() {
        for (client, server) in &mut connections {
            client.write_all(&[1]).unwrap();
            server.read_exact(&mut [0]).unwrap();
        }
        println!("done");
    }
}

/// CPU seconds that a process has used, by the kernel's clock tick.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / rustix::param::clock_ticks_per_second() as f64
}

/// CPU seconds of `ss -tinp`, by what it adds to its waiting parent.
fn ss_seconds(netns: &Netns) -> f64 {
    let used = || {
        // SAFETY: the struct is valid for the call.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
            usage
        };
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        seconds(usage.ru_utime) + seconds(usage.ru_stime)
    };
    let before = used();
    assert!(netns.command("ss").args(["-tinp"]).stdout(Stdio::null()).status().unwrap().success());
    used() - before
}

pub fn many_sockets() -> Vec<Figure> {
    const CALLS: usize = 10;
    let mut many = Many::new();
    let daemon = daemon_in(&many.netns);
    let mut client = Client::connect(&daemon.socket);
    let mut times = Vec::new();
    let used = |client: &Client| cpu_seconds(daemon.pid()) + cpu_seconds(client.child.id());
    let before = used(&client);
    for _ in 0..CALLS {
        let begun = Instant::now();
        let answer = client.call("snapshot_sockets", json!({"protocol": "tcp"})).unwrap();
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        assert!(answer["states"]["established"].as_u64().unwrap() as usize >= 2 * CONNECTIONS, "{answer}");
    }
    let ours = (used(&client) - before) / CALLS as f64;
    let (wall, least, most) = median(&mut times);
    let (theirs, ..) = median(&mut (0..3).map(|_| ss_seconds(&many.netns)).collect::<Vec<_>>());
    let (answer, least_answer, most_answer) =
        median(&mut (0..3).map(|_| end_to_answer(&mut client, &mut many)).collect::<Vec<_>>());
    vec![
        Figure {
            name: "snapshot of 100,000 sockets, CPU / that of ss -tinp".into(),
            measured: format!("{:.3} ({:.0} / {:.0} ms)", ours / theirs, ours * 1e3, theirs * 1e3),
            reach: "<= 0.1",
            reached: ours / theirs <= 0.1,
        },
        Figure {
            name: "snapshot of 100,000 sockets, call".into(),
            measured: format!("{wall:.0} ms ({least:.0}-{most:.0})"),
            reach: "-",
            reached: true,
        },
        Figure {
            name: "100,000 flows, the window's end to the answer".into(),
            measured: format!("{answer:.0} ms ({least_answer:.0}-{most_answer:.0})"),
            reach: "<= 250 ms",
            reached: answer <= 250.0,
        },
    ]
}

/// Milliseconds from the end of a window with traffic on every connection to the answer.
fn end_to_answer(client: &mut Client, many: &mut Many) -> f64 {
    let window = Duration::from_secs(10);
    let begun = Instant::now();
    let id =
        client.begin_call("top_traffic", json!({"duration_ms": window.as_millis() as u64, "group_by": "connection"}));
    client.until_open("top_traffic", 1);
    many.touch(); // takes a second or two
    let answer = client.end_call(id).unwrap();
    let time = begun.elapsed() - window;
    assert!(answer["other"]["rows"].as_u64().unwrap() as usize > CONNECTIONS, "{answer}");
    time.as_secs_f64() * 1e3
}
