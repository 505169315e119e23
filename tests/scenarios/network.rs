//! Links, addresses, routes and neighbors: wrong configuration, and its place.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    thread,
    time::Duration,
};

use super::{stage::*, traffic::*};
use crate::harness::*;

/// Connects repeatedly, with a little data each. A fault in the middle of an exchange does not end the connects.
fn clients(watch: &Watch, net: &Net, to: SocketAddr) {
    watch.every(PAUSE, || {
        if let Ok(stream) = try_connect(&net.client, to) {
            exchange_within(&stream, 100, Duration::from_secs(1));
            finish(stream);
        }
    });
}

/// The same, with a fault that begins a second into the window.
fn clients_until(watch: &Watch, net: &Net, to: SocketAddr, fault: impl FnOnce() + Send) {
    thread::scope(|scope| {
        scope.spawn(|| clients(watch, net, to));
        let begun = watch.elapsed();
        let mut fault = Some(fault);
        watch.every(Duration::from_millis(50), || {
            if watch.elapsed() - begun > Duration::from_secs(1)
                && let Some(fault) = fault.take()
            {
                fault();
            }
        });
    });
}

fn echo(net: &Net) -> Server {
    Server::echo(&net.server, (net.server_ip(V4), 80).into())
}

pub fn server_down(stage: &mut Stage) {
    let net = stage.net();
    let server = echo(&net);
    stage.watch(|watch| {
        clients_until(watch, &net, server.at, || drop(net.server.ip(&format!("link set {} down", net.interface()))));
    });
    let expected = stage.expect("link_down").is("/netns", net.server.inode()).is("/namespace", net.server.name());
    expected.is("/interface", net.interface()).known("/down_after_ms").known("/explains/0");
}

/// It was down before the window.
pub fn client_down(stage: &mut Stage) {
    let net = stage.net();
    let server = echo(&net);
    net.client.ip(&format!("link set {} down", net.interface()));
    stage.watch(|watch| clients(watch, &net, server.at));
    let expected = stage.expect("link_down").is("/netns", net.client.inode()).is("/interface", net.interface());
    expected.is("/state", "set down");
}

pub fn port_down(stage: &mut Stage) {
    let net = stage.bridged();
    let server = echo(&net);
    net.bridge().ip("link set p2 down");
    stage.watch(|watch| clients(watch, &net, server.at));
    stage.expect("link_down").is("/netns", net.bridge().inode()).is("/interface", "p2").known("/explains/0");
}

/// The router's interface is down: all hosts behind it are unreachable.
pub fn gateway_down(stage: &mut Stage) {
    let net = stage.bridged();
    net.client.ip(&format!("route add default via {}", net.server_ip(V4)));
    net.server.ip(&format!("link set {} down", net.interface()));
    stage.watch(|watch| clients(watch, &net, ([198, 51, 100, 78], 443).into()));
    stage.expect("link_down").is("/netns", net.server.inode()).is("/interface", net.interface());
}

fn toggle(watch: &Watch, netns: &Netns, name: &str) {
    let mut up = true;
    watch.every(Duration::from_millis(700), || {
        up = !up;
        netns.ip(&format!("link set {name} {}", if up { "up" } else { "down" }));
    });
}

pub fn flaps(stage: &mut Stage) {
    let net = stage.net();
    let server = echo(&net);
    stage.watch(|watch| {
        thread::scope(|scope| {
            scope.spawn(|| clients(watch, &net, server.at));
            toggle(watch, &net.server, &net.interface());
        });
    });
    let expected = stage.expect("link_flap").is("/netns", net.server.inode()).is("/interface", net.interface());
    expected.at_least("/times_down", 2.0);
}

pub fn port_flaps(stage: &mut Stage) {
    let net = stage.bridged();
    let server = echo(&net);
    stage.watch(|watch| {
        thread::scope(|scope| {
            scope.spawn(|| clients(watch, &net, server.at));
            toggle(watch, net.bridge(), "p2");
        });
    });
    stage.expect("link_flap").is("/netns", net.bridge().inode()).is("/interface", "p2").at_least("/times_down", 2.0);
}

