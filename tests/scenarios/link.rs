//! Links that are full, that lose, or that one owner dominates.

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    thread,
    time::Duration,
};

use super::{stage::*, traffic::*, wire};
use crate::harness::*;

fn shape(netns: &Netns, net: &Net, rate: &str) {
    let name = net.interface();
    netns.run(&format!("tc qdisc add dev {name} root tbf rate {rate} burst 5kb limit 20kb"));
}

pub fn saturated_tcp(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let server = Server::sink(&net.server, (net.server_ip(family), 80).into());
    shape(&net.client, &net, "2mbit");
    stage.watch(|watch| {
        let streams: Vec<_> = (0..4).filter_map(|_| try_connect(&net.client, server.at).ok()).collect();
        thread::scope(|scope| {
            for stream in &streams {
                scope.spawn(|| pour(stream, || watch.goes_on()));
            }
        });
    });
    let expected = stage.expect("link_saturated").owned_in(&net.client);
    expected.is("/interface", net.interface()).at_least("/queue_drops", 10.0);
}

pub fn saturated_udp(stage: &mut Stage) {
    let net = stage.net();
    let at: SocketAddr = (net.server_ip(V4), 514).into();
    let receiver = udp(&net.server, at);
    receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    shape(&net.client, &net, "1mbit");
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
    let expected = stage.expect("link_saturated").owned_in(&net.client);
    expected.is("/interface", net.interface()).at_least("/queue_drops", 100.0);
}

/// A backup and a few requests on one shaped link.
pub fn hog(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let server = Server::sink(&net.server, (net.server_ip(family), 80).into());
    let web = Server::echo(&net.client, (net.host(family, 1), 8080).into());
    shape(&net.client, &net, "20mbit");
    let stream = connected(&net.client, server.at);
    stage.watch(|watch| {
        thread::scope(|scope| {
            scope.spawn(|| pour(&stream, || watch.goes_on()));
            let request = connected(&net.server, web.at);
            let _ = request.set_read_timeout(Some(Duration::from_secs(1)));
            watch.every(PAUSE, || {
                exchange(&request, 1_000);
            });
        });
    });
    stage.expect("bandwidth_hog").owned_in(&net.client).at_least("/share", 0.8);
    stage.expect("link_saturated").is("/interface", net.interface());
}

/// A program at the driver drops all packets.
pub fn xdp_drop(stage: &mut Stage) {
    let net = stage.net();
    let at: SocketAddr = (net.server_ip(V4), 514).into();
    let (receiver, sender) = (udp(&net.server, at), udp_to(&net.client, at));
    sender.send(b"so that the neighbour is known").unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    receiver.recv(&mut [0; 64]).unwrap();
    let _link = net.server.enter(|| attach(libbpf_sys::BPF_PROG_TYPE_XDP, libbpf_sys::BPF_XDP, 1, &net.interface()));
    stage.watch(|watch| watch.every(Duration::from_millis(20), || drop(sender.send(b"a log line"))));
    stage.expect("interface_drops").is("/interface", net.interface()).at_least("/packets", 50.0);
    stage.tolerated.push("neighbor_unreachable"); // ARP dies there as well
}

/// A program at tc drops outgoing packets.
pub fn tc_drop(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let at: SocketAddr = (net.server_ip(family), 514).into();
    let (receiver, sender) = (udp(&net.server, at), udp_to(&net.client, at));
    sender.send(b"so that the neighbour is known").unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    receiver.recv(&mut [0; 64]).unwrap();
    let _link = net
        .client
        .enter(|| attach(libbpf_sys::BPF_PROG_TYPE_SCHED_CLS, libbpf_sys::BPF_TCX_EGRESS, 2, &net.interface()));
    stage.watch(|watch| watch.every(Duration::from_millis(20), || drop(sender.send(b"a log line"))));
    let expected = stage.expect("interface_drops").is("/interface", net.interface());
    expected.is("/reason", "TC_EGRESS").at_least("/packets", 5.0);
    stage.tolerated.push("neighbor_unreachable");
}

/// A program of two instructions that returns `verdict`, attached to an interface of this thread's namespace.
fn attach(kind: u32, at: u32, verdict: i32, interface: &str) -> OwnedFd {
    let instruction = |code: u8, imm: i32| [&[code, 0, 0, 0][..], &imm.to_ne_bytes()].concat();
    let program = [instruction(0xb7, verdict), instruction(0x95, 0)].concat(); // r0 = verdict; exit
    let name = std::ffi::CString::new(interface).unwrap();
    // SAFETY: the program is two valid instructions, the strings end with NUL, and null options are allowed.
    unsafe {
        let fd = libbpf_sys::bpf_prog_load(
            kind,
            c"drop".as_ptr(),
            c"GPL".as_ptr(),
            program.as_ptr().cast(),
            2,
            std::ptr::null_mut(),
        );
        assert!(fd >= 0, "the program did not load");
        let program = OwnedFd::from_raw_fd(fd);
        let link = libbpf_sys::bpf_link_create(
            program.as_raw_fd(),
            libc::if_nametoindex(name.as_ptr()) as i32,
            at,
            std::ptr::null(),
        );
        assert!(link >= 0, "it was not attached");
        OwnedFd::from_raw_fd(link)
    }
}

/// A tunnel whose process has stopped reading.
pub fn full_ring(stage: &mut Stage) {
    let net = stage.net();
    let name = format!("{}t", net.interface());
    let _tun = wire::tun(&name, &net.client);
    net.client.ip(&format!("addr add 10.221.{}.1/24 dev {name}", net.number()));
    net.client.ip(&format!("link set {name} up"));
    let sender = udp_to(&net.client, ([10, 221, net.number() as u8, 2], 514).into());
    stage.mark(format!("\"{name}\""));
    stage.watch(|watch| watch.every(Duration::from_millis(2), || drop(sender.send(b"a log line"))));
    stage.expect("interface_drops").is("/interface", name).at_least("/packets", 50.0);
}

/// Two network namespaces with the same interface name, like containers: each finding has its own figures.
pub fn saturated_both_ends(stage: &mut Stage) {
    let net = stage.net();
    let ends = [(&net.client, net.server_ip(V4)), (&net.server, net.host(V4, 1))];
    let sockets = ends.map(|(netns, to)| {
        shape(netns, &net, "1mbit");
        udp_to(netns, (to, 514).into())
    });
    let _taken = ends.map(|(netns, _)| udp(netns, ([0, 0, 0, 0], 514).into()));
    stage.watch(|watch| {
        watch.every(Duration::from_millis(2), || sockets.iter().for_each(|socket| drop(socket.send(&[0; 1_000]))));
    });
    for (netns, _) in ends {
        let expected = stage.expect("link_saturated").owned_in(netns).is("/interface", net.interface());
        expected.at_least("/queue_drops", 100.0);
    }
    stage.tolerated.push("udp_receive_buffer_full");
}
