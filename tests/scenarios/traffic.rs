//! Servers and clients for the scenarios. All end with the scenario: by a signal, or by closed sockets.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    thread,
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

use crate::harness::*;

/// The pause between two tries.
pub const PAUSE: Duration = Duration::from_millis(250);

/// One connect from a namespace, with a timeout of a second.
pub fn try_connect(netns: &Netns, to: SocketAddr) -> std::io::Result<TcpStream> {
    netns.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(1)))
}

/// A connection that must succeed. A new veth pair may lose the first packets.
pub fn connected(netns: &Netns, to: SocketAddr) -> TcpStream {
    until("a connection", || try_connect(netns, to).ok())
}

/// A listener with its own backlog; only the caller may accept.
pub fn listener(netns: &Netns, at: SocketAddr, backlog: i32) -> OwnedFd {
    netns.enter(|| {
        let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        bind(&socket, &at).unwrap();
        listen(&socket, backlog).unwrap();
        socket
    })
}

/// Answers every connection in a separate thread, until the namespace's listener is shut down.
pub struct Server {
    pub at: SocketAddr,
    stop: TcpListener,
}

impl Server {
    pub fn start(netns: &Netns, at: SocketAddr, serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> Server {
        let listener = netns.enter(|| TcpListener::bind(at).unwrap());
        let (at, stop) = (listener.local_addr().unwrap(), listener.try_clone().unwrap());
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let serve = serve.clone();
                thread::spawn(move || serve(stream));
            }
        });
        Server { at, stop }
    }

    /// Echoes received data.
    pub fn echo(netns: &Netns, at: SocketAddr) -> Server {
        Server::start(netns, at, |stream| drop(std::io::copy(&mut &stream, &mut &stream)))
    }

    /// Reads all there is.
    pub fn sink(netns: &Netns, at: SocketAddr) -> Server {
        Server::start(netns, at, |mut stream| {
            let mut buffer = vec![0; 1 << 16];
            while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.stop, rustix::net::Shutdown::Both);
    }
}

/// A request and its answer; false if either failed. An answer that a fault swallows never comes.
pub fn exchange(stream: &TcpStream, bytes: usize) -> bool {
    exchange_within(stream, bytes, Duration::from_secs(10))
}

/// The same, if the reply comes in this time.
pub fn exchange_within(stream: &TcpStream, bytes: usize, time: Duration) -> bool {
    let mut stream = stream;
    let _ = stream.set_read_timeout(Some(time));
    let mut buffer = vec![7; bytes];
    stream.write_all(&buffer).is_ok() && stream.read_exact(&mut buffer).is_ok()
}

/// Sends at full speed until stopped. Never blocks for long, so that the scenario can end.
pub fn pour(stream: &TcpStream, goes_on: impl Fn() -> bool) -> u64 {
    let _ = stream.set_write_timeout(Some(Duration::from_millis(200)));
    let (buffer, mut stream, mut sent) = (vec![7; 1 << 16], stream, 0);
    while goes_on() {
        match stream.write(&buffer) {
            Ok(n) => sent += n as u64,
            Err(e) if [std::io::ErrorKind::WouldBlock, std::io::ErrorKind::TimedOut].contains(&e.kind()) => {}
            Err(_) => break,
        }
    }
    sent
}

pub fn udp(netns: &Netns, at: SocketAddr) -> UdpSocket {
    netns.enter(|| UdpSocket::bind(at).unwrap())
}

/// A connected UDP socket.
pub fn udp_to(netns: &Netns, to: SocketAddr) -> UdpSocket {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = udp(netns, (any, 0).into());
    netns.enter(|| socket.connect(to).unwrap());
    socket
}

/// Closes with a reset instead of a FIN.
pub fn reset(stream: TcpStream) {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
}

/// Closes in order.
pub fn finish(stream: TcpStream) {
    let _ = stream.shutdown(Shutdown::Write);
    let _ = (&stream).read(&mut [0; 16]);
}
