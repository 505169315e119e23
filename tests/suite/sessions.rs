//! Sessions: many readings under load, merged, equal one reading of the whole time.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::*;

/// The ports of these tests' traffic: other tests have other ports.
const TCP: u16 = 21_077;
const UDP: u16 = 21_078;
const CLOSED: u16 = 21_079;
const EVERY: Duration = Duration::from_millis(100);
/// Traffic continues until each session has this number of readings.
const READINGS: usize = 15;

/// Requests and replies over long connections, short connections, datagrams, resets, packets to a closed port and DNS
/// queries with late answers: data for every tool.
fn traffic(pair: &Pair, goes_on: impl Fn() -> bool + Sync) {
    let over = AtomicBool::new(false);
    let server = server(&pair.b, (B.parse::<IpAddr>().unwrap(), TCP).into());
    dns_server(&pair.b);
    thread::scope(|scope| {
        // Both CPUs are busy meanwhile.
        let burn = || (0..).take_while(|_| !over.load(Ordering::Relaxed)).for_each(|_: u64| std::hint::spin_loop());
        (0..2).for_each(|_| drop(scope.spawn(burn)));
        let (server, goes_on) = (&server, &goes_on);
        let lasting = move |n: usize| {
            let mut stream = connect(&pair.a, *server).unwrap();
            while goes_on() {
                let request = vec![b'x'; 1 + n * 700];
                stream.write_all(&request).unwrap();
                stream.read_exact(&mut vec![0; request.len()]).unwrap();
            }
            stream
        };
        let streams: Vec<_> = (0..4).map(|n| scope.spawn(move || lasting(n))).collect();
        let short = scope.spawn(|| {
            let mut count = 0;
            // All of them have rows.
            while goes_on() && count < 300 {
                let mut stream = connect(&pair.a, *server).unwrap();
                stream.write_all(b"hello").unwrap();
                stream.read_exact(&mut [0; 5]).unwrap();
                let _ = connect(&pair.a, SocketAddr::new(server.ip(), CLOSED)).unwrap_err();
                count += 1;
            }
            count
        });
        let datagrams = scope.spawn(|| {
            let socket = pair.a.enter(|| UdpSocket::bind((A, UDP)).unwrap());
            while goes_on() {
                socket.send_to(&[0; 100], (B, CLOSED)).unwrap();
                thread::sleep(Duration::from_millis(1)); // the kernel rate-limits its answers
            }
            socket
        });
        let names =
            scope.spawn(|| (0..).take_while(|_| goes_on()).for_each(|n: usize| drop(ask_dns(&pair.a, n as u8))));
        let streams: Vec<_> = streams.into_iter().map(|stream| stream.join().unwrap()).collect();
        assert!(short.join().unwrap() > 5);
        let _socket = datagrams.join().unwrap();
        names.join().unwrap();
        over.store(true, Ordering::Relaxed);
        // They are open at the end of the windows, and have sent everything.
        std::mem::forget((streams, _socket));
    });
}

fn server(netns: &Netns, at: SocketAddr) -> SocketAddr {
    let listener = netns.enter(|| TcpListener::bind(at).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut &stream));
        }
    });
    at
}

/// Answers every query after 150 ms: the answer falls into another reading.
fn dns_server(netns: &Netns) {
    let socket = netns.enter(|| UdpSocket::bind((B, 53)).unwrap());
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            thread::sleep(Duration::from_millis(150));
            (query[2], query[3]) = (0x81, 0x80);
            let _ = socket.send_to(&query[..length], from);
        }
    });
}

fn ask_dns(netns: &Netns, id: u8) -> UdpSocket {
    let mut query = vec![0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, b'n', b'0' + id % 10, 8];
    query.extend(b"sessions\0\0\x01\0\x01");
    let socket = netns.enter(|| UdpSocket::bind((A, 0)).unwrap());
    socket.send_to(&query, (B, 53)).unwrap();
    socket.recv(&mut [0; 512]).unwrap();
    socket
}

