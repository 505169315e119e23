//! All forms of queries and answers. An answered query is never reported as unanswered.

use std::os::fd::{AsRawFd, FromRawFd};

use super::*;

/// `query` with an answer of this number of TXT records of 200 bytes.
fn large(query: &[u8], records: u8) -> Vec<u8> {
    let mut answer = query.to_vec();
    (answer[2], answer[3], answer[7]) = (0x81, 0x80, records);
    for _ in 0..records {
        answer.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60, 0, 201, 200]);
        answer.extend([b'x'; 200]);
    }
    answer
}

/// Answers each datagram with the result of `reply`, until the test ends.
fn serve_udp(socket: UdpSocket, reply: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) {
    thread::spawn(move || {
        let mut buffer = [0; 2_048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&reply(&buffer[..length]), from).unwrap();
        }
    });
}

/// Makes an IPv6 socket send a destination options header of `bytes` bytes, which receivers skip.
fn with_options(socket: &UdpSocket, bytes: u8) {
    const IPV6_DSTOPTS: i32 = 59;
    let length = 4 + usize::from(bytes);
    assert_eq!(length % 8, 0);
    let mut header = vec![0, (length / 8 - 1) as u8, 0x1e, bytes];
    header.resize(length, 0);
    // SAFETY: the descriptor is open, and the kernel copies `length` bytes of `header`, which has that length.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IPV6, IPV6_DSTOPTS, header.as_ptr().cast(), length as u32)
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// All queries of the zone were answered.
fn assert_answered(answer: &Value, count: usize) {
    let summary = &answer["summary"];
    assert_eq!((&summary["queries"], &summary["answered"]), (&json!(count), &json!(count)), "{answer:#}");
    assert_eq!(answer["measured"]["lost_events"], 0, "{:#}", answer["measured"]);
}

#[test]
fn fragmented_and_extended_answers_are_matched() {
    for (address, options) in [(B, None), (B6, None), (B6, Some(4)), (B6, Some(60)), (B6, Some(244))] {
        let (pair, daemon) = (Pair::new(), Daemon::of("trace_dns"));
        let mtu = if address == B { 576 } else { 1_280 };
        pair.b.ip(&format!("link set v0 mtu {mtu}"));
        let bind = |netns: &Netns, address: &str, port| {
            let socket = netns.enter(|| UdpSocket::bind((address, port)).unwrap());
            options.into_iter().for_each(|bytes| with_options(&socket, bytes));
            socket
        };
        serve_udp(bind(&pair.b, address, 53), |query| large(query, 9));
        let zone = format!("fragments-{}", pair.b.inode());
        let (answer, _sockets) = answer_to(&daemon, json!({"name": zone}), || {
            let from = if address == B { A } else { A6 };
            [1, 2, 3].map(|id| {
                let socket = bind(&pair.a, from, 0);
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let to: IpAddr = address.parse().unwrap();
                socket.send_to(&query(id, &format!("n{id}.{zone}")), (to, 53)).unwrap();
                assert!(socket.recv(&mut [0; 4_096]).unwrap() > 1_900);
                socket
            })
        });
        assert_answered(&answer, 3);
    }
}

#[test]
fn messages_of_all_kinds_are_matched() {
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_dns"));
    let socket = pair.b.enter(|| UdpSocket::bind((B, 53)).unwrap());
    serve_udp(socket, |query| match query[1] {
        1 => [&query[..2], &[0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]].concat(), // FORMERR, a header alone
        2 => query.to_ascii_lowercase().into_iter().enumerate().map(|(i, b)| if i == 2 { 0x81 } else { b }).collect(),
        4 => large(query, 0).into_iter().enumerate().map(|(i, b)| if i == 2 { 0x83 } else { b }).collect(),
        _ => large(query, 0),
    });
    let zone = format!("forms-{}", pair.b.inode());
    let (answer, _socket) = answer_to(&daemon, json!({"name": zone}), || {
        let socket = pair.a.enter(|| UdpSocket::bind((A, 0)).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut several = query(3, &format!("several.{zone}"));
        several[5] = 2;
        several.extend(b"\x05other\xc0\x14\0\x1c\0\x01");
        let mut edns = query(5, &format!("edns.{zone}"));
        edns[11] = 1;
        edns.extend([0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, 0]);
        let mixed = query(2, &format!("MiXeD.{}", zone.to_uppercase()));
        for message in
            [query(1, &format!("short.{zone}")), mixed, several, query(4, &format!("truncated.{zone}")), edns]
        {
            socket.send_to(&message, (B, 53)).unwrap();
            socket.recv(&mut [0; 512]).unwrap();
        }
        socket
    });
    assert_answered(&answer, 5);
    assert_eq!(find(&answer, &format!("short.{zone}"))["rcode"], "FORMERR");
    let also = find(&answer, &format!("several.{zone}"))["also_asked"].clone();
    assert_eq!(also, json!([format!("other.{zone} AAAA")]), "{answer:#}");
}

/// Pipelined queries and their answers: all in one write, and cut anywhere, including within a message length.
// In guests, since Linux 6.12.
#[test]
fn messages_sharing_tcp_segments_are_parsed() {
    const QUERIES: u16 = 60;
    for (address, records, cut) in [(B, 0, None), (B6, 9, None), (B, 2, Some(1)), (B6, 1, Some(777))] {
        let (pair, daemon) = (Pair::new(), Daemon::of("trace_dns"));
        let listener = pair.b.enter(|| TcpListener::bind((address, 53)).unwrap());
        let zone = format!("pipelined-{}", pair.b.inode());
        let all: Vec<_> = (0..QUERIES).map(|id| query(id, &format!("n{id}.{zone}"))).collect();
        let asked: Vec<u8> = all.iter().flat_map(|query| framed(query)).collect();
        let replies: Vec<u8> = all.iter().flat_map(|query| framed(&large(query, records))).collect();
        let (expected, length) = (replies.len(), asked.len());
        let server = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream.set_nodelay(true).unwrap();
            stream.read_exact(&mut vec![0; length]).unwrap();
            let (first, rest) = replies.split_at(cut.unwrap_or(0));
            stream.write_all(first).unwrap();
            until_acknowledged(&stream);
            stream.write_all(rest).unwrap();
            stream
        });
        let (answer, _stream) = answer_to(&daemon, json!({"name": zone, "limit": 100}), || {
            let mut stream = connect(&pair.a, (address.parse::<IpAddr>().unwrap(), 53).into()).unwrap();
            stream.set_nodelay(true).unwrap();
            let (first, rest) = asked.split_at(cut.unwrap_or(0));
            stream.write_all(first).unwrap();
            until_acknowledged(&stream);
            stream.write_all(rest).unwrap();
            stream.read_exact(&mut vec![0; expected]).unwrap();
            stream
        });
        drop(server.join().unwrap());
        assert_answered(&answer, usize::from(QUERIES));
    }
}

