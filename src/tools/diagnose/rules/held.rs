//! Connections that a program holds, or that others hold against it.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use crate::{
    answer::{Endpoint, Owner, count},
    tools::{
        diagnose::{
            evidence::{Connection, Evidence, Listener, Socket, common, groups, is_known, program},
            finding::{Code, Finding, HostPort, Severity, quoted},
        },
        snapshot_sockets::State,
    },
};

/// A process may open 1,024 files unless it asks for more: a twentieth of them.
const MANY: usize = 50;

/// The other end has closed, and the program never does.
pub fn close_wait_leak(evidence: &Evidence) -> Vec<Finding> {
    /// So many may be idle connections of a pool, which are looked at when the next one is needed.
    const TELL: usize = 10;
    let place = |socket: &Socket| match (socket.inbound, socket.local, socket.remote) {
        (true, Some(local), _) => Some(HostPort::from(local)),
        (false, _, Some(remote)) => Some(HostPort::from(remote)),
        _ => None,
    };
    let waits = |socket: &&Socket| {
        socket.tcp && socket.state == Some(State::CloseWait) && socket.send_queue_bytes == 0 && is_known(&socket.owner)
    };
    let key = |socket: &Socket| (program(&socket.owner), place(socket), socket.inbound);
    let mut found = Vec::new();
    for ((who, at, inbound), rows) in groups(evidence.sockets.iter().filter(waits), key) {
        let Some(at) = at else { continue };
        let closed = evidence.closed_late.get(&(who.netns, who.process.clone())).copied().unwrap_or_default();
        let leak = Leak::of(&rows, evidence.window, inbound, closed);
        if leak.kept.max(leak.new) < TELL {
            continue;
        }
        let owner = common(rows.iter().map(|row| &row.owner));
        let severity = if leak.is_many() || leak.grows() { Severity::Warning } else { Severity::Info };
        let summary = format!(
            "{} does not close connections {} {at}: {} in CLOSE_WAIT, {} new in the window",
            quoted(&owner),
            if inbound { "closed by clients of" } else { "closed by" },
            count(rows.len() as u64, "is", "are"),
            leak.new
        );
        found.push(
            Finding::new(Code::CloseWaitLeak, severity, summary)
                .owner(&owner)
                .with(if inbound { "local" } else { "remote" }, at)
                .with("count", rows.len())
                .with("new_in_the_window", leak.new)
                .with("closed_in_the_window", closed)
                .with("oldest_seconds", leak.oldest.map(|oldest| oldest.as_secs()))
                .at(at)
                .look(
                    "snapshot_sockets",
                    &[("state", "close_wait".into()), ("port", at.port.unwrap_or_default().to_string())],
                )
                .step("fix the program: it must close a socket after read() returns 0"),
        );
    }
    found
}

/// What the ages of sockets in CLOSE_WAIT say.
struct Leak {
    /// For longer than it takes to close.
    kept: usize,
    new: usize,
    oldest: Option<Duration>,
    /// Of the program's, in the window.
    closed: u64,
    /// The peers did not all close within a moment.
    spread: bool,
    inbound: bool,
    /// Those that are new came over most of the window.
    steady: bool,
}

impl Leak {
    fn of(rows: &[&Socket], window: Duration, inbound: bool, closed: u64) -> Leak {
        /// A program that reads the end closes at once; one that sends an answer first, within seconds.
        const KEPT: Duration = Duration::from_secs(2);
        /// A server that stops closes all of a client's connections within this.
        const MOMENT: Duration = Duration::from_secs(1);
        let mut ages: Vec<_> = rows.iter().filter_map(|row| row.silence).collect();
        ages.sort();
        let at = |tenths: usize| ages.get(ages.len() * tenths / 10).copied().unwrap_or_default();
        let new: Vec<_> = ages.iter().filter(|age| **age < window).collect();
        let span = new.last().zip(new.first()).map_or(Duration::ZERO, |(last, first)| **last - **first);
        Leak {
            kept: ages.iter().filter(|age| **age >= KEPT).count(),
            new: new.len(),
            oldest: ages.last().copied(),
            closed,
            spread: at(9) >= at(1) + MOMENT,
            inbound,
            steady: 2 * span >= window,
        }
    }

    /// A client's pool may keep what a server that restarts has closed, until it needs a connection.
    fn is_many(&self) -> bool {
        self.kept >= MANY && (self.inbound || self.spread)
    }

    fn grows(&self) -> bool {
        /// One a second in the shortest window that shows it.
        const NEW: usize = 10;
        self.new >= NEW && self.steady && self.closed == 0
    }
}

