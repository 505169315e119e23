//! Links that carry packets badly. Their counters are read in the daemon's own network namespace, so they are there.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    net::UdpSocket,
    os::fd::AsRawFd,
    time::Duration,
};

use super::{Scenario, one, stage::*};
use crate::harness::*;

pub fn scenarios() -> Vec<Scenario> {
    [
        one("link with bad frames", bad_frames),
        one("link of half duplex", half_duplex),
        one("quiet: link with a bad frame", one_bad_frame),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A tap device of the daemon's network namespace whose frames we make; it goes with its file.
fn tap(name: &str) -> File {
    const TUNSETIFF: u64 = 0x4004_54ca;
    const IFF_TAP_NO_PI: u16 = 0x0002 | 0x1000;
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&IFF_TAP_NO_PI.to_ne_bytes());
    // SAFETY: the request is a `struct ifreq`, 40 bytes that live through the call.
    assert_eq!(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) }, 0, "no tap device");
    run(&format!("ip link set {name} addrgenmode none"));
    run(&format!("ip link set {name} up"));
    file
}

/// A frame of a protocol that is for experiments.
fn frame(to: [u8; 6]) -> Vec<u8> {
    [&to[..], &[2, 0, 0, 0, 0, 9, 0x88, 0xb5], &[0; 46]].concat()
}

/// A VXLAN device of the daemon's network namespace. Who sends to its port makes its frames.
struct Tunnel {
    name: String,
    socket: UdpSocket,
    id: u8,
    hardware: [u8; 6],
}

impl Tunnel {
    fn new(name: String, id: u8) -> Tunnel {
        let port = 5_700 + u16::from(id);
        run(&format!("ip link add {name} type vxlan id {id} dstport {port} local 127.0.0.1 remote 127.0.0.2"));
        run(&format!("ip link set {name} addrgenmode none"));
        run(&format!("ip link set {name} up"));
        let text = std::fs::read_to_string(format!("/sys/class/net/{name}/address")).unwrap();
        let bytes: Vec<u8> = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(("127.0.0.1", port)).unwrap();
        Tunnel { name, socket, id, hardware: bytes.try_into().unwrap() }
    }

    /// A frame that is cut says that it is of IP, and ends.
    fn send(&self, is_cut: bool) {
        let mut frame = frame(self.hardware);
        if is_cut {
            frame.truncate(16);
            frame[12..14].copy_from_slice(&[8, 0]);
        }
        let header = [8, 0, 0, 0, 0, 0, self.id, 0];
        let _ = self.socket.send(&[&header[..], &frame].concat());
    }

    /// Sends good frames and cut ones by turns.
    fn send_all(&self, watch: &Watch, is_cut: impl Fn(u64) -> bool) {
        let mut number = 0;
        watch.every(Duration::from_millis(50), || {
            self.send(is_cut(number));
            number += 1;
        });
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        run(&format!("ip link del {}", self.name));
    }
}

fn bad_frames(stage: &mut Stage) {
    let tunnel = Tunnel::new(format!("bad{}", std::process::id()), 71);
    stage.mark(format!("\"{}\"", tunnel.name));
    stage.watch(|watch| tunnel.send_all(watch, |number| number.is_multiple_of(3)));
    let expected = stage.expect("link_degraded").is("/interface", tunnel.name.clone()).known("/netns");
    expected.at_least("/rx_length_errors", 10.0);
}

fn one_bad_frame(stage: &mut Stage) {
    let tunnel = Tunnel::new(format!("good{}", std::process::id()), 72);
    stage.mark(format!("\"{}\"", tunnel.name));
    stage.watch(|watch| tunnel.send_all(watch, |number| number == 20));
}

/// Sets a link to 10 Mbit/s, half duplex.
fn set_half_duplex(name: &str) {
    const SIOCETHTOOL: u64 = 0x8946;
    const ETHTOOL_SSET: u32 = 2;
    const SPEED: std::ops::Range<usize> = 12..14;
    let mut settings = [0u8; 44];
    settings[..4].copy_from_slice(&ETHTOOL_SSET.to_ne_bytes());
    settings[SPEED].copy_from_slice(&10u16.to_ne_bytes());
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..24].copy_from_slice(&(settings.as_mut_ptr() as u64).to_ne_bytes());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    // SAFETY: the request is a `struct ifreq` that points to a `struct ethtool_cmd`; both live through the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, request.as_mut_ptr()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn half_duplex(stage: &mut Stage) {
    let name = format!("half{}", std::process::id());
    let mut tap = tap(&name);
    set_half_duplex(&name);
    stage.mark(format!("\"{name}\""));
    stage.watch(|watch| watch.every(Duration::from_millis(50), || drop(tap.write(&frame([0xff; 6])))));
    let expected = stage.expect("link_degraded").is("/interface", name).is("/duplex", "half").is("/speed_mbps", 10);
    expected.known("/netns");
}
