//! Asking a DNS server that is none.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    answer::Endpoint,
    tools::diagnose::{
        evidence::{DroppedPackets, Evidence, Query, Resolvers, common, groups},
        finding::{Code, Finding, Severity, quoted},
    },
};

const DNS: u16 = 53;

/// A resolver that never answers, while another one answers.
pub fn wrong_resolver(evidence: &Evidence) -> Vec<Finding> {
    let died: Vec<_> = evidence.drops.iter().filter_map(died_before_it_left).collect();
    let asked = evidence.queries.iter().filter(|query| query.server.is_some_and(|server| server.port == DNS));
    let mut found = Vec::new();
    for ((netns, server), rows) in groups(asked.chain(died.iter().flatten()), |query| (query.owner.netns, query.server))
    {
        let Some(server) = server else { continue };
        if is_silent(evidence, server, &rows) && is_configured(evidence, netns, server) {
            found.extend(judged(evidence, netns, server, &rows));
        }
    }
    found
}

/// Queries that wait for a link-layer address never reach a wire: they are dropped before.
fn died_before_it_left(drop: &DroppedPackets) -> Option<Vec<Query>> {
    /// Enough for a rule that counts to a few.
    const MOST: u64 = 10;
    let server = drop.destination.filter(|at| at.port == Some(DNS) && drop.protocol == "udp")?;
    let query = Query {
        owner: drop.owner.clone(),
        server: Some(Endpoint { address: server.address, port: DNS }),
        unanswered: true,
        ..Query::default()
    };
    drop.reason.starts_with("NEIGH_").then(|| vec![query; drop.count.min(MOST) as usize])
}

/// Whether a host answers there that no server is there: one of this kernel's.
fn is_refused_here(evidence: &Evidence, server: Endpoint) -> bool {
    let refused = |drop: &DroppedPackets| drop.reason == "NO_SOCKET" && drop.destination == Some(server.into());
    evidence.is_ours(&server.address) || evidence.drops.iter().any(refused)
}

/// Whether no query to a server got an answer, and nothing on this host is known as a server there.
fn is_silent(evidence: &Evidence, server: Endpoint, rows: &[&Query]) -> bool {
    /// One look-up asks for A and for AAAA.
    const QUERIES: usize = 2;
    let of_it = || evidence.queries.iter().filter(|query| query.server == Some(server));
    let is_served = rows.iter().any(|query| evidence.receivers(server.into(), query.owner.netns).next().is_some());
    let unanswered = rows.iter().filter(|query| query.unanswered).count();
    unanswered >= QUERIES && of_it().all(|query| query.rcode.is_none()) && !is_served
}

fn files(evidence: &Evidence, netns: Option<u32>) -> impl Iterator<Item = &Resolvers> {
    evidence.resolvers.iter().filter(move |file| Some(file.netns) == netns)
}

/// Whether a file names it, unless no file is known: then a process that asks has its own.
fn is_configured(evidence: &Evidence, netns: Option<u32>, server: Endpoint) -> bool {
    let mut known = files(evidence, netns).peekable();
    known.peek().is_none() || known.any(|file| file.servers.contains(&server.address))
}

/// Whether the file of another network namespace has a server that answers. At a local address, a server process may
/// have exited, which is another fault, unless others use other servers.
fn others_differ(evidence: &Evidence, netns: Option<u32>, answering: &BTreeSet<IpAddr>) -> bool {
    let others = evidence.resolvers.iter().filter(|file| Some(file.netns) != netns);
    others.flat_map(|file| &file.servers).any(|server| answering.contains(server))
}

