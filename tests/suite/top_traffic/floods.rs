//! More UDP sockets than separate counters. They take slots in the tables of every daemon, so no other test counts
//! meanwhile.

use super::*;

/// Ten bytes from each of this number of sockets, one after another.
fn flood(netns: &Netns, to: SocketAddr, sockets: u64) {
    let send = || UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&[0; 10], to).unwrap();
    let half = || (0..sockets / 2).for_each(|_| assert_eq!(send(), 10));
    thread::scope(|scope| {
        scope.spawn(|| netns.enter(half));
        netns.enter(half);
    });
}

#[test]
fn socket_flood_is_counted_untracked() {
    let _flooding = scanning();
    let netns = Netns::new();
    let daemon = Daemon::of("top_traffic");
    let receiver = netns.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    let to = receiver.local_addr().unwrap();
    let sockets = 66_000;
    let question = json!({"protocol": "udp", "group_by": "netns", "limit": 10_000});
    let answer = measure_amid_all(&daemon, question, || flood(&netns, to, sockets));
    let tracked: u64 = rows(&answer, &netns).iter().map(|row| moved(row).1).sum();
    let other = answer["other"]["tx_bytes"].as_u64().unwrap();
    // Other tests send as well, and count in `other`.
    assert!(tracked < sockets * 10 && tracked + other >= sockets * 10, "{answer}");
    let limits = answer["measured"]["limits"].to_string();
    assert!(limits.contains("udp_sockets_merged"), "{answer}");
    // After the flood everything is as before.
    let answer = measure_amid_all(&daemon, CONNECTIONS(), || {
        receiver.send_to(&[0; 77], to).unwrap();
    });
    assert_eq!(moved(socket(&answer, &netns, to.port())), (0, 77), "{answer}");
}

/// Also with overlapping windows, so that one is always open.
#[test]
fn socket_slots_are_freed_when_their_windows_end() {
    let _flooding = scanning();
    let netns = Netns::new();
    let daemon = Daemon::of("top_traffic");
    let open = || netns.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    let (receiver, idle) = (open(), open());
    let to = receiver.local_addr().unwrap();
    let own = |socket: &UdpSocket| socket.local_addr().unwrap().port();
    let window = || daemon.watch(TOOL, json!({"protocol": "udp", "group_by": "connection", "limit": 10_000}));
    let first = window();
    idle.send_to(&[0; 300], to).unwrap();
    flood(&netns, to, 66_000);
    let second = window();
    first.end();
    // Nearly all slots are used again, including that of the idle socket; the rest is for it, and for other programs.
    flood(&netns, to, 62_000);
    let late = open();
    late.send_to(&[0; 500], to).unwrap();
    let third = window();
    idle.send_to(&[0; 700], to).unwrap();
    late.send_to(&[0; 40], to).unwrap();
    let (third, second) = (third.end(), second.end());
    for (answer, sent) in [(&third, [700, 40]), (&second, [700, 540])] {
        adds_up(answer);
        assert_eq!(
            [&idle, &late].map(|s| moved(socket(answer, &netns, own(s)))),
            sent.map(|sent| (0, sent)),
            "{sent:?}"
        );
    }
    let counted: u64 = rows(&second, &netns).iter().map(|row| moved(row).1).sum();
    assert!(counted + second["other"]["tx_bytes"].as_u64().unwrap() >= 620_000 + 1_240, "{:#}", second["total"]);
}
