//! Connections that fail.

use std::{net::TcpStream, process::Stdio, thread, time::Duration};

use super::{stage::*, traffic::*};
use crate::harness::*;

/// The port is closed.
const CLOSED: u16 = 81;

/// The kernel asks for a neighbor for 3 s before it gives up. A busy machine may begin the fault seconds late.
const ASKED_MS: u64 = 12_000;

pub fn refused(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let to = (net.server_ip(family), CLOSED).into();
    stage.watch(|watch| watch.every(PAUSE, || drop(try_connect(&net.client, to))));
    let expected = stage.expect("connection_refused").owned_in(&net.client);
    expected.is("/remote/port", CLOSED).is("/remote/address", to.ip().to_string()).at_least("/refused", 5.0);
}

pub fn refused_on_loopback(stage: &mut Stage) {
    let net = stage.net();
    stage.watch(|watch| watch.every(PAUSE, || drop(try_connect(&net.client, ([127, 0, 0, 1], CLOSED).into()))));
    stage.expect("connection_refused").owned_in(&net.client).is("/remote/port", CLOSED).at_least("/refused", 5.0);
}

pub fn refused_udp(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let socket = udp_to(&net.client, (net.server_ip(family), CLOSED).into());
    stage.watch(|watch| watch.every(PAUSE, || drop(socket.send(b"anyone there?"))));
    let expected = stage.expect("connection_refused").owned_in(&net.client);
    expected.is("/protocol", "udp").is("/remote/port", CLOSED).at_least("/refused", 5.0);
}

/// By a process of a container: the finding names it.
pub fn refused_in_container(stage: &mut Stage) {
    let id = format!("{:064x}", 0xc0ffee);
    let cgroup = Cgroup::new(&format!("docker-{id}.scope"));
    let net = stage.net();
    let (procs, ip) = (cgroup.path().join("cgroup.procs"), net.server_ip(V4));
    let script = format!(
        "echo $$ >{}; while :; do (exec 3<>/dev/tcp/{ip}/{CLOSED}) 2>/dev/null; sleep 0.2; done",
        procs.display()
    );
    let client = Ended(net.client.command("bash").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap());
    stage.watch(|_| ());
    drop(client);
    let expected = stage.expect("connection_refused").is("/owner/container", id).is("/owner/process", "bash");
    expected.is("/remote/port", CLOSED).at_least("/refused", 5.0);
}

/// The far end is silent, and this host drops nothing.
pub fn timeout(stage: &mut Stage, family: Family) {
    let net = stage.wired(Duration::ZERO, |_, _| true);
    let to = (net.server_ip(family), 80).into();
    stage.watch(|watch| watch.every(PAUSE, || drop(try_connect(&net.client, to))));
    let expected = stage.expect("connect_timeout").owned_in(&net.client);
    expected.is("/remote/port", 80).at_least("/attempts", 2.0).is("/established", 0);
}

/// The connect began before the window, and still waits.
pub fn timeout_since_before(stage: &mut Stage) {
    let net = stage.wired(Duration::ZERO, |_, _| true);
    let to = (net.server_ip(V4), 80).into();
    let connect = || net.client.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(12)));
    thread::scope(|scope| {
        scope.spawn(connect);
        until("its SYN is sent again", || {
            let line = net.client.run("ss -tnoH state syn-sent");
            line.contains("timer:(on").then_some(())
        });
        stage.watch(|_| ());
    });
    stage.expect("connect_timeout").owned_in(&net.client).is("/remote/port", 80);
}

pub fn neighbor(stage: &mut Stage, family: Family) {
    stage.window_ms = ASKED_MS;
    let net = stage.net();
    let to = (net.host(family, 77), 80).into();
    let connect = || drop(net.client.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(4))));
    stage.watch(|watch| watch.every(PAUSE, connect));
    stage.expect("neighbor_unreachable").is("/destination/address", to.ip().to_string()).known("/packets");
}

/// The router to several hosts: one fault.
pub fn gateway(stage: &mut Stage, family: Family) {
    stage.window_ms = ASKED_MS;
    let net = stage.net();
    let gateway = net.host(family, 77);
    let (option, far) = if family == V4 { ("-4", "198.51.100.") } else { ("-6", "2001:db8::") };
    net.client.ip(&format!("{option} route add default via {gateway}"));
    let to = |host: u8| (format!("{far}{host}").parse::<std::net::IpAddr>().unwrap(), 443).into();
    let connect = |to| drop(net.client.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(4))));
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            thread::scope(|scope| (1..5).for_each(|host| drop(scope.spawn(move || connect(to(host))))));
        });
    });
    stage.expect("gateway_unreachable").is("/gateway", gateway.to_string()).known("/packets");
}

