//! `trace_dns`: a small server in a namespace that answers, fails, delays or stays silent, and the resulting rows.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use netmon_mcp::limits;
use serde_json::{Value, json};

use crate::harness::*;

mod floods;
mod forms;
mod servers;

const TOOL: &str = "trace_dns";
const SLOW: Duration = Duration::from_millis(300);

/// A query for a name, type A.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// The server's reply to a query: its first label decides.
fn response(query: &[u8]) -> Option<Vec<u8>> {
    let rcode = match &query[13..13 + usize::from(query[12])] {
        b"silent" => return None,
        b"missing" => 3,
        b"failing" => 2,
        b"slow" => {
            thread::sleep(SLOW);
            0
        }
        _ => 0,
    };
    let mut response = query.to_vec();
    (response[2], response[3]) = (0x81, 0x80 | rcode);
    Some(response)
}

/// Serves DNS over UDP and TCP until the test ends.
fn serve(netns: &Netns, address: &str, port: u16) -> SocketAddr {
    let at = SocketAddr::new(address.parse().unwrap(), port);
    let (udp, tcp) = netns.enter(|| (UdpSocket::bind(at).unwrap(), TcpListener::bind(at).unwrap()));
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            response(&buffer[..length]).map(|response| udp.send_to(&response, from));
        }
    });
    thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let (mut length, mut bytes) = ([0; 2], [0; 512]);
            stream.read_exact(&mut length).unwrap();
            let message = &mut bytes[..usize::from(u16::from_be_bytes(length))];
            stream.read_exact(message).unwrap();
            let response = response(message).unwrap();
            stream.write_all(&framed(&response)).unwrap();
        }
    });
    at
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

/// Asks over UDP from a namespace and waits briefly for the answer.
fn ask_udp(from: &Netns, server: SocketAddr, id: u16, name: &str) -> UdpSocket {
    from.enter(|| {
        let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.send_to(&query(id, name), server).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(if name.starts_with("silent") { 1 } else { 5_000 })))
            .unwrap();
        let _ = socket.recv(&mut [0; 512]);
        socket
    })
}

fn answer_to<T>(daemon: &Daemon, input: Value, work: impl FnOnce() -> T) -> (Value, T) {
    let _alone = without_scans();
    let window = daemon.watch(TOOL, input);
    let done = work();
    (window.end(), done)
}

/// The queries with this name suffix.
fn queries(answer: &Value, suffix: &str) -> Vec<Value> {
    let all = answer["queries"].as_array().unwrap();
    all.iter().filter(|q| q["name"].as_str().unwrap().ends_with(suffix)).cloned().collect()
}

fn find(answer: &Value, name: &str) -> Value {
    let found = queries(answer, name);
    assert_eq!(found.len(), 1, "{name} in {answer:#}");
    found[0].clone()
}

#[test]
fn outcomes_over_ipv4_ipv6_and_loopback() {
    let (daemon, _alone) = (Daemon::of("trace_dns"), without_scans());
    let cases = [(B, 53), (B6, 53), ("127.0.0.1", 53), ("::1", 53), (B, 5353)].map(|(address, port)| {
        let pair = Pair::new();
        let server = serve(&pair.b, address, port);
        let zone = format!("outcomes-{}", pair.b.inode());
        let window = daemon.watch(TOOL, json!({"name": zone}));
        let asker = if server.ip().is_loopback() { pair.b.clone() } else { pair.a.clone() };
        let names = ["fine", "missing", "failing", "slow", "silent"].map(|name| format!("{name}.{zone}"));
        let ask = |(name, id): (&String, u16)| ask_udp(&asker, server, id, name);
        let sockets: Vec<_> = names.iter().zip(1..).map(ask).collect();
        (pair, window, asker, names, sockets, address, port)
    });
    thread::sleep(limits::DNS_PATIENCE); // a younger query does not count as unanswered
    for (_pair, window, asker, names, sockets, address, port) in cases {
        let answer = window.end();
        for (name, rcode) in
            names.iter().zip([Some("NOERROR"), Some("NXDOMAIN"), Some("SERVFAIL"), Some("NOERROR"), None])
        {
            let row = find(&answer, name);
            assert_eq!(row["rcode"].as_str(), rcode, "{row:#}");
            assert_eq!(
                (&row["answered"], &row["transport"], &row["type"]),
                (&json!(rcode.is_some()), &json!("udp"), &json!("A"))
            );
            assert_eq!(row["server"], json!({"address": address, "port": port}));
            assert_eq!(
                (&row["owner"]["pid"], &row["owner"]["netns"]),
                (&json!(std::process::id()), &json!(asker.inode())),
                "{row:#}"
            );
        }
        let slow = find(&answer, &names[3])["latency_us"].as_u64().unwrap();
        assert!(slow >= SLOW.as_micros() as u64 && slow < 2_000_000, "{slow}");
        assert!(find(&answer, &names[0])["latency_us"].as_u64().unwrap() < SLOW.as_micros() as u64);
        let summary = &answer["summary"];
        assert_eq!(
            (&summary["queries"], &summary["answered"], &summary["failed"]),
            (&json!(5), &json!(4), &json!(2)),
            "{summary}"
        );
        assert_eq!((&summary["unanswered"], &summary["pending"]), (&json!(1), &json!(0)), "{summary}");
        drop(sockets);
    }
}

