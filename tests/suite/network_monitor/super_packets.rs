//! Packets that the kernel handles many at a time, as TCP and tunnels send them: counted as on the wire.

use super::*;

// In guests.
#[test]
fn super_packet_counts_as_wire_packets() {
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.b);
    let listener = listen(&pair.b, B);
    let to = listener.local_addr().unwrap();
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 20];
        while stream.read(&mut buffer).unwrap() > 0 {}
    });
    let (mut segments, mut payload) = (0, 0);
    let answer = incoming(&daemon, "v0", "tcx", || {
        let mut stream = connect(&pair.a, to).unwrap();
        stream.write_all(&vec![7; 4 << 20]).unwrap();
        until("all is acknowledged", || (unacknowledged(&stream) == 0).then_some(()));
        (segments, payload) = (segments_out(&stream), bytes_sent(&stream));
        stream.shutdown(std::net::Shutdown::Both).unwrap();
        reader.join().unwrap();
    });
    let counted = answer["by_protocol"]["tcp"].as_u64().unwrap();
    // The FIN and the last ACK come after the read of TCP's own count.
    assert!((segments..=segments + 3).contains(&counted), "{counted} counted, {segments} sent: {answer}");
    // Every segment repeats its headers: 14 + 20 + 20 and 12 of the time-stamp option.
    let bytes = answer["bytes"].as_u64().unwrap();
    let expected = payload + counted * 66;
    // IPv6's own messages during the window: neighbors and groups, at most 150 bytes each.
    let others = (answer["packets"].as_u64().unwrap() - counted) * 150;
    assert!(bytes.abs_diff(expected) < 2_000 + others, "{bytes} counted, {expected} on the wire");
}

/// `N` bytes of the kernel's tcp_info (linux/tcp.h) of `stream`.
fn tcp_info<const N: usize>(stream: &TcpStream, offset: usize) -> [u8; N] {
    use std::os::fd::AsRawFd;
    let (mut info, mut length) = ([0u8; 256], 256 as libc::socklen_t);
    // SAFETY: the buffer is as long as `length` says.
    let result = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut length)
    };
    assert_eq!(result, 0);
    info[offset..offset + N].try_into().unwrap()
}

/// `tcpi_unacked`.
fn unacknowledged(stream: &TcpStream) -> u32 {
    u32::from_ne_bytes(tcp_info(stream, 24))
}

/// `tcpi_segs_out`.
fn segments_out(stream: &TcpStream) -> u64 {
    u32::from_ne_bytes(tcp_info(stream, 136)).into()
}

/// `tcpi_bytes_sent`: data that TCP retransmits on a busy machine is on the wire twice.
fn bytes_sent(stream: &TcpStream) -> u64 {
    u64::from_ne_bytes(tcp_info(stream, 200))
}

/// A thread reads and discards the data of one connection.
fn sink(netns: &Netns, address: &str) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let listener = listen(netns, address);
    let to = listener.local_addr().unwrap();
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 20];
        while stream.read(&mut buffer).unwrap() > 0 {}
    });
    (to, reader)
}

/// A tunnel between the ends of a pair, `t0` in each; false if this kernel lacks the kind.
fn tunnel(pair: &Pair, kind: &str, outer: [&str; 2]) -> bool {
    for (netns, local, remote, host) in [(&pair.a, outer[0], outer[1], 1), (&pair.b, outer[1], outer[0], 2)] {
        let options = match kind {
            "vxlan" => format!("id 7 dstport 4789 local {local} remote {remote} dev v0"),
            "geneve" => format!("id 7 remote {remote}"),
            _ => format!("local {local} remote {remote}"),
        };
        let words = format!("-n {} link add t0 type {kind} {options}", netns.name());
        let made = Command::new("ip").args(words.split(' ')).output().unwrap();
        if !made.status.success() {
            let error = String::from_utf8_lossy(&made.stderr).into_owned();
            assert!(error.contains("Unknown device type") && kind != "vxlan", "{words}: {error}");
            return false;
        }
        netns.ip(&format!("addr add 10.76.0.{host}/24 dev t0"));
        netns.ip(&format!("addr add fd76::{host}/64 dev t0 nodad"));
        netns.ip("link set t0 up");
    }
    true
}

