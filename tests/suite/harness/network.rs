//! Network namespaces, their connections, and programs in them.

use std::{
    fs::File,
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use super::{Daemon, require_root, run, until};

/// A network namespace, removed when dropped.
#[derive(Clone)]
pub struct Netns(Arc<Inner>);

struct Inner {
    name: String,
}

impl Netns {
    pub fn new() -> Netns {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        require_root();
        let name = format!("nmt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(&format!("ip netns add {name}"));
        let netns = Netns(Arc::new(Inner { name }));
        netns.ip("link set lo up");
        netns
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The inode, which identifies it in answers.
    pub fn inode(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(format!("/run/netns/{}", self.0.name)).unwrap().ino()
    }

    /// TCP segments retransmitted here, from the kernel's own counter (`RetransSegs`): on a busy machine an
    /// acknowledgement may be late.
    pub fn retransmits(&self) -> u64 {
        let snmp = self.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
        let tcp: Vec<_> = snmp.lines().filter(|line| line.starts_with("Tcp:")).collect();
        let place = tcp[0].split(' ').position(|name| name == "RetransSegs").unwrap();
        tcp[1].split(' ').nth(place).unwrap().parse().unwrap()
    }

    /// `ip ARGUMENTS` in the namespace.
    pub fn ip(&self, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.0.name))
    }

    /// A command line in the namespace, split at spaces.
    pub fn run(&self, line: &str) -> String {
        run(&format!("nsenter --net=/run/netns/{} {line}", self.0.name))
    }

    /// A command that will run in the namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.0.name)).arg(program);
        command
    }

    /// Calls `f` on a separate thread in the namespace: sockets that it creates belong there.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = || {
                let file = File::open(format!("/run/netns/{}", self.0.name)).unwrap();
                // SAFETY: the descriptor is open; only this short-lived thread changes namespace.
                assert_eq!(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
                f()
            };
            scope.spawn(inside).join().unwrap()
        })
    }
}

/// Removed namespaces that stay until the second [`RemovedNamespaces::next`] from now. The kernel gives the inode of one
/// that is gone to a new one, and a recording names a namespace by its inode.
pub struct RemovedNamespaces(Mutex<Option<[Vec<File>; 2]>>);

pub static REMOVED_NAMESPACES: RemovedNamespaces = RemovedNamespaces(Mutex::new(None));

impl RemovedNamespaces {
    /// Without a first call, none stays.
    pub fn next(&self) {
        let mut held = self.0.lock().unwrap();
        let [latest, _] = held.take().unwrap_or_default();
        *held = Some([Vec::new(), latest]);
    }

    fn add(&self, path: &str) {
        if let Some([latest, _]) = &mut *self.0.lock().unwrap() {
            latest.extend(File::open(path).ok());
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        REMOVED_NAMESPACES.add(&format!("/run/netns/{}", self.name));
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Two namespaces joined by a veth pair, `v0` in each, with IPv4 and IPv6 addresses.
#[derive(Clone)]
pub struct Pair {
    pub a: Netns,
    pub b: Netns,
}

pub const A: &str = "10.77.0.1";
pub const B: &str = "10.77.0.2";
pub const A6: &str = "fd77::1";
pub const B6: &str = "fd77::2";

impl Pair {
    pub fn new() -> Pair {
        let (a, b) = (Netns::new(), Netns::new());
        run(&format!("ip link add v0 netns {} type veth peer name v0 netns {}", a.name(), b.name()));
        for (netns, v4, v6) in [(&a, A, A6), (&b, B, B6)] {
            netns.ip(&format!("addr add {v4}/24 dev v0"));
            netns.ip(&format!("addr add {v6}/64 dev v0 nodad"));
            netns.ip("link set v0 up");
        }
        Pair { a, b }
    }
}

/// A daemon in a namespace, so that its own interfaces are the test's.
pub fn daemon_in(netns: &Netns) -> Daemon {
    netns.enter(Daemon::own)
}

/// Listens on a port that no other test has: netmond sees the ports of all namespaces. Those of clients begin at 32768.
pub fn listen(netns: &Netns, address: &str) -> TcpListener {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Another run of the suite begins elsewhere.
    let number = std::process::id().wrapping_mul(269).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
    let at = SocketAddr::new(address.parse().unwrap(), 22_000 + (number % 10_000) as u16);
    netns.enter(|| TcpListener::bind(at).unwrap())
}

/// Accepts on `address` and echoes received data, until the test drops the listener.
pub fn echo_server(netns: &Netns, address: &str) -> SocketAddr {
    let listener = listen(netns, address);
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut reader = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut reader, &mut &stream);
            });
        }
    });
    at
}

/// Waits until all written data of a socket is acknowledged: it is in the peer's buffer.
pub fn until_acknowledged(stream: &TcpStream) {
    let mut left: libc::c_int = 0;
    until("everything is acknowledged", || {
        // SAFETY: the request writes one int, to a live variable.
        let done = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut left) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        (left == 0).then_some(())
    });
}

/// Connects from a namespace.
pub fn connect(netns: &Netns, to: SocketAddr) -> std::io::Result<TcpStream> {
    netns.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(10)))
}

/// A cgroup of the test in the cgroup v2 hierarchy, removed when dropped.
pub struct Cgroup(PathBuf);

impl Cgroup {
    pub fn new(name: &str) -> Cgroup {
        let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        let root =
            root.into_iter().find(|path| path.join("cgroup.controllers").exists()).expect("cgroup v2 is mounted");
        let path = root.join("system.slice").join(name);
        std::fs::create_dir_all(&path).unwrap();
        Cgroup(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        until("the cgroup is empty", || std::fs::remove_dir(&self.0).ok());
        let _ = std::fs::remove_dir(self.0.parent().unwrap()); // fails if another test uses it
    }
}

/// Creates a tun interface with these addresses. Closing the file removes it.
pub fn open_tun(netns: &Netns, name: &str, addresses: &[&str]) -> File {
    /// `TUNSETIFF`, `IFF_TUN` and `IFF_NO_PI` of linux/if_tun.h.
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const FLAGS: u16 = 0x0001 | 0x1000;
    let file = netns.enter(|| {
        let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        let mut request = [0u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&FLAGS.to_ne_bytes());
        // SAFETY: the request is a struct ifreq: a name of 16 bytes, then a union of 24.
        assert_eq!(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) }, 0);
        file
    });
    for address in addresses {
        netns.ip(&format!("addr add {address} dev {name}{}", if address.contains(':') { " nodad" } else { "" }));
    }
    netns.ip(&format!("link set {name} up"));
    file
}

/// A tun interface, `tun7`: a device whose packets start with the IP header.
pub struct Tunnel(File);

impl Tunnel {
    pub fn new(netns: &Netns) -> Tunnel {
        Tunnel(open_tun(netns, "tun7", &["10.79.0.1/24"]))
    }

    /// Injects a UDP packet with `bytes` of payload at the interface.
    pub fn inject_udp(&self, bytes: u16) {
        let mut packet = vec![0u8; 28 + usize::from(bytes)];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(28 + bytes).to_be_bytes());
        (packet[8], packet[9]) = (64, 17);
        packet[12..16].copy_from_slice(&[10, 79, 0, 2]);
        packet[16..20].copy_from_slice(&[10, 79, 0, 1]);
        let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        packet[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
        packet[20..28].copy_from_slice(&[0, 9, 0, 9, 0, 8 + bytes as u8, 0, 0]);
        (&self.0).write_all(&packet).unwrap();
    }
}
