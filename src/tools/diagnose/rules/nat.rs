//! Address translation that has no port left.

use std::collections::BTreeSet;

use super::drops::{about, clashes, is_clash, total};
use crate::{
    answer::Owner,
    tools::diagnose::{
        evidence::{Evidence, groups},
        finding::{Code, Finding, HostPort, Severity},
    },
};

/// Connections that cannot be translated, since each port that may be used is.
pub fn nat_ports_exhausted(evidence: &Evidence) -> Vec<Finding> {
    let rows = evidence.drops.iter().filter(|drop| is_clash(evidence, drop));
    let mut found = Vec::new();
    for (netns, rows) in groups(rows, |drop| drop.owner.netns) {
        let failed = clashes(evidence, netns);
        let to: BTreeSet<_> = rows.iter().filter_map(|row| row.destination).collect();
        let shown = to.first().map_or_else(String::new, |to| format!(" to {to}"));
        let summary = format!(
            "NAT has no free port for connections{shown}: {} packets were dropped, {failed} entries clashed",
            total(&rows)
        );
        let ends: BTreeSet<HostPort> = rows.iter().flat_map(|row| [row.source, row.destination]).flatten().collect();
        let finding = about(evidence, Code::NatPortsExhausted, Severity::Warning, summary, &rows)
            .owner(&Owner { netns, ..Owner::default() })
            .with("insert_failed", failed)
            .with("netns", netns);
        found.push(
            ends.into_iter()
                .fold(finding, Finding::at)
                .step("nft list ruleset  # masquerade, snat: add addresses, or widen the port range")
                .step("conntrack -S"),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            drops::{conntrack_full, firewall_drop},
            tests::*,
        },
        *,
    };
    use crate::tools::diagnose::evidence::{Counters, DroppedPackets};

    fn clash(failed: u64) -> Evidence {
        let drop = DroppedPackets {
            owner: Owner { netns: Some(7), ..Owner::default() },
            location: "nf_hook_slow".into(),
            kind: "SYN".into(),
            ..drop_of("NETFILTER_DROP", "tcp", ("10.0.0.1", 80), 9)
        };
        Evidence { drops: vec![drop], clashes: failed, ..quiet() }
    }

    #[test]
    fn exhausted_nat_ports_are_not_a_full_table_or_rule() {
        let found = nat_ports_exhausted(&clash(9));
        assert_eq!(told(&found), [(Code::NatPortsExhausted, Severity::Warning)]);
        assert_eq!((&found[0].evidence["insert_failed"], &found[0].evidence["netns"]), (&9.into(), &7.into()));
        let counters = Counters { conntrack_drops: 9, conntrack_insert_failed: 9, ..Counters::default() };
        let evidence = Evidence { counters, ..clash(9) };
        assert!(conntrack_full(&evidence).is_empty() && firewall_drop(&evidence).is_empty());
    }

    #[test]
    fn single_nat_clash_is_ignored() {
        assert!(nat_ports_exhausted(&clash(1)).is_empty());
        assert!(nat_ports_exhausted(&clash(0)).is_empty(), "a rule of iptables");
    }
}