/// One source, or a few, hold a listener's connections.
pub fn connection_flood(evidence: &Evidence) -> Vec<Finding> {
    let mut found = Vec::new();
    for listener in &evidence.listeners {
        let Some(local) = listener.local else { continue };
        let is_here = |socket: &&Socket| {
            let same = socket.owner.netns == listener.owner.netns && program(&socket.owner) == program(&listener.owner);
            socket.tcp && socket.inbound && same && socket.local.is_some_and(|l| HostPort::from(l).is_taken_by(&local))
        };
        let is_open = |socket: &&Socket| socket.state == Some(State::Established);
        let held: Vec<_> = evidence.sockets.iter().filter(is_here).filter(is_open).collect();
        found.extend(flood(evidence, listener, local, &held));
    }
    found
}

fn flood(evidence: &Evidence, listener: &Listener, local: Endpoint, held: &[&Socket]) -> Option<Finding> {
    /// A pool that was opened in advance, or a browser, has fewer that were never answered.
    const HELD: usize = 100;
    /// "A few": so many sources have nearly all.
    const SOURCES: usize = 3;
    const SHARE: f64 = 0.9;
    let unused: Vec<_> = held.iter().copied().filter(|socket| is_unused(socket)).collect();
    // Used or not, they take the places of others where others are turned away.
    let turned_away = listener.dropped > 0 && 2 * listener.accept_queue_peak >= listener.accept_queue_max;
    let rows = if turned_away && 2 * unused.len() < held.len() { held.to_vec() } else { unused };
    let sources = groups(rows.iter().copied(), |socket| socket.remote.map(|remote| remote.address));
    let few = &sources[..sources.len().min(SOURCES)];
    let count: usize = few.iter().map(|(_, rows)| rows.len()).sum();
    if count < HELD || (count as f64) < SHARE * rows.len() as f64 {
        return None;
    }
    let first = few.first()?.0?;
    let addresses: BTreeSet<_> = few.iter().filter_map(|(address, _)| *address).collect();
    // A proxy has many requests under way at a server that is slow, and gets its answers.
    let is_answered = |c: &&Connection| {
        let here =
            c.owner.netns == listener.owner.netns && c.local.is_some_and(|l| HostPort::from(l).is_taken_by(&local));
        !c.outbound && here && c.arrived > 0 && c.remote.is_some_and(|remote| addresses.contains(&remote.address))
    };
    if !turned_away && evidence.connections.iter().filter(is_answered).count() * 10 >= count {
        return None;
    }
    let unused = rows.iter().filter(|socket| is_unused(socket)).count();
    let summary = format!(
        "{first} holds {} of {} connections of {} at {local}: {unused} never got an answer",
        few.first()?.1.len(),
        held.len(),
        quoted(&listener.owner)
    );
    let finding = Finding::new(Code::ConnectionFlood, Severity::Warning, summary)
        .owner(&listener.owner)
        .with("local", local)
        .with("source_address", first)
        .with("sources", &addresses)
        .with("source_owner", holder(evidence, &addresses, listener))
        .with("connections", count)
        .with("of", held.len())
        .with("never_answered", unused)
        .with("dropped", listener.dropped)
        .at(local);
    let places: BTreeSet<_> = held.iter().filter_map(|socket| socket.local).collect();
    let finding = places.into_iter().fold(finding, Finding::at);
    Some(
        finding
            .look("snapshot_sockets", &[("port", local.port.to_string())])
            .step("limit connections per source (nft: ct count), and set a request timeout"),
    )
}

/// Who holds the other ends, where that is a process of this host.
fn holder(evidence: &Evidence, addresses: &BTreeSet<IpAddr>, listener: &Listener) -> Option<Owner> {
    let local = listener.local?;
    let is_other_end = |socket: &&Socket| {
        let from = socket.local.is_some_and(|local| addresses.contains(&local.address));
        let reaches = |at: Endpoint| evidence.reaches(&at.into(), socket.owner.netns, &local, listener.owner.netns);
        socket.tcp && !socket.inbound && from && socket.remote.is_some_and(reaches)
    };
    let owner = common(evidence.sockets.iter().filter(is_other_end).map(|socket| &socket.owner));
    is_known(&owner).then_some(owner)
}

