//! Connections from before the first window: the end that opened them.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect as connect_socket, listen, socket_with, sockopt,
};
use serde_json::{Value, json};

use crate::harness::{slow::*, *};

fn family(at: SocketAddr) -> AddressFamily {
    if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn listener(netns: &Netns, at: SocketAddr, backlog: i32) -> TcpListener {
    netns.enter(|| {
        let socket = socket_with(family(at), SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        bind(&socket, &at).unwrap();
        listen(&socket, backlog).unwrap();
        socket.into()
    })
}

/// A connection of a client with bind() before connect().
fn connect_from(netns: &Netns, from: SocketAddr, to: SocketAddr) -> TcpStream {
    netns.enter(|| {
        let socket = socket_with(family(from), SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        bind(&socket, &from).unwrap();
        connect_socket(&socket, &to).unwrap();
        socket.into()
    })
}

fn exchange(client: &mut TcpStream, server: &mut TcpStream, bytes: usize) {
    let mut buffer = vec![7; bytes];
    client.write_all(&buffer).unwrap();
    server.read_exact(&mut buffer).unwrap();
    server.write_all(&buffer).unwrap();
    client.read_exact(&mut buffer).unwrap();
}

/// The direction of the connection between two ports, as shown at the end with the first port, while open and at its
/// close.
fn direction(daemon: &Daemon, (local, remote): (u16, u16), netns: &Netns, close: impl FnOnce()) -> [Value; 3] {
    let mut client = Client::connect(&daemon.socket);
    let here = |row: &Value| {
        (&row["local"]["port"], &row["remote"]["port"], &row["owner"]["netns"])
            == (&json!(local), &json!(remote), &json!(netns.inode()))
    };
    let open = client.call("snapshot_sockets", json!({"port": local, "detail": true, "limit": 1_000})).unwrap();
    let open = open["sockets"].as_array().unwrap().iter().find(|row| here(row)).unwrap()["tcp"]["inbound"].clone();
    let profile = daemon.watch("profile_tcp", json!({"port": local, "limit": 1_000}));
    let trace = daemon.watch("trace_connections", json!({"port": local, "limit": 1_000}));
    close();
    until("both ends are closed", || {
        let open = netns.run("ss -Htan state connected exclude time-wait");
        let ports = [format!(":{local} "), format!(":{remote} ")];
        let is_it = |line: &str| ports.iter().all(|port| format!("{line} ").contains(port));
        (!open.lines().any(is_it)).then_some(())
    });
    let (trace, profile) = (trace.end(), profile.end());
    let ended = trace["connections"].as_array().unwrap().iter().find(|row| here(row));
    let ended = ended.unwrap_or_else(|| panic!("{trace:#}"))["direction"].clone();
    let ports: Vec<_> =
        profile["remotes"].as_array().unwrap().iter().map(|row| row["remote"]["port"].clone()).collect();
    [open, ended, json!(ports)]
}

/// A client's end or a server's: the ports by which profile_tcp groups both.
fn outbound(service: u16) -> [Value; 3] {
    [json!(false), json!("outbound"), json!([service, null])]
}

fn inbound(service: u16) -> [Value; 3] {
    [json!(true), json!("inbound"), json!([service, null])]
}

fn sorted(mut said: [Value; 3]) -> [Value; 3] {
    if let Some(ports) = said[2].as_array_mut() {
        ports.sort_by_key(|port| port.is_null());
    }
    said
}

// In guests.
#[test]
fn accepted_connections_are_inbound() {
    let netns = Netns::new();
    let daemon = Daemon::of_sockets();
    // IPv4 and IPv6, one address and all; also one byte at a time.
    for (at, to, backlog, keeps) in [
        ("127.0.0.1:7100", "127.0.0.1:7100", 0, true),
        ("0.0.0.0:7101", "127.0.0.1:7101", 0, false),
        ("[::]:7102", "[::1]:7102", 0, false),
        ("[::]:7103", "127.0.0.1:7103", 0, true),
        ("[::1]:7104", "[::1]:7104", 9, false),
    ] {
        let (at, to): (SocketAddr, SocketAddr) = (at.parse().unwrap(), to.parse().unwrap());
        let listener = listener(&netns, at, backlog);
        let mut client = connect(&netns, to).unwrap();
        let mut server = listener.accept().unwrap().0;
        exchange(&mut client, &mut server, 1);
        exchange(&mut client, &mut server, 3_000);
        let listener = Some(listener).filter(|_| keeps);
        let port = client.local_addr().unwrap().port();
        let said = direction(&daemon, (to.port(), port), &netns, || {
            exchange(&mut client, &mut server, 1);
            drop((server, client));
        });
        assert_eq!(sorted(said), inbound(to.port()), "{at} with a backlog of {backlog}");
        drop(listener);
    }
}

#[test]
fn bound_client_is_outbound() {
    let netns = Netns::new();
    let daemon = Daemon::of_sockets();
    for (number, from) in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "127.0.0.2:7119"].into_iter().enumerate() {
        let from: SocketAddr = from.parse().unwrap();
        let service = 7_110 + number as u16;
        let host = if from.is_ipv4() { "127.0.0.1" } else { "::1" };
        let to = SocketAddr::new(host.parse().unwrap(), service);
        let listener = listener(&netns, to, 5);
        let mut client = connect_from(&netns, from, to);
        let mut server = listener.accept().unwrap().0;
        exchange(&mut client, &mut server, 1);
        let port = client.local_addr().unwrap().port();
        let said = direction(&daemon, (port, service), &netns, || {
            exchange(&mut client, &mut server, 100);
            drop((client, server));
        });
        assert_eq!(sorted(said), outbound(service), "bound to {from}");
    }
}

#[test]
fn half_closed_connection_keeps_its_direction() {
    let netns = Netns::new();
    let daemon = Daemon::of_sockets();
    for (service, server_first) in [(7_120, true), (7_121, false)] {
        let to: SocketAddr = ([127, 0, 0, 1], service).into();
        let listener = listener(&netns, to, 0);
        let mut client = connect_from(&netns, ([127, 0, 0, 1], 0).into(), to);
        let mut server = listener.accept().unwrap().0;
        exchange(&mut client, &mut server, 500);
        let first = if server_first { &server } else { &client };
        first.shutdown(std::net::Shutdown::Write).unwrap();
        let port = client.local_addr().unwrap().port();
        until("the FIN is acknowledged", || {
            netns.run("ss -Htan state fin-wait-2").contains(&format!(":{service}")).then_some(())
        });
        let at_server = direction(&daemon, (service, port), &netns, || {
            let second = if server_first { &mut client } else { &mut server };
            second.write_all(&[7; 9]).unwrap();
            drop((client, server));
        });
        assert_eq!(at_server[..2], inbound(service)[..2], "first to close: server {server_first}");
    }
}

#[test]
fn simultaneous_open_and_self_connect_are_outbound() {
    let pair = SlowPair::new(Duration::from_millis(100));
    let daemon = Daemon::of_sockets();
    let (a, b) = ((SLOW_A, 7_130), (SLOW_B, 7_131));
    let at = |(host, port): (&str, u16)| SocketAddr::new(host.parse().unwrap(), port);
    let (one, other) = thread::scope(|scope| {
        let one = scope.spawn(|| connect_from(&pair.a, at(a), at(b)));
        let other = scope.spawn(|| connect_from(&pair.b, at(b), at(a)));
        (one.join().unwrap(), other.join().unwrap())
    });
    let said = direction(&daemon, (7_130, 7_131), &pair.a, || drop((one, other)));
    assert_eq!(said[..2], outbound(0)[..2], "both connect at once");
    let itself = SocketAddr::from(([127, 0, 0, 1], 7_132));
    let stream = connect_from(&pair.a, itself, itself);
    let said = direction(&daemon, (7_132, 7_132), &pair.a, || drop(stream));
    assert_eq!(said[..2], outbound(0)[..2], "it connects to itself");
}
