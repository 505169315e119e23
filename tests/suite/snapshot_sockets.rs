//! `snapshot_sockets`: field by field against `ss`, and owners against the test's processes.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{harness::*, processes::*};

/// The open sockets of a namespace, from the answer.
fn rows<'a>(answer: &'a Value, list: &str, netns: &Netns) -> Vec<&'a Value> {
    let rows = answer[list].as_array().unwrap().iter();
    rows.filter(|row| row["owner"]["netns"] == netns.inode()).collect()
}

fn endpoint(value: &Value) -> String {
    match value {
        Value::Null => "*".into(),
        _ => {
            SocketAddr::new(value["address"].as_str().unwrap().parse().unwrap(), value["port"].as_u64().unwrap() as u16)
                .to_string()
        }
    }
}

/// One line of `ss -tuianp`: the columns, and the `name:value` words of tcp_info.
#[derive(Debug)]
struct Line {
    state: String,
    receive_queue: u64,
    send_queue: u64,
    pids: Vec<u64>,
    info: BTreeMap<String, String>,
}

impl Line {
    fn number(&self, name: &str) -> u64 {
        self.info.get(name).map_or(0, |value| value.parse().unwrap())
    }
}

/// The sockets of a namespace as `ss` lists them, by protocol and endpoints.
fn ss(netns: &Netns) -> BTreeMap<(String, String, String), Line> {
    let output = netns.run("ss -H -O -t -u -i -a -n -p");
    output.lines().map(ss_line).collect()
}

fn ss_line(line: &str) -> ((String, String, String), Line) {
    let words: Vec<_> = line.split_whitespace().collect();
    // We show IPv4 on an IPv6 socket as IPv4; ss shows a listener for both as `*:80`.
    let canonical = |endpoint: &str| match (endpoint.rsplit_once(':'), endpoint.strip_prefix("[::ffff:")) {
        (Some((_, "*")), _) => "*".to_owned(),
        (_, Some(mapped)) => mapped.replace(']', ""),
        _ => endpoint.replace("*:", "[::]:"),
    };
    let pids = line.split("pid=").skip(1).map(|rest| rest.split(',').next().unwrap().parse().unwrap()).collect();
    let info = words[6..].iter().filter_map(|word| word.split_once(':')).map(|(k, v)| (k.into(), v.into())).collect();
    let parsed = Line {
        state: words[1].into(),
        receive_queue: words[2].parse().unwrap(),
        send_queue: words[3].parse().unwrap(),
        pids,
        info,
    };
    ((words[0].into(), canonical(words[4]), canonical(words[5])), parsed)
}

fn ss_state(state: &str) -> &str {
    match state {
        "established" => "ESTAB",
        "unconnected" => "UNCONN",
        "time_wait" => "TIME-WAIT",
        "close_wait" => "CLOSE-WAIT",
        "fin_wait2" => "FIN-WAIT-2",
        "syn_sent" => "SYN-SENT",
        other => other,
    }
}

/// Whether `ss` also names that process: between fork and exec it names both our child and us.
fn is_holder(pid: &Value, line: &Line) -> bool {
    pid.as_u64().map_or(line.pids.is_empty(), |pid| line.pids.contains(&pid))
}

fn compare(answer: &Value, netns: &Netns) -> usize {
    let mut expected = ss(netns);
    for row in rows(answer, "sockets", netns) {
        let key = (row["protocol"].as_str().unwrap().to_owned(), endpoint(&row["local"]), endpoint(&row["remote"]));
        let line = expected.remove(&key).unwrap_or_else(|| panic!("{key:?} is not in ss: {expected:#?}"));
        assert_eq!(ss_state(row["state"].as_str().unwrap()), line.state, "{row}");
        assert_eq!(row["receive_queue_bytes"], line.receive_queue, "{row} {line:?}");
        assert_eq!(row["send_queue_bytes"], line.send_queue, "{row} {line:?}");
        assert!(is_holder(&row["owner"]["pid"], &line), "{row} {line:?}");
        if line.info.contains_key("rtt") {
            compare_tcp(row, &line);
        }
    }
    for row in rows(answer, "listeners", netns) {
        let key = ("tcp".into(), endpoint(&row["local"]), "*".into());
        let line = expected.remove(&key).unwrap_or_else(|| panic!("{key:?} is not in ss: {expected:#?}"));
        assert_eq!(line.state, "LISTEN");
        assert_eq!(row["accept_queue"], line.receive_queue, "{row} {line:?}");
        assert_eq!(row["accept_queue_max"], line.send_queue, "{row} {line:?}");
        assert!(is_holder(&row["owner"]["pid"], &line), "{row} {line:?}");
    }
    assert!(expected.is_empty(), "ss has more: {expected:#?}\n{answer}");
    rows(answer, "sockets", netns).len() + rows(answer, "listeners", netns).len()
}

