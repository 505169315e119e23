//! Local ports: used up, or about to be.

use std::time::Duration;

use super::connect::{by_target, outbound, to_target};
use crate::answer::count;
use crate::tools::diagnose::{
    evidence::{Connection, Evidence, Outcome, common},
    finding::{Code, Finding, Severity, quoted},
};

/// Every local port towards a target is in use.
pub fn port_exhaustion(evidence: &Evidence) -> Vec<Finding> {
    /// `EADDRNOTAVAIL` is also what an address that this host does not have gives, IPv6 where it is switched off above
    /// all. Where ports ran out there are connections to the same target, and more than a few.
    const IN_USE: usize = 10;
    let mut found = Vec::new();
    for (key, rows) in by_target(outbound(evidence).filter(|c| c.outcome == Outcome::NoLocalPort)) {
        let Some(remote) = key.1 else { continue };
        let open = evidence.sockets.iter().filter(|socket| socket.tcp && socket.remote == Some(remote)).count();
        let made = evidence
            .connections
            .iter()
            .filter(|c| c.outbound && c.remote == Some(remote) && c.outcome == Outcome::Established)
            .count();
        if open.max(made) < IN_USE {
            continue;
        }
        let owner = common(rows.iter().map(|row| &row.owner));
        // Sockets are read at the window's end: the holders of the ports may be gone by then.
        let held = if open == 0 { String::new() } else { format!(", {open} sockets to it are open") };
        let summary = format!(
            "{} has no free local port for {remote}: {} failed{held}",
            quoted(&owner),
            count(rows.len() as u64, "connect", "connects")
        );
        let finding = Finding::new(Code::PortExhaustion, Severity::Critical, summary)
            .owner(&owner)
            .with("failed", rows.len())
            .with("open_to_the_same_remote", (open > 0).then_some(open))
            .with("established_in_the_window", made);
        found.push(to_target(finding, remote).step("sysctl net.ipv4.ip_local_port_range net.ipv4.tcp_tw_reuse"));
    }
    found
}

/// A connection for every request: ports and CPU wear out.
pub fn connection_churn(evidence: &Evidence) -> Vec<Finding> {
    /// Each leaves its port in TIME_WAIT for 60 s: the 28,232 ports of the default range last for 470 a second to one
    /// target. A fifth of that is worth a warning, a fiftieth is what a busy set of health checks does.
    const WARN_A_SECOND: f64 = 100.0;
    const TELL_A_SECOND: f64 = 10.0;
    /// Longer than this is not one request.
    const SHORT: Duration = Duration::from_secs(1);
    let short = |c: &&Connection| c.outcome == Outcome::Established && c.lived.is_some_and(|lived| lived < SHORT);
    let mut found = Vec::new();
    for (key, rows) in by_target(outbound(evidence).filter(short)) {
        let Some(remote) = key.1 else { continue };
        let rate = rows.len() as f64 / evidence.window.as_secs_f64().max(0.1);
        if rate < TELL_A_SECOND {
            continue;
        }
        let severity = if rate >= WARN_A_SECOND { Severity::Warning } else { Severity::Info };
        let owner = common(rows.iter().map(|row| &row.owner));
        let mut lives: Vec<_> = rows.iter().filter_map(|row| row.lived).collect();
        lives.sort();
        let summary = format!(
            "{} opened {} short-lived connections to {remote} ({rate:.0} per second)",
            quoted(&owner),
            rows.len()
        );
        found.push(
            Finding::new(Code::ConnectionChurn, severity, summary)
                .owner(&owner)
                .with("remote", remote)
                .with("connections", rows.len())
                .with("connections_per_second", rate.round())
                .with("median_life_ms", lives[lives.len() / 2].as_secs_f64() * 1e3)
                .at(remote)
                .look("trace_connections", &[("remote", remote.address.to_string()), ("port", remote.port.to_string())])
                .step("reuse connections (HTTP keep-alive, a connection pool)"),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    fn made(count: usize, lived_ms: u64) -> Vec<Connection> {
        let lived = Some(Duration::from_millis(lived_ms));
        vec![Connection { lived, ..connection("10.0.0.1", 80, Outcome::Established) }; count]
    }

    #[test]
    fn port_exhaustion_needs_many_open_ports() {
        let failed = vec![connection("10.0.0.1", 80, Outcome::NoLocalPort)];
        let without = Evidence { connections: failed.clone(), ..quiet() };
        assert!(port_exhaustion(&without).is_empty(), "an address that this host does not have");
        let with = Evidence { connections: [failed, made(30, 5)].concat(), ..quiet() };
        assert_eq!(told(&port_exhaustion(&with)), [(Code::PortExhaustion, Severity::Critical)]);
    }

    #[test]
    fn connection_churn_depends_on_the_rate() {
        let judged =
            |count, lived_ms| told(&connection_churn(&Evidence { connections: made(count, lived_ms), ..quiet() }));
        assert_eq!(judged(50, 5), [], "health checks");
        assert_eq!(judged(200, 5), [(Code::ConnectionChurn, Severity::Info)]);
        assert_eq!(judged(2_000, 5), [(Code::ConnectionChurn, Severity::Warning)]);
        assert_eq!(judged(2_000, 5_000), [], "connections that are used");
    }
}