/// The common part of two windows of different length: everything except lengths and rates. Rows are sorted.
fn comparable(mut answer: Value) -> Value {
    strip(&mut answer);
    answer
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // An open connection lasts until the window ends; a clock of milliseconds is read twice.
            let open = fields.get("closed") == Some(&json!(false));
            fields.retain(|name, _| {
                let of_the_end = open && name == "duration_us";
                !(name.ends_with("_per_second") || name == "window_ms" || name == "limited_ms" || of_the_end)
            });
            fields.values_mut().for_each(strip);
        }
        Value::Array(rows) => {
            // A packet of another test may be counted at its place already, and not in its flow yet, when it is read. And
            // orphans and accept queues are counted for all network namespaces, at the end of each window.
            let of_others =
                ["drops_unfiltered", "orphans_unread", "waiting_round_trips_unread", "waiting_connections_unread"];
            rows.retain(|row| !of_others.iter().any(|code| row["code"] == *code));
            rows.iter_mut().for_each(strip);
            rows.sort_by_key(Value::to_string);
        }
        _ => {}
    }
}

/// The differences: `-` only the first, `+` only the second.
fn difference(a: &Value, b: &Value) -> String {
    let rows = |value: &Value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    let (a, b) = (rows(a), rows(b));
    let only = |sign: &str, a: &[Value], b: &[Value]| -> String {
        a.iter().filter(|row| !b.contains(row)).take(5).map(|row| format!("\n{sign} {row}")).collect()
    };
    only("-", &a, &b) + &only("+", &b, &a)
}