/// Neither ids nor questions are returned, and the answer is multicast.
#[test]
fn mdns_answers_are_matched_by_name() {
    const GROUP: &str = "224.0.0.251";
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_dns"));
    [&pair.a, &pair.b].iter().for_each(|netns| drop(netns.ip("route add 224.0.0.0/4 dev v0")));
    let open = |netns: &Netns, address: &str| {
        let socket = netns.enter(|| UdpSocket::bind(("0.0.0.0", 5353)).unwrap());
        netns.enter(|| socket.join_multicast_v4(&GROUP.parse().unwrap(), &address.parse().unwrap()).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    };
    let (asker, responder) = (open(&pair.a, A), open(&pair.b, B));
    let zone = format!("mdns-{}.local", pair.b.inode());
    let [known, unknown] = ["present", "absent"].map(|host| format!("{host}.{zone}"));
    let input = json!({"name": zone});
    let (answer, ()) = answer_to(&daemon, input, || {
        for name in [&unknown, &known] {
            asker.send_to(&query(0, name), (GROUP, 5353)).unwrap();
        }
        let asked = query(0, &known);
        // An authoritative answer with one record: 10.77.0.2, for 120 seconds.
        let mut said = vec![0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        said.extend(&asked[12..asked.len() - 4]);
        said.extend([0, 1, 0x80, 1, 0, 0, 0, 120, 0, 4, 10, 77, 0, 2]);
        until("the question has come", || {
            let mut buffer = [0; 512];
            let (length, _) = responder.recv_from(&mut buffer).unwrap();
            (buffer[..length] == asked[..]).then_some(())
        });
        responder.send_to(&said, (GROUP, 5353)).unwrap();
    });
    let (row, silent) = (find(&answer, &known), find(&answer, &unknown));
    assert_eq!((&row["answered"], &row["rcode"]), (&json!(true), &json!("NOERROR")), "{answer:#}");
    assert_eq!(row["server"], json!({"address": GROUP, "port": 5353}), "{row:#}");
    assert_eq!(row["owner"]["pid"], std::process::id(), "{row:#}");
    assert_eq!((&silent["answered"], &silent["rcode"]), (&json!(false), &Value::Null), "{answer:#}");
}

// In guests, since Linux 6.12.
#[test]
fn queries_over_tcp() {
    for address in [B, B6] {
        let (pair, daemon) = (Pair::new(), Daemon::of("trace_dns"));
        let server = serve(&pair.b, address, 53);
        let name = format!("missing.tcp-{}", pair.b.inode());
        let (answer, _) = answer_to(&daemon, json!({"name": name}), || {
            let mut stream = connect(&pair.a, server).unwrap();
            stream.write_all(&framed(&query(77, &name))).unwrap();
            stream.read_exact(&mut [0; 14]).unwrap();
            stream
        });
        let row = find(&answer, &name);
        assert_eq!((&row["transport"], &row["rcode"]), (&json!("tcp"), &json!("NXDOMAIN")), "{row:#}");
        assert_eq!(row["owner"]["pid"], std::process::id(), "{row:#}");
        assert!(row["latency_us"].as_u64().unwrap() > 0, "{row:#}");
    }
}

// In guests.
/// A packet that waited for a neighbor leaves while any process runs, such as a child that has the same socket until
/// execve().
#[test]
fn query_beside_a_new_program_is_its_parents() {
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_dns"));
    let server = serve(&pair.b, B, 53);
    let name = format!("missing.child-{}", pair.b.inode());
    let socket = pair.a.enter(|| UdpSocket::bind((A, 0)).unwrap());
    socket.connect(server).unwrap();
    let (message, own) = (query(5, &name), socket.as_raw_fd());
    let mut command = Command::new("true");
    // SAFETY: between fork and exec, one system call, with existing memory and a descriptor that is open.
    unsafe {
        command.pre_exec(move || match libc::send(own, message.as_ptr().cast(), message.len(), 0) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let (answer, ()) = answer_to(&daemon, json!({"name": name}), || {
        assert!(command.status().unwrap().success());
        socket.recv(&mut [0; 512]).unwrap();
    });
    let row = find(&answer, &name);
    assert_eq!((&row["rcode"], &row["owner"]["pid"]), (&json!("NXDOMAIN"), &json!(std::process::id())), "{row:#}");
}

#[test]
fn exited_process_is_named_and_young_query_pending() {
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_dns"));
    let server = serve(&pair.b, B, 53);
    let zone = format!("gone-{}", pair.b.inode());
    // The neighbor is known, so the query leaves at once.
    assert!(pair.a.enter(|| TcpStream::connect((B, 9))).is_err());
    let escaped: String = query(9, &format!("silent.{zone}")).iter().map(|byte| format!("\\x{byte:02x}")).collect();
    let (answer, ()) = answer_to(&daemon, json!({"name": zone}), || {
        let script = format!("printf '{escaped}' > /dev/udp/{}/{}", server.ip(), server.port());
        assert!(pair.a.command("bash").args(["-c", &script]).status().unwrap().success());
    });
    let row = find(&answer, &zone);
    assert_eq!(row["owner"]["process"], "bash", "{row:#}");
    assert_eq!(
        (&row["answered"], &row["pending"], &row["rcode"]),
        (&json!(false), &json!(true), &Value::Null),
        "{row:#}"
    );
    assert!(answer["measured"]["limits"].to_string().contains("dns_queries_pending"), "{answer:#}");
}

// In guests.
#[test]
fn retransmitted_query_is_one_query() {
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_dns"));
    let server = serve(&pair.b, B, 53);
    let name = format!("silent.again-{}", pair.b.inode());
    let (answer, _) = answer_to(&daemon, json!({"name": name}), || {
        let socket = pair.a.enter(|| UdpSocket::bind((A, 0)).unwrap());
        for _ in 0..3 {
            socket.send_to(&query(5, &name), server).unwrap();
        }
        socket
    });
    let row = find(&answer, &name);
    assert_eq!((&row["sent"], &answer["summary"]["queries"]), (&json!(3), &json!(1)), "{answer:#}");
}

#[test]
fn thousand_queries_are_all_counted() {
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_dns"));
    let server = serve(&pair.b, B, 53);
    let zone = format!("many-{}", pair.b.inode());
    let (answer, _) = answer_to(&daemon, json!({"name": zone, "limit": 10_000}), || {
        let socket = pair.a.enter(|| UdpSocket::bind((A, 0)).unwrap());
        for id in 0..1_000u16 {
            socket.send_to(&query(id, &format!("n{id}.{zone}")), server).unwrap();
            socket.recv(&mut [0; 512]).unwrap();
        }
    });
    assert_eq!((&answer["summary"]["answered"], &answer["measured"]["lost_events"]), (&json!(1_000), &json!(0)));
    assert_eq!(queries(&answer, &zone).len(), 1_000);
}

#[test]
fn long_names_reduce_rows_to_fit_the_budget() {
    const ANSWER_BYTES: usize = 8_000;
    let _alone = without_scans();
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_dns"));
    let server = serve(&pair.b, B, 53);
    let zone = format!("{}.long-{}", ["x".repeat(60), "y".repeat(60), "z".repeat(60)].join("."), pair.b.inode());
    let short = daemon.watch(TOOL, json!({"name": zone}));
    let whole = daemon.watch(TOOL, json!({"name": zone, "limit": 20}));
    (0..40).for_each(|id| drop(ask_udp(&pair.a, server, id, &format!("n{id}.{zone}"))));
    for (window, asked) in [(short, false), (whole, true)] {
        let result = window.end_with_text();
        let (answer, text) = (&result.structured, result.text.as_str());
        let (rows, bytes) = (queries(answer, &zone).len(), answer.to_string().len() + text.len());
        assert_eq!((rows == 20, bytes > ANSWER_BYTES), (asked, asked), "{rows} rows, {bytes} bytes");
        assert_eq!(answer["measured"]["rows_cut"], 40 - rows, "{answer:#}");
        assert!(rows > 5 && text.contains(&format!("{rows} of 40 rows; limit=40 shows all")), "{text}");
    }
}

#[test]
fn nothing_is_attached_without_a_window() {
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_dns"));
    let mut client = Client::connect(&daemon.socket);
    let server = echo_server(&pair.b, B);
    let id = client.begin_call(TOOL, json!({"duration_ms": 400}));
    client.until_open(TOOL, 1);
    assert_eq!(client.links(TOOL).len(), 2);
    let mut stream: TcpStream = connect(&pair.a, server).unwrap();
    stream.write_all(&framed(&query(1, "not.dns"))).unwrap();
    let answer = client.end_call(id).unwrap();
    assert!(queries(&answer, "not.dns").is_empty(), "{answer:#}");
    client.until_detached(TOOL);
}