pub fn removed(stage: &mut Stage) {
    let net = stage.net();
    let server = echo(&net);
    stage.watch(|watch| {
        clients_until(watch, &net, server.at, || drop(net.client.ip(&format!("link del {}", net.interface()))));
    });
    let expected = stage.expect("interface_removed").is("/netns", net.client.inode()).is("/interface", net.interface());
    expected.known("/removed_after_ms");
}

pub fn removed_before(stage: &mut Stage) {
    let net = stage.net();
    let to = (net.server_ip(V4), 80).into();
    net.client.ip(&format!("link del {}", net.interface()));
    stage.watch(|watch| clients(watch, &net, to));
    stage.expect("interface_removed").is("/netns", net.client.inode()).is("/wanted/0", net.server_ip(V4).to_string());
}

pub fn server_without_address(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.server, ([0, 0, 0, 0], 80).into());
    net.server.ip(&format!("-4 addr flush dev {}", net.interface()));
    stage.watch(|watch| clients(watch, &net, (net.server_ip(V4), server.at.port()).into()));
    let expected = stage.expect("address_missing").is("/netns", net.server.inode()).is("/interface", net.interface());
    expected.is("/family", "IPv4").known("/explains/0");
}

pub fn client_loses_address(stage: &mut Stage) {
    let net = stage.net();
    let server = echo(&net);
    let (address, name) = (net.host(V4, 1), net.interface());
    stage.watch(|watch| {
        clients_until(watch, &net, server.at, || drop(net.client.ip(&format!("addr del {address}/24 dev {name}"))));
    });
    let expected = stage.expect("address_missing").is("/netns", net.client.inode()).is("/interface", name);
    expected.is("/missing/0", address.to_string());
}

pub fn client_without_address(stage: &mut Stage) {
    let net = stage.bridged();
    let server = echo(&net);
    net.client.ip(&format!("-4 addr flush dev {}", net.interface()));
    stage.watch(|watch| clients(watch, &net, server.at));
    stage.expect("address_missing").is("/netns", net.client.inode()).is("/interface", net.interface());
}

/// The server's prefix excludes the client: its answers have no route.
pub fn netmask_too_long(stage: &mut Stage) {
    let net = stage.bridged();
    let (address, name) = (net.server_ip(V4), net.interface());
    let _beside = net.join(3);
    net.server.ip(&format!("-4 addr flush dev {name}"));
    net.server.ip(&format!("addr add {address}/31 dev {name}"));
    let server = echo(&net);
    stage.watch(|watch| clients(watch, &net, server.at));
    let expected = stage.expect("wrong_netmask").is("/netns", net.server.inode()).is("/interface", name);
    expected.is("/prefix", 31).is("/expected_prefix", 24).is("/address", address.to_string());
}

/// The client's prefix is too large: it searches on the link for a host behind the router.
pub fn netmask_too_short(stage: &mut Stage) {
    let net = stage.net();
    let (address, name) = (net.host(V4, 1), net.interface());
    net.client.ip(&format!("-4 addr flush dev {name}"));
    net.client.ip(&format!("addr add {address}/8 dev {name}"));
    net.client.ip(&format!("route add default via {}", net.server_ip(V4)));
    let far = Ipv4Addr::new(10, 99, (net.number() % 250) as u8, 7);
    stage.watch(|watch| clients(watch, &net, (far, 443).into()));
    let expected = stage.expect("wrong_netmask").is("/netns", net.client.inode()).is("/prefix", 8);
    expected.is("/expected_prefix", 24).is("/wanted/0", far.to_string());
}

/// A route of the server drops its answers.
pub fn blackhole_back(stage: &mut Stage) {
    let net = stage.net();
    let server = echo(&net);
    net.server.ip(&format!("route add blackhole {}/32", net.host(V4, 1)));
    stage.watch(|watch| clients(watch, &net, server.at));
    let expected = stage.expect("blackhole_route").is("/netns", net.server.inode()).is("/kind", "blackhole");
    expected.is("/route", format!("blackhole {}/32", net.host(V4, 1)));
}

