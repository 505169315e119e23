//! Which NXDOMAIN is a fault, and which is what the asker wants to know.
//!
//! Many look-ups ask whether something exists: of an address in a block list, of a name in each domain of a search list.
//! Mostly it does not, and all is well. They are known by how their names are made and by what else was answered.

use std::collections::{BTreeMap, BTreeSet};

use crate::tools::diagnose::evidence::Query;

/// Labels of top-level domains that stand within a name only where a whole domain was put in front of a zone: a block
/// list of domains, or a search list.
const TOP_LEVEL: [&str; 8] = ["com", "net", "org", "info", "biz", "edu", "gov", "example"];
/// A client that asks for a name so often needs it: twice for A and AAAA, and again.
const INSISTS: usize = 5;
/// Labels of a name that are compared with a search list.
const LABELS: usize = 16;

/// What was asked and answered in a window, by name.
pub struct Names<'a> {
    /// Names that exist, and the servers that say so.
    existing: BTreeMap<&'a str, BTreeSet<String>>,
    /// How often a name was said not to exist.
    missing: BTreeMap<&'a str, usize>,
}

impl<'a> Names<'a> {
    pub fn of(queries: &'a [Query]) -> Self {
        let mut names = Names { existing: BTreeMap::new(), missing: BTreeMap::new() };
        for query in queries {
            let server = || query.server.map(|server| server.to_string()).unwrap_or_default();
            match query.rcode.as_deref() {
                Some("NOERROR") => drop(names.existing.entry(&query.name).or_default().insert(server())),
                Some("NXDOMAIN") => *names.missing.entry(&query.name).or_default() += 1,
                _ => {}
            }
        }
        names
    }

    /// Whether it matters that the name of `query`, answered NXDOMAIN, does not exist.
    pub fn is_needed(&self, query: &Query) -> bool {
        let server = query.server.map(|server| server.to_string()).unwrap_or_default();
        let name = query.name.as_str();
        match self.existing.get(name) {
            // It does exist: at this server, which has no record of another type; or elsewhere, and this one is wrong.
            Some(servers) => !servers.contains(&server),
            None => !self.is_of_search_list(name) && !self.asks_whether_it_exists(name),
        }
    }

    /// Whether it is another name with a domain of a search list behind it, where that name was asked as well, or exists
    /// with the end of that domain, as those of a cluster have one end. If it does not exist, its own query says so.
    fn is_of_search_list(&self, name: &str) -> bool {
        let dots = || name.match_indices('.').map(|(at, _)| at).take(LABELS);
        let shorter =
            |front: usize| dots().filter(move |at| *at > front).map(move |at| [&name[..front], &name[at..]].concat());
        dots().any(|front| {
            let asked = &name[..front];
            let is_named = self.existing.contains_key(asked) || self.missing.contains_key(asked);
            is_named || shorter(front).any(|other| self.existing.contains_key(other.as_str()))
        })
    }

    /// Whether a name is made to ask a question, so that NXDOMAIN is an answer to it.
    fn asks_whether_it_exists(&self, name: &str) -> bool {
        let labels: Vec<&str> = name.split('.').collect();
        let insists = self.missing.get(name).is_some_and(|count| *count >= INSISTS);
        is_of_address(&labels) || is_domain_in_zone(&labels) || !insists && is_convention(&labels)
    }
}

/// The digits of an address or a number, backwards, under a zone: reverse look-ups, block lists, ENUM.
fn is_of_address(labels: &[&str]) -> bool {
    let is_octet = |label: &&&str| label.parse::<u8>().is_ok();
    let is_nibble = |label: &&&str| label.len() == 1 && label.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_reverse = matches!(labels, [.., "in-addr" | "ip6" | "e164", "arpa"]);
    let octets = labels.iter().take_while(is_octet).count();
    let nibbles = labels.iter().take_while(is_nibble).count();
    is_reverse || labels.len() > 4 && octets >= 4 || nibbles >= 16
}

/// A whole domain, or a digest, in front of a zone.
fn is_domain_in_zone(labels: &[&str]) -> bool {
    let is_digest = labels[0].len() >= 32 && labels[0].bytes().all(|byte| byte.is_ascii_hexdigit());
    let inner = labels.get(1..labels.len().saturating_sub(2)).unwrap_or_default();
    labels.len() > 2 && is_digest || inner.iter().any(|label| TOP_LEVEL.contains(label))
}

