//! TCP sockets without a process: connections that wait for accept(), and orphans, which their process has closed and
//! which still send. In network namespaces other than the daemon's, no kernel has an iterator over all of them.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use rustix::net::{
    AddressFamily, SocketType, bind, socket,
    sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size},
};
use serde_json::{Value, json};

use crate::{harness::*, injected::nft};

/// Runs `traffic` while a window is open, and returns the answer.
fn watched(daemon: &Daemon, tool: &str, arguments: Value, traffic: impl FnOnce()) -> Value {
    let window = daemon.watch(tool, arguments);
    traffic();
    let answer = window.end();
    Client::connect(&daemon.socket).until_detached(tool);
    answer
}

/// Every connection has a row.
fn top_traffic(daemon: &Daemon, traffic: impl FnOnce()) -> Value {
    let arguments = json!({"group_by": "connection", "protocol": "tcp", "limit": 10_000});
    watched(daemon, "top_traffic", arguments, traffic)
}

fn rows<'a>(answer: &'a Value, list: &str, netns: &Netns) -> Vec<&'a Value> {
    answer[list].as_array().unwrap().iter().filter(|row| row["owner"]["netns"] == netns.inode()).collect()
}

/// The only row of a namespace.
fn only<'a>(answer: &'a Value, list: &str, netns: &Netns) -> &'a Value {
    let rows = rows(answer, list, netns);
    assert_eq!(rows.len(), 1, "{answer:#}");
    rows[0]
}

fn moved(row: &Value) -> (u64, u64) {
    (row["rx_bytes"].as_u64().unwrap(), row["tx_bytes"].as_u64().unwrap())
}

/// The count of a limit for the whole host, including other tests; 0 if the answer does not have the limit.
fn limit(answer: &Value, code: &str) -> u64 {
    let limits = answer["measured"]["limits"].as_array().unwrap();
    limits.iter().find(|limit| limit["code"] == code).map_or(0, |limit| limit["count"].as_u64().unwrap())
}

/// A listener of `b` that accepts on request, with a queue for 4,096.
fn listener(pair: &Pair) -> (TcpListener, SocketAddr) {
    let listener = listen(&pair.b, B);
    rustix::net::listen(&listener, 4_096).unwrap();
    let at = listener.local_addr().unwrap();
    (listener, at)
}

/// Connections from `a` that have sent `bytes` each, and wait for accept().
fn waiting(pair: &Pair, to: SocketAddr, connections: usize, bytes: usize) -> Vec<TcpStream> {
    let connect = |_| {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.write_all(&vec![0; bytes]).unwrap();
        stream
    };
    let streams: Vec<_> = pair.a.enter(|| (0..connections).map(connect).collect());
    streams.iter().for_each(until_acknowledged);
    streams
}

/// The number of bytes of an orphan; its peer accepts only a part.
const ORPHANED: usize = 300_000;
const TAKEN: usize = 150_000;

