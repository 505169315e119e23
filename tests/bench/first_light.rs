//! `network-monitor`, and the two processes themselves.

use std::{
    net::UdpSocket,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{Figure, cost, floor::Empty, harness::*, median, workload::Load};

const TOOL: &str = "network-monitor";

fn incoming(interface: &str, seconds: f64) -> Value {
    json!({"operation": "incoming", "interface": interface, "duration": seconds})
}

/// The name of a figure, its load, and its target.
type Case = (&'static str, fn(&Pair) -> Load, (f64, &'static str));

pub fn incoming_cost() -> Vec<Figure> {
    let loads: [Case; 3] = [
        ("TCP 64 KiB over veth, CPU, measuring / not", Load::tcp_bulk, (1.02, "<= 1.02")),
        ("TCP request/response, CPU, measuring / not", Load::tcp_requests, (1.01, "<= 1.01")),
        ("UDP request/response, CPU, measuring / not", Load::udp_requests, (1.01, "<= 1.01")),
    ];
    let mut figures = Vec::new();
    for (name, load, reach) in loads {
        let pair = Pair::new();
        let daemon = daemon_in(&pair.b);
        figures.push(cost::ratio(name, &daemon, &[(TOOL, incoming("v0", 60.0))], load(&pair), reach));
        let attach = || pair.b.enter(|| Empty::attach(rustix::net::netdevice::name_to_index(socket(), "v0").unwrap()));
        figures.push(cost::compare("  an empty program at the same hooks", load(&pair), FLOOR, attach, drop));
    }
    let pair = Pair::new();
    figures.push(cost::compare("  nothing ever (noise)", Load::udp_requests(&pair), FLOOR, || (), drop));
    figures
}

/// Measured for comparison only.
const FLOOR: (f64, &str) = (f64::MAX, "for comparison");

fn socket() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").unwrap()
}

/// Packets per second of a generator that sends 10,000 per second by the clock.
pub fn accuracy() -> Vec<Figure> {
    let pair = Pair::new();
    let daemon = daemon_in(&pair.b);
    let mut client = Client::connect(&daemon.socket);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut errors: Vec<f64> = std::thread::scope(|scope| {
        scope.spawn(|| pair.a.enter(|| generate(&stop)));
        let errors = (0..7).map(|_| {
            let answer = client.call(TOOL, incoming("v0", 1.0)).unwrap();
            (answer["packets_per_second"].as_f64().unwrap() / 10_000.0 - 1.0) * 100.0
        });
        let errors = errors.collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        errors
    });
    let (middle, least, most) = median(&mut errors);
    vec![Figure {
        name: "error against a 10,000 packets/s generator, 1 s".into(),
        measured: format!("{middle:+.3} % ({least:+.2}..{most:+.2})"),
        reach: "within 0.2 %",
        reached: middle.abs() <= 0.2,
    }]
}

/// A datagram every 100 µs by absolute time: a late one does not delay the next.
fn generate(stop: &std::sync::atomic::AtomicBool) {
    let socket = UdpSocket::bind((A, 0)).unwrap();
    let begun = Instant::now();
    for i in 0..120_000u32 {
        while begun.elapsed() < Duration::from_micros(100) * i {
            std::hint::spin_loop();
        }
        let _ = socket.send_to(&[0; 64], (B, 9));
        if stop.load(std::sync::atomic::Ordering::Relaxed) {
            return;
        }
    }
}

/// The time of a call beyond its window.
pub fn overhead() -> Vec<Figure> {
    let daemon = Daemon::start();
    let mut client = Client::connect(&daemon.socket);
    let mut beyond: Vec<f64> = (0..9)
        .map(|_| {
            let begun = Instant::now();
            client.call(TOOL, incoming("lo", 1.0)).unwrap();
            (begun.elapsed().as_secs_f64() - 1.0) * 1e3
        })
        .collect();
    let (middle, least, most) = median(&mut beyond);
    vec![Figure {
        name: "call time beyond the window".into(),
        measured: format!("{middle:.1} ms ({least:.1}-{most:.1})"),
        reach: "<= 5 ms",
        reached: middle <= 5.0,
    }]
}

