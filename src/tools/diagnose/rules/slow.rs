//! Programs that take long to reply.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    answer::{Endpoint, Owner},
    tools::{
        diagnose::{
            evidence::{Evidence, Listener, groups, program},
            finding::{Code, Finding, HostPort, Severity, quoted},
        },
        profile_tcp::Service,
    },
};

/// A single slow reply may be one heavy question.
const REPLIES: u64 = 2;
/// If fewer replies are slow, most clients see none of them.
const SHARE: f64 = 0.1;

/// A listener, with the replies of all its addresses.
struct Slow {
    owner: Owner,
    local: Endpoint,
    replies: u64,
    slow: u64,
    p50: Duration,
    p99: Duration,
}

/// The time from a request's last byte to the first byte of its reply: no packet of either is under way then.
pub fn slow_application(evidence: &Evidence) -> Vec<Finding> {
    let all = slow(evidence);
    // A program that waits for another slow program is slow as well.
    let waits_for = |front: &Slow, back: &Slow| {
        (&front.owner, front.local) != (&back.owner, back.local) && is_client(evidence, &front.owner, back)
    };
    let is_cause = |one: &&Slow| !all.iter().any(|back| waits_for(one, back));
    let found = all.iter().filter(is_cause).map(|one| {
        let waiting: BTreeSet<_> =
            all.iter().filter(|front| waits_for(front, one)).map(|front| front.owner.clone()).collect();
        let finding = finding(evidence, one);
        if waiting.is_empty() { finding } else { finding.with("affects", waiting) }
    });
    found.collect()
}

fn slow(evidence: &Evidence) -> Vec<Slow> {
    let listener = |service: &Service| {
        let here = |listener: &&Listener| listener.owner.netns == Some(service.netns);
        let takes = |listener: &&Listener| {
            listener.local.is_some_and(|local| HostPort::from(service.local).is_taken_by(&local))
        };
        evidence.listeners.iter().filter(here).find(takes)
    };
    let place = |service: &Service| {
        let listener = listener(service);
        let owner = listener.map_or_else(
            || Owner { netns: Some(service.netns), ..Owner::default() },
            |listener| listener.owner.clone(),
        );
        (owner, listener.and_then(|listener| listener.local).unwrap_or(service.local))
    };
    let rows = groups(&evidence.services, place).into_iter().map(|((owner, local), rows)| Slow {
        owner,
        local,
        replies: rows.iter().map(|row| row.replies).sum(),
        slow: rows.iter().map(|row| row.slow).sum(),
        p50: rows.iter().map(|row| row.p50).max().unwrap_or_default(),
        p99: rows.iter().map(|row| row.p99).max().unwrap_or_default(),
    });
    rows.filter(|row| row.slow >= REPLIES && row.slow as f64 >= SHARE * row.replies as f64).collect()
}

/// Whether a program has a connection to a slow one.
fn is_client(evidence: &Evidence, owner: &Owner, slow: &Slow) -> bool {
    let to = |netns: Option<u32>, remote: Option<Endpoint>| {
        remote.is_some_and(|at| evidence.reaches(&HostPort::from(at), netns, &slow.local, slow.owner.netns))
    };
    let same = |other: &Owner| program(other) == program(owner);
    evidence.connections.iter().any(|c| c.outbound && same(&c.owner) && to(c.owner.netns, c.remote))
        || evidence.sockets.iter().any(|s| s.tcp && !s.inbound && same(&s.owner) && to(s.owner.netns, s.remote))
}

fn finding(evidence: &Evidence, slow: &Slow) -> Finding {
    let ms = |time: Duration| time.as_millis() as u64;
    let of_clients =
        evidence.paths().iter().filter(|path| path.port.is_none() && program(&path.owner) == program(&slow.owner));
    let rtt = of_clients.filter_map(|path| path.rtt.map(|rtt| rtt.p50_us)).max();
    let summary = format!(
        "{} takes long to reply at {}: {} of {} replies took 1 s or more",
        quoted(&slow.owner),
        slow.local,
        slow.slow,
        slow.replies
    );
    Finding::new(Code::SlowApplication, Severity::Warning, summary)
        .owner(&slow.owner)
        .with("local", slow.local)
        .with("replies", slow.replies)
        .with("slow_replies", slow.slow)
        .with("reply_ms_p50", ms(slow.p50))
        .with("reply_ms_p99", ms(slow.p99))
        .with("rtt_us_p50", rtt)
        .at(slow.local)
        .step("look at what the program waits for: its log, its database, locks, its disk; the network took no part in this time")
        .look("trace_dns", &slow.owner.process.iter().map(|process| ("process", process.clone())).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::tools::diagnose::evidence::Outcome;

    fn service(netns: u32, local: Endpoint, replies: u64, slow: u64) -> Service {
        let time = if slow > 0 { Duration::from_millis(2_500) } else { Duration::from_millis(3) };
        Service { netns, local, replies, slow, p50: time, p99: time }
    }

    fn listener(process: &str, pid: u32, local: Endpoint) -> Listener {
        let owner = Owner { netns: Some(7), ..owner(process, pid) };
        Listener { owner, local: Some(local), ..Listener::default() }
    }

    fn judged(replies: u64, slow: u64) -> Vec<Finding> {
        let services = vec![service(7, endpoint("10.0.0.1", 80), replies, slow)];
        let listeners = vec![listener("web", 5, endpoint("0.0.0.0", 80))];
        slow_application(&Evidence { services, listeners, ..quiet() })
    }

    #[test]
    fn server_that_thinks_for_seconds_is_slow() {
        let found = judged(4, 4);
        assert_eq!(told(&found), [(Code::SlowApplication, Severity::Warning)]);
        assert_eq!(found[0].evidence["owner"]["process"], "web");
        assert_eq!(
            (&found[0].evidence["reply_ms_p50"], &found[0].evidence["slow_replies"]),
            (&2_500.into(), &4.into())
        );
        assert!(judged(100, 1).is_empty(), "one heavy question");
        assert!(judged(100, 5).is_empty(), "a few of many");
        assert!(judged(9, 0).is_empty());
    }

    #[test]
    fn addresses_of_one_listener_are_one_finding() {
        let services = vec![
            service(7, endpoint("10.0.0.1", 80), 3, 1),
            service(7, endpoint("10.0.1.1", 80), 3, 1),
            service(8, endpoint("10.0.0.1", 80), 9, 9),
        ];
        let listeners = vec![listener("web", 5, endpoint("0.0.0.0", 80))];
        let found = slow_application(&Evidence { services, listeners, ..quiet() });
        let netns: Vec<_> = found.iter().map(|f| f.evidence["owner"]["netns"].as_u64()).collect();
        assert_eq!(netns.len(), 2);
        assert!(netns.contains(&Some(7)) && netns.contains(&Some(8)), "no listener, but its namespace");
    }

    #[test]
    fn proxy_before_a_slow_server_is_affected_by_it() {
        let (front, back) = (endpoint("10.0.0.1", 80), endpoint("10.0.0.2", 8080));
        let services = vec![service(7, front, 4, 4), service(7, back, 4, 4)];
        let listeners = vec![listener("proxy", 5, front), listener("app", 6, back)];
        let mut to = connection("10.0.0.2", 8080, Outcome::Established);
        to.owner = listeners[0].owner.clone();
        let found = slow_application(&Evidence { services, listeners, connections: vec![to], ..quiet() });
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].evidence["owner"]["process"], "app");
        assert_eq!(found[0].evidence["affects"][0]["process"], "proxy");
    }
}