/// A connection with one closed end and more bytes than the other end has room for. Returns that other end, of `b`, and
/// the port of the orphan, in `a`. The orphan is in FIN_WAIT1, or in LAST_ACK if the other end was shut down first.
fn orphan(pair: &Pair, last_ack: bool) -> (TcpStream, u16) {
    let (listener, at) = listener(pair);
    set_socket_recv_buffer_size(&listener, 32 << 10).unwrap();
    let mut stream = connect(&pair.a, at).unwrap();
    set_socket_send_buffer_size(&stream, 1 << 20).unwrap();
    let peer = listener.accept().unwrap().0;
    if last_ack {
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    stream.write_all(&vec![0; ORPHANED]).unwrap();
    (peer, stream.local_addr().unwrap().port())
}

/// Waits until the queues of all TCP sockets stay unchanged for longer than a delayed acknowledgement.
fn until_nothing_moves(pair: &Pair) {
    let mut before = String::new();
    until("nothing moves", || {
        let now = pair.a.run("ss -Htan") + &pair.b.run("ss -Htan");
        std::thread::sleep(Duration::from_millis(200));
        (std::mem::replace(&mut before, now.clone()) == now).then_some(())
    });
}

#[test]
fn waiting_connection_is_credited_to_its_listener() {
    let (pair, daemon) = (Pair::new(), Daemon::of_sockets());
    let (listener, at) = listener(&pair);
    let mut clients = waiting(&pair, at, 1, 10_000); // before the window
    let answer = top_traffic(&daemon, || {
        clients[0].write_all(&[0; 500]).unwrap();
        until_acknowledged(&clients[0]);
    });
    let row = only(&answer, "rows", &pair.b);
    assert_eq!((moved(row), &row["owner"]["pid"]), ((500, 0), &json!(std::process::id())), "{answer:#}");
    assert_eq!(row["local"]["port"], at.port(), "{answer:#}");
    // After accept() within a window it is still the same connection.
    let mut accepted = None;
    let answer = top_traffic(&daemon, || {
        let mut stream = listener.accept().unwrap().0;
        stream.read_exact(&mut vec![0; 10_500]).unwrap();
        stream.write_all(&[0; 70]).unwrap();
        clients[0].read_exact(&mut [0; 70]).unwrap();
        accepted = Some(stream);
    });
    assert_eq!(moved(only(&answer, "rows", &pair.b)), (0, 70), "{answer:#}");
}

#[test]
fn unread_waiting_connections_are_counted() {
    let (pair, daemon) = (Pair::new(), Daemon::of_sockets());
    let (listener, at) = listener(&pair);
    let mut clients = waiting(&pair, at, 200, 1_000);
    let answer = top_traffic(&daemon, || {
        for client in &mut clients {
            client.write_all(&[0; 10]).unwrap();
            until_acknowledged(client);
        }
    });
    assert_eq!(rows(&answer, "rows", &pair.b).iter().map(|row| moved(row).0).sum::<u64>(), 128 * 10, "{answer:#}");
    assert!(limit(&answer, "waiting_connections_unread") >= 72, "{answer:#}");
    // Connections unread at the start of the window do not count as new when they are read at its end.
    let mut accepted = Vec::new();
    let answer = top_traffic(&daemon, || {
        accepted.extend((0..100).map(|_| listener.accept().unwrap().0));
        for client in &mut clients {
            client.write_all(&[0; 10]).unwrap();
            until_acknowledged(client);
        }
    });
    assert_eq!(rows(&answer, "rows", &pair.b).iter().map(|row| moved(row).0).sum::<u64>(), 128 * 10, "{answer:#}");
    assert!(limit(&answer, "older_connections") >= 72, "{answer:#}");
}

#[test]
fn orphan_is_counted_in_each_window() {
    for last_ack in [false, true] {
        let (pair, daemon) = (Pair::new(), Daemon::of_sockets());
        let mut ends = None;
        let answer = top_traffic(&daemon, || {
            let (mut peer, port) = orphan(&pair, last_ack);
            peer.read_exact(&mut vec![0; TAKEN]).unwrap();
            until_nothing_moves(&pair);
            ends = Some((peer, port));
        });
        let (mut peer, port) = ends.unwrap();
        let row = only(&answer, "rows", &pair.a);
        assert_eq!((&row["local"]["port"], &row["owner"]["pid"]), (&json!(port), &json!(std::process::id())));
        let first = moved(row).1 as usize;
        assert!((TAKEN..ORPHANED).contains(&first), "{answer:#}");
        let answer = top_traffic(&daemon, || {
            let mut rest = Vec::new();
            assert_eq!(peer.read_to_end(&mut rest).unwrap(), ORPHANED - TAKEN);
        });
        let row = only(&answer, "rows", &pair.a);
        assert_eq!(first + moved(row).1 as usize, ORPHANED, "last_ack: {last_ack}, {answer:#}");
        assert_eq!(row["owner"]["pid"], std::process::id(), "{answer:#}");
    }
}

#[test]
fn old_orphans_are_counted() {
    let (pair, daemon) = (Pair::new(), Daemon::of_sockets());
    let (mut peer, _) = orphan(&pair, false);
    for tool in ["top_traffic", "profile_tcp"] {
        let answer = watched(&daemon, tool, json!({}), || ());
        assert!(limit(&answer, "orphans_unread") >= 1, "{tool}: {answer:#}");
    }
    assert_eq!(peer.read_to_end(&mut Vec::new()).unwrap(), ORPHANED);
}

#[test]
fn overlapping_windows_share_an_orphan() {
    let (pair, daemon) = (Pair::new(), Daemon::of_sockets());
    let window = || daemon.watch("top_traffic", json!({"group_by": "connection", "protocol": "tcp", "limit": 10_000}));
    let long = window();
    let (mut peer, _) = orphan(&pair, false);
    peer.read_exact(&mut vec![0; TAKEN]).unwrap();
    let short = window();
    assert_eq!(peer.read_to_end(&mut Vec::new()).unwrap(), ORPHANED - TAKEN);
    let (short, long) = (short.end(), long.end());
    assert_eq!(moved(only(&long, "rows", &pair.a)).1 as usize, ORPHANED, "{long:#}");
    let part = moved(only(&short, "rows", &pair.a)).1 as usize;
    assert!(part > 0 && part <= ORPHANED - TAKEN, "{short:#}");
}

#[test]
fn trace_connections_lists_waiting_and_orphaned() {
    let (pair, daemon) = (Pair::new(), Daemon::of_sockets());
    let (_listener, at) = listener(&pair);
    let mut kept = None;
    // Failures come first, and a scan of another test would fill all rows.
    let answer = watched(&daemon, "trace_connections", json!({"limit": 10_000, "remote": "10.77.0.0/24"}), || {
        let clients = waiting(&pair, at, 150, 100);
        let (mut peer, port) = orphan(&pair, false);
        peer.read_exact(&mut vec![0; TAKEN]).unwrap();
        kept = Some((clients, peer, port));
    });
    let (_, _, port) = kept.unwrap();
    let inbound = rows(&answer, "connections", &pair.b);
    let waits: Vec<_> = inbound.iter().filter(|c| c["local"]["port"] == at.port()).collect();
    let whole = |c: &&&&Value| {
        (&c["closed"], &c["rx_bytes"], &c["owner"]["pid"]) == (&json!(false), &json!(100), &json!(std::process::id()))
    };
    assert_eq!((waits.len(), waits.iter().filter(whole).count()), (128, 128), "{answer:#}");
    assert!(limit(&answer, "waiting_connections_unread") >= 22, "{answer:#}");
    let orphans = rows(&answer, "connections", &pair.a).into_iter().filter(|c| c["local"]["port"] == port);
    let [orphan] = orphans.collect::<Vec<_>>()[..] else { panic!("{answer:#}") };
    assert_eq!((&orphan["closed"], &orphan["owner"]["pid"]), (&json!(false), &json!(std::process::id())), "{orphan:#}");
    assert!((TAKEN..ORPHANED).contains(&(moved(orphan).1 as usize)), "{orphan:#}");
}

/// The row of a remote in `profile_tcp`.
fn remote<'a>(answer: &'a Value, address: &str, port: Option<u16>) -> &'a Value {
    let remote = port.map_or(json!({"address": address}), |port| json!({"address": address, "port": port}));
    let found = answer["remotes"].as_array().unwrap().iter().find(|row| row["remote"] == remote);
    found.unwrap_or_else(|| panic!("{remote} in {answer:#}"))
}