fn compare_tcp(row: &Value, line: &Line) {
    let tcp = &row["tcp"];
    let rtt: Vec<f64> = line.info["rtt"].split('/').map(|ms| ms.parse().unwrap()).collect();
    assert_eq!(row["rtt_us"].as_f64().unwrap(), (rtt[0] * 1e3).round(), "{row} {line:?}");
    assert_eq!(tcp["rtt_variation_us"].as_f64().unwrap(), (rtt[1] * 1e3).round(), "{row} {line:?}");
    let min_rtt: f64 = line.info["minrtt"].parse().unwrap();
    assert_eq!(tcp["min_rtt_us"].as_f64().unwrap(), (min_rtt * 1e3).round(), "{row} {line:?}");
    let retransmits = line.info.get("retrans").and_then(|text| text.split('/').nth(1)?.parse().ok()).unwrap_or(0);
    assert_eq!(row["retransmits"], retransmits, "{row} {line:?}");
    for (ours, theirs) in [
        (&row["cwnd_packets"], "cwnd"),
        (&row["rx_bytes"], "bytes_received"),
        (&row["tx_bytes"], "bytes_sent"),
        (&tcp["mss_bytes"], "mss"),
        (&tcp["segments_in"], "segs_in"),
        (&tcp["segments_out"], "segs_out"),
        (&tcp["retransmitted_bytes"], "bytes_retrans"),
        (&tcp["unacked_packets"], "unacked"),
        (&tcp["lost_packets"], "lost"),
        (&tcp["not_sent_bytes"], "notsent"),
        (&tcp["send_window_bytes"], "snd_wnd"),
    ] {
        assert_eq!(*ours, line.number(theirs), "{theirs}: {row} {line:?}");
    }
    assert!(line.info.is_empty() || tcp["congestion_control"].as_str().is_some_and(|name| !name.is_empty()));
}

/// Sockets of one namespace in many states, some with queued data, without further traffic.
struct Zoo {
    _streams: Vec<TcpStream>,
    _listeners: Vec<TcpListener>,
    _udp: Vec<UdpSocket>,
}

fn zoo(pair: &Pair) -> Zoo {
    let (mut streams, mut listeners, mut udp) = (Vec::new(), Vec::new(), Vec::new());
    for (server, client_netns) in [(B, &pair.a), (B6, &pair.a), ("127.0.0.1", &pair.b), ("::1", &pair.b)] {
        let listener = listen(&pair.b, server);
        let mut client = connect(client_netns, listener.local_addr().unwrap()).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        client.write_all(&[1; 3_000]).unwrap();
        accepted.read_exact(&mut [0; 1_000]).unwrap(); // leaves 2,000 unread
        accepted.write_all(&[2; 500]).unwrap();
        // One unaccepted connection, and one whose server has closed its side.
        streams.push(connect(client_netns, listener.local_addr().unwrap()).unwrap());
        streams.extend([client, accepted]);
        listeners.push(listener);
    }
    // An IPv6 listener with IPv4 clients: both ends are IPv4 on the wire.
    let dual = listen(&pair.b, "::");
    let client = connect(&pair.a, SocketAddr::new(B.parse().unwrap(), dual.local_addr().unwrap().port())).unwrap();
    let (accepted, _) = dual.accept().unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap(); // close_wait here, fin_wait2 there
    streams.extend([client, accepted]);
    listeners.push(dual);
    // Closed by this end first: time_wait, without a process.
    let listener = listen(&pair.b, B);
    let client = connect(&pair.b, listener.local_addr().unwrap()).unwrap();
    drop((listener.accept().unwrap(), client));
    for address in [B, B6, "127.0.0.1"] {
        let receiver = pair.b.enter(|| UdpSocket::bind((address, 0)).unwrap());
        let sender = pair.b.enter(|| UdpSocket::bind((address, 0)).unwrap());
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        sender.send(&[3; 100]).unwrap(); // stays unread
        udp.extend([receiver, sender]);
    }
    Zoo { _streams: streams, _listeners: listeners, _udp: udp }
}

