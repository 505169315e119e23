//! Packets that this host drops.

use std::{io::Write, net::SocketAddr, thread, time::Duration};

use super::{stage::*, traffic::*};

/// The server's input hook drops SYNs to a service.
pub fn firewall_input(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(family), 80).into());
    net.nft(&net.server, &["input tcp dport 80 drop"]);
    stage.watch(|watch| watch.every(PAUSE, || drop(try_connect(&net.client, server.at))));
    let expected = stage.expect("firewall_drop").is("/reason", "NETFILTER_DROP").at_least("/packets", 4.0);
    expected.is("/service/address", server.at.ip().to_string()).is("/service/port", 80);
}

pub fn firewall_output(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(family), 80).into());
    net.nft(&net.client, &["output tcp dport 80 drop"]);
    stage.watch(|watch| watch.every(PAUSE, || drop(try_connect(&net.client, server.at))));
    let expected = stage.expect("firewall_drop").owned_in(&net.client).at_least("/packets", 4.0);
    expected.is("/service/address", server.at.ip().to_string()).is("/service/port", 80);
}

/// The server's output hook drops the answers.
pub fn firewall_replies(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(V4), 80).into());
    net.nft(&net.server, &["output tcp sport 80 drop"]);
    stage.watch(|watch| watch.every(PAUSE, || drop(try_connect(&net.client, server.at))));
    stage.expect("firewall_drop").is("/service/port", 80).at_least("/packets", 4.0);
}

pub fn firewall_udp(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let at: SocketAddr = (net.server_ip(family), 514).into();
    let _receiver = udp(&net.server, at);
    let sender = udp_to(&net.client, at);
    net.nft(&net.server, &["input udp dport 514 drop"]);
    stage.watch(|watch| watch.every(PAUSE, || drop(sender.send(b"a log line"))));
    let expected = stage.expect("firewall_drop").is("/protocol", "udp").at_least("/packets", 5.0);
    expected.is("/service/address", at.ip().to_string()).is("/service/port", 514);
}

pub fn firewall_on_loopback(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.client, ([127, 0, 0, 1], 80).into());
    net.nft(&net.client, &["input tcp dport 80 drop"]);
    stage.watch(|watch| watch.every(PAUSE, || drop(try_connect(&net.client, server.at))));
    stage.expect("firewall_drop").is("/service/address", "127.0.0.1").is("/service/port", 80);
}

/// A router between client and server with a rule that drops forwarded packets.
pub fn firewall_forward(stage: &mut Stage) {
    let (left, right) = (stage.net(), stage.net());
    let at = routed(&left, &right, V4);
    left.nft(&left.server, &["forward tcp dport 80 drop"]);
    let _server = Server::echo(&right.server, at);
    stage.watch(|watch| watch.every(PAUSE, || drop(try_connect(&left.client, at))));
    stage.expect("firewall_drop").is("/service/address", at.ip().to_string()).at_least("/packets", 4.0);
}

/// Makes the server of `left` the router to `right`, without the client namespace of `right`. Returns the listening
/// address.
pub fn routed(left: &Net, right: &Net, family: Family) -> SocketAddr {
    let (name, far) = (right.interface(), right.server_ip(family));
    right.client.ip(&format!("link set {name} netns {}", left.server.name()));
    left.server.ip(&format!("addr add {}/24 dev {name}", right.host(V4, 1)));
    left.server.ip(&format!("addr add {}/64 dev {name} nodad", right.host(V6, 1)));
    left.server.ip(&format!("link set {name} up"));
    left.server.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    left.client.ip(&format!("route add default via {}", left.server_ip(family)));
    right.server.ip(&format!("route add default via {}", right.host(family, 1)));
    (far, 80).into()
}

/// The router has no route for its client's packets.
pub fn forward_no_route(stage: &mut Stage) {
    let net = stage.net();
    net.server.run("sysctl -qw net.ipv4.ip_forward=1");
    net.client.ip(&format!("route add default via {}", net.server_ip(V4)));
    let sender = udp_to(&net.client, ([198, 51, 100, 9], 514).into());
    stage.mark("198.51.100.9".into());
    stage.watch(|watch| watch.every(PAUSE, || drop(sender.send(b"a log line"))));
    stage.expect("no_route").is("/remote_address", "198.51.100.9").at_least("/packets", 5.0);
}

/// The process does not read.
pub fn udp_buffer(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let at: SocketAddr = (net.server_ip(family), 514).into();
    let receiver = udp(&net.server, at);
    rustix::net::sockopt::set_socket_recv_buffer_size(&receiver, 2_304).unwrap();
    let sender = udp_to(&net.client, at);
    stage.watch(|watch| watch.every(Duration::from_millis(20), || drop(sender.send(&[0; 500]))));
    let expected = stage.expect("udp_receive_buffer_full").owned_in(&net.server);
    expected.is("/local/port", 514).at_least("/packets", 50.0);
}