/// The owner in a namespace.
fn owner<'a>(row: &'a Value, netns: &Netns) -> &'a Value {
    let found = row["owners"].as_array().unwrap().iter().find(|owner| owner["netns"] == netns.inode());
    found.unwrap_or_else(|| panic!("{row:#}"))
}

#[test]
fn profile_tcp_counts_waiting_and_orphaned() {
    let (pair, daemon) = (Pair::new(), Daemon::of_sockets());
    let (_listener, at) = listener(&pair);
    let mut clients = waiting(&pair, at, 150, 100); // before the window
    // By port and by address: other tests have the same addresses at the same time, and a remote lists only two owners.
    let waits = daemon.watch("profile_tcp", json!({"port": at.port()}));
    let orphans = daemon.watch("profile_tcp", json!({"remote": B, "limit": 10_000}));
    for client in &mut clients {
        client.write_all(&[0; 10]).unwrap();
        until_acknowledged(client);
    }
    let (mut peer, _) = orphan(&pair, false);
    peer.read_exact(&mut vec![0; TAKEN]).unwrap();
    let (waits, orphans) = (waits.end(), orphans.end());
    assert!(limit(&waits, "waiting_connections_unread") >= 22, "{waits:#}");
    assert!(limit(&waits, "waiting_round_trips_unread") >= 102, "{waits:#}");
    // The queue's connections have acknowledged one segment each.
    assert_eq!(owner(remote(&waits, A, None), &pair.b)["connections"], 128, "{waits:#}");
    let orphan = remote(&orphans, B, Some(peer.local_addr().unwrap().port()));
    assert_eq!((&orphan["connections"], &orphan["owners"][0]["pid"]), (&json!(1), &json!(std::process::id())));
    assert!(orphan["rtt_us"]["samples"].as_u64() >= Some(1), "{orphan:#}");
    assert!(orphan["segments_out"].as_u64() > Some(TAKEN as u64 / 65_536), "{orphan:#}");
}