/// Segments of a stream from a network that reorders and duplicates some.
#[test]
fn reordered_and_repeated_tcp_segments_are_parsed() {
    const QUERIES: u16 = 12;
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_dns"));
    let zone = format!("disorder-{}", pair.b.inode());
    let all: Vec<_> = (0..QUERIES).map(|id| query(id, &format!("n{id}.{zone}"))).collect();
    let [asked, replies] = [
        all.iter().flat_map(|query| framed(query)).collect::<Vec<u8>>(),
        all.iter().flat_map(|query| framed(&large(query, 2))).collect(),
    ];
    let (client, server) = (Crafted::new(&pair.a, (A, 40_000), (B, 53)), Crafted::new(&pair.b, (B, 53), (A, 40_000)));
    for (order, size) in [(&[1, 0, 3, 2, 2, 4, 6, 5][..], 700), (&[0, 2, 3, 1, 4, 4, 5, 7, 6], 600)] {
        let (answer, ()) = answer_to(&daemon, json!({"name": zone, "limit": 100}), || {
            client.send(0, true, &[]);
            client.send(0, false, &asked);
            server.send(0, true, &[]);
            let parts: Vec<_> = replies.chunks(size).enumerate().collect();
            let (mixed, rest) = parts.split_at(order.iter().max().unwrap() + 1);
            for (i, part) in order.iter().map(|i| mixed[*i]).chain(rest.iter().copied()) {
                server.send((i * size) as u32, false, part);
            }
        });
        assert_answered(&answer, usize::from(QUERIES));
    }
}

/// One direction of a TCP stream from hand-made segments.
struct Crafted {
    socket: UdpSocket,
    ends: [(std::net::Ipv4Addr, u16); 2],
}

impl Crafted {
    fn new(netns: &Netns, from: (&str, u16), to: (&str, u16)) -> Crafted {
        // SAFETY: creates a descriptor from numbers.
        let raw = netns.enter(|| unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW) });
        assert!(raw >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the descriptor is new and has no other owner; sending takes the same calls for any IPv4 socket.
        let socket = unsafe { UdpSocket::from_raw_fd(raw) };
        Crafted { socket, ends: [from, to].map(|(address, port)| (address.parse().unwrap(), port)) }
    }

    /// Sends data at the stream offset `at`. The kernel adds the IP checksum.
    fn send(&self, at: u32, is_first: bool, data: &[u8]) {
        let [(source, from), (destination, to)] = self.ends;
        let sequence = (u32::MAX - 2_000).wrapping_add(at + u32::from(!is_first));
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0];
        packet.extend(source.octets().iter().chain(&destination.octets()));
        packet.extend(from.to_be_bytes().iter().chain(&to.to_be_bytes()).chain(&sequence.to_be_bytes()));
        packet.extend([0, 0, 0, 0, 5 << 4, if is_first { 2 } else { 0x10 }, 255, 255, 0, 0, 0, 0]);
        packet.extend(data);
        self.socket.send_to(&packet, (destination, 0)).unwrap();
    }
}