/// 3,000 connects at 1,000 per second, through consecutive `outgoing` calls.
pub fn connects() -> Vec<Figure> {
    const CONNECTS: usize = 3_000;
    let pair = Pair::new();
    let daemon = Daemon::start();
    let mut client = Client::connect(&daemon.socket);
    let to = echo_server(&pair.b, B);
    let first = client.begin_call(TOOL, json!({"operation": "outgoing"}));
    client.until_open(TOOL, 1);
    let (netns, a) = (pair.a.inode(), pair.a.clone());
    let maker = std::thread::spawn(move || {
        a.enter(|| {
            let begun = Instant::now();
            for i in 0..CONNECTS as u32 {
                std::thread::sleep((Duration::from_millis(1) * i).saturating_sub(begun.elapsed()));
                drop(std::net::TcpStream::connect(to).unwrap());
            }
        });
    });
    let mut ports = Vec::new();
    let mut answer = client.end_call(first).unwrap();
    while let connections @ [_, ..] = answer["connections"].as_array().unwrap().as_slice() {
        ports.extend(connections.iter().filter(|c| c["owner"]["netns"] == netns).map(|c| c["local"]["port"].as_u64()));
        answer = client.call(TOOL, json!({"operation": "outgoing", "duration": 1})).unwrap();
    }
    maker.join().unwrap();
    let seen = ports.len();
    ports.sort_unstable();
    ports.dedup();
    let twice = seen - ports.len();
    vec![Figure {
        name: "connects seen of 3,000 at 1,000/s, repeated outgoing calls".into(),
        measured: format!("{seen}, {twice} twice"),
        reach: "100 %, none twice",
        reached: ports.len() == CONNECTS && twice == 0,
    }]
}

/// From starting the process to its answer of `initialize`.
pub fn start() -> Vec<Figure> {
    let folder = open_folder();
    let mut times: Vec<f64> = (0..31)
        .map(|_| {
            let mut command = Command::new(GATEWAY);
            command.arg("--socket").arg(folder.path().join("none"));
            let begun = Instant::now();
            let client = Client::connect_to(command);
            let time = begun.elapsed().as_secs_f64() * 1e3;
            drop(client);
            time
        })
        .collect();
    let (middle, least, most) = median(&mut times);
    vec![Figure {
        name: "start to the answer of initialize".into(),
        measured: format!("{middle:.1} ms ({least:.1}-{most:.1})"),
        reach: "<= 5 ms",
        reached: middle <= 5.0,
    }]
}

/// Resident memory of both processes, idle and after calls.
pub fn memory() -> Vec<Figure> {
    let daemon = Daemon::start();
    let mut client = Client::connect(&daemon.socket);
    let sum = |client: &Client| resident(client.child.id()) + resident(daemon.pid());
    let idle = sum(&client);
    let calls = |client: &mut Client| (0..200).for_each(|_| drop(client.call(TOOL, incoming("lo", 0.1)).unwrap()));
    calls(&mut client);
    let after = sum(&client);
    calls(&mut client);
    let later = sum(&client);
    let megabytes = |bytes: f64| format!("{:.1} MB", bytes / 1e6);
    vec![
        Figure {
            name: "resident memory, idle gateway + daemon".into(),
            measured: format!("{} + {}", megabytes(resident(client.child.id())), megabytes(resident(daemon.pid()))),
            reach: "<= 16 MB together",
            reached: idle <= 16e6,
        },
        Figure {
            name: "growth from 200 calls to 400".into(),
            measured: format!("{:+.0} bytes a call", (later - after) / 200.0),
            reach: "none",
            reached: later - after <= 100e3,
        },
    ]
}

pub fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
}