/// A router without a process drops forwarded packets.
pub fn blackhole_forwarded(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let (option, network, far): (_, _, IpAddr) = match family {
        V4 => ("-4", "198.51.100.0/24", [198, 51, 100, 79].into()),
        V6 => ("-6", "2001:db8:79::/48", "2001:db8:79::1".parse().unwrap()),
    };
    net.server.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    net.server.ip(&format!("{option} route add blackhole {network}"));
    net.client.ip(&format!("{option} route add default via {}", net.server_ip(family)));
    stage.watch(|watch| clients(watch, &net, (far, 443).into()));
    let expected = stage.expect("blackhole_route").is("/netns", net.server.inode()).is("/kind", "blackhole");
    expected.is("/route", format!("blackhole {network}")).is("/wanted/0", far.to_string());
}

pub fn route_withdrawn(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let (option, network, far): (_, _, IpAddr) = match family {
        V4 => ("-4", "192.0.2.0/24", [192, 0, 2, 81].into()),
        V6 => ("-6", "2001:db8:81::/48", "2001:db8:81::1".parse().unwrap()),
    };
    let nodad = if family == V6 { " nodad" } else { "" };
    net.server.ip(&format!("addr add {far} dev lo{nodad}"));
    net.client.ip(&format!("{option} route add {network} via {}", net.server_ip(family)));
    let server = Server::echo(&net.server, (far, 80).into());
    stage.watch(|watch| {
        clients_until(watch, &net, server.at, || drop(net.client.ip(&format!("{option} route del {network}"))));
    });
    let expected = stage.expect("route_withdrawn").is("/netns", net.client.inode()).is("/prefix", network);
    expected.is("/interface", net.interface()).is("/explains/0", "no_route");
}

pub fn duplicate_address(stage: &mut Stage) {
    let net = stage.bridged();
    let server = echo(&net);
    let other = net.join(3);
    other.ip(&format!("addr add {}/24 dev {}", net.server_ip(V4), net.interface()));
    stage.watch(|watch| clients(watch, &net, server.at));
    let expected = stage.expect("duplicate_address").is("/address", net.server_ip(V4).to_string());
    expected.known("/link_layer_addresses/1").known("/also_at/0").is("/interface", net.interface());
}

pub fn duplicate_mac(stage: &mut Stage) {
    let net = stage.bridged();
    let server = echo(&net);
    let (name, mac) = (net.interface(), "02:00:00:00:d0:01");
    for netns in [&net.client, &net.server] {
        netns.ip(&format!("link set {name} address {mac}"));
    }
    stage.watch(|watch| clients(watch, &net, server.at));
    stage.expect("duplicate_mac").is("/link_layer_address", mac).is("/interface", name).known("/also_at/0");
}

/// A static neighbor entry with a nonexistent address.
pub fn poisoned_entry(stage: &mut Stage) {
    let net = stage.net();
    let server = echo(&net);
    let (name, false_one) = (net.interface(), "02:00:00:00:de:ad");
    net.client.ip(&format!("neigh replace {} lladdr {false_one} dev {name} nud permanent", server.at.ip()));
    stage.watch(|watch| clients(watch, &net, server.at));
    let expected = stage.expect("arp_poisoning").is("/netns", net.client.inode()).is("/entry", "static");
    expected.is("/false_link_layer_address", false_one).is("/address", server.at.ip().to_string());
}

/// A third host claims the server's address.
pub fn poisoned_by_replies(stage: &mut Stage) {
    let net = stage.bridged();
    let server = echo(&net);
    let liar = net.join(3);
    let name = net.interface();
    let socket = liar.enter(|| packet_socket(&name));
    let hardware = mac(&liar, &name);
    let IpAddr::V4(server_ip) = net.server_ip(V4) else { unreachable!() };
    stage.watch(|watch| {
        thread::scope(|scope| {
            scope.spawn(|| clients(watch, &net, server.at));
            watch.every(PAUSE, || send_arp_reply(&socket, hardware, server_ip));
        });
    });
    let expected = stage.expect("arp_poisoning").is("/netns", liar.inode()).is("/interface", name);
    expected.is("/address", server_ip.to_string()).known("/link_layer_address");
}

