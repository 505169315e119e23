//! Packets that wait for an unreachable neighbor, and other drops of a router.

use super::*;

/// Makes the kernel probe a neighbor every 100 ms instead of every second.
fn ask_for_neighbors_quickly(netns: &Netns, interface: &str) {
    netns.run(&format!("sysctl -qw net.ipv4.neigh.{interface}.retrans_time_ms=100"));
}

/// Waits until neighbor resolution fails: the waiting packets are dropped.
fn until_dead(netns: &Netns, neighbor: &str) {
    until("the neighbor has failed", || netns.ip(&format!("neigh show {neighbor}")).contains("FAILED").then_some(()));
}

#[test]
fn small_mtu_missing_route_and_dead_neighbor_at_a_router() {
    let (net, daemon) = (Routed::new(), Daemon::of("trace_drops"));
    net.router.ip("link set r0 mtu 1000");
    ask_for_neighbors_quickly(&net.router, "r0");
    let answer = answer_to(&daemon, || {
        net.a.enter(|| {
            let socket = UdpSocket::bind(("10.78.0.2", 0)).unwrap();
            always_df(&socket);
            for _ in 0..4 {
                let _ = socket.send_to(&[0; 1_400], (FAR, 89));
            }
        });
        send(&net.a, to("10.99.0.1", 89), 5, 10);
        send(&net.a, to("10.79.0.77", 89), 2, 10);
        until_dead(&net.router, "10.79.0.77");
    });
    let big = row(&answer, &net.router, "PKT_TOO_BIG");
    assert_eq!((&big["location"], &big["path"]), (&json!("ip_forward"), &json!("forward")), "{big:#}");
    let lost = row(&answer, &net.router, "IP_INNOROUTES");
    assert_eq!((&lost["destination"]["address"], &lost["count"]), (&json!("10.99.0.1"), &json!(5)), "{lost:#}");
    let dead = rows(&answer, &net.router);
    let dead = dead.iter().find(|row| row["destination"]["address"] == "10.79.0.77" && row["protocol"] == "udp");
    let dead = dead.unwrap_or_else(|| panic!("{answer:#}"));
    assert_eq!((&dead["reason"], &dead["interface"]), (&json!("NEIGH_FAILED"), &json!("r0")), "{dead:#}");
}

#[test]
fn dead_neighbor_of_a_process() {
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_drops"));
    let socket = pair.a.enter(|| UdpSocket::bind((A, 0)).unwrap());
    ask_for_neighbors_quickly(&pair.a, "v0");
    let answer = answer_to(&daemon, || {
        socket.send_to(b"x", "10.77.0.99:90").unwrap();
        until_dead(&pair.a, "10.77.0.99");
    });
    let row = row(&answer, &pair.a, "NEIGH_FAILED");
    assert_eq!((&row["destination"]["address"], &row["count"]), (&json!("10.77.0.99"), &json!(1)), "{row:#}");
    is_own(&row);
}
