//! Which groups and control groups a question is about.

use std::collections::HashSet;

use super::{Group, Input};
use crate::{
    filter::Filter,
    owner::{Throttled, container, unit},
};

impl Input {
    /// Whether the answer has the group.
    pub(super) fn wants(&self, group: &Group) -> bool {
        let Filter { process: _, pid: _, remote, port } = self.filter();
        let process = &group.process;
        let ports = [group.local.map(|local| local.port), group.remote.map(|(_, port)| port)];
        self.filter().owner(process.pid, process.comm.as_bytes())
            && self.netns.is_none_or(|netns| netns == process.netns)
            && self.is_of_cgroup(process.cgroup.as_deref().unwrap_or_default())
            && remote.is_none_or(|range| group.remote.is_some_and(|(address, _)| range.includes(address)))
            && port.is_none_or(|port| ports.contains(&Some(port.get())))
    }

    fn is_of_cgroup(&self, cgroup: &str) -> bool {
        self.unit.as_deref().is_none_or(|wanted| unit(cgroup) == Some(wanted))
            && self.container.as_deref().is_none_or(|wanted| container(cgroup) == Some(wanted))
    }

    /// Whether a throttled control group concerns the question: all of them, or those of processes in the answer.
    pub(super) fn wants_throttled(&self, throttled: &Throttled, pids: &HashSet<u32>) -> bool {
        let is_of_all = self.filter().matches_everything()
            && self.netns.is_none()
            && self.unit.is_none()
            && self.container.is_none();
        let is_named = (self.unit.is_some() || self.container.is_some()) && self.is_of_cgroup(&throttled.cgroup);
        is_of_all || is_named || throttled.pids.iter().any(|pid| pids.contains(pid))
    }
}
