//! Name resolution: no answer, a bad answer, a late answer.

use std::{collections::BTreeSet, time::Duration};

use super::names::Names;
use crate::{
    answer::Endpoint,
    dns,
    tools::diagnose::{
        evidence::{Evidence, Query, common, groups, program},
        finding::{Code, Finding, HostPort, Severity, quoted},
    },
};

/// Asking one server. Multicast DNS (5353) asks everyone and expects few answers, so it is not judged.
fn by_server(evidence: &Evidence) -> Vec<(Option<Endpoint>, Vec<&Query>)> {
    groups(evidence.queries.iter().filter(|q| q.server.is_some_and(|s| s.port != 5353 && s.port != 5355)), |q| q.server)
}

/// The resolver configuration of the process: a container has its own file.
fn resolvers(asker: Option<u32>) -> String {
    asker.map_or("cat /etc/resolv.conf".into(), |pid| format!("cat /proc/{pid}/root/etc/resolv.conf"))
}

/// A finding if more than `share` of `of` queries, and at least two, are `bad`: one bad answer among many is a bad
/// name, and one lookup asks for A and AAAA, so a lookup that fails is two.
fn judged(code: Code, server: Option<Endpoint>, bad: &[&Query], of: usize, share: f64, what: &str) -> Option<Finding> {
    const QUERIES: usize = 2;
    if bad.is_empty() || (bad.len() as f64) < share * of as f64 {
        return None;
    }
    let server = server?;
    let severity = if bad.len() >= QUERIES { Severity::Warning } else { Severity::Info };
    let owner = common(bad.iter().map(|query| &query.owner));
    let names: BTreeSet<_> = bad.iter().map(|query| query.name.as_str()).take(64).collect();
    let shown = |name: &str| if dns::is_hostname(name) { name.into() } else { format!("not a hostname: {name}") };
    let names: Vec<String> = names.into_iter().take(3).map(shown).collect();
    let summary = format!("DNS server {server} {what}: {} of {of} queries, sent by {}", bad.len(), quoted(&owner));
    Some(
        Finding::new(code, severity, summary)
            .owner(&owner)
            .with("server", server)
            .with("queries", of)
            .with("affected", bad.len())
            .with("names", names)
            .at(server)
            .look_for("trace_dns", &owner)
            .step(&resolvers(owner.pid)),
    )
}

pub fn dns_unanswered(evidence: &Evidence) -> Vec<Finding> {
    of(evidence, Code::DnsUnanswered)
}

pub fn dns_failure(evidence: &Evidence) -> Vec<Finding> {
    of(evidence, Code::DnsFailure)
}

pub fn dns_slow(evidence: &Evidence) -> Vec<Finding> {
    of(evidence, Code::DnsSlow)
}

/// The findings of one code. A resolver of this host (systemd-resolved, dnsmasq) forwards the failures of its upstream
/// server, in the same or other words: the fault is reported at its source.
fn of(evidence: &Evidence, code: Code) -> Vec<Finding> {
    let mut found = [silence(evidence), failures(evidence), delays(evidence)].concat();
    let sources: Vec<_> = found.iter().map(|relay| found.iter().position(|f| passes_on(evidence, relay, f))).collect();
    for (relay, source) in sources.iter().enumerate().filter_map(|(relay, source)| Some((relay, (*source)?))) {
        let passed_on_by = serde_json::json!(found[relay].places[0]);
        found[source].evidence.insert("passed_on_by".into(), passed_on_by);
    }
    found.into_iter().zip(sources).filter(|(f, source)| f.code == code && source.is_none()).map(|(f, _)| f).collect()
}

/// Whether the server of `relay` asks that of `source`.
fn passes_on(evidence: &Evidence, relay: &Finding, source: &Finding) -> bool {
    let asked = |finding: &Finding| {
        let at = finding.places[0];
        evidence.queries.iter().filter(move |query| query.server.map(HostPort::from) == Some(at))
    };
    let Some(asker) = asked(relay).next() else { return false };
    let resolver = evidence.server("udp", relay.places[0], asker.owner.netns);
    relay.places != source.places
        && resolver.is_some_and(|resolver| asked(source).any(|query| program(&query.owner) == program(resolver)))
}