#[test]
fn merged_readings_equal_one_long_reading() {
    let (pair, _alone) = (Pair::new(), without_scans());
    let daemon = daemon_in(&pair.a);
    let questions = [
        ("top_traffic", json!({"group_by": "process", "port": TCP})),
        ("top_traffic", json!({"group_by": "connection", "port": TCP})),
        ("top_traffic", json!({"group_by": "remote", "port": UDP})),
        ("top_traffic", json!({"group_by": "netns", "port": TCP})),
        ("trace_connections", json!({"port": TCP})),
        ("trace_connections", json!({"port": CLOSED})),
        ("profile_tcp", json!({"port": TCP})),
        ("profile_tcp", json!({"port": CLOSED})),
        ("trace_drops", json!({"port": CLOSED, "include_benign": true})),
        ("trace_dns", json!({"name": "sessions"})),
    ];
    let windows: Vec<_> = questions
        .iter()
        .map(|(tool, input)| {
            let mut input = input.clone();
            input["limit"] = 1_000.into();
            (daemon.read_every(tool, EVERY, input.clone()), daemon.watch(tool, input))
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(60);
    traffic(&pair, || windows.iter().any(|(readings, _)| readings.count() < READINGS) && Instant::now() < end);
    for ((readings, whole), (tool, input)) in windows.into_iter().zip(&questions) {
        let (readings, whole) = (readings.end(), whole.end());
        assert!(readings.samples.len() >= READINGS, "{tool} {input}: {} readings", readings.samples.len());
        let rows =
            ["rows", "connections", "remotes", "drops", "queries"].iter().find_map(|list| whole[list].as_array());
        let rows = rows.map_or(0, Vec::len) + whole["resets"].as_array().map_or(0, Vec::len);
        assert!(rows > 0, "{tool} {input}: {whole:#}");
        // A query is reported once, with its answer.
        let told = |sample: &String| readings.answer(sample)["summary"]["queries"].as_u64().unwrap_or_default();
        let told: u64 = readings.samples.iter().map(told).sum();
        assert_eq!(told, whole["summary"]["queries"].as_u64().unwrap_or_default(), "{tool} {input}");
        let merged = comparable(readings.merged());
        let whole = comparable(whole);
        for (name, value) in whole.as_object().unwrap() {
            let differs = difference(&merged[name], value);
            assert!(differs.is_empty(), "{tool} {input}: `{name}` of the merged readings, and of the whole: {differs}");
        }
    }
}

#[test]
fn packets_and_findings_are_merged() {
    // The other test's sessions see every network namespace, and tests run in parallel.
    const DATAGRAMS: u16 = 21_270;
    const REFUSED: u16 = 21_271;
    let (pair, _alone) = (Pair::new(), without_scans());
    let daemon = daemon_in(&pair.a);
    let incoming = json!({"operation": "incoming", "interface": "v0", "duration": 60});
    let packets = daemon.read_every("network-monitor", EVERY, incoming);
    let links = daemon.read_every("snapshot_interfaces", EVERY, json!({"interface": "v0"}));
    let diagnosis =
        daemon.read_every("diagnose", Duration::from_millis(500), json!({"duration_ms": 500, "limit": 1_000}));
    let (mut datagrams, mut refused) = (0_u64, 0_u64);
    let socket = pair.b.enter(|| UdpSocket::bind((B, 0)).unwrap());
    let _receiver = pair.a.enter(|| UdpSocket::bind((A, DATAGRAMS)).unwrap());
    let end = Instant::now() + Duration::from_secs(60);
    while diagnosis.count() < 3 && Instant::now() < end {
        socket.send_to(&[0; 100], (A, DATAGRAMS)).unwrap();
        datagrams += 1;
        let _ = connect(&pair.a, (B.parse::<IpAddr>().unwrap(), REFUSED).into()).unwrap_err();
        refused += 1;
        thread::sleep(Duration::from_millis(5)); // all their rows are kept
    }
    let (packets, links, diagnosis) = (packets.end(), links.end(), diagnosis.end());
    assert_eq!(packets.merged()["by_protocol"]["udp"], datagrams, "{}", packets.merged());
    let per_second: f64 = links.merged()["interfaces"][0]["rx"]["packets_per_second"].as_f64().unwrap();
    let seconds = links.merged()["measured"]["window_ms"].as_f64().unwrap() / 1e3;
    assert!(per_second * seconds >= datagrams as f64, "{}", links.merged());
    let merged = diagnosis.merged();
    let is_ours = |finding: &&Value| {
        finding["code"] == "connection_refused" && finding["evidence"].to_string().contains(&REFUSED.to_string())
    };
    let finding = merged["findings"].as_array().unwrap().iter().find(is_ours).unwrap_or_else(|| panic!("{merged:#}"));
    assert_eq!(finding["evidence"]["refused"], refused, "{finding:#}");
}

fn says(lines: &mut impl BufRead) -> Value {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}"))
}

#[test]
fn connection_carries_several_requests() {
    let daemon = Daemon::start();
    let mut stream = UnixStream::connect(&daemon.socket).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let request = |tool: &str, more: &str| format!("{{\"version\":2,\"tool\":\"{tool}\",\"input\":{{}}{more}}}\n");
    // Two at once, then a refused one, then another one.
    stream.write_all((request("status", "") + &request("snapshot_sockets", "")).as_bytes()).unwrap();
    assert!(says(&mut lines)["sample"]["kernel"].is_string());
    assert!(says(&mut lines)["sample"]["states"].is_object());
    stream.write_all(request("top_traffic", ",\"every_ms\":99").as_bytes()).unwrap();
    let refusal = says(&mut lines)["error"]["invalid_input"].as_str().unwrap().to_owned();
    assert_eq!(refusal, "invalid every_ms: expected 100 to 60000");
    stream.write_all(request("status", "").as_bytes()).unwrap();
    assert!(says(&mut lines)["sample"]["kernel"].is_string());
}

#[test]
fn readings_continue_until_the_client_disconnects() {
    let daemon = Daemon::start();
    let readings = daemon.read_every("top_traffic", EVERY, json!({}));
    until("there are three readings", || (readings.count() >= 3).then_some(()));
    let mut client = Client::connect(&daemon.socket);
    assert!(!client.links("top_traffic").is_empty());
    drop(readings);
    client.until_detached("top_traffic");
}
