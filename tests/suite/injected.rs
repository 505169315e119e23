//! Injected faults: a router, a firewall, a full connection table, programs that drop.

use std::{
    net::UdpSocket,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use crate::harness::*;

/// Two hosts and a router between them.
pub struct Routed {
    pub a: Netns,
    pub router: Netns,
    pub b: Netns,
}

pub const FAR: &str = "10.79.0.2";

impl Routed {
    pub fn new() -> Routed {
        let (a, router, b) = (Netns::new(), Netns::new(), Netns::new());
        for (host, near, far, left) in [(&a, "10.78.0.2", "10.78.0.1", "l0"), (&b, FAR, "10.79.0.1", "r0")] {
            run(&format!("ip link add v0 netns {} type veth peer name {left} netns {}", host.name(), router.name()));
            host.ip(&format!("addr add {near}/24 dev v0"));
            router.ip(&format!("addr add {far}/24 dev {left}"));
            host.ip("link set v0 up");
            router.ip(&format!("link set {left} up"));
            host.ip(&format!("route add default via {far}"));
        }
        router.run("sysctl -qw net.ipv4.ip_forward=1");
        Routed { a, router, b }
    }
}

/// Adds a rule to its own hook.
pub fn nft(netns: &Netns, hook: &str, rule: &str) {
    netns.run("nft add table inet t");
    netns.run(&format!("nft add chain inet t c {{ type filter hook {hook} priority 0 ; }}"));
    netns.run(&format!("nft add rule inet t c {rule}"));
}

/// Makes one end of a pair resolve the other's address: with a datagram to a closed port, which is answered.
pub fn meet(pair: &Pair, address: &str) {
    let socket = pair.a.enter(|| UdpSocket::bind((if address == B { A } else { A6 }, 0)).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.connect((address, 9)).unwrap();
    socket.send(b"x").unwrap();
    assert_eq!(socket.recv(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

/// The limit is the host's, so the test changes it as little and as briefly as possible.
pub struct ConntrackMax(String);

const CONNTRACK_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

impl ConntrackMax {
    pub fn set(max: u32) -> Self {
        let before = std::fs::read_to_string(CONNTRACK_MAX).unwrap();
        std::fs::write(CONNTRACK_MAX, max.to_string()).unwrap();
        ConntrackMax(before)
    }
}

impl Drop for ConntrackMax {
    fn drop(&mut self) {
        let _ = std::fs::write(CONNTRACK_MAX, self.0.trim());
    }
}

/// Sets DF and ignores the known path MTU.
pub fn always_df(socket: &UdpSocket) {
    let probe = libc::IP_PMTUDISC_PROBE;
    let size = size_of_val(&probe) as u32;
    // SAFETY: the value is valid for its size.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, (&raw const probe).cast(), size)
    };
    assert_eq!(done, 0);
}

/// A program that answers every packet on this namespace's `v0` with the same verdict.
pub fn attach_constant(kind: u32, verdict: i32, at: u32) -> OwnedFd {
    let instruction = |code: u8, imm: i32| libbpf_sys::bpf_insn { code, imm, ..Default::default() };
    let program = [instruction(0xb7, verdict), instruction(0x95, 0)]; // r0 = verdict; exit
    // SAFETY: the instructions and the strings are valid for the call.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            kind,
            c"constant".as_ptr(),
            c"GPL".as_ptr(),
            program.as_ptr(),
            program.len() as _,
            std::ptr::null_mut(),
        )
    };
    assert!(fd > 0, "{}", std::io::Error::from_raw_os_error(-fd));
    // SAFETY: the kernel has just returned this descriptor.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: no options are passed.
    let link = unsafe { libbpf_sys::bpf_link_create(program.as_raw_fd(), v0_index(), at, std::ptr::null()) };
    assert!(link > 0, "{}", std::io::Error::from_raw_os_error(-link));
    // SAFETY: the kernel has just returned this descriptor.
    unsafe { OwnedFd::from_raw_fd(link) }
}

/// The index of `v0` in the namespace of this thread.
fn v0_index() -> i32 {
    // SAFETY: the name is a C string.
    let index = unsafe { libc::if_nametoindex(c"v0".as_ptr()) };
    assert!(index > 0);
    index as i32
}
