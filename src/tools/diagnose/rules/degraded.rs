//! Links that carry packets badly: what drivers count of bad frames, and a duplex that does not fit.

use crate::{
    tools::diagnose::{
        evidence::{Evidence, Link},
        finding::{Code, Finding, Severity},
    },
    untrusted,
};

/// A cable that is plugged in, or a burst of noise, spoils a few frames.
const FRAMES: u64 = 10;
/// Ethernet loses one frame in ten million at the most (IEEE 802.3: a bit in 10^12, or in 10^10 on old copper). Where
/// one in a thousand is bad, TCP is slow.
const SHARE: f64 = 0.001;

/// Bad frames, and frames that the medium did not take. Tunnels have no medium, and count there what has no route.
fn bad_frames(link: &Link) -> u64 {
    let wire = &link.wire;
    let received = wire.rx_crc_errors + wire.rx_frame_errors + wire.rx_length_errors + wire.rx_ring_errors;
    let sent = wire.tx_carrier_errors + wire.tx_aborted_errors + wire.tx_window_errors + wire.collisions;
    if link.kind == "ethernet" { received + sent } else { received }
}

fn has_bad_frames(evidence: &Evidence, link: &Link) -> bool {
    let (bad, packets) = (bad_frames(link), link.packets_per_second * evidence.window.as_secs_f64());
    bad >= FRAMES && bad as f64 >= SHARE * (packets + bad as f64)
}

pub(super) fn is_degraded(evidence: &Evidence, link: &Link) -> bool {
    link.kind != "loopback" && (has_bad_frames(evidence, link) || (link.half_duplex && link.packets_per_second > 0.0))
}

/// The link itself is bad: its cable, its port, its settings.
pub fn link_degraded(evidence: &Evidence) -> Vec<Finding> {
    evidence.links.iter().filter(|link| is_degraded(evidence, link)).map(|link| finding(evidence, link)).collect()
}

fn finding(evidence: &Evidence, link: &Link) -> Finding {
    let wire = &link.wire;
    let count = |count: u64| (count > 0).then_some(count);
    let bad = bad_frames(link);
    let why = match (has_bad_frames(evidence, link), link.half_duplex) {
        (true, true) => format!("{bad} bad frames in the window, and half duplex"),
        (true, false) => format!("{bad} bad frames in the window"),
        (false, _) => "half duplex: it sends and receives by turns".to_owned(),
    };
    let name = if untrusted::is_plain(&link.name) { &link.name } else { "INTERFACE" };
    let speed = link.speed_mbps.map_or_else(String::new, |mbps| format!(" at {mbps} Mbit/s"));
    Finding::new(Code::LinkDegraded, Severity::Warning, format!("the link {}{speed} is bad: {why}", link.name))
        .with("interface", &link.name)
        .with("netns", evidence.netns)
        .with("speed_mbps", link.speed_mbps)
        .with("duplex", link.half_duplex.then_some("half"))
        .with("rx_crc_errors", count(wire.rx_crc_errors))
        .with("rx_frame_errors", count(wire.rx_frame_errors))
        .with("rx_length_errors", count(wire.rx_length_errors))
        .with("rx_ring_errors", count(wire.rx_ring_errors))
        .with("tx_carrier_errors", count(wire.tx_carrier_errors))
        .with("tx_aborted_errors", count(wire.tx_aborted_errors))
        .with("tx_window_errors", count(wire.tx_window_errors))
        .with("collisions", count(wire.collisions))
        .with("rx_errors", count(link.rx_errors))
        .with("tx_errors", count(link.tx_errors))
        .step(&format!("ethtool -S {name}; ethtool {name}  # speed and duplex of both ends must agree: autonegotiation on, or off at both"))
        .step("try another cable, transceiver or port")
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::interface::Wire;

    fn judged(link: Link) -> Vec<(Code, Severity)> {
        told(&link_degraded(&Evidence { links: vec![link], ..quiet() }))
    }

    fn link(rx_crc_errors: u64, packets_per_second: f64) -> Link {
        let wire = Wire { rx_crc_errors, ..Wire::default() };
        Link { name: "eth0".into(), kind: "ethernet".into(), wire, packets_per_second, ..Link::default() }
    }

    #[test]
    fn one_bad_frame_in_a_thousand_is_a_bad_link() {
        assert_eq!(judged(link(50, 100.0)), [(Code::LinkDegraded, Severity::Warning)]);
        assert_eq!(judged(link(50, 50_000.0)), [], "of half a million");
        assert_eq!(judged(link(5, 1.0)), [], "a burst of noise");
        assert_eq!(judged(link(0, 100.0)), []);
        let wire = Wire { tx_carrier_errors: 50, ..Wire::default() };
        let tunnel = Link { kind: "gre".into(), wire, ..link(0, 100.0) };
        assert_eq!(judged(tunnel), [], "no route");
    }

    #[test]
    fn half_duplex_is_bad_where_packets_pass() {
        let half = |packets_per_second| Link { half_duplex: true, ..link(0, packets_per_second) };
        assert_eq!(judged(half(3.0)), [(Code::LinkDegraded, Severity::Warning)]);
        assert_eq!(judged(half(0.0)), [], "nobody uses it");
    }

    #[test]
    fn bad_frames_are_not_told_as_drops_again() {
        let links = vec![Link { rx_errors: 50, ..link(50, 100.0) }];
        let evidence = Evidence { links, ..quiet() };
        assert!(super::super::link::interface_drops(&evidence).is_empty());
    }
}