/// Never answered, and with less than a request's header to answer.
fn is_unused(socket: &Socket) -> bool {
    const HEADER: u64 = 4_096;
    const WAITS: Duration = Duration::from_secs(1);
    let has_said_nothing = socket.tx_bytes == 0 && socket.send_queue_bytes == 0 && socket.rx_bytes < HEADER;
    // A trickle of bytes keeps a connection from being idle for long.
    has_said_nothing && (socket.rx_bytes > 0 || socket.silence.is_some_and(|silence| silence >= WAITS))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    const NEVER: Duration = Duration::from_secs(500);

    fn socket(state: State, inbound: bool, silence: Duration) -> Socket {
        let (local, remote) = (Some(endpoint("10.0.0.1", 80)), Some(endpoint("10.0.0.9", 40_000)));
        let (local, remote) = if inbound { (local, remote) } else { (remote, local) };
        let (state, silence) = (Some(state), Some(silence));
        Socket { owner: owner("web", 7), tcp: true, state, local, remote, inbound, silence, ..Socket::default() }
    }

    fn closed(ages: impl Iterator<Item = u64>, inbound: bool) -> Evidence {
        let row = |ms| socket(State::CloseWait, inbound, Duration::from_millis(ms));
        Evidence { sockets: ages.map(row).collect(), ..quiet() }
    }

    #[test]
    fn old_close_wait_sockets_are_a_leak() {
        let found = close_wait_leak(&closed((0..2_400).map(|n| 3_000 + n), true));
        assert_eq!(told(&found), [(Code::CloseWaitLeak, Severity::Warning)]);
        let figures = ["count", "oldest_seconds"].map(|key| found[0].evidence[key].as_u64());
        assert_eq!((figures, &found[0].evidence["local"]["port"]), ([Some(2_400), Some(5)], &80.into()));
    }

    #[test]
    fn growing_close_wait_sockets_are_a_leak() {
        let growing = closed((0..12).map(|n| n * 800), true);
        assert_eq!(told(&close_wait_leak(&growing)), [(Code::CloseWaitLeak, Severity::Warning)]);
        let closed_late = [((None, Some("web".into())), 5)].into();
        let found = close_wait_leak(&Evidence { closed_late, ..growing });
        assert_eq!(told(&found), [(Code::CloseWaitLeak, Severity::Info)], "it closes them, late");
    }

    #[test]
    fn client_pool_closed_at_once_is_info() {
        assert_eq!(
            told(&close_wait_leak(&closed((0..200).map(|n| 4_000 + n), false))),
            [(Code::CloseWaitLeak, Severity::Info)]
        );
        let one_by_one = closed((0..200).map(|n| n * 1_000), false);
        assert_eq!(told(&close_wait_leak(&one_by_one)), [(Code::CloseWaitLeak, Severity::Warning)]);
        assert!(close_wait_leak(&closed((0..9).map(|_| 9_000), true)).is_empty());
        assert!(
            close_wait_leak(&closed((0..100).map(|_| 100), true)).iter().all(|f| f.severity == Severity::Info),
            "just now"
        );
    }

    fn listening(sockets: Vec<Socket>) -> Evidence {
        let listener = Listener {
            owner: owner("web", 7),
            local: Some(endpoint("0.0.0.0", 80)),
            accept_queue_max: 128,
            ..Listener::default()
        };
        Evidence { listeners: vec![listener], sockets, ..quiet() }
    }

    fn judged(sockets: Vec<Socket>) -> Vec<(Code, Severity)> {
        told(&connection_flood(&listening(sockets)))
    }

    #[test]
    fn idle_connections_of_one_source_are_a_flood() {
        let idle = |count| vec![socket(State::Established, true, NEVER); count];
        assert_eq!(judged(idle(300)), [(Code::ConnectionFlood, Severity::Warning)]);
        assert_eq!(judged(idle(60)), [], "a pool");
        let trickle = Socket { rx_bytes: 200, silence: Some(Duration::ZERO), ..idle(1).remove(0) };
        assert_eq!(judged(vec![trickle.clone(); 300]), [(Code::ConnectionFlood, Severity::Warning)]);
        let answered = Socket { tx_bytes: 90_000, ..trickle.clone() };
        assert_eq!(judged(vec![answered; 300]), [], "a proxy");
        let upload = Socket { rx_bytes: 9_000_000, ..trickle.clone() };
        assert_eq!(judged(vec![upload; 300]), [], "a bulk transfer");
        let many = (0..300u16)
            .map(|n| Socket { remote: Some(endpoint(&format!("10.0.{}.9", n % 200), 40_000 + n)), ..trickle.clone() });
        assert_eq!(judged(many.collect()), [], "many clients");
    }

    #[test]
    fn proxy_with_slow_answers_is_not_a_flood() {
        let waits = Socket { rx_bytes: 200, ..socket(State::Established, true, NEVER) };
        let done = Connection {
            outbound: false,
            local: Some(endpoint("10.0.0.1", 80)),
            remote: Some(endpoint("10.0.0.9", 40_001)),
            arrived: 500,
            ..Connection::default()
        };
        let slow = Evidence { connections: vec![done; 20], ..listening(vec![waits; 150]) };
        assert!(connection_flood(&slow).is_empty());
    }

    #[test]
    fn busy_connections_are_a_flood_if_the_queue_overflows() {
        let used = Socket { rx_bytes: 900, tx_bytes: 90_000, ..socket(State::Established, true, NEVER) };
        let mut evidence = listening(vec![used; 300]);
        assert!(connection_flood(&evidence).is_empty());
        (evidence.listeners[0].dropped, evidence.listeners[0].accept_queue_peak) = (40, 129);
        assert_eq!(told(&connection_flood(&evidence)), [(Code::ConnectionFlood, Severity::Warning)]);
    }
}
