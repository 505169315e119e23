//! Loads with client and server in one thread, on one CPU, at real-time priority, so that its CPU time is the whole
//! cost of a packet's path, including soft interrupts.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
};

use crate::{
    flood::Scan,
    harness::{A, B, Pair},
};

/// A load between two namespaces over a veth pair.
pub enum Load {
    TcpRequests(TcpStream, TcpStream),
    TcpBulk(TcpStream, TcpStream),
    UdpRequests(UdpSocket, UdpSocket),
    Connects(Pair, TcpListener, Close),
    Scan(Scan),
}

/// The way in which the client closes a connection.
#[derive(Clone, Copy)]
pub enum Close {
    /// With a reset, so that no socket remains.
    Reset,
    /// With a FIN, which the server answers with a FIN: both ends are orphans for a moment.
    Fin,
}

impl Load {
    fn tcp(pair: &Pair) -> (TcpStream, TcpStream) {
        let listener = pair.b.enter(|| TcpListener::bind((B, 0)).unwrap());
        let to = listener.local_addr().unwrap();
        let client = pair.a.enter(|| TcpStream::connect(to).unwrap());
        let (server, _) = listener.accept().unwrap();
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
        }
        (client, server)
    }

    /// One byte there and one back: two packets, four socket calls.
    pub fn tcp_requests(pair: &Pair) -> Load {
        let (client, server) = Load::tcp(pair);
        Load::TcpRequests(client, server)
    }

    /// 64 KiB from `a` to `b`.
    pub fn tcp_bulk(pair: &Pair) -> Load {
        let (client, server) = Load::tcp(pair);
        Load::TcpBulk(client, server)
    }

    pub fn udp_requests(pair: &Pair) -> Load {
        let server = pair.b.enter(|| UdpSocket::bind((B, 0)).unwrap());
        let client = pair.a.enter(|| UdpSocket::bind((A, 0)).unwrap());
        client.connect(server.local_addr().unwrap()).unwrap();
        server.connect(client.local_addr().unwrap()).unwrap();
        Load::UdpRequests(client, server)
    }

    /// connect, accept, close. No port stays in TIME_WAIT.
    pub fn connects(pair: Pair, close: Close) -> Load {
        for netns in [&pair.a, &pair.b] {
            netns.run("sysctl -qw net.ipv4.tcp_max_tw_buckets=0");
        }
        let listener = pair.b.enter(|| TcpListener::bind((B, 0)).unwrap());
        Load::Connects(pair, listener, close)
    }

    /// Runs it `times` times, and returns CPU nanoseconds per operation.
    pub fn run(&mut self, times: u32) -> f64 {
        let begun = cpu_time();
        match self {
            Load::Scan(scan) => (0..times).for_each(|_| scan.send()),
            Load::Connects(pair, listener, close) => return connect(pair, listener, *close, times),
            Load::TcpRequests(client, server) => (0..times).for_each(|_| {
                let mut byte = [0];
                client.write_all(&[1]).unwrap();
                server.read_exact(&mut byte).unwrap();
                server.write_all(&[1]).unwrap();
                client.read_exact(&mut byte).unwrap();
            }),
            Load::TcpBulk(client, server) => {
                let (payload, mut buffer) = (vec![7; 64 << 10], vec![0; 64 << 10]);
                (0..times).for_each(|_| {
                    client.write_all(&payload).unwrap();
                    server.read_exact(&mut buffer).unwrap();
                });
            }
            Load::UdpRequests(client, server) => (0..times).for_each(|_| {
                let mut byte = [0];
                client.send(&[1]).unwrap();
                server.recv(&mut byte).unwrap();
                server.send(&[1]).unwrap();
                client.recv(&mut byte).unwrap();
            }),
        }
        (cpu_time() - begun) / f64::from(times)
    }
}

/// CPU nanoseconds per connection, on a thread in the client's namespace.
fn connect(pair: &Pair, listener: &TcpListener, close: Close, times: u32) -> f64 {
    let to = listener.local_addr().unwrap();
    pair.a.enter(|| {
        real_time_on_one_cpu();
        let begun = cpu_time();
        for _ in 0..times {
            let client = TcpStream::connect(to).unwrap();
            let server = listener.accept().unwrap();
            match close {
                Close::Reset => {
                    rustix::net::sockopt::set_socket_linger(&client, Some(std::time::Duration::ZERO)).unwrap();
                    drop((server, client));
                }
                Close::Fin => drop((client, server)),
            }
        }
        (cpu_time() - begun) / f64::from(times)
    })
}

/// CPU time of this thread, in nanoseconds.
fn cpu_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Pins this thread to the last CPU with real-time priority: soft interrupts then run within it.
pub fn real_time_on_one_cpu() {
    let last = std::thread::available_parallelism().unwrap().get() - 1;
    // SAFETY: plain structs that are valid for the calls; 0 is this thread.
    unsafe {
        let mut cpus: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(last, &mut cpus);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&cpus), &cpus), 0);
        let priority = libc::sched_param { sched_priority: 10 };
        assert_eq!(libc::sched_setscheduler(0, libc::SCHED_FIFO, &priority), 0);
    }
}
