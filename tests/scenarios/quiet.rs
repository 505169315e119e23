//! Healthy hosts: no finding above info is allowed.

use std::{
    io::Write,
    net::{SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, connect, sendto, socket_with, sockopt};

use super::{listen, stage::*, traffic::*};

pub fn idle(stage: &mut Stage) {
    let _net = stage.net();
    stage.watch(|_| ());
}

/// Maximal load of the host, in two streams.
pub fn busy(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let server = Server::sink(&net.server, (net.server_ip(family), 80).into());
    let streams: Vec<_> = (0..2).map(|_| connected(&net.client, server.at)).collect();
    stage.watch(|watch| {
        thread::scope(|scope| {
            for stream in &streams {
                scope.spawn(|| pour(stream, || watch.goes_on()));
            }
        });
    });
}

pub fn busy_loopback(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::sink(&net.client, ([127, 0, 0, 1], 80).into());
    let stream = connected(&net.client, server.at);
    stage.watch(|watch| {
        pour(&stream, || watch.goes_on());
    });
}

/// Datagrams at a rate that the reader can handle.
pub fn busy_udp(stage: &mut Stage) {
    let net = stage.net();
    let at: SocketAddr = (net.server_ip(V6), 514).into();
    let receiver = udp(&net.server, at);
    receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let sender = udp_to(&net.client, at);
    stage.watch(|watch| {
        thread::scope(|scope| {
            scope.spawn(|| {
                while watch.goes_on() {
                    let _ = receiver.recv(&mut [0; 2_000]);
                }
            });
            watch.every(Duration::from_millis(1), || drop(sender.send(&[0; 1_000])));
        });
    });
}

/// Connects, checks, closes: every tenth of a second.
pub fn health_checks(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(V4), 80).into());
    stage.watch(|watch| {
        watch.every(Duration::from_millis(100), || {
            if let Ok(stream) = try_connect(&net.client, server.at) {
                exchange(&stream, 20);
                finish(stream);
            }
        })
    });
}

/// Both families are tried; the first answer wins, and the other connection is closed.
pub fn happy_eyeballs(stage: &mut Stage) {
    let net = stage.net();
    let v6 = Server::echo(&net.server, (net.server_ip(V6), 443).into());
    let v4 = Server::echo(&net.server, (net.server_ip(V4), 443).into());
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            let (first, second) = (try_connect(&net.client, v6.at), try_connect(&net.client, v4.at));
            if let (Ok(stream), Ok(_)) = (first, second) {
                exchange(&stream, 100);
                finish(stream);
            }
        })
    });
}

/// Clients on a host without IPv6: connect fails at once, and they use IPv4.
pub fn ipv4_only(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(V4), 443).into());
    let nowhere: SocketAddr = "[2001:db8::7]:443".parse().unwrap();
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            if try_connect(&net.client, nowhere).is_err()
                && let Ok(stream) = try_connect(&net.client, server.at)
            {
                exchange(&stream, 100);
                finish(stream);
            }
        })
    });
}

/// Clients that finish, and close with a reset.
pub fn clients_reset(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(V4), 80).into());
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            if let Ok(stream) = try_connect(&net.client, server.at) {
                exchange(&stream, 20);
                reset(stream);
            }
        })
    });
}

/// One address tries one closed port after the other.
pub fn port_scan(stage: &mut Stage) {
    let net = stage.net();
    let mut port = 1_000;
    stage.watch(|watch| {
        watch.every(Duration::from_millis(10), || {
            port += 1;
            drop(try_connect(&net.client, (net.server_ip(V4), port).into()));
        })
    });
}

/// A package of some megabytes, after an unrelated lookup.
pub fn download(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::start(&net.server, (net.server_ip(V4), 80).into(), |mut stream| {
        let _ = stream.write_all(&vec![7; 20_000_000]);
    });
    stage.watch(|watch| {
        watch.every(Duration::from_millis(500), || {
            if let Ok(mut stream) = try_connect(&net.client, server.at) {
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
        })
    });
}

/// Long-lived connections with occasional data.
pub fn keep_alive(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(V4), 80).into());
    let streams: Vec<_> = (0..20).map(|_| connected(&net.client, server.at)).collect();
    stage.watch(|watch| {
        watch.every(Duration::from_secs(1), || {
            streams.iter().for_each(|s| {
                exchange(s, 10);
            })
        })
    });
}

/// A service restarts: one client is refused once.
pub fn restart(stage: &mut Stage) {
    let net = stage.net();
    let at = (net.server_ip(V4), 80).into();
    stage.watch(|watch| {
        let _ = try_connect(&net.client, at);
        let listener: TcpListener = net.server.enter(|| TcpListener::bind(at).unwrap());
        watch.every(PAUSE, || {
            let _ = try_connect(&net.client, at).map(|_| listener.accept());
        });
    });
}

/// A HAProxy health check: the last packet of its handshake is a reset, which the listener drops and counts.
pub fn checks_that_reset(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(V4), 80).into());
    let check = || {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        sockopt::set_tcp_quickack(&socket, false).unwrap();
        connect(&socket, &server.at).unwrap();
        reset(socket.into());
    };
    stage.watch(|watch| watch.every(Duration::from_millis(100), || net.client.enter(check)));
}

/// A service on all addresses, behind a firewall that admits only its own clients.
pub fn strangers_kept_out(stage: &mut Stage) {
    let net = stage.net();
    let at: SocketAddr = (net.server_ip(V4), 22).into();
    let _server = Server::echo(&net.server, ([0, 0, 0, 0], 22).into());
    net.nft(&net.server, &[&format!("input ip saddr != {} tcp dport 22 drop", net.host(V4, 1))]);
    let (friend, raw) = (connected(&net.client, at), listen::raw(&net.client, V4));
    let mut number = 0;
    stage.watch(|watch| {
        watch.every(Duration::from_millis(100), || {
            number += 1;
            let syn = listen::syn(net.host(V4, 130 + (number % 120) as u8), number, at);
            sendto(&raw, &syn, SendFlags::empty(), &SocketAddr::new(at.ip(), 0)).unwrap();
            exchange(&friend, 100);
        })
    });
}