/// Names that programs try in case that they exist: the proxy of a network, a property of a domain (RFC 8552), a host of
/// multicast DNS, words with which browsers test for servers that never say NXDOMAIN.
fn is_convention(labels: &[&str]) -> bool {
    matches!(labels, ["wpad" | "isatap", ..] | [_, "local"] | [_]) || labels.iter().any(|label| label.starts_with('_'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::diagnose::rules::tests::endpoint;

    fn asked(rcode: &str, server: &str, name: &str) -> Query {
        Query { server: Some(endpoint(server, 53)), name: name.into(), rcode: Some(rcode.into()), ..Query::default() }
    }

    fn missing(name: &str) -> Query {
        asked("NXDOMAIN", "10.0.0.53", name)
    }

    fn exists(name: &str) -> Query {
        asked("NOERROR", "10.0.0.53", name)
    }

    /// The nonexistent names that a program needs.
    fn needed(queries: &[Query]) -> Vec<&str> {
        let names = Names::of(queries);
        let failed = queries.iter().filter(|query| query.rcode.as_deref() == Some("NXDOMAIN"));
        failed.filter(|query| names.is_needed(query)).map(|query| query.name.as_str()).collect()
    }

    #[test]
    fn existence_lookups_may_be_nxdomain() {
        for name in [
            "19.2.0.192.zen.bl.example",
            "7.100.51.198.lists.mail-abuse.test",
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.list.test",
            "9.2.0.192.in-addr.arpa",
            "8.b.d.0.1.0.0.2.ip6.arpa",
            "4.3.2.1.5.5.5.e164.arpa",
            "sender.com.dbl.test",
            "mail.sender.org.multi.uribl.test",
            "www.sender.net.corp.internal",
            "d41d8cd98f00b204e9800998ecf8427e.hashes.test",
            "wpad.corp.internal",
            "printer.local",
            "_dmarc.sender.test",
            "kqzxwvutsr",
        ] {
            assert_eq!(needed(&[missing(name)]), [""; 0], "{name}");
        }
    }

    #[test]
    fn nxdomain_of_a_needed_name_is_a_failure() {
        for name in [
            "www.example.org",
            "example.org",
            "db.corp.internal",
            "node-17.prod.corp.internal",
            "db.test.corp.internal",
            "db.default.svc.cluster.local",
            "ip-10-0-0-1.eu.internal",
            "com.corp.internal",
        ] {
            assert_eq!(needed(&[missing(name)]), [name], "{name}");
        }
        let insisted = vec![missing("_ldap._tcp.corp.internal"); 5];
        assert_eq!(needed(&insisted).len(), 5, "it is asked for again and again");
        assert_eq!(needed(&vec![missing("9.2.0.192.list.test"); 5]), [""; 0], "so is one client in a block list");
    }

    #[test]
    fn search_list_fails_only_if_every_name_does() {
        let expansions = ["db.shop.svc.cluster.local", "db.svc.cluster.local", "db.corp.internal"];
        let tried: Vec<_> = expansions.into_iter().map(missing).collect();
        let with = |last: Query| needed(&[tried.clone(), vec![last]].concat()).len();
        assert_eq!(with(exists("db")), 0, "it exists alone");
        assert_eq!(with(exists("other.corp.internal")), expansions.len());
        assert_eq!(needed(&[missing("db.eu.svc.cluster.local"), exists("db.svc.cluster.local")]), [""; 0]);
        assert_eq!(needed(&[missing("db.corp.internal"), exists("db.partner.test")]), ["db.corp.internal"]);
        let deep = ["api.partner.test.shop.svc.cluster.local", "api.partner.test.cluster.local"].map(missing);
        assert_eq!(needed(&[&deep[..], &[exists("api.partner.test")]].concat()), [""; 0]);
        let gone = [&deep[..], &[missing("api.partner.test")]].concat();
        assert_eq!(needed(&gone), ["api.partner.test"], "once, by its own name");
    }

    #[test]
    fn name_known_to_another_server_is_missing() {
        let queries = [missing("wpad.corp.internal"), asked("NOERROR", "10.0.0.54", "wpad.corp.internal")];
        assert_eq!(needed(&queries), ["wpad.corp.internal"]);
        assert_eq!(needed(&[missing("a.corp.internal"), exists("a.corp.internal")]), [""; 0], "here it exists as well");
    }
}
