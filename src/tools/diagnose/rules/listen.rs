//! Listeners that cannot take what arrives.

use super::warning_from;
use crate::{
    answer::Endpoint,
    tools::diagnose::{
        evidence::{Connection, Evidence, Listener},
        finding::{Code, Finding, HostPort, Severity, quoted},
    },
};

impl Listener {
    /// The kernel takes one more than the limit (`sk_acceptq_is_full` is `>`), so at the limit it may still take one.
    fn is_full(&self) -> bool {
        self.accept_queue_max > 0 && self.accept_queue > self.accept_queue_max
    }

    /// Half-open handshakes as many as the kernel keeps: from then on it sends cookies, or drops.
    fn is_flooded(&self) -> bool {
        let many = self.half_open >= HALF_OPEN || self.dropped >= HALF_OPEN;
        let full = self.accept_queue_max > 0 && self.half_open >= self.accept_queue_max;
        (full && many) || self.half_open_share >= LASTS
    }

    /// Far more handshakes fail than succeed, though completed ones do not wait in the accept queue: the SYNs have
    /// forged sources, or the answers are lost.
    fn fails_handshakes(&self, evidence: &Evidence) -> bool {
        // Others that listen at the same address have connections of their own.
        let of_another = |c: &Connection| {
            let mut others = evidence.listeners.iter().filter(|other| other.socket != self.socket);
            others.any(|other| c.owner.pid.is_some() && other.owner.pid == c.owner.pid)
        };
        let here = |c: &&Connection| {
            let at_us = !c.outbound && c.owner.netns == self.owner.netns && c.local.is_some_and(|at| self.takes(&at));
            at_us && (c.owner.pid == self.owner.pid || !of_another(c))
        };
        let made = evidence.connections.iter().filter(here).count() as u64;
        self.dropped >= FAILED && self.dropped >= 10 * made && !self.made_wait()
    }

    /// Whether many completed handshakes had to wait.
    fn made_wait(&self) -> bool {
        2 * self.accept_queue_peak >= self.accept_queue_max
    }

    fn takes(&self, at: &Endpoint) -> bool {
        self.local.is_some_and(|local| HostPort::from(*at).is_taken_by(&local))
    }
}

/// A handshake takes a round trip. This many waiting at once, or dropped, are not ordinary clients, unless the accept
/// queue is full as well: then the kernel keeps ordinary clients half-open.
const HALF_OPEN: u64 = 16;

/// A short queue is full with fewer. But ordinary clients complete their handshakes, and it empties at once: one that is
/// full for half of the window is kept so.
const LASTS: f64 = 0.5;

/// The last packet of a connection that just ended is the listener's to drop, and counts as well. Where the queue is not
/// full any more, this many are needed.
const DROPS: u64 = 5;

/// This many failed handshakes, ten for each success, are not chance.
const FAILED: u64 = 100;

/// A listener's finding: place, owner, queue.
fn about(listener: &Listener, code: Code, severity: Severity, summary: String, evidence: &Evidence) -> Finding {
    let mut finding = Finding::new(code, severity, summary)
        .owner(&listener.owner)
        .with("local", listener.local)
        .with("accept_queue", listener.accept_queue)
        .with("accept_queue_max", listener.accept_queue_max)
        .with("half_open", listener.half_open)
        .with("dropped", listener.dropped);
    if let Some(local) = listener.local {
        finding = finding.at(local);
        if local.address.is_unspecified() {
            // A connection that was never accepted shows none of our addresses: clients at this port are taken to be ours.
            let reach = |c: &Connection, remote: &Endpoint| {
                evidence.reaches(&HostPort::from(*remote), c.owner.netns, &local, listener.owner.netns)
            };
            let clients = evidence.connections.iter().filter(|c| c.outbound);
            let remotes = clients.filter_map(|c| c.remote.filter(|remote| reach(c, remote)));
            finding = remotes.fold(finding, Finding::at);
        }
        finding = finding.look("snapshot_sockets", &[("state", "listen".into()), ("port", local.port.to_string())]);
    }
    finding
}