// In guests.
#[test]
fn every_field_matches_ss() {
    let pair = Pair::new();
    let daemon = daemon_for("snapshot_sockets", &pair.b);
    let mut client = Client::connect(&daemon.socket);
    let _zoo = zoo(&pair);
    let settled = || {
        let lines = ss(&pair.b);
        let unacked = lines.values().any(|line| line.state == "ESTAB" && line.number("unacked") > 0);
        (!unacked && lines.values().any(|line| line.state == "TIME-WAIT")).then_some(())
    };
    until("all is acknowledged", settled);
    let answer = client.call("snapshot_sockets", json!({"limit": 10000, "detail": true})).unwrap();
    assert!(compare(&answer, &pair.b) == 25, "{answer}");
    assert!(answer["states"]["time_wait"].as_u64().unwrap() >= 1, "{answer}");
    let limits = answer["measured"]["limits"].as_array().unwrap();
    assert!(limits.iter().any(|limit| limit["code"] == "only_held_sockets"), "{answer}");
}

// In guests.
#[test]
fn sockets_of_other_namespaces_have_owners() {
    let pair = Pair::new();
    let daemon = Daemon::of("snapshot_sockets");
    let mut client = Client::connect(&daemon.socket);
    // Two processes on one port, in two namespaces.
    let servers = [&pair.a, &pair.b].map(|netns| Process::in_netns(netns, "tcp-listen 0.0.0.0 5999"));
    for (server, netns) in servers.iter().zip([&pair.a, &pair.b]) {
        until("it listens", || {
            let answer = client.call("snapshot_sockets", json!({"port": 5999})).unwrap();
            let found = rows(&answer, "listeners", netns);
            (found.len() == 1).then(|| assert_eq!(found[0]["owner"]["pid"], server.pid(), "{answer}"))
        });
    }
    let answer = client.call("snapshot_sockets", json!({"pid": servers[0].pid()})).unwrap();
    assert_eq!(answer["listeners"].as_array().unwrap().len(), 1, "{answer}");
    assert_eq!(answer["states"], json!({"listen": 1}), "{answer}");
}

#[test]
fn inherited_socket_is_credited_to_its_holder() {
    let netns = Netns::new();
    let daemon = Daemon::start();
    let mut client = Client::connect(&daemon.socket);
    let mut parent = Process::in_netns(&netns, "tcp-listen-fork 127.0.0.1 5998");
    let child: u64 = parent.hear().parse().unwrap();
    let find = |client: &mut Client, filter: Value| {
        let answer = client.call("snapshot_sockets", filter).unwrap();
        let found = rows(&answer, "listeners", &netns);
        found.first().map(|row| row["owner"]["pid"].as_u64().unwrap())
    };
    let parent_pid = u64::from(parent.pid());
    assert!(child < parent_pid, "{child} {parent_pid}");
    // Both hold it: it belongs to the parent, unless the filter selects the other.
    assert_eq!(find(&mut client, json!({"port": 5998})), Some(parent_pid));
    assert_eq!(find(&mut client, json!({"pid": child})), Some(child));
    // The same holds for every tool that names holders of an old listener.
    let tools = ["trace_connections", "top_traffic", "profile_tcp"];
    let windows = tools.map(|tool| daemon.watch(tool, json!({"port": 5998})));
    let mut stream = connect(&netns, "127.0.0.1:5998".parse().unwrap()).unwrap();
    stream.write_all(&[1; 1_000]).unwrap();
    until_acknowledged(&stream);
    for (tool, window) in tools.iter().zip(windows) {
        let answer = window.end().to_string();
        let names = |pid: u64| answer.contains(&format!("\"pid\":{pid},"));
        assert!(names(parent_pid) && !names(child), "{tool}: {parent_pid} {child} {answer}");
    }
    drop(parent);
    until("the child is the only holder", || (find(&mut client, json!({"port": 5998}))? == child).then_some(()));
    kill(child as u32);
}