/// The server says nothing. A fifth: resolvers ask again, so that less is hardly felt.
fn silence(evidence: &Evidence) -> Vec<Finding> {
    const SHARE: f64 = 0.2;
    /// A query of this age without an answer counts as unanswered: see `trace_dns`.
    const PATIENCE: Duration = Duration::from_secs(1);
    let found = by_server(evidence).into_iter().filter_map(|(server, queries)| {
        // Where every answer takes longer than that, what has none yet is late, as `dns_slow` says.
        let mut answers = queries.iter().filter_map(|query| query.latency).peekable();
        if answers.peek().is_some() && answers.all(|latency| latency >= PATIENCE) {
            return None;
        }
        // One that had to be sent again has cost its asker the wait, which is of the loss, and not of the server.
        let bad: Vec<_> = queries.iter().copied().filter(|query| query.unanswered || query.lost > 0).collect();
        let again = bad.iter().filter(|query| !query.unanswered).count();
        let what = if queries.iter().any(|query| query.rcode.is_some()) {
            "leaves queries unanswered"
        } else {
            "does not answer"
        };
        let finding = judged(Code::DnsUnanswered, server, &bad, queries.len(), SHARE, what)?;
        Some(finding.with("answered_when_sent_again", (again > 0).then_some(again)))
    });
    found.collect()
}

/// The server answers that it cannot.
fn failures(evidence: &Evidence) -> Vec<Finding> {
    /// SERVFAIL, REFUSED and the like: a fifth of the answers, as above.
    const SHARE: f64 = 0.2;
    /// Of the names that are needed. Above nine of ten, nearly none of them exists.
    const SHARE_NXDOMAIN: f64 = 0.9;
    const NXDOMAINS: usize = 5;
    let (mut found, names) = (Vec::new(), Names::of(&evidence.queries));
    for (server, queries) in by_server(evidence) {
        let answered: Vec<_> = queries.iter().copied().filter(|query| query.rcode.is_some()).collect();
        let (missing, failed): (Vec<_>, Vec<_>) = answered
            .iter()
            .copied()
            .filter(|query| query.rcode.as_deref() != Some("NOERROR"))
            .partition(|query| query.rcode.as_deref() == Some("NXDOMAIN"));
        let rcodes: BTreeSet<_> = failed.iter().filter_map(|query| query.rcode.as_deref()).collect();
        let what = format!("answers {}", rcodes.into_iter().collect::<Vec<_>>().join(", "));
        found.extend(judged(Code::DnsFailure, server, &failed, answered.len(), SHARE, &what));
        let needed: Vec<_> = missing.iter().copied().filter(|query| names.is_needed(query)).collect();
        if needed.len() >= NXDOMAINS {
            let of = answered.len() - (missing.len() - needed.len());
            let what = "answers NXDOMAIN for nearly all names that must exist";
            found.extend(judged(Code::DnsFailure, server, &needed, of, SHARE_NXDOMAIN, what));
        }
    }
    found
}