#[test]
fn tunnel_super_packet_counts_both_headers() {
    /// Header lengths; TCP's with time stamps.
    const ETHERNET: u64 = 14;
    const IPV4: u64 = 20;
    const IPV6: u64 = 40;
    const TCP: u64 = 32;
    let (v4, v6) = ([A, B], [A6, B6]);
    // The bytes between the outer IP header and the inner one.
    for (kind, outer, overhead) in [
        ("vxlan", v4, ETHERNET + IPV4 + 8 + 8 + ETHERNET),
        ("vxlan", v6, ETHERNET + IPV6 + 8 + 8 + ETHERNET),
        ("geneve", v4, ETHERNET + IPV4 + 8 + 8 + ETHERNET),
        ("gre", v4, ETHERNET + IPV4 + 4),
        ("ip6gre", v6, ETHERNET + IPV6 + 4),
        ("ipip", v4, ETHERNET + IPV4),
        ("sit", v4, ETHERNET + IPV4),
    ] {
        let pair = Pair::new();
        if !tunnel(&pair, kind, outer) {
            continue;
        }
        for (to, inner) in [("10.76.0.2", IPV4), ("fd76::2", IPV6)] {
            if (kind, inner) == ("ipip", IPV6) || (kind, inner) == ("sit", IPV4) {
                continue; // they carry only the other family
            }
            in_both_directions(&pair, kind, to, overhead + inner + TCP);
        }
    }
}

/// Sends through the tunnel while the sender's device is measured, and then the receiver's.
fn in_both_directions(pair: &Pair, kind: &str, address: &str, headers: u64) {
    for (netns, way) in [(&pair.a, "transmitted"), (&pair.b, "received")] {
        let daemon = daemon_for(TOOL, netns);
        let (to, reader) = sink(&pair.b, address);
        let mut stream = connect(&pair.a, to).unwrap();
        let before = (segments_out(&stream), bytes_sent(&stream));
        let (mut segments, mut payload) = (0, 0);
        let answer = incoming(&daemon, "v0", "tcx", || {
            stream.write_all(&vec![7; 4 << 20]).unwrap();
            until("all is acknowledged", || (unacknowledged(&stream) == 0).then_some(()));
            (segments, payload) = (segments_out(&stream) - before.0, bytes_sent(&stream) - before.1);
        });
        stream.shutdown(std::net::Shutdown::Both).unwrap();
        reader.join().unwrap();
        let counted = if way == "received" { answer.clone() } else { answer[way].clone() };
        let packets = counted["packets"].as_u64().unwrap();
        // IPv6 neighbor and group messages run meanwhile, and TCP may acknowledge.
        assert!((segments..segments + 30).contains(&packets), "{kind} {way}: {segments} segments: {answer}");
        let (bytes, expected) = (counted["bytes"].as_u64().unwrap(), payload + segments * headers);
        assert!(bytes.abs_diff(expected) < 6_000, "{kind} to {address} {way}: {expected} bytes: {answer}");
        assert!(segments > 1_000, "{segments}");
    }
}

// In guests, since Linux 6.1.
#[test]
fn udp_segment_in_a_tunnel_counts_both_headers() {
    const SEGMENT: usize = 1_000;
    const COUNT: usize = 40;
    let pair = Pair::new();
    tunnel(&pair, "vxlan", [A, B]);
    let receiver = pair.b.enter(|| UdpSocket::bind("10.76.0.2:0").unwrap());
    receiver.set_read_timeout(Some(patience(std::time::Duration::from_secs(10)))).unwrap();
    let sender = pair.a.enter(|| UdpSocket::bind("10.76.0.1:0").unwrap());
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    sender.send(b"x").unwrap(); // the neighbors are known
    receiver.recv(&mut [0; 9]).unwrap();
    send_in_segments(&sender, SEGMENT as libc::c_int);
    for (netns, way) in [(&pair.a, "transmitted"), (&pair.b, "received")] {
        let daemon = daemon_for(TOOL, netns);
        let answer = incoming(&daemon, "v0", "tcx", || {
            for _ in 0..10 {
                sender.send(&vec![7; SEGMENT * COUNT]).unwrap();
                (0..COUNT).for_each(|_| _ = receiver.recv(&mut [0; 2 * SEGMENT]).unwrap());
            }
        });
        let counted = if way == "received" { answer.clone() } else { answer[way].clone() };
        let (packets, bytes) = (counted["packets"].as_u64().unwrap(), counted["bytes"].as_u64().unwrap());
        let expected = 10 * COUNT as u64;
        assert!((expected..expected + 20).contains(&packets), "{way}: {answer}");
        let expected = expected * (SEGMENT as u64 + 14 + 20 + 8 + 8 + 14 + 20 + 8);
        assert!(bytes.abs_diff(expected) < 4_000, "{way}: {expected} bytes: {answer}");
    }
}

/// `UDP_SEGMENT`.
fn send_in_segments(socket: &UdpSocket, bytes: libc::c_int) {
    use std::os::fd::AsRawFd;
    let length = size_of_val(&bytes) as libc::socklen_t;
    // SAFETY: the option reads one int, from a live variable.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, 103, (&raw const bytes).cast(), length) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}
