//! Floods at the DNS ports: they take no query slots, and do not keep a window open.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Payloads of tunnels, scans and benchmarks to port 53: zeros, counters, text, noise.
fn other_datagrams() -> Vec<Vec<u8>> {
    let noise = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    vec![
        vec![0; 1_000],
        [&[1, 0, 0, 0][..], &[0xff; 60]].concat(),
        (1..9).flat_map(u32::to_be_bytes).collect(),
        b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n".to_vec(),
        (0..100).flat_map(noise).collect(),
        vec![0, 7, 1, 0],
    ]
}

// In guests.
#[test]
fn non_dns_packets_take_no_query_slots() {
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_dns"));
    let server = serve(&pair.b, B6, 53);
    // No server has it, and its neighbor entry exists, so senders do not wait for resolution.
    const NOBODY: &str = "fd77::3";
    pair.b.ip(&format!("addr add {NOBODY}/64 dev v0 nodad"));
    let zone = format!("flooded-{}", pair.b.inode());
    let (answer, _) = answer_to(&daemon, json!({"name": zone}), || {
        for address in [A, A6] {
            let socket = pair.a.enter(|| UdpSocket::bind((address, 0)).unwrap());
            let to = if address == A { B } else { NOBODY };
            for datagram in other_datagrams().iter().cycle().take(6_000) {
                let _ = socket.send_to(datagram, (to, 53));
            }
        }
        ask_udp(&pair.a, server, 1, &format!("late.{zone}"))
    });
    assert_eq!(find(&answer, &zone)["rcode"], "NOERROR", "{answer:#}");
    assert_eq!(answer["measured"]["lost_events"], 0, "{:#}", answer["measured"]);
}

#[test]
fn long_stream_to_port_53_takes_no_query_slots() {
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_dns"));
    let server = serve(&pair.b, B6, 53);
    let sink = pair.b.enter(|| TcpListener::bind((B, 53)).unwrap());
    thread::spawn(move || std::io::copy(&mut sink.accept().unwrap().0, &mut std::io::sink()));
    [&pair.a, &pair.b].iter().for_each(|netns| drop(netns.ip("link set v0 gso_max_segs 1")));
    let name = format!("beside-{}", pair.b.inode());
    let (answer, _) = answer_to(&daemon, json!({"name": name}), || {
        let mut stream = connect(&pair.a, (B.parse::<IpAddr>().unwrap(), 53).into()).unwrap();
        stream.write_all(&vec![0; 20_000_000]).unwrap();
        let mut asking = connect(&pair.a, server).unwrap();
        asking.write_all(&framed(&query(77, &name))).unwrap();
        asking.read_exact(&mut [0; 14]).unwrap();
        asking
    });
    assert_eq!(find(&answer, &name)["rcode"], "NOERROR", "{answer:#}");
    assert_eq!(answer["measured"]["lost_events"], 0, "{:#}", answer["measured"]);
}

#[test]
fn full_window_counts_unread_messages() {
    const QUERIES: u16 = 10_000;
    const KEPT: u64 = 8_192;
    let _alone = scanning(); // it also fills the windows of other tests
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_dns"));
    serve(&pair.b, B, 53);
    let zone = format!("beyond-{}", pair.b.inode());
    let windows = [zone.as_str(), "no.such.zone"].map(|name| daemon.watch(TOOL, json!({"name": name})));
    let socket = pair.a.enter(|| UdpSocket::bind((A, 0)).unwrap());
    for id in 0..QUERIES {
        socket.send_to(&query(id, &format!("n{id}.{zone}")), (B, 53)).unwrap();
        socket.recv(&mut [0; 512]).unwrap();
    }
    let [all, none] = windows.map(Watching::end_with_text);
    let (answer, text) = (&all.structured, all.text.as_str());
    let (summary, lost) = (&answer["summary"], answer["measured"]["lost_events"].as_u64().unwrap());
    // A query and an answer, each at two interfaces; those of other tests may be among them.
    let seen = 4 * u64::from(QUERIES);
    assert!((seen - KEPT..seen - KEPT + 10_000).contains(&lost), "{lost}");
    assert!(summary["queries"].as_u64() > Some(1_000) && summary["unanswered"] == 0, "{summary}");
    assert!(text.starts_with("At least ") && text.contains(&format!("{lost} ")), "{text}");
    assert_eq!(answer["measured"]["limits"][0]["code"], "dns_messages_unread", "{:#}", answer["measured"]);
    let text = none.text;
    assert!(!text.contains("No DNS query") && text.contains("not read"), "{text}");
}

#[test]
fn flood_faster_than_the_reader_ends_with_the_window() {
    let _flood = scanning();
    let (pair, daemon) = (Pair::new(), Daemon::own());
    let mut client = Client::connect(&daemon.socket);
    let windows: Vec<_> = (0..8).map(|_| client.begin_call("trace_dns", json!({"duration_ms": 1_000}))).collect();
    client.until_open("trace_dns", 8);
    let (begun, over) = (Instant::now(), AtomicBool::new(false));
    let goes_on = || !over.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(40);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let socket = pair.a.enter(|| UdpSocket::bind((A, 0)).unwrap());
                let query = query(7, "flood.test");
                while goes_on() {
                    let _ = socket.send_to(&query, (B, 53));
                }
            });
        }
        for id in windows {
            let answer = client.end_call(id).unwrap();
            assert!(answer["measured"]["lost_events"].as_u64() > Some(0), "{}", answer["measured"]);
        }
        assert!(goes_on(), "the windows ended when the flood did");
        over.store(true, Ordering::Relaxed);
    });
}