/// The answer comes late.
fn delays(evidence: &Evidence) -> Vec<Finding> {
    /// A cached answer takes a round trip, which is 0.25 s around half the world at most; what must be looked up takes
    /// a few of them, now and then.
    const SLOW: Duration = Duration::from_millis(250);
    const SHARE: f64 = 0.2;
    let mut found = Vec::new();
    for (server, queries) in by_server(evidence) {
        let answered: Vec<_> = queries.iter().copied().filter(|query| query.latency.is_some()).collect();
        let slow: Vec<_> =
            answered.iter().copied().filter(|query| query.latency >= Some(SLOW) && query.lost == 0).collect();
        let mut latencies: Vec<_> = slow.iter().filter_map(|query| query.latency).collect();
        latencies.sort();
        let Some(median) = latencies.get(latencies.len() / 2) else { continue };
        let what = format!("is slow (median of the slow answers: {:.2} s)", median.as_secs_f64());
        let finding = judged(Code::DnsSlow, server, &slow, answered.len(), SHARE, &what);
        found.extend(finding.map(|finding| finding.with("latency_ms_median", median.as_millis() as u64)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::tools::diagnose::evidence::Socket;

    fn query(rcode: Option<&str>, latency_ms: u64) -> Query {
        Query {
            owner: owner("client", 7),
            server: Some(endpoint("10.0.0.53", 53)),
            name: "example.org".into(),
            rcode: rcode.map(str::to_owned),
            latency: rcode.map(|_| Duration::from_millis(latency_ms)),
            unanswered: rcode.is_none(),
            lost: 0,
        }
    }

    #[test]
    fn answer_after_retransmission_counts_as_lost() {
        let again = Query { lost: 1, ..query(Some("NOERROR"), 1_002) };
        let half = evidence(&[(4, query(Some("NOERROR"), 1)), (4, again)]);
        assert_eq!(all(&half), [(Code::DnsUnanswered, Severity::Warning)]);
        assert_eq!(dns_unanswered(&half)[0].evidence["answered_when_sent_again"], 4);
    }

    fn evidence(parts: &[(usize, Query)]) -> Evidence {
        let queries = parts.iter().flat_map(|(count, query)| vec![query.clone(); *count]).collect();
        Evidence { queries, ..quiet() }
    }

    fn all(evidence: &Evidence) -> Vec<(Code, Severity)> {
        told(&[dns_unanswered(evidence), dns_failure(evidence), dns_slow(evidence)].concat())
    }

    #[test]
    fn healthy_resolver_has_no_finding() {
        assert_eq!(
            all(&evidence(&[
                (50, query(Some("NOERROR"), 20)),
                (1, query(Some("SERVFAIL"), 20)),
                (2, query(Some("NOERROR"), 400))
            ])),
            []
        );
    }

    #[test]
    fn search_list_misses_are_not_failures() {
        assert_eq!(all(&evidence(&[(40, query(Some("NXDOMAIN"), 1)), (10, query(Some("NOERROR"), 1))])), []);
        assert_eq!(all(&evidence(&[(10, query(Some("NXDOMAIN"), 1))])), [(Code::DnsFailure, Severity::Warning)]);
    }

    #[test]
    fn block_list_misses_are_ignored() {
        let named = |name: &str, rcode| Query { name: name.into(), ..query(Some(rcode), 1) };
        let lists = (200, named("9.2.0.192.zen.bl.test", "NXDOMAIN"));
        let exists = (4, named("mx.example.org", "NOERROR"));
        assert_eq!(all(&evidence(&[lists.clone(), exists.clone()])), []);
        let needed = (6, named("db.corp.internal", "NXDOMAIN"));
        let found = dns_failure(&evidence(&[lists.clone(), needed.clone()]));
        assert_eq!(told(&found), [(Code::DnsFailure, Severity::Warning)]);
        assert_eq!((&found[0].evidence["affected"], &found[0].evidence["queries"]), (&6.into(), &6.into()));
        assert_eq!(all(&evidence(&[lists, exists, needed])), [], "most of what is needed must be missing");
    }

    #[test]
    fn dns_failure_silence_and_delay_have_own_codes() {
        let well = (4, query(Some("NOERROR"), 20));
        for (bad, code) in [
            (query(Some("SERVFAIL"), 20), Code::DnsFailure),
            (query(None, 0), Code::DnsUnanswered),
            (query(Some("NOERROR"), 2_000), Code::DnsSlow),
        ] {
            assert_eq!(all(&evidence(&[well.clone(), (2, bad)])), [(code, Severity::Warning)]);
        }
        let late = evidence(&[(5, query(Some("NOERROR"), 3_000)), (3, query(None, 0))]);
        assert_eq!(all(&late), [(Code::DnsSlow, Severity::Warning)], "the rest is under way");
    }

    #[test]
    fn multicast_dns_is_skipped() {
        let mdns = Query { server: Some(endpoint("224.0.0.251", 5353)), ..query(None, 0) };
        assert_eq!(all(&evidence(&[(20, mdns)])), []);
    }

    #[test]
    fn slow_upstream_is_blamed_instead_of_the_stub() {
        let stub = Query { server: Some(endpoint("127.0.0.53", 53)), ..query(Some("NOERROR"), 900) };
        let upstream = Query { owner: owner("resolved", 9), ..query(Some("NOERROR"), 900) };
        let local = Some(endpoint("127.0.0.53", 53));
        let sockets = vec![Socket { owner: owner("resolved", 9), local, ..Socket::default() }];
        let found = dns_slow(&Evidence { sockets, ..evidence(&[(5, stub), (5, upstream)]) });
        assert_eq!((found.len(), &found[0].evidence["server"]["address"]), (1, &"10.0.0.53".into()));
        assert_eq!(found[0].evidence["passed_on_by"]["address"], "127.0.0.53");
    }
}