#[test]
fn rtts_of_an_earlier_window_are_excluded() {
    let (pair, daemon) = (Pair::new(), Daemon::of_sockets());
    let (listener, at) = listener(&pair);
    // The cleanup program does not reach connections that wait for accept() at the end of a window.
    let mut clients = Vec::new();
    let question = || json!({"remote": A, "port": at.port()});
    watched(&daemon, "profile_tcp", question(), || clients = waiting(&pair, at, 1, 100));
    let mut server = None;
    let exchange = |server: &mut TcpStream, client: &mut TcpStream, times: usize| {
        for _ in 0..times {
            server.write_all(&[0; 10]).unwrap();
            client.read_exact(&mut [0; 10]).unwrap();
            until_acknowledged(server);
        }
    };
    for times in [40, 20] {
        let answer = watched(&daemon, "profile_tcp", question(), || {
            let server = server.get_or_insert_with(|| listener.accept().unwrap().0);
            exchange(server, &mut clients[0], times);
        });
        let row = remote(&answer, A, None);
        let samples = row["rtt_us"]["samples"].as_u64().unwrap() as usize;
        assert!(samples.abs_diff(times) <= 5, "{times}: {row:#}");
        assert_eq!(owner(row, &pair.b)["segments_out"], times, "{row:#}");
    }
}

/// What a case keeps open.
type Kept = Box<dyn std::any::Any>;

/// Closed by its own end first, in `b`.
fn closed(pair: &Pair, address: &str) -> Kept {
    let listener = listen(&pair.b, address);
    let client = connect(&pair.b, listener.local_addr().unwrap()).unwrap();
    drop((client, listener.accept().unwrap()));
    Box::new(listener)
}

// In guests.
#[test]
fn each_kind_is_found_alone_in_the_own_namespace() {
    type Case = (&'static str, fn(&Pair) -> &Netns, fn(&Pair) -> Kept);
    let cases: [Case; 5] = [
        (
            "established",
            |pair| &pair.b,
            |pair| {
                let (listener, at) = listener(pair);
                Box::new((waiting(pair, at, 1, 0), listener))
            },
        ),
        (
            "syn_recv",
            |pair| &pair.b,
            |pair| {
                let (listener, at) = listener(pair);
                nft(&pair.a, "output", "tcp flags & (syn | ack) == ack drop"); // the end of the handshake
                Box::new((connect(&pair.a, at).unwrap(), listener))
            },
        ),
        ("fin_wait1", |pair| &pair.a, |pair| Box::new(orphan(pair, false))),
        ("time_wait", |pair| &pair.b, |pair| closed(pair, B)),
        ("time_wait", |pair| &pair.b, |pair| closed(pair, B6)),
    ];
    for (state, netns, begin) in cases {
        let pair = Pair::new();
        let daemon = daemon_for("snapshot_sockets", netns(&pair));
        let mut client = Client::connect(&daemon.socket);
        let mut found = || {
            let answer = client.call("snapshot_sockets", json!({"limit": 10_000})).unwrap();
            rows(&answer, "sockets", netns(&pair)).iter().filter(|row| row["state"] == state).count()
        };
        // A process holds it, and the kernel does not count it.
        let bound = netns(&pair).enter(|| socket(AddressFamily::INET, SocketType::STREAM, None).unwrap());
        bind(&bound, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
        assert_eq!(found(), 0, "{state}");
        let _kept = begin(&pair);
        until("it is found", || (found() == 1).then_some(()));
    }
}
