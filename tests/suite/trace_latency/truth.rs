//! The same traffic in a packet capture: an independent measurement.

use std::{
    mem::size_of_val,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use super::*;

/// A packet socket in a network namespace, with the kernel's time of each packet.
struct Capture(OwnedFd);

/// A TCP segment with payload: when it passed, and its destination's port.
type Segment = (Duration, u16);

impl Capture {
    fn start(netns: &Netns) -> Capture {
        let all = (libc::ETH_P_ALL as u16).to_be().into();
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let on = 1i32;
        // SAFETY: the descriptor is new, and the option is an int.
        let socket = netns.enter(|| unsafe {
            let socket = OwnedFd::from_raw_fd(libc::socket(libc::AF_PACKET, kind, all));
            let (value, length) = ((&raw const on).cast(), size_of_val(&on) as u32);
            let done = libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, value, length);
            assert_eq!(done, 0);
            socket
        });
        Capture(socket)
    }

    /// The segments with payload since the beginning.
    fn segments(&self) -> Vec<Segment> {
        std::iter::from_fn(|| self.next()).flatten().collect()
    }

    /// The next packet, and its segment if it has one; nothing where there is no more packet.
    fn next(&self) -> Option<Option<Segment>> {
        let (mut packet, mut control) = ([0u8; 256], [0u64; 16]);
        let mut part = libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() };
        // SAFETY: a message of zeros is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        (message.msg_iov, message.msg_iovlen) = (&mut part, 1);
        (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
        // SAFETY: both buffers are valid for the call.
        let length = unsafe { libc::recvmsg(self.0.as_raw_fd(), &mut message, 0) };
        let packet = &packet[..usize::try_from(length).ok()?];
        // SAFETY: the kernel has written the control messages, of which SO_TIMESTAMPNS has a timespec.
        let time = unsafe {
            let header = libc::CMSG_FIRSTHDR(&message).as_ref().expect("a time");
            assert_eq!(header.cmsg_type, libc::SCM_TIMESTAMPNS);
            libc::CMSG_DATA(header).cast::<libc::timespec>().read_unaligned()
        };
        Some(port_of_payload(packet).map(|port| (Duration::new(time.tv_sec as u64, time.tv_nsec as u32), port)))
    }
}

/// The destination's port of a TCP segment over IPv4 that has payload.
fn port_of_payload(packet: &[u8]) -> Option<u16> {
    let ip_header = usize::from(packet.first()? & 15) * 4;
    let tcp = packet.get(ip_header..)?;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let is_tcp = packet[0] >> 4 == 4 && i32::from(packet[9]) == libc::IPPROTO_TCP;
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    (is_tcp && total > ip_header + header).then(|| u16::from_be_bytes([tcp[2], tcp[3]]))
}

/// From each request to the segment after it, in order of length.
fn waits(segments: &[Segment], server: u16) -> Vec<Duration> {
    let exchanges = segments.windows(2).filter(|pair| pair[0].1 == server && pair[1].1 != server);
    let mut waits: Vec<_> = exchanges.map(|pair| pair[1].0 - pair[0].0).collect();
    waits.sort();
    waits
}

#[test]
fn times_to_the_first_byte_are_those_of_a_packet_capture() {
    const PROFILE: &str = "profile_tcp";
    let pair = Pair::new();
    let daemon = daemon_in(&pair.a);
    let mut ends = Ends::new(&pair.a, &pair.b, B);
    let port = ends.to.port();
    let captures = [("client", Capture::start(&pair.a)), ("server", Capture::start(&pair.b))];
    let profile = daemon.watch(PROFILE, json!({"port": port}));
    let stages = daemon.watch(TOOL, json!({"port": port, "limit": 100}));
    for ms in [5, 12, 40] {
        ends.exchange(7, Duration::ZERO, Duration::from_millis(ms));
    }
    until_acknowledged(&ends.server);
    let (stages, profile) = (stages.end(), profile.end());
    let remotes = profile["remotes"].as_array().unwrap();
    let remote = remotes.iter().find(|row| row["remote"]["port"] == port).unwrap();
    let first_bytes = [&remote["first_byte_us"], &profile["listeners"][0]["first_byte_us"]];
    for ((side, capture), first_byte) in captures.iter().zip(first_bytes) {
        let truth = waits(&capture.segments(), port);
        assert_eq!(truth.len(), 21, "{side}");
        is_injected(row(&stages, "request_to_reply", side), &truth);
        let as_row = json!({"us": first_byte, "count": first_byte["count"]});
        is_injected(&as_row, &truth);
    }
}