/// The process does not accept as fast as clients connect.
pub fn listen_queue_overflow(evidence: &Evidence) -> Vec<Finding> {
    let overflows = |listener: &&Listener| {
        let flooded = listener.is_flooded() || listener.fails_handshakes(evidence);
        // A SYN without a route back counts as a drop of the listener, too.
        let here = listener.owner.netns == evidence.netns && evidence.counters.listen_overflows > 0;
        let known = evidence.overflows.get(&listener.owner.netns);
        let queued = known.map_or_else(|| here || listener.made_wait(), |overflows| *overflows > 0);
        let dropped = listener.dropped >= DROPS && queued;
        listener.is_full() || (dropped && !flooded && evidence.counters.syn_cookies_sent == 0)
    };
    let found = evidence.listeners.iter().filter(overflows).map(|listener| {
        let at = listener.local.map_or_else(|| "a listener".into(), |local| local.to_string());
        let summary = format!(
            "{} accepts too slowly on {at}: {} connections wait for accept() (maximum {}), {} were dropped",
            quoted(&listener.owner),
            listener.accept_queue,
            listener.accept_queue_max,
            listener.dropped
        );
        // Full, but without a drop in the window: the next client will be dropped.
        let severity = if listener.dropped > 0 { Severity::Critical } else { Severity::Warning };
        about(listener, Code::ListenQueueOverflow, severity, summary, evidence)
            .step("sysctl net.core.somaxconn  # check the program's listen() backlog, and why it does not accept")
    });
    let found: Vec<_> = found.collect();
    let overflows = evidence.counters.listen_overflows;
    if !found.is_empty() || overflows == 0 {
        return found;
    }
    vec![overflowed_meanwhile(evidence, overflows)]
}

/// A queue that is no longer full: its listener, if that is known.
fn overflowed_meanwhile(evidence: &Evidence, overflows: u64) -> Finding {
    let dropped = |listener: &Listener| evidence.dropped.get(&listener.socket).copied().unwrap_or_default();
    let was_full = |listener: &&Listener| dropped(listener) > 0 || listener.made_wait();
    let here = evidence.listeners.iter().filter(|listener| listener.owner.netns == evidence.netns);
    let Some(listener) = here.filter(was_full).max_by_key(|l| (dropped(l), l.accept_queue_peak)) else {
        let summary = format!("an accept queue overflowed for {overflows} connections; its listener has closed since");
        return Finding::new(Code::ListenQueueOverflow, Severity::Warning, summary)
            .with("listen_overflows", overflows)
            .look("snapshot_sockets", &[("state", "listen".into())]);
    };
    let at = listener.local.map_or_else(|| "a listener".into(), |local| local.to_string());
    let summary = format!(
        "the accept queue of {} on {at} was full for part of the window: {overflows} connections overflowed",
        quoted(&listener.owner)
    );
    about(listener, Code::ListenQueueOverflow, warning_from(overflows, DROPS), summary, evidence)
        .with("listen_overflows", overflows)
}

