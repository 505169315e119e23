//! Routers that change how packets are marked, and such that do not.

use std::{net::SocketAddr, time::Duration};

use super::{Family, Scenario, drops::routed, each, one, stage::*, traffic::*};
use crate::harness::*;

pub fn scenarios() -> Vec<Scenario> {
    [
        each("DSCP lost at a router", lost),
        one("DSCP lowered at a router, TCP", lowered),
        one("quiet: DSCP kept", kept),
        one("quiet: DSCP set by the sender", set_by_sender),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A rule in a namespace that marks what passes a hook.
fn marks(netns: &Netns, hook: &str, family: Family, class: &str) {
    let (table, header) = if family == V4 { ("ip", "ip") } else { ("ip6", "ip6") };
    netns.run(&format!("nft add table {table} m"));
    netns.run(&format!("nft add chain {table} m c {{ type filter hook {hook} priority mangle ; }}"));
    netns.run(&format!("nft add rule {table} m c {header} dscp set {class}"));
}

/// Datagrams with a mark, through a router.
fn datagrams(stage: &mut Stage, family: Family, class: &str, prepare: impl Fn(&Netns)) -> (Net, Net, SocketAddr) {
    let (left, right) = (stage.net(), stage.net());
    let at = routed(&left, &right, family);
    marks(&left.client, "output", family, class);
    prepare(&left.server);
    let _taken = udp(&right.server, at);
    let sender = udp_to(&left.client, at);
    stage.watch(|watch| watch.every(Duration::from_millis(50), || drop(sender.send(b"a voice"))));
    (left, right, at)
}

fn lost(stage: &mut Stage, family: Family) {
    let (left, right, at) = datagrams(stage, family, "ef", |router| marks(router, "forward", family, "cs0"));
    let expected = stage.expect("dscp_remarked").is("/netns", left.server.inode()).is("/interface", right.interface());
    expected.is("/ingress", left.interface()).is("/dscp_before", "EF").is("/dscp_after", "CS0");
    expected.is("/destination_address", at.ip().to_string()).is("/protocol", "udp").at_least("/packets", 10.0);
    stage.tolerated.push("udp_receive_buffer_full");
}

fn lowered(stage: &mut Stage) {
    let (left, right) = (stage.net(), stage.net());
    let at = routed(&left, &right, V4);
    marks(&left.client, "output", V4, "af41");
    marks(&left.server, "postrouting", V4, "af11");
    let _server = Server::echo(&right.server, at);
    let stream = connected(&left.client, at);
    stage.watch(|watch| {
        watch.every(Duration::from_millis(50), || {
            exchange(&stream, 1_000);
        });
    });
    let expected = stage.expect("dscp_remarked").is("/netns", left.server.inode()).is("/dscp_before", "AF41");
    expected.is("/dscp_after", "AF11").is("/protocol", "tcp").at_least("/packets", 10.0);
}

fn kept(stage: &mut Stage) {
    datagrams(stage, V4, "ef", |_| ());
    stage.tolerated.push("udp_receive_buffer_full");
}

/// The host that sends marks, and the router marks what it sends itself.
fn set_by_sender(stage: &mut Stage) {
    datagrams(stage, V4, "cs4", |router| marks(router, "output", V4, "cs1"));
    stage.tolerated.push("udp_receive_buffer_full");
}
