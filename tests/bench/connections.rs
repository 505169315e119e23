//! `trace_connections`: the cost of a traced connection, and missed connections.

use std::{
    cell::RefCell,
    io::Read,
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    Figure, cost, flood,
    floor::{Empty, TRACEPOINTS_OF_CONNECTIONS},
    harness::*,
    peers,
    workload::{Close, Load},
};

const TOOL: &str = "trace_connections";

/// Connect, accept and close with both ends traced: two connections for the tool.
pub fn cost() -> Vec<Figure> {
    let daemon = Daemon::start();
    let window = [(TOOL, json!({"duration_ms": 60_000}))];
    let (pair, name) = (Pair::new(), "connect + accept + close");
    let load = || Load::connects(pair.clone(), Close::Reset);
    let mut figures =
        vec![cost::ratio(&format!("{name}, CPU, traced / not"), &daemon, &window, load(), (1.10, "<= 1.10"))];
    let orderly = format!("{name} by FIN, another network namespace, CPU, traced / not");
    let by_fin = Load::connects(pair.clone(), Close::Fin);
    figures.push(cost::ratio(&orderly, &daemon, &window, by_fin, (1.10, "<= 1.10")));
    let inside = daemon_in(&pair.a);
    let orderly = format!("{name} by FIN, the client's network namespace, CPU, traced / not");
    let by_fin = Load::connects(pair.clone(), Close::Fin);
    figures.push(cost::ratio(&orderly, &inside, &window, by_fin, (1.10, "<= 1.10")));
    let empty = || Empty::trace(TRACEPOINTS_OF_CONNECTIONS);
    let floor = format!("… {name}, an empty program at its tracepoints");
    figures.push(cost::compare(&floor, load(), (0.0, "-"), empty, drop));
    figures.extend(peers::beside(name, &pair, peers::STATES, load));
    figures
}

/// The same during `diagnose` with all tools, with programs that only return at their tracepoints, and with only
/// `trace_connections` beside such programs: the least that names the owner of each connection.
pub fn diagnosed() -> Vec<Figure> {
    let (pair, daemon) = (Pair::new(), Daemon::start());
    let client = RefCell::new(Client::connect(&daemon.socket));
    let window = [("diagnose", json!({"duration_ms": 60_000}))];
    let alone = [(TOOL, json!({"duration_ms": 60_000}))];
    let on = || cost::open(&mut client.borrow_mut(), &window);
    let off = |ids| {
        let mut client = client.borrow_mut();
        cost::close(&mut client, &window, ids);
        flood::windows(&daemon).iter().for_each(|(tool, _)| client.until_detached(tool));
    };
    let mut figures = Vec::new();
    for (how, close) in [("", Close::Reset), (" by FIN, another network namespace", Close::Fin)] {
        let name = format!("connect + accept + close{how}, CPU");
        let load = || Load::connects(pair.clone(), close);
        figures.push(cost::compare(&format!("{name}, diagnosed / not"), load(), (1.12, "<= 1.12"), on, off));
        let empty = Empty::diagnose;
        figures.push(cost::compare(&format!("… {name}, empty programs / none"), load(), (0.0, "-"), empty, drop));
        let on = || (cost::open(&mut client.borrow_mut(), &alone), Empty::diagnose_but(TRACEPOINTS_OF_CONNECTIONS));
        let off = |(ids, _)| cost::close(&mut client.borrow_mut(), &alone, ids);
        let least = format!("… {name}, {TOOL} and empty programs / none");
        figures.push(cost::compare(&least, load(), (0.0, "-"), on, off));
    }
    figures
}

/// Connections at 5,000 per second for 5 s that are absent from the answer.
pub fn lost() -> Vec<Figure> {
    const CONNECTS: u32 = 25_000;
    let netns = Netns::new();
    netns.run("sysctl -qw net.ipv4.tcp_tw_reuse=1");
    let listener = netns.enter(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let to = listener.local_addr().unwrap();
    thread::spawn(move || listener.incoming().for_each(drop));
    let daemon = Daemon::start();
    let mut client = Client::connect(&daemon.socket);
    let arguments = json!({"port": to.port(), "direction": "outbound", "duration_ms": 20_000});
    let id = client.begin_call(TOOL, arguments);
    client.until_open(TOOL, 1);
    let begun = Instant::now();
    netns.enter(|| {
        for n in 0..CONNECTS {
            let _ = TcpStream::connect(to).unwrap().read(&mut [0]);
            thread::sleep((Duration::from_micros(200) * n).saturating_sub(begun.elapsed()));
        }
    });
    let rate = f64::from(CONNECTS) / begun.elapsed().as_secs_f64();
    let answer = client.end_call(id).unwrap();
    let counts = answer["outcomes"].as_object().unwrap().values().filter_map(serde_json::Value::as_u64);
    let missing = u64::from(CONNECTS).abs_diff(counts.sum::<u64>());
    let said = answer["measured"]["lost_events"].as_u64().unwrap();
    vec![Figure {
        name: format!("connects missed of {CONNECTS}, at {rate:.0}/s (said to be lost)"),
        measured: format!("{missing} ({said})"),
        reach: "0, or counted",
        reached: missing <= said,
    }]
}
