//! Asked and answering servers, with equal ids, and with address translation.

use super::*;

/// An address of `netns` without a server.
fn silent_server(netns: &Netns, address: &str) -> UdpSocket {
    netns.enter(|| UdpSocket::bind((address, 53)).unwrap())
}

/// The names asked at a server, and whether they were answered.
fn at(answer: &Value, zone: &str, address: &str) -> Vec<(String, bool)> {
    let rows = queries(answer, zone).into_iter().filter(|row| row["server"]["address"] == address);
    let mut rows: Vec<_> =
        rows.map(|row| (row["name"].as_str().unwrap().to_owned(), row["answered"] == true)).collect();
    rows.sort();
    rows
}

// In guests.
#[test]
fn parallel_queries_are_matched_to_the_answering_server() {
    for (alive, silent) in [(B, "10.77.0.3"), (B6, "fd77::3")] {
        let (pair, daemon) = (Pair::new(), Daemon::of("trace_dns"));
        let prefix = if alive == B { 24 } else { 64 };
        let nodad = if alive == B { "" } else { "nodad" };
        pair.b.ip(&format!("addr add {silent}/{prefix} dev v0 {nodad}"));
        let (server, _silent) = (serve(&pair.b, alive, 53), silent_server(&pair.b, silent));
        let zone = format!("all-{}", pair.b.inode());
        let (answer, _sockets) = answer_to(&daemon, json!({"name": zone, "limit": 100}), || {
            let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
            let open = || pair.a.enter(|| UdpSocket::bind((any, 0)).unwrap());
            let sockets = [open(), open(), open()];
            let ask = |id: u16, name: &str, to: &UdpSocket, address: &str| {
                to.send_to(&query(id, name), (address.parse::<IpAddr>().unwrap(), 53)).unwrap();
            };
            for address in [silent, alive] {
                ask(7, &format!("one.{zone}"), &sockets[0], address); // from one socket
            }
            ask(8, &format!("two.{zone}"), &sockets[1], silent); // from one for each server, with one id
            ask(8, &format!("two.{zone}"), &sockets[2], alive);
            ask(9, &format!("other.{zone}"), &sockets[0], alive); // two names with one id, answered in turn
            ask(9, &format!("names.{zone}"), &sockets[0], alive);
            sockets[0].set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            for _ in 0..3 {
                sockets[0].recv(&mut [0; 512]).unwrap();
            }
            sockets[2].recv(&mut [0; 512]).unwrap();
            sockets
        });
        let name = |host: &str, answered| (format!("{host}.{zone}"), answered);
        assert_eq!(at(&answer, &zone, silent), [name("one", false), name("two", false)], "{answer:#}");
        let answered = ["names", "one", "other", "two"].map(|host| name(host, true));
        assert_eq!(at(&answer, &zone, alive), answered, "{answer:#}");
        assert_eq!(answer["summary"]["queries"], 6, "{answer:#}");
    }
}

#[test]
fn namespaces_with_equal_addresses_stay_separate() {
    const PORT: u16 = 40_123;
    let (daemon, alive, dead) = (Daemon::of("trace_dns"), Netns::new(), Netns::new());
    [&alive, &dead].iter().for_each(|netns| drop(netns.ip("link set lo up")));
    let server = serve(&alive, "127.0.0.1", 53);
    let _silent = silent_server(&dead, "127.0.0.1");
    let zone = format!("twins-{}", alive.inode());
    let (answer, _sockets) = answer_to(&daemon, json!({"name": zone}), || {
        [&dead, &alive, &dead].map(|netns| {
            let socket = netns.enter(|| UdpSocket::bind(("127.0.0.1", PORT)).unwrap());
            socket.send_to(&query(5, &format!("host.{zone}")), server).unwrap();
            if netns.inode() == alive.inode() {
                socket.recv(&mut [0; 512]).unwrap();
            }
            drop(socket);
        })
    });
    let mut rows: Vec<_> = queries(&answer, &zone);
    rows.sort_by_key(|row| row["answered"] == true);
    let found: Vec<_> = rows.iter().map(|row| (row["owner"]["netns"].clone(), row["answered"] == true)).collect();
    let [silent, answered] = [(json!(dead.inode()), false), (json!(alive.inode()), true)];
    assert_eq!(found, [silent.clone(), silent, answered], "two sockets of one, one of the other: {answer:#}");
}

