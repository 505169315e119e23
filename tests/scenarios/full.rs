//! Full resources: windows, queues, pools of ports, quotas of CPU.

use std::{
    fs,
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::Stdio,
    thread,
    time::Duration,
};

use rustix::net::sockopt;

use super::{Scenario, drops::routed, each, one, stage::*, traffic::*};
use crate::harness::*;

pub fn scenarios() -> Vec<Scenario> {
    [
        each("small receive buffer", small_receive_buffer),
        one("small receive buffer by sysctl", small_by_sysctl),
        one("backup fills a shaper", backup_fills_shaper),
        one("backup fills a router's shaper", backup_fills_router),
        each("incast", incast),
        one("NAT without ports, TCP", |stage| nat_without_ports(stage, "tcp")),
        one("NAT without ports, at the client", nat_without_ports_at_client),
        one("CPU quota", cpu_quota),
        one("CPU quota, clients", cpu_quota_of_client),
        one("quiet: shaper with room", shaper_with_room),
        one("quiet: job with a quota", job_with_quota),
        one("quiet: NAT", nat_with_ports),
        one("quiet: namespace deleted", namespace_deleted),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Reads all data at once.
fn read_all(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 16];
    while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
}

/// A server with a buffer of a few kilobytes, on a path of 20 ms, that reads at once.
fn small_receive_buffer(stage: &mut Stage, family: Family) {
    let net = stage.wired(Duration::from_millis(10), |_, _| false);
    let at: SocketAddr = (net.server_ip(family), 80).into();
    let listener = TcpListener::from(listener(&net.server, at, 16));
    sockopt::set_socket_recv_buffer_size(&listener, 8_192).unwrap();
    let stop = listener.try_clone().unwrap();
    thread::spawn(move || listener.accept().map(|(stream, _)| read_all(stream)));
    let stream = connected(&net.client, at);
    stage.watch(|watch| {
        pour(&stream, || watch.goes_on());
    });
    let _ = rustix::net::shutdown(&stop, rustix::net::Shutdown::Both);
    let expected = stage.expect("receive_window_small").owned_in(&net.server).at_least("/waited_percent", 30.0);
    expected
        .is("/remote_address", at.ip().to_string())
        .at_least("/window_bytes", 1_000.0)
        .at_least("/rtt_us", 15_000.0);
}

/// The same through the host's setting.
fn small_by_sysctl(stage: &mut Stage) {
    let net = stage.wired(Duration::from_millis(10), |_, _| false);
    fs_set(&net.server, "net/ipv4/tcp_rmem", "4096 8192 8192");
    let server = Server::start(&net.server, (net.server_ip(V4), 80).into(), read_all);
    let stream = connected(&net.client, server.at);
    stage.watch(|watch| {
        pour(&stream, || watch.goes_on());
    });
    let expected = stage.expect("receive_window_small").owned_in(&net.server).at_least("/waited_percent", 50.0);
    expected.is("/remote_address", server.at.ip().to_string());
}

/// A setting of a namespace with spaces in its value.
fn fs_set(netns: &Netns, name: &str, value: &str) {
    netns.enter(|| fs::write(format!("/proc/sys/{name}"), value).unwrap());
}

/// A shaper with a long queue that loses nothing: data waits.
fn shape(netns: &Netns, interface: &str, rate: &str, limit: &str) {
    netns.run(&format!("tc qdisc add dev {interface} root tbf rate {rate} burst 20kb limit {limit}"));
}

fn backup_fills_shaper(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::sink(&net.server, (net.server_ip(V4), 80).into());
    shape(&net.client, &net.interface(), "20mbit", "4mb");
    let stream = connected(&net.client, server.at);
    stage.watch(|watch| {
        pour(&stream, || watch.goes_on());
    });
    let expected = stage.expect("link_saturated").owned_in(&net.client).is("/interface", net.interface());
    expected.at_least("/queue_delay_ms", 5.0).at_least("/tx_bits_per_second", 10e6);
}

/// The shaper is at a router, in a namespace without a socket.
fn backup_fills_router(stage: &mut Stage) {
    let (left, right) = (stage.net(), stage.net());
    let at = routed(&left, &right, V4);
    let _server = Server::sink(&right.server, at);
    shape(&left.server, &right.interface(), "20mbit", "4mb");
    let stream = connected(&left.client, at);
    stage.watch(|watch| {
        pour(&stream, || watch.goes_on());
    });
    let expected = stage.expect("link_saturated").is("/netns", left.server.inode());
    expected.is("/interface", right.interface()).at_least("/queue_delay_ms", 5.0); // what stands: the sender may pause
}

/// A few requests over a shaper with a far higher rate.
fn shaper_with_room(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(V4), 80).into());
    shape(&net.client, &net.interface(), "20mbit", "4mb");
    let stream = connected(&net.client, server.at);
    stage.watch(|watch| {
        watch.every(Duration::from_millis(50), || {
            exchange(&stream, 10_000);
        })
    });
}