/// Big packets do not fit the router's second link, and its ICMP is lost.
pub fn mtu_black_hole(stage: &mut Stage, family: Family) {
    let (left, right) = (stage.net(), stage.net());
    let at = routed(&left, &right, family);
    let _server = Server::sink(&right.server, at);
    left.server.ip(&format!("link set {} mtu 1280", right.interface()));
    left.nft(&left.server, &["output ip protocol icmp drop", "output icmpv6 type packet-too-big drop"]);
    stage.watch(|watch| {
        let streams: Vec<_> = (0..3).map(|_| connected(&left.client, at)).collect();
        thread::scope(|scope| {
            for stream in &streams {
                scope.spawn(|| pour(stream, || watch.goes_on()));
            }
        });
    });
    stage.expect("mtu_black_hole").is("/destination/address", at.ip().to_string()).at_least("/packets", 3.0);
}

/// Path MTU discovery works: one packet is too big, and the following ones fit.
pub fn mtu_discovered(stage: &mut Stage) {
    let (left, right) = (stage.net(), stage.net());
    let at = routed(&left, &right, V4);
    let _server = Server::sink(&right.server, at);
    left.server.ip(&format!("link set {} mtu 1280", right.interface()));
    stage.watch(|watch| {
        watch.every(Duration::from_millis(500), || {
            let stream = connected(&left.client, at);
            let end = watch.elapsed() + Duration::from_millis(100);
            pour(&stream, || watch.goes_on() && watch.elapsed() < end);
        });
    });
}

/// The limit is the host's, so no other scenario runs meanwhile.
pub fn conntrack_full(stage: &mut Stage, family: Family) {
    const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
    struct Restore(String);
    impl Drop for Restore {
        fn drop(&mut self) {
            let _ = std::fs::write(LIMIT, &self.0);
        }
    }
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(family), 80).into());
    net.nft(&net.server, &["input ct state invalid counter"]);
    // A table is visible through a process of its namespace.
    let mut resident = net.server.command("sleep").arg("60").spawn().unwrap();
    let _restore = Restore(std::fs::read_to_string(LIMIT).unwrap());
    std::fs::write(LIMIT, "20").unwrap();
    let mut held = Vec::new();
    stage.watch(|watch| watch.every(Duration::from_millis(50), || held.extend(try_connect(&net.client, server.at))));
    let _ = resident.kill().and_then(|()| resident.wait());
    stage.expect("conntrack_full").at_least("/packets", 3.0);
}

/// A rule drops a few packets of many: the finding names the loss and its owner.
pub fn firewall_loss(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::sink(&net.server, (net.server_ip(V4), 80).into());
    net.nft(&net.server, &["input tcp dport 80 numgen random mod 100 < 3 drop"]);
    let stream = connected(&net.client, server.at);
    stage.watch(|watch| {
        pour(&stream, || watch.goes_on());
    });
    stage.expect("firewall_drop").is("/service/port", 80).at_least("/packets", 5.0);
    stage.expect("retransmits").owned_in(&net.client).at_least("/retransmit_percent", 1.0);
}

/// A firewall that answers with ICMP: the client gets host unreachable, and its neighbor works.
pub fn firewall_prohibits(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(V4), 80).into());
    net.nft(&net.server, &["input tcp dport 80 reject with icmp type admin-prohibited"]);
    // The kernel answers one per second: other SYNs wait for their retransmission.
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(|| drop(try_connect(&net.client, server.at))))))
        })
    });
    stage
        .expect("firewall_drop")
        .is("/service/port", 80)
        .is("/owner/netns", net.server.inode())
        .at_least("/packets", 4.0);
}

/// The client's router is on this host as well, and lacks a route: one fault.
pub fn no_route_at_router(stage: &mut Stage) {
    let net = stage.net();
    net.server.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0");
    net.client.ip(&format!("route add default via {}", net.server_ip(V4)));
    stage.watch(|watch| watch.every(PAUSE, || drop(try_connect(&net.client, ([198, 51, 100, 77], 80).into()))));
    let expected = stage.expect("no_route").owned_in(&net.client).is("/remote/address", "198.51.100.77");
    expected.is("/dropped_at_router/interface", net.interface()).at_least("/attempts", 5.0);
}

/// Big packets are lost beyond this host, silently, and small ones pass.
pub fn mtu_swallowed(stage: &mut Stage, family: Family) {
    stage.window_ms = 8_000;
    let net = stage.wired(Duration::from_millis(5), |_, packet| packet.len() > 1_400);
    let server = Server::sink(&net.server, (net.server_ip(family), 80).into());
    let mut held = Vec::new();
    stage.watch(|watch| {
        watch.every(Duration::from_secs(1), || {
            if let Ok(mut stream) = try_connect(&net.client, server.at) {
                let _ = stream.write_all(&[7; 20_000]);
                held.push(stream);
            }
        })
    });
    let expected = stage.expect("mtu_black_hole").owned_in(&net.client).is("/destination/port", 80);
    expected.is("/destination/address", server.at.ip().to_string()).at_least("/stuck_connections", 1.0);
}