/// The link-layer address of an interface.
pub fn mac(netns: &Netns, name: &str) -> [u8; 6] {
    let line = netns.ip(&format!("-br link show dev {name}"));
    let text = line.split_whitespace().nth(2).unwrap();
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// A socket for whole frames on an interface of this thread's namespace.
fn packet_socket(name: &str) -> OwnedFd {
    let name = std::ffi::CString::new(name).unwrap();
    let protocol = (libc::ETH_P_ARP as u16).to_be();
    // SAFETY: no pointers; the descriptor is new and ours.
    let socket = unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0)) };
    // SAFETY: an all-zero sockaddr_ll is valid.
    let mut at: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    (at.sll_family, at.sll_protocol) = (libc::AF_PACKET as u16, protocol);
    // SAFETY: the name ends with a zero byte.
    at.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
    // SAFETY: the address is valid for its size.
    let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const at).cast(), size_of_val(&at) as u32) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    socket
}

/// A gratuitous reply that places `ip` at `hardware`.
fn send_arp_reply(socket: &OwnedFd, hardware: [u8; 6], ip: Ipv4Addr) {
    let mut frame = vec![0xff; 6];
    frame.extend(hardware);
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2]);
    frame.extend(hardware);
    frame.extend(ip.octets());
    frame.extend([0xff; 6]);
    frame.extend(ip.octets());
    rustix::net::send(socket, &frame, rustix::net::SendFlags::empty()).unwrap();
}

/// The link goes down without users.
pub fn planned_down(stage: &mut Stage) {
    let (net, other) = (stage.net(), stage.net());
    let server = echo(&net);
    stage.watch(|watch| {
        clients_until(watch, &net, server.at, || {
            drop(other.server.ip(&format!("link set {} down", other.interface())))
        });
    });
}

pub fn flaps_unused(stage: &mut Stage) {
    let net = stage.net();
    stage.watch(|watch| toggle(watch, &net.server, &net.interface()));
}

/// A lease is renewed: the same address, with new lifetimes.
pub fn renewed(stage: &mut Stage) {
    let net = stage.net();
    let server = echo(&net);
    let renew = || {
        let (address, name) = (net.host(V4, 1), net.interface());
        net.client.ip(&format!("addr replace {address}/24 dev {name} valid_lft 3600 preferred_lft 3600"));
    };
    stage.watch(|watch| clients_until(watch, &net, server.at, renew));
}

pub fn arp_refreshed(stage: &mut Stage) {
    let net = stage.bridged();
    let server = echo(&net);
    stage.watch(|watch| {
        thread::scope(|scope| {
            scope.spawn(|| clients(watch, &net, server.at));
            watch
                .every(Duration::from_secs(1), || drop(net.client.ip(&format!("neigh flush dev {}", net.interface()))));
        });
    });
}

/// Rejecting routes without traffic.
pub fn refuses_others(stage: &mut Stage) {
    let net = stage.net();
    let server = echo(&net);
    for netns in [&net.client, &net.server] {
        netns.ip("route add blackhole 198.18.0.0/15");
        netns.ip("route add unreachable default metric 4278198272");
    }
    stage.watch(|watch| clients(watch, &net, server.at));
}

/// Containers start and stop beside a service.
pub fn come_and_go(stage: &mut Stage) {
    let net = stage.bridged();
    let server = echo(&net);
    stage.watch(|watch| {
        thread::scope(|scope| {
            scope.spawn(|| clients(watch, &net, server.at));
            let mut host = 10;
            watch.every(Duration::from_secs(1), || {
                host += 1;
                drop(net.join(host));
            });
        });
    });
}