/// Eight senders to one receiver, behind a switch port with a short queue, all at once.
fn incast(stage: &mut Stage, family: Family) {
    const SENDERS: u8 = 8;
    let net = stage.bridged();
    let at: SocketAddr = (net.server_ip(family), 514).into();
    let receiver = udp(&net.server, at);
    receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let prefix = if family == V4 { 24 } else { 64 };
    let nodad = if family == V4 { "" } else { "nodad" };
    let senders: Vec<_> = (0..SENDERS)
        .map(|n| {
            let from = net.host(family, 100 + n);
            net.client.ip(&format!("addr add {from}/{prefix} dev {} {nodad}", net.interface()));
            let socket = udp(&net.client, (from, 0).into());
            net.client.enter(|| socket.connect(at).unwrap());
            socket
        })
        .collect();
    net.between().run("tc qdisc add dev p2 root tbf rate 4mbit burst 5kb limit 20kb");
    stage.watch(|watch| {
        thread::scope(|scope| {
            scope.spawn(|| {
                while watch.goes_on() {
                    let _ = receiver.recv(&mut [0; 2_000]);
                }
            });
            watch.every(Duration::from_millis(200), || {
                (0..10).for_each(|_| senders.iter().for_each(|sender| drop(sender.send(&[0; 1_000]))));
            });
        });
    });
    let expected = stage.expect("incast").is("/interface", "p2").is("/senders", SENDERS);
    expected.is("/receiver_address", at.ip().to_string()).at_least("/queue_drops", 50.0);
}

/// Connections through a router that translates them to `ports`, held open.
fn through_nat(stage: &mut Stage, ports: &str) -> (Net, Net) {
    let (left, right) = (stage.net(), stage.net());
    let at = routed(&left, &right, V4);
    right.server.ip("route del default");
    let _server = Server::echo(&right.server, at);
    left.server.run("nft add table ip nat");
    left.server.run("nft add chain ip nat out { type nat hook postrouting priority 100 ; }");
    left.server
        .run(&format!("nft add rule ip nat out oifname {} meta l4proto tcp masquerade to {ports}", right.interface()));
    hold(stage, &left.server, &left.client, at);
    (left, right)
}

/// Opens connections and keeps them. The counters of a namespace are visible through one of its processes.
fn hold(stage: &mut Stage, router: &Netns, client: &Netns, to: SocketAddr) {
    let mut resident = router.command("sleep").arg("60").spawn().unwrap();
    let mut held = Vec::new();
    stage.watch(|watch| watch.every(PAUSE, || held.extend(try_connect(client, to))));
    let _ = resident.kill().and_then(|()| resident.wait());
}

fn nat_without_ports(stage: &mut Stage, protocol: &str) {
    let (left, right) = through_nat(stage, ":40000-40003");
    let expected = stage.expect("nat_ports_exhausted").is("/netns", left.server.inode()).is("/protocol", protocol);
    expected.is("/destination/address", right.server_ip(V4).to_string()).at_least("/insert_failed", 3.0);
}

