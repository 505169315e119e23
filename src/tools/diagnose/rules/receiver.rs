//! Senders that wait for their receiver.

use super::tcp::{FAST_BITS, WAITED, about, name};
use crate::{
    answer::Endpoint,
    tools::{
        diagnose::{
            evidence::{Evidence, Socket, TcpPath},
            finding::{Code, Finding, Severity, quoted},
        },
        snapshot_sockets::State,
    },
};

/// A reader above this rate is busy, or has a rate limit (a download with a limit): worth knowing.
const BRISK_BITS: f64 = 100e6;

fn waits_for_receiver(row: &TcpPath) -> bool {
    row.receiver_share >= WAITED && row.tx_bits_per_second < FAST_BITS
}

/// The sockets of this host that a row's sender sends to.
fn readers<'a>(evidence: &'a Evidence, row: &TcpPath) -> impl Iterator<Item = &'a Socket> {
    let (netns, address, port) = (row.owner.netns, row.remote, row.port);
    evidence.sockets.iter().filter(move |socket| {
        let is_there = |l: Endpoint| {
            let here = !l.address.is_loopback() || socket.owner.netns == netns;
            here && Some(l.address) == address && port.is_none_or(|port| port == l.port)
        };
        socket.tcp && socket.state != Some(State::Listen) && socket.local.is_some_and(is_there)
    })
}

/// The receiver reads at once, and its window is too small for the way.
pub fn receive_window_small(evidence: &Evidence) -> Vec<Finding> {
    /// What a window has to hold to send so fast over such a way.
    const WANTED_BITS: u64 = 100_000_000;
    let small = |row: &&TcpPath| waits_for_receiver(row) && row.window.is_read_at_once;
    let found = evidence.remotes.iter().filter(small).map(|row| {
        let percent = (row.receiver_share * 100.0).round();
        let window = row.window;
        let summary = format!(
            "the receive window of {} is too small: {} waited for it {percent} % of the time; it holds {} bytes, and \
                the receiver reads at once",
            name(row),
            quoted(&row.owner),
            window.bytes
        );
        let reader = readers(evidence, row).next().map(|socket| &socket.owner);
        let severity = if row.tx_bits_per_second >= BRISK_BITS { Severity::Info } else { Severity::Warning };
        about(row, Code::ReceiveWindowSmall, severity, summary)
            .owner(reader.unwrap_or(&row.owner))
            .with("sender", reader.map(|_| &row.owner))
            .with("waited_percent", percent)
            .with("window_bytes", window.bytes)
            .with("rtt_us", window.rtt_us)
            .with("tx_bits_per_second", row.tx_bits_per_second.round())
            .with("bytes_for_100_mbit_per_second", window.rtt_us.map(|us| us * (WANTED_BITS / 1_000_000) / 8))
            .with("sysctl", "net.ipv4.tcp_rmem")
            .step("sysctl net.ipv4.tcp_rmem net.core.rmem_max  # at the receiver; does its program set SO_RCVBUF?")
    });
    found.collect()
}

/// The receiver does not read as fast as it is sent to.
pub fn receiver_limited(evidence: &Evidence) -> Vec<Finding> {
    let slow = |row: &&TcpPath| waits_for_receiver(row) && !row.window.is_read_at_once;
    let found = evidence.remotes.iter().filter(slow).map(|row| {
        let percent = (row.receiver_share * 100.0).round();
        let summary = format!(
            "{} reads too slowly: {} waited {percent} % of the time for its receive window",
            name(row),
            quoted(&row.owner)
        );
        let brisk = row.tx_bits_per_second >= BRISK_BITS;
        let severity = if brisk { Severity::Info } else { Severity::Warning };
        let finding = about(row, Code::ReceiverLimited, severity, summary)
            .with("waited_percent", percent)
            .with("tx_bits_per_second", row.tx_bits_per_second.round());
        let unread = readers(evidence, row).filter(|socket| socket.receive_queue_bytes > 0);
        match unread.max_by_key(|socket| socket.receive_queue_bytes) {
            Some(reader) => {
                finding.with("reader", &reader.owner).with("reader_receive_queue_bytes", reader.receive_queue_bytes)
            }
            None => finding,
        }
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::tools::diagnose::evidence::ReceiveWindow;

    #[test]
    fn window_read_at_once_is_a_small_receive_buffer() {
        let window = ReceiveWindow { bytes: 4_096, rtt_us: Some(20_000), is_read_at_once: true };
        let row = TcpPath {
            owner: owner("client", 7),
            remote: "10.0.0.1".parse().ok(),
            port: Some(80),
            receiver_share: 0.9,
            window,
            ..TcpPath::default()
        };
        let reader = Socket {
            owner: owner("server", 5),
            tcp: true,
            state: Some(State::Established),
            local: Some(endpoint("10.0.0.1", 80)),
            ..Socket::default()
        };
        let evidence = Evidence { remotes: vec![row.clone()], sockets: vec![reader], ..quiet() };
        let found = receive_window_small(&evidence);
        assert_eq!(told(&found), [(Code::ReceiveWindowSmall, Severity::Warning)]);
        assert!(receiver_limited(&evidence).is_empty());
        let figures =
            ["window_bytes", "rtt_us", "bytes_for_100_mbit_per_second"].map(|key| found[0].evidence[key].as_u64());
        assert_eq!(figures, [Some(4_096), Some(20_000), Some(250_000)]);
        assert_eq!(found[0].evidence["owner"]["process"], "server");
        let slow = TcpPath { window: ReceiveWindow { is_read_at_once: false, ..window }, ..row };
        let slow = Evidence { remotes: vec![slow], ..quiet() };
        assert!(receive_window_small(&slow).is_empty());
        assert_eq!(told(&receiver_limited(&slow)), [(Code::ReceiverLimited, Severity::Warning)]);
    }
}
