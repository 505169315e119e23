//! Listeners in network namespaces other than the daemon's, of processes there, like in containers.

use super::*;
use crate::processes::Process;

#[test]
fn container_overflows_exclude_unroutable_syns() {
    let pair = Pair::new();
    let daemon = Daemon::of("trace_drops");
    // Its child does not close either, and neither accepts: 128 connections wait, and one more.
    let mut server = Process::in_netns(&pair.b, &format!("tcp-listen-fork {B} 86"));
    let child = server.hear().parse().unwrap();
    let overflows = |fault: &dyn Fn()| {
        let answer = answer_to(&daemon, fault);
        let mine = answer["listeners"].as_array().unwrap().iter().find(|l| l["owner"]["pid"] == server.pid()).cloned();
        let mine = mine.unwrap_or_else(|| panic!("{answer:#}"));
        assert!(mine["dropped"].as_u64().unwrap() > 0, "{mine:#}");
        mine["netns_overflows"].as_u64().unwrap()
    };
    // The kernel drops a SYN that it cannot answer, and counts it at the listener.
    pair.a.ip("addr add 10.99.0.1/32 dev lo");
    let strange = || {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        bind(&socket, &to("10.99.0.1", 0)).unwrap();
        let socket = TcpStream::from(socket);
        socket.set_nonblocking(true).unwrap();
        let _ = rustix::net::connect(&socket, &to(B, 86));
    };
    assert_eq!(overflows(&|| pair.a.enter(strange)), 0);
    let open = || TcpStream::connect_timeout(&to(B, 86), Duration::from_millis(100));
    let held = std::sync::Mutex::new(Vec::new());
    let many = || held.lock().unwrap().extend((0..132).map(|_| open()));
    assert!(overflows(&|| pair.a.enter(many)) > 0);
    rustix::process::kill_process(rustix::process::Pid::from_raw(child).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
}