#[test]
fn full_accept_queue_is_shown_at_its_listener() {
    let pair = Pair::new();
    let daemon = Daemon::of("snapshot_sockets");
    let mut client = Client::connect(&daemon.socket);
    let listener = listen(&pair.b, B);
    // SAFETY: listening again only changes the backlog of our own socket.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 2) }, 0);
    let to = listener.local_addr().unwrap();
    let find = |client: &mut Client| {
        let answer = client.call("snapshot_sockets", json!({"port": to.port(), "state": "listen"})).unwrap();
        assert_eq!(answer["sockets"], json!([]), "{answer}");
        rows(&answer, "listeners", &pair.b)[0].clone()
    };
    assert_eq!(find(&mut client)["dropped"], 0);
    let attempt = || pair.a.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(200)));
    let _attempts: Vec<_> = (0..8).map(|_| attempt()).collect();
    let row = find(&mut client);
    assert_eq!((row["accept_queue"].as_u64(), row["accept_queue_max"].as_u64()), (Some(3), Some(2)), "{row}");
    assert!(row["dropped"].as_u64().unwrap() >= 5, "{row}");
}

// In guests.
#[test]
fn limited_by_names_the_sender_limit() {
    let pair = slow::SlowPair::new(Duration::from_millis(30));
    let daemon = Daemon::of("snapshot_sockets");
    let mut client = Client::connect(&daemon.socket);
    let listener = listen(&pair.b, slow::SLOW_B);
    let sender = connect(&pair.a, listener.local_addr().unwrap()).unwrap();
    let port = sender.local_addr().unwrap().port();
    let mut limited = |port: u16, by: Value, meanwhile: &mut dyn FnMut()| {
        until(&format!("limited by {by}"), || {
            meanwhile();
            let answer = client.call("snapshot_sockets", json!({"port": port})).unwrap();
            rows(&answer, "sockets", &pair.a).iter().find(|row| row["limited_by"] == by).map(|row| (*row).clone())
        })
    };
    // Acknowledgements come late: the send buffer fills before the receiver's window, which is larger then.
    let fill = |mut stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        while stream.write(&[0; 65_536]).is_ok() {}
    };
    limited(port, Value::Null, &mut || ());
    // The server does not read: the receiver's window fills.
    let row = limited(port, "receiver".into(), &mut || fill(&sender));
    assert!(row["send_queue_bytes"].as_u64().unwrap() > 0, "{row}");
    // The network drops everything: sent data is never acknowledged.
    let other = connect(&pair.a, listener.local_addr().unwrap()).unwrap();
    let port = other.local_addr().unwrap().port();
    pair.b.ip("link set slow down");
    (&other).write_all(&[0; 10]).unwrap();
    limited(port, "application".into(), &mut || ()); // it has no more data
    limited(port, "network".into(), &mut || fill(&other));
}

#[test]
fn overflowing_udp_socket_counts_its_drops() {
    let netns = Netns::new();
    let daemon = Daemon::of("snapshot_sockets");
    let mut client = Client::connect(&daemon.socket);
    let receiver = netns.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    rustix::net::sockopt::set_socket_recv_buffer_size(&receiver, 2_304).unwrap();
    let sender = netns.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    for _ in 0..100 {
        sender.send_to(&[0; 1_000], receiver.local_addr().unwrap()).unwrap();
    }
    let port = receiver.local_addr().unwrap().port();
    let answer = client.call("snapshot_sockets", json!({"port": port, "protocol": "udp"})).unwrap();
    let row = rows(&answer, "sockets", &netns)[0];
    assert!(row["dropped"].as_u64().unwrap() >= 90 && row["receive_queue_bytes"].as_u64().unwrap() > 0, "{row}");
}

#[test]
fn filters_and_limits_count_cut_rows() {
    let netns = Netns::new();
    let daemon = daemon_for("snapshot_sockets", &netns);
    let mut client = Client::connect(&daemon.socket);
    let mut other = Process::in_netns(&netns, "udp-open 127.0.0.1 0 30");
    other.hear();
    let answer = client.call("snapshot_sockets", json!({"pid": other.pid(), "limit": 5})).unwrap();
    assert_eq!(answer["sockets"].as_array().unwrap().len(), 5, "{answer}");
    assert_eq!((&answer["states"], &answer["measured"]["rows_cut"]), (&json!({"unconnected": 30}), &json!(25)));
    let answer = client.call("snapshot_sockets", json!({"process": "no-such-process"})).unwrap();
    assert_eq!((&answer["sockets"], &answer["states"]), (&json!([]), &json!({})), "{answer}");
    let error = client.call("snapshot_sockets", json!({"port": 70_000})).unwrap_err();
    assert!(error.contains("port"), "{error}");
}
