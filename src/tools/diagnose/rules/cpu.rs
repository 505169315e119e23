//! Programs and queues that wait for a CPU.

use std::collections::BTreeSet;

use super::{
    drops::{about, total},
    warning_from,
};
use crate::{
    answer::Owner,
    tools::diagnose::{
        evidence::{DroppedPackets, Evidence, Throttled},
        finding::{Code, Finding, HostPort, Severity, quoted},
    },
};

/// A program with sockets is kept from running by its control group's quota.
pub fn cpu_throttled(evidence: &Evidence) -> Vec<Finding> {
    evidence.throttled.iter().filter_map(|group| throttled(evidence, group)).collect()
}

fn throttled(evidence: &Evidence, group: &Throttled) -> Option<Finding> {
    /// A burst uses up the quota now and then without harm; in a quarter of the periods (of 100 ms) it is a fault.
    const PERIODS: f64 = 0.25;
    const SHARE: f64 = 0.1;
    let share = group.throttled_us as f64 / 1e6 / evidence.window.as_secs_f64().max(0.1);
    let periods = group.throttled_periods as f64 / group.periods.max(1) as f64;
    if periods < PERIODS || share < SHARE {
        return None;
    }
    let is_in = |owner: &Owner| owner.pid.is_some_and(|pid| group.pids.contains(&pid));
    let listeners: Vec<_> = evidence.listeners.iter().filter(|listener| is_in(&listener.owner)).collect();
    let sockets: Vec<_> = evidence.sockets.iter().filter(|socket| is_in(&socket.owner)).collect();
    // A throttled job without sockets slows no connection.
    let owner = listeners.iter().map(|l| &l.owner).chain(sockets.iter().map(|s| &s.owner)).next()?;
    let summary = format!(
        "{} has too little CPU quota: the kernel throttled {} in {:.0} % of the periods",
        quoted(owner),
        group.cgroup,
        100.0 * periods
    );
    let finding = Finding::new(Code::CpuThrottled, Severity::Warning, summary)
        .owner(owner)
        .with("cgroup", &group.cgroup)
        .with("throttled_percent_of_periods", (100.0 * periods).round())
        .with("throttled_ms", group.throttled_us / 1_000)
        .with("listeners", listeners.iter().filter_map(|listener| listener.local).take(3).collect::<Vec<_>>());
    let locals = listeners.iter().filter_map(|l| l.local).chain(sockets.iter().filter_map(|s| s.local));
    let places: BTreeSet<_> = locals.map(HostPort::from).collect();
    Some(
        places
            .into_iter()
            .fold(finding, Finding::at)
            .step(&format!("cat /sys/fs/cgroup{0}/cpu.stat /sys/fs/cgroup{0}/cpu.max", group.cgroup))
            .step("raise the quota (CPUQuota= of the unit, CPU limit of the container), or reduce the load"),
    )
}

/// Packets wait for a CPU to take them, and find no room.
pub fn softirq_saturated(evidence: &Evidence) -> Vec<Finding> {
    /// A burst may find a backlog full without anyone to notice.
    const PACKETS: u64 = 10;
    let rows: Vec<_> = evidence.drops.iter().filter(|drop| is_backlog(drop)).collect();
    // The counter is the CPUs', and so of every network namespace.
    let dropped = evidence.counters.softnet_dropped.max(total(&rows));
    if dropped == 0 {
        return Vec::new();
    }
    let severity = warning_from(dropped, PACKETS);
    let summary = format!("the kernel dropped {dropped} packets: the backlog of a CPU is full");
    let finding = match rows.is_empty() {
        true => Finding::new(Code::SoftirqSaturated, severity, summary).with("packets", dropped),
        false => about(evidence, Code::SoftirqSaturated, severity, summary, &rows),
    };
    let ends: BTreeSet<_> = rows.iter().flat_map(|row| [row.source, row.destination]).flatten().collect();
    let finding =
        finding.with("softnet_dropped", dropped).with("time_squeezes", evidence.counters.softnet_time_squeeze);
    vec![
        ends.into_iter()
            .fold(finding, Finding::at)
            .step("cat /proc/net/softnet_stat  # one line per CPU; column 2: dropped, column 3: time squeeze")
            .step(
                "sysctl net.core.netdev_max_backlog net.core.netdev_budget  # then spread the load: RPS, more queues",
            ),
    ]
}

pub(super) fn is_backlog(drop: &DroppedPackets) -> bool {
    drop.reason == "CPU_BACKLOG"
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::tools::diagnose::evidence::{Counters, Listener};

    fn group(throttled_periods: u64, throttled_us: u64) -> Throttled {
        Throttled { cgroup: "/web".into(), periods: 100, throttled_periods, throttled_us, pids: vec![7] }
    }

    fn judged(group: Throttled, pid: u32) -> Vec<(Code, Severity)> {
        let listeners =
            vec![Listener { owner: owner("web", pid), local: Some(endpoint("0.0.0.0", 80)), ..Listener::default() }];
        told(&cpu_throttled(&Evidence { listeners, throttled: vec![group], ..quiet() }))
    }

    #[test]
    fn cgroup_at_its_cpu_quota_is_throttled() {
        assert_eq!(judged(group(80, 6_000_000), 7), [(Code::CpuThrottled, Severity::Warning)]);
        assert_eq!(judged(group(10, 6_000_000), 7), [], "now and then");
        assert_eq!(judged(group(80, 200_000), 7), [], "hardly for a moment");
        assert_eq!(judged(group(80, 6_000_000), 8), [], "it has no sockets");
    }

    #[test]
    fn full_cpu_backlog_is_reported() {
        let counters =
            |softnet_dropped| Evidence { counters: Counters { softnet_dropped, ..Counters::default() }, ..quiet() };
        assert_eq!(told(&softirq_saturated(&counters(50))), [(Code::SoftirqSaturated, Severity::Warning)]);
        assert_eq!(told(&softirq_saturated(&counters(2))), [(Code::SoftirqSaturated, Severity::Info)]);
        assert!(softirq_saturated(&counters(0)).is_empty());
        let drops = vec![drop_of("CPU_BACKLOG", "udp", ("10.0.0.1", 514), 90)];
        assert_eq!(
            told(&softirq_saturated(&Evidence { drops, ..quiet() })),
            [(Code::SoftirqSaturated, Severity::Warning)]
        );
    }
}