/// Like in a cluster: a router translates the asked address to the server's.
#[test]
fn translated_query_counts_once() {
    const SERVICE: &str = "10.96.0.10";
    let (near, far, daemon) = (Pair::new(), Netns::new(), Daemon::of("trace_dns"));
    let router = &near.b;
    run(&format!("ip link add v1 netns {} type veth peer name v1 netns {}", router.name(), far.name()));
    for (netns, address) in [(router, "10.78.0.1"), (&far, "10.78.0.2")] {
        netns.ip(&format!("addr add {address}/24 dev v1"));
        netns.ip("link set v1 up");
    }
    near.a.ip(&format!("route add default via {B}"));
    far.ip("route add default via 10.78.0.1");
    router.run("sysctl -qw net.ipv4.ip_forward=1");
    router.run("nft add table ip nat");
    router.run("nft add chain ip nat pre { type nat hook prerouting priority -100 ; }");
    router.run(&format!("nft add rule ip nat pre ip daddr {SERVICE} dnat to 10.78.0.2"));
    let server = serve(&far, "10.78.0.2", 53);
    let zone = format!("translated-{}", router.inode());
    let (answer, _socket) = answer_to(&daemon, json!({"name": zone}), || {
        let socket = near.a.enter(|| UdpSocket::bind((A, 0)).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(&query(3, &format!("only.{zone}")), (SERVICE, 53)).unwrap();
        socket.recv(&mut [0; 512]).unwrap();
        // Both have the same id, and only one of them is answered.
        socket.send_to(&query(4, &format!("silent.{zone}")), (SERVICE, 53)).unwrap();
        socket.send_to(&query(4, &format!("direct.{zone}")), server).unwrap();
        socket.recv(&mut [0; 512]).unwrap();
        socket
    });
    let name = |host: &str, answered| (format!("{host}.{zone}"), answered);
    assert_eq!(at(&answer, &zone, SERVICE), [name("only", true), name("silent", false)], "{answer:#}");
    assert_eq!(at(&answer, &zone, "10.78.0.2"), [name("direct", true)], "{answer:#}");
    assert_eq!(answer["summary"]["queries"], 3, "{answer:#}");
}

#[test]
fn port_translated_queries_are_counted() {
    for (family, loopback) in [("ip", "127.0.0.1"), ("ip6", "::1")] {
        let (netns, daemon) = (Netns::new(), Daemon::of("trace_dns"));
        netns.ip("link set lo up");
        netns.run(&format!("nft add table {family} t"));
        netns.run(&format!("nft add chain {family} t o {{ type nat hook output priority -100 ; }}"));
        netns.run(&format!("nft add rule {family} t o udp dport 53 redirect to :5300"));
        let server = serve(&netns, loopback, 5_300);
        let (answer, _) = answer_to(&daemon, json!({"name": "translated"}), || {
            let socket = netns.enter(|| UdpSocket::bind((loopback, 0)).unwrap());
            socket.connect((server.ip(), 53)).unwrap();
            for id in 1..4 {
                socket.send(&query(id, "translated")).unwrap();
                socket.recv(&mut [0; 512]).unwrap();
            }
        });
        let limits = answer["measured"]["limits"].as_array().unwrap();
        let limit = limits.iter().find(|limit| limit["code"] == "dns_translated");
        assert_eq!(limit.unwrap_or_else(|| panic!("{answer:#}"))["count"], 3, "{answer:#}");
    }
}