/// Handshakes begin and are never completed.
pub fn syn_flood(evidence: &Evidence) -> Vec<Finding> {
    /// The kernel sends a cookie when a queue of handshakes is full. A few come with a burst of real clients.
    const COOKIES: u64 = 20;
    let flooded = |l: &&Listener| (l.is_flooded() || l.fails_handshakes(evidence)) && !l.is_full();
    let found = evidence.listeners.iter().filter(flooded).map(|listener| {
        let at = listener.local.map_or_else(|| "a listener".into(), |local| local.to_string());
        let Listener { half_open, dropped, .. } = listener;
        let summary = format!("SYN flood at {at}: {half_open} handshakes are incomplete, {dropped} were dropped");
        about(listener, Code::SynFlood, Severity::Critical, summary, evidence)
            .with("syn_cookies_sent", evidence.counters.syn_cookies_sent)
            .step("sysctl net.ipv4.tcp_syncookies net.ipv4.tcp_max_syn_backlog")
    });
    let found: Vec<_> = found.collect();
    let cookies = evidence.counters.syn_cookies_sent;
    if !found.is_empty() || cookies == 0 || evidence.listeners.iter().any(Listener::is_full) {
        return found;
    }
    let summary = format!("the kernel sent {cookies} SYN cookies: a SYN queue was full");
    vec![
        Finding::new(Code::SynFlood, warning_from(cookies, COOKIES), summary)
            .with("syn_cookies_sent", cookies)
            .with("listen_drops", evidence.counters.listen_drops)
            .look("snapshot_sockets", &[("state", "listen".into())])
            .step("sysctl net.ipv4.tcp_syncookies net.ipv4.tcp_max_syn_backlog"),
    ]
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::tools::diagnose::evidence::Counters;

    fn listener(accept_queue: u64, half_open: u64, dropped: u64) -> Evidence {
        let local = Some(endpoint("0.0.0.0", 80));
        let listener = Listener {
            owner: owner("server", 5),
            local,
            accept_queue,
            accept_queue_max: 16,
            accept_queue_peak: accept_queue,
            dropped,
            half_open,
            ..Listener::default()
        };
        Evidence { listeners: vec![listener], ..quiet() }
    }

    #[test]
    fn full_accept_queue_is_found_and_a_busy_one_ignored() {
        assert_eq!(
            told(&listen_queue_overflow(&listener(17, 0, 4))),
            [(Code::ListenQueueOverflow, Severity::Critical)]
        );
        assert_eq!(told(&listen_queue_overflow(&listener(17, 0, 0))), [(Code::ListenQueueOverflow, Severity::Warning)]);
        let mut emptied = listener(0, 0, 40);
        assert!(listen_queue_overflow(&emptied).is_empty(), "no route back to who sent the SYNs");
        emptied.counters.listen_overflows = 40;
        assert_eq!(told(&listen_queue_overflow(&emptied)), [(Code::ListenQueueOverflow, Severity::Critical)]);
        (emptied.counters.listen_overflows, emptied.listeners[0].accept_queue_peak) = (0, 12);
        assert_eq!(told(&listen_queue_overflow(&emptied)), [(Code::ListenQueueOverflow, Severity::Critical)]);
        emptied.overflows.insert(None, 0);
        assert!(listen_queue_overflow(&emptied).is_empty(), "no connection found a queue full");
        emptied.listeners[0].accept_queue_peak = 0;
        emptied.overflows.insert(None, 40);
        assert_eq!(told(&listen_queue_overflow(&emptied)), [(Code::ListenQueueOverflow, Severity::Critical)]);
        assert!(listen_queue_overflow(&listener(16, 3, 0)).is_empty());
        assert!(listen_queue_overflow(&listener(0, 0, 1)).is_empty(), "a stray packet");
    }

    #[test]
    fn half_open_handshakes_are_a_syn_flood() {
        assert_eq!(told(&syn_flood(&listener(0, 16, 30))), [(Code::SynFlood, Severity::Critical)]);
        assert!(listen_queue_overflow(&listener(0, 16, 30)).is_empty());
        assert!(syn_flood(&listener(17, 16, 30)).is_empty());
        let mut short = listener(0, 5, 0);
        assert!(syn_flood(&short).is_empty(), "a burst");
        assert_eq!(told(&syn_flood(&listener(0, 0, 4_000))), [(Code::SynFlood, Severity::Critical)], "not kept at all");
        short.listeners[0].half_open_share = 0.9;
        assert_eq!(told(&syn_flood(&short)), [(Code::SynFlood, Severity::Critical)]);
    }

    #[test]
    fn counters_suffice_without_a_listener() {
        let with = |counters| Evidence { counters, ..quiet() };
        let overflowed = with(Counters { listen_overflows: 3, ..Counters::default() });
        assert_eq!(told(&listen_queue_overflow(&overflowed)), [(Code::ListenQueueOverflow, Severity::Warning)]);
        let cookies = with(Counters { syn_cookies_sent: 50, ..Counters::default() });
        assert_eq!(told(&syn_flood(&cookies)), [(Code::SynFlood, Severity::Warning)]);
        let few = with(Counters { syn_cookies_sent: 2, ..Counters::default() });
        assert_eq!(told(&syn_flood(&few)), [(Code::SynFlood, Severity::Info)]);
    }
}
