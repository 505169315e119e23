//! Established connections that nothing comes back on any more: open, or ended for it.

use std::time::Duration;

use super::{
    evidence::{Connection, Evidence, Outcome, is_known},
    gone::Silent,
    paths::Series,
};
use crate::{
    answer::Endpoint,
    tools::{
        snapshot_sockets::{Socket, State, TcpInfo},
        trace_connections::{self, Direction},
    },
};

/// One that ended in the window.
pub fn ended(row: &trace_connections::Connection) -> Silent {
    /// The retransmits are those of its whole life, possibly more than the window's. More than this do not fit in a
    /// minute, because each waits twice as long as the one before it.
    const MOST: u64 = 16;
    Silent {
        owner: row.owner.clone(),
        local: row.local,
        remote: Some(row.remote),
        inbound: row.direction == Direction::Inbound,
        retransmits: u64::from(row.retransmits).min(MOST),
        errno: row.errno.clone(),
        closing: row.closing,
        ..Silent::default()
    }
}

/// Adds those that are open, and to those that ended what the readings showed of them.
pub fn add_open(readings: &[Series], evidence: &mut Evidence) {
    let jiffy = jiffy(readings, evidence.window);
    for series in readings {
        let Some((first, last, tcp)) = ends(series) else { continue };
        let silence = jiffy.map(|jiffy| jiffy * tcp.silent_jiffies);
        let retransmits = |socket: &Socket| u64::from(socket.retransmits.unwrap_or_default());
        let is_this = |row: &&mut Silent| {
            (row.local, row.remote) == (Some(last.local), last.remote) && row.owner.netns == last.owner.netns
        };
        let known = evidence.silent.iter_mut().find(is_this);
        if known.is_none() && !is_silent(last, tcp, silence) {
            continue;
        }
        let row = match known {
            Some(row) => row,
            None => {
                evidence.silent.push(Silent::default());
                let Some(row) = evidence.silent.last_mut() else { continue };
                (row.owner, row.local, row.remote) = (last.owner.clone(), Some(last.local), last.remote);
                (row.inbound, row.retransmits) = (tcp.inbound, retransmits(last).saturating_sub(retransmits(first)));
                row
            }
        };
        if !is_known(&row.owner) {
            row.owner = last.owner.clone();
        }
        (row.silence, row.probes) = (silence, tcp.unanswered_probes.into());
    }
}

/// The first reading, and the last one before it ended.
fn ends(series: &Series) -> Option<(&Socket, &Socket, &TcpInfo)> {
    let (first, last) = (series.first()?, series.iter().rfind(|socket| socket.state != State::Close)?);
    Some((first, last, last.tcp.as_ref()?))
}

/// The time of a jiffy, from how far the clock went in the window.
pub fn jiffy(readings: &[Series], window: Duration) -> Option<Duration> {
    let went = |series: &Series| {
        let (first, _, tcp) = ends(series)?;
        Some(tcp.clock_jiffies.wrapping_sub(first.tcp.as_ref()?.clock_jiffies))
    };
    let jiffies = readings.iter().filter_map(went).max().filter(|jiffies| *jiffies > 0)?;
    Some(window / jiffies)
}

/// Whether TCP has sent in vain for so long that a lost packet or two do not explain it.
fn is_silent(socket: &Socket, tcp: &TcpInfo, silence: Option<Duration>) -> bool {
    /// The third retransmission comes after more than a second.
    const RETRANSMITS: u8 = 3;
    /// Of keepalives, which a peer answers at once, one may get lost.
    const PROBES: u8 = 2;
    const SILENCE: Duration = Duration::from_secs(1);
    let in_vain = tcp.unanswered_retransmits >= RETRANSMITS || tcp.unanswered_probes >= PROBES;
    let established = matches!(socket.state, State::Established | State::CloseWait);
    established && in_vain && silence.is_some_and(|silence| silence >= SILENCE)
}

/// What is sent to the silent is not lost on the way.
pub fn join(evidence: &mut Evidence) {
    let Evidence { silent, remotes, profiled, holders, .. } = evidence;
    for row in silent {
        if let (Some(local), Some(remote), false) = (row.local, row.remote, is_known(&row.owner)) {
            row.owner = holders.get(&(row.owner.netns, local, remote)).unwrap_or(&row.owner).clone();
        }
        let Some(remote) = row.remote else { continue };
        let port = (!row.inbound).then_some(remote.port);
        for path in remotes.iter_mut().chain(&mut *profiled) {
            if (path.remote, path.port) == (Some(remote.address), port) {
                path.retransmits = path.retransmits.saturating_sub(row.retransmits);
            }
        }
    }
}

/// Whether a connection of the window shows that its remote answers others.
pub fn answers(connection: &Connection, remote: Endpoint) -> bool {
    connection.outcome == Outcome::Established && !connection.before && connection.remote == Some(remote)
}