/// The client translates its own connections, like a host with containers.
fn nat_without_ports_at_client(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(V4), 443).into());
    net.client.run("nft add table ip nat");
    net.client.run("nft add chain ip nat out { type nat hook postrouting priority 100 ; }");
    net.client.run("nft add rule ip nat out tcp dport 443 masquerade to :40000-40001");
    hold(stage, &net.client, &net.client, server.at);
    let expected = stage.expect("nat_ports_exhausted").is("/netns", net.client.inode());
    expected.at_least("/insert_failed", 3.0);
}

fn nat_with_ports(stage: &mut Stage) {
    through_nat(stage, ":40000-50000");
}

/// A process group with a tenth of a CPU, in either version of cgroups; dropping it removes the group.
struct Quota(PathBuf);

impl Quota {
    fn new(name: &str) -> Quota {
        let v1 =
            ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"].map(PathBuf::from).into_iter().find(|p| p.exists());
        let folder = v1.clone().unwrap_or_else(|| "/sys/fs/cgroup".into()).join(name);
        if v1.is_none() {
            fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+cpu").unwrap();
        }
        fs::create_dir_all(&folder).unwrap();
        match v1 {
            Some(_) => {
                fs::write(folder.join("cpu.cfs_period_us"), "100000").unwrap();
                fs::write(folder.join("cpu.cfs_quota_us"), "10000").unwrap();
            }
            None => fs::write(folder.join("cpu.max"), "10000 100000").unwrap(),
        }
        Quota(folder)
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        until("the group is empty", || fs::remove_dir(&self.0).ok());
    }
}

/// Works in a group with a quota during a diagnosis, with `socket` open if given.
fn work_in(
    stage: &mut Stage,
    name: &str,
    netns: &Netns,
    socket: Option<std::os::fd::OwnedFd>,
    beside: impl Fn() + Send,
) {
    let quota = Quota::new(name);
    let stdin = socket.map_or_else(Stdio::null, Stdio::from);
    let mut worker = netns.command("sh").args(["-c", "while :; do :; done"]).stdin(stdin).spawn().unwrap();
    fs::write(quota.0.join("cgroup.procs"), worker.id().to_string()).unwrap();
    stage.watch(|watch| watch.every(PAUSE, beside));
    let _ = worker.kill().and_then(|()| worker.wait());
}

/// A busy server gets a tenth of the CPU that it needs.
fn cpu_quota(stage: &mut Stage) {
    let net = stage.net();
    let at: SocketAddr = (net.server_ip(V4), 80).into();
    let socket = listener(&net.server, at, 100);
    work_in(stage, "scene-server", &net.server, Some(socket), || ());
    let expected = stage.expect("cpu_throttled").is("/owner/process", "sh").is("/cgroup", "/scene-server");
    expected.at_least("/throttled_percent_of_periods", 50.0).is("/owner/netns", net.server.inode());
}

/// The same for a program with a connection elsewhere.
fn cpu_quota_of_client(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(V6), 80).into());
    let stream = connected(&net.client, server.at);
    work_in(stage, "scene-client", &net.client, Some(stream.into()), || ());
    let expected = stage.expect("cpu_throttled").is("/owner/process", "sh").is("/cgroup", "/scene-client");
    expected.at_least("/throttled_ms", 600.0);
}

/// A job without a socket is throttled, as intended.
fn job_with_quota(stage: &mut Stage) {
    let net = stage.net();
    stage.mark("/scene-job".into());
    work_in(stage, "scene-job", &net.client, None, || ());
}

/// A namespace is deleted while its connections have data to send: all routes are fine.
fn namespace_deleted(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::sink(&net.server, (net.server_ip(V4), 80).into());
    let streams: Vec<_> = (0..4).map(|_| connected(&net.client, server.at)).collect();
    for stream in &streams {
        net.client.ip(&format!("link set {} down", net.interface()));
        use std::io::Write;
        let _ = (&mut &*stream).write(&[7; 1_000]);
    }
    drop(streams);
    run(&format!("ip netns del {}", net.client.name()));
    stage.watch(|watch| watch.every(PAUSE, || ()));
    stage.tolerated.push("peer_gone");
}