fn judged(evidence: &Evidence, netns: Option<u32>, server: Endpoint, rows: &[&Query]) -> Option<Finding> {
    // If a server is down, every client fails; if it is wrong, only the clients with the wrong file fail.
    let mut others =
        evidence.queries.iter().filter(|query| query.server == Some(server)).map(|query| query.owner.netns);
    let only_here = others.all(|other| other == netns);
    let answers = evidence.queries.iter().filter(|query| {
        query.rcode.as_deref() == Some("NOERROR")
            && query.server.is_some_and(|other| other.port == DNS && other != server && !other.address.is_loopback())
    });
    let answering: BTreeSet<_> = answers.filter_map(|query| query.server).map(|other| other.address).collect();
    if answering.is_empty()
        || !only_here
        || (is_refused_here(evidence, server) && !others_differ(evidence, netns, &answering))
    {
        return None;
    }
    let owner = common(rows.iter().map(|query| &query.owner));
    let named = files(evidence, netns).find(|file| file.servers.contains(&server.address)).map(|file| &file.file);
    let by = named.map_or_else(String::new, |file| format!(" in {file}"));
    let summary = format!(
        "the resolver {server}{by} answers none of {} queries from {}; other resolvers answer",
        rows.len(),
        quoted(&owner)
    );
    let step = match (named, owner.pid) {
        (Some(file), _) => format!("cat {file}"),
        (None, Some(pid)) => format!("cat /proc/{pid}/root/etc/resolv.conf"),
        (None, None) => "cat /etc/resolv.conf".into(),
    };
    Some(
        Finding::new(Code::WrongResolver, Severity::Warning, summary)
            .owner(&owner)
            .with("resolver", server)
            .with("file", named)
            .with("queries", rows.len())
            .with("answering", answering.iter().take(3).collect::<Vec<_>>())
            .at(server)
            .at(server.address)
            .step(&step)
            .look_for("trace_dns", &owner),
    )
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::answer::Owner;

    fn query(netns: u32, server: &str, rcode: Option<&str>) -> Query {
        let owner = Owner { netns: Some(netns), ..owner("client", 7) };
        let server = Some(endpoint(server, DNS));
        Query { owner, server, unanswered: rcode.is_none(), rcode: rcode.map(str::to_owned), ..Query::default() }
    }

    fn judged(queries: Vec<Query>, resolvers: Vec<Resolvers>) -> Vec<Finding> {
        wrong_resolver(&Evidence { queries, resolvers, ..quiet() })
    }

    fn file(netns: u32, server: &str) -> Vec<Resolvers> {
        vec![Resolvers { file: "/etc/netns/pc/resolv.conf".into(), netns, servers: vec![server.parse().unwrap()] }]
    }

    #[test]
    fn silent_resolver_of_one_host_is_wrong() {
        let silent = vec![query(1, "10.0.0.99", None); 4];
        let works = vec![query(2, "10.0.0.53", Some("NOERROR"))];
        let found = judged([silent.clone(), works.clone()].concat(), file(1, "10.0.0.99"));
        assert_eq!(told(&found), [(Code::WrongResolver, Severity::Warning)]);
        assert_eq!(found[0].evidence["file"], "/etc/netns/pc/resolv.conf");
        assert_eq!(judged([silent.clone(), works.clone()].concat(), Vec::new()).len(), 1, "no file is known");
        assert!(judged([silent.clone(), works.clone()].concat(), file(1, "10.0.0.53")).is_empty(), "asked by hand");
        assert!(judged(silent.clone(), Vec::new()).is_empty(), "no other server answers");
        let everyone = vec![query(3, "10.0.0.99", None); 2];
        assert!(judged([silent, works, everyone].concat(), Vec::new()).is_empty(), "it is away");
    }

    #[test]
    fn absent_resolver_is_found_by_neighbor_failures() {
        let owner = Owner { netns: Some(1), ..owner("client", 7) };
        let died = DroppedPackets { owner, ..drop_of("NEIGH_FAILED", "udp", ("10.0.0.99", DNS), 9) };
        let queries = vec![query(2, "10.0.0.53", Some("NOERROR"))];
        let found = wrong_resolver(&Evidence { queries, drops: vec![died], ..quiet() });
        assert_eq!(told(&found), [(Code::WrongResolver, Severity::Warning)]);
    }

    #[test]
    fn resolver_without_its_process_is_not_wrong() {
        let silent = vec![query(1, "10.0.0.7", None); 4];
        let queries = [silent, vec![query(2, "10.0.0.53", Some("NOERROR"))]].concat();
        let drops = vec![drop_of("NO_SOCKET", "udp", ("10.0.0.7", DNS), 4)];
        let gone = Evidence { queries, drops, ..quiet() };
        assert!(wrong_resolver(&gone).is_empty());
        let resolvers = [file(1, "10.0.0.7"), file(2, "10.0.0.53")].concat();
        assert_eq!(wrong_resolver(&Evidence { resolvers, ..gone }).len(), 1, "others are told to ask elsewhere");
    }

    #[test]
    fn resolver_that_answers_sometimes_is_not_wrong() {
        let half =
            vec![query(1, "10.0.0.99", None), query(1, "10.0.0.99", None), query(1, "10.0.0.99", Some("NOERROR"))];
        let works = vec![query(2, "10.0.0.53", Some("NOERROR"))];
        assert!(judged([half, works].concat(), Vec::new()).is_empty());
    }
}