/// The process has ended before the lookup of its socket's owner, as with a resolver.
pub fn neighbor_udp(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let to = (net.host(family, 77), 53).into();
    stage.watch(|watch| watch.every(PAUSE, || drop(udp_to(&net.client, to).send(b"a query"))));
    let expected = stage.expect("neighbor_unreachable").is("/destination/address", to.ip().to_string());
    expected.is("/protocol", "udp").known("/packets");
}

pub fn no_route(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let ip: std::net::IpAddr = if family == V4 { "198.51.100.7" } else { "2001:db8::7" }.parse().unwrap();
    stage.watch(|watch| watch.every(PAUSE, || drop(try_connect(&net.client, (ip, 443).into()))));
    stage.expect("no_route").owned_in(&net.client).is("/errno", "ENETUNREACH").at_least("/attempts", 5.0);
}

/// A rejecting route: blackhole, unreachable, prohibit.
pub fn route_says_no(stage: &mut Stage, kind: &str) {
    let net = stage.net();
    net.client.ip(&format!("route add {kind} 198.51.100.0/24"));
    stage.watch(|watch| watch.every(PAUSE, || drop(try_connect(&net.client, ([198, 51, 100, 7], 443).into()))));
    let expected = stage.expect("blackhole_route").is("/netns", net.client.inode()).is("/kind", kind);
    expected.is("/route", format!("{kind} 198.51.100.0/24")).is("/explains/0", "no_route");
}

/// The client tries IPv6 first and falls back, as clients do.
pub fn ipv6_broken(stage: &mut Stage) {
    let net = stage.wired(Duration::ZERO, |_, packet| packet[0] >> 4 == 6);
    let server = Server::echo(&net.server, (net.server_ip(V4), 443).into());
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            if try_connect(&net.client, (net.server_ip(V6), 443).into()).is_err()
                && let Ok(stream) = try_connect(&net.client, server.at)
            {
                exchange(&stream, 100);
                finish(stream);
            }
        })
    });
    stage.expect("ipv6_broken").owned_in(&net.client).at_least("/failed_ipv6", 2.0).at_least("/established_ipv4", 2.0);
}

/// A rule of the server's packet filter admits only IPv4.
pub fn ipv6_firewalled(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(V4), 443).into());
    net.nft(&net.server, &["input meta nfproto ipv6 tcp dport 443 drop"]);
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            if try_connect(&net.client, (net.server_ip(V6), 443).into()).is_err()
                && let Ok(stream) = try_connect(&net.client, server.at)
            {
                exchange(&stream, 100);
                finish(stream);
            }
        })
    });
    stage.expect("firewall_drop").is("/service/address", net.server_ip(V6).to_string());
}

pub fn ports_exhausted(stage: &mut Stage, family: Family) {
    let net = stage.net();
    net.client.enter(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "32768 32800").unwrap());
    let server = Server::sink(&net.server, (net.server_ip(family), 80).into());
    let mut held: Vec<_> = (0..40).filter_map(|_| try_connect(&net.client, server.at).ok()).collect();
    stage.watch(|watch| watch.every(PAUSE, || held.extend(try_connect(&net.client, server.at))));
    stage.expect("port_exhaustion").owned_in(&net.client).is("/remote/port", 80).at_least("/failed", 5.0);
}

/// A new connection for every request, at full speed.
pub fn churn(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(family), 80).into());
    let pause = Duration::from_millis(2);
    stage.watch(|watch| {
        net.client.enter(|| {
            watch.every(pause, || {
                let stream = TcpStream::connect(server.at).unwrap();
                exchange(&stream, 10);
                finish(stream);
            })
        })
    });
    stage.expect("connection_churn").is("/remote/port", 80).at_least("/connections_per_second", 100.0);
}

/// Connects that give up IPv6 after a moment: each one waits in vain.
pub fn ipv6_never_in_time(stage: &mut Stage) {
    const HEAD_START: Duration = Duration::from_millis(250);
    let net = stage.wired(Duration::ZERO, |_, packet| packet[0] >> 4 == 6);
    let server = Server::echo(&net.server, (net.server_ip(V4), 443).into());
    let v6 = (net.server_ip(V6), 443).into();
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            if net.client.enter(|| TcpStream::connect_timeout(&v6, HEAD_START)).is_err()
                && let Ok(stream) = try_connect(&net.client, server.at)
            {
                exchange(&stream, 100);
                finish(stream);
            }
        })
    });
    stage.expect("ipv6_broken").owned_in(&net.client).at_least("/failed_ipv6", 3.0).at_least("/waited_ipv6", 3.0);
}

/// No process has a socket open at the end of the window: the client's own packets show that they were its.
pub fn neighbor_given_up(stage: &mut Stage) {
    let net = stage.net();
    let to = (net.host(V4, 77), 80).into();
    stage.watch(|watch| {
        while watch.goes_on() && watch.elapsed() < Duration::from_secs(4) {
            let _ = try_connect(&net.client, to);
        }
    });
    stage.expect("neighbor_unreachable").owned_in(&net.client).is("/destination/address", to.ip().to_string());
}
