//! Programs that take long to reply.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    answer::{Endpoint, Owner},
    replies::Replies,
    tools::{
        diagnose::{
            evidence::{Evidence, Listener, groups, program},
            finding::{Code, Finding, HostPort, Severity, quoted},
            held_requests::judged,
        },
        profile_tcp::{FirstByte, SLOW_REPLY, Service},
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
    /// Without those to requests that the server holds.
    replies: Replies,
    /// Those that took [`SLOW_REPLY`] or longer.
    slow: u64,
    rtt_p50_us: Option<u32>,
    before: Replies,
}

impl Slow {
    /// Exchanges that were left out may be of the same kind. If there are as many as slow replies, the times are uncertain.
    fn is_slow(&self) -> bool {
        self.slow >= REPLIES
            && self.slow as f64 >= SHARE * self.replies.times.count() as f64
            && self.slow > self.replies.left_out.0
    }
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
        let finding = finding(one);
        if waiting.is_empty() { finding } else { finding.with("affects", waiting) }
    });
    found.collect()
}

fn slow(evidence: &Evidence) -> Vec<Slow> {
    let listener = |service: &Service| {
        let here = |listener: &&Listener| listener.owner.netns == Some(service.process.netns);
        let takes = |listener: &&Listener| {
            listener.local.is_some_and(|local| HostPort::from(service.local).is_taken_by(&local))
        };
        evidence.listeners.iter().filter(here).find(takes)
    };
    let place = |service: &Service| {
        let listener = listener(service);
        let owner = listener.map_or_else(|| service.process.owner(), |listener| listener.owner.clone());
        (owner, listener.and_then(|listener| listener.local).unwrap_or(service.local))
    };
    let mut before: BTreeMap<_, _> = groups(&evidence.services_before, place).into_iter().collect();
    let rows = groups(&evidence.services, place).into_iter().map(|(place, rows)| {
        let (replies, before) = (sum(&rows), before.remove(&place).map_or_else(Replies::default, |rows| sum(&rows)));
        let rtt_p50_us = rows.iter().filter_map(|row| row.rtt_p50_us()).max();
        let (owner, local) = place;
        Slow { owner, local, slow: replies.times.at_least(SLOW_REPLY), replies, rtt_p50_us, before }
    });
    rows.filter(Slow::is_slow).collect()
}

fn sum(rows: &[&Service]) -> Replies {
    let mut sum = Replies::default();
    rows.iter().for_each(|row| sum += &judged(&row.replies));
    sum
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

fn finding(slow: &Slow) -> Finding {
    let ms = |us: u32| us.saturating_add(500) / 1_000;
    let us = slow.replies.times.percentiles();
    let before = FirstByte::of(&slow.before).map(|first| first.us);
    let summary = format!(
        "{} takes long to reply at {}: {} of {} replies took 1 s or more",
        quoted(&slow.owner),
        slow.local,
        slow.slow,
        slow.replies.times.count()
    );
    Finding::new(Code::SlowApplication, Severity::Warning, summary)
        .owner(&slow.owner)
        .with("local", slow.local)
        .with("replies", slow.replies.times.count())
        .with("slow_replies", slow.slow)
        .with("reply_ms_p50", ms(us.p50))
        .with("reply_ms_p99", ms(us.p99))
        .with("reply_ms_p50_before", before.map(|us| ms(us.p50)))
        .with("reply_ms_p99_before", before.map(|us| ms(us.p99)))
        .with("rtt_us_p50", slow.rtt_p50_us)
        .at(slow.local)
        .step("look at what the program waits for: its log, its database, locks, its disk; the network took no part in this time")
        .look("trace_latency", &[("port", slow.local.port.to_string())])
        .look_for("trace_dns", &slow.owner)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::{owner::Process, times::tests::of, tools::diagnose::evidence::Outcome};

    fn service(netns: u32, local: Endpoint, replies: usize, slow: usize) -> Service {
        let times: Vec<u32> = (0..replies).map(|n| if n < slow { 2_500_000 } else { 3_000 }).collect();
        of_times(netns, local, &times, 0)
    }

    fn of_times(netns: u32, local: Endpoint, us: &[u32], left_out: u64) -> Service {
        let process = Process { netns, ..Process::default() };
        Service::new(process, local, Replies { times: of(us), left_out: (left_out, 0) })
    }

    /// At the listener of a web server.
    fn judge(service: Service, services_before: Vec<Service>) -> Vec<Finding> {
        let listeners = vec![listener("web", 5, endpoint("0.0.0.0", 80))];
        slow_application(&Evidence { services: vec![service], services_before, listeners, ..quiet() })
    }

    fn listener(process: &str, pid: u32, local: Endpoint) -> Listener {
        let owner = Owner { netns: Some(7), ..owner(process, pid) };
        Listener { owner, local: Some(local), ..Listener::default() }
    }

    fn judged(replies: usize, slow: usize) -> Vec<Finding> {
        judge(service(7, endpoint("10.0.0.1", 80), replies, slow), Vec::new())
    }

    #[test]
    fn server_that_thinks_for_seconds_is_slow() {
        let found = judged(4, 4);
        assert_eq!(told(&found), [(Code::SlowApplication, Severity::Warning)]);
        assert_eq!(found[0].evidence["owner"]["process"], "web");
        let ms = found[0].evidence["reply_ms_p50"].as_u64().unwrap();
        assert!((2_350..=2_500).contains(&ms) && found[0].evidence["slow_replies"] == 4, "{:?}", found[0]);
        assert!(judged(100, 1).is_empty(), "one heavy question");
        assert!(judged(100, 5).is_empty(), "a few of many");
        assert!(judged(9, 0).is_empty());
    }

    #[test]
    fn window_before_is_in_the_evidence() {
        let at = endpoint("10.0.0.1", 80);
        let found = judge(service(7, at, 4, 4), vec![service(7, at, 9, 0)]);
        let before = found[0].evidence["reply_ms_p99_before"].as_u64();
        assert_eq!((before, found[0].evidence.get("reply_ms_p50_before").is_some()), (Some(3), true));
        assert!(judge(service(7, at, 4, 4), Vec::new())[0].evidence.get("reply_ms_p50_before").is_none());
    }

    #[test]
    fn held_requests_and_uncertain_replies_are_not_slow() {
        let at = endpoint("10.0.0.1", 80);
        assert!(judge(of_times(7, at, &[25_000_000; 6], 0), Vec::new()).is_empty(), "long polling");
        let mixed = [25_000_000, 25_000_000, 25_000_000, 25_000_000, 25_000_000, 1_500_000, 2_500_000, 3_000];
        let found = judge(of_times(7, at, &mixed, 0), Vec::new());
        assert_eq!((&found[0].evidence["replies"], &found[0].evidence["slow_replies"]), (&3.into(), &2.into()));
        let p50 = found[0].evidence["reply_ms_p50"].as_u64().unwrap();
        assert!((1_400..1_600).contains(&p50), "of those that were not held: {p50}");
        assert_eq!(judge(of_times(7, at, &[6_000_000, 9_000_000, 14_000_000], 0), Vec::new()).len(), 1, "they differ");
        assert!(judge(of_times(7, at, &[2_500_000; 3], 3), Vec::new()).is_empty(), "as many are left out");
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
