//! Control groups that the kernel keeps from running: `cpu.stat` of cgroup v2, and of the cpu controller of v1.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use crate::{limits, owner::Throttled};

/// What the groups with a quota have counted since they were made.
#[derive(Default)]
pub struct Quotas(HashMap<PathBuf, Stat>);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Stat {
    periods: u64,
    throttled: u64,
    us: u64,
}

/// Where the cpu controller is: in v2 with all others.
const ROOTS: [&str; 3] = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup"];
/// The longest lists that are looked at: the groups that wait longest, and their processes.
const GROUPS: usize = 16;
const PROCESSES: usize = 1_000;

impl Quotas {
    pub fn read() -> Quotas {
        let root = ROOTS.into_iter().map(Path::new).find(|root| is_hierarchy(root));
        let mut quotas = HashMap::new();
        if let Some(root) = root {
            each_below(root, &mut |group| {
                let stat = fs::read_to_string(group.join("cpu.stat")).ok().and_then(|text| stat(&text));
                quotas.extend(stat.filter(|stat| stat.periods > 0).map(|stat| (group.to_owned(), stat)));
            });
        }
        Quotas(quotas)
    }

    /// The groups that were throttled since an earlier reading, the longest first.
    pub fn since(&self, before: &Quotas) -> Vec<Throttled> {
        let grown = self.0.iter().filter_map(|(group, now)| {
            let then = before.0.get(group).copied().unwrap_or_default();
            let throttled = now.throttled.checked_sub(then.throttled).filter(|count| *count > 0)?;
            let (periods, us) = (now.periods.saturating_sub(then.periods), now.us.saturating_sub(then.us));
            Some((group, Stat { periods, throttled, us }))
        });
        let mut grown: Vec<_> = grown.collect();
        grown.sort_by_key(|(_, stat)| std::cmp::Reverse(stat.us));
        let name = |group: &Path| {
            let below = ROOTS.into_iter().find_map(|root| group.strip_prefix(root).ok());
            format!("/{}", below.unwrap_or(group).display())
        };
        let group = |(group, stat): (&PathBuf, Stat)| Throttled {
            cgroup: name(group),
            periods: stat.periods,
            throttled_periods: stat.throttled,
            throttled_us: stat.us,
            pids: processes(group),
        };
        grown.into_iter().take(GROUPS).map(group).collect()
    }
}

fn is_hierarchy(root: &Path) -> bool {
    root.join("cgroup.procs").exists()
}

/// Calls `f` for each group below `folder`.
fn each_below(folder: &Path, f: &mut dyn FnMut(&Path)) {
    let mut folders = vec![folder.to_owned()];
    for _ in 0..limits::CGROUPS {
        let Some(folder) = folders.pop() else { return };
        let below = fs::read_dir(&folder).into_iter().flatten().flatten();
        folders
            .extend(below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()));
        f(&folder);
    }
}

fn processes(group: &Path) -> Vec<u32> {
    let mut pids = Vec::new();
    each_below(group, &mut |group| {
        let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        let room = PROCESSES.saturating_sub(pids.len());
        pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).take(room));
    });
    pids
}

/// `throttled_usec` in v2, `throttled_time` in nanoseconds in v1. A group without a quota has neither periods.
fn stat(text: &str) -> Option<Stat> {
    let figures: HashMap<_, u64> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(k, v)| Some((k, v.trim().parse().ok()?)))
        .collect();
    let figure = |name: &str| figures.get(name).copied();
    let us = figure("throttled_usec").or(figure("throttled_time").map(|ns| ns / 1_000));
    Some(Stat { periods: figure("nr_periods")?, throttled: figure("nr_throttled")?, us: us? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_stat_of_cgroup_v1_and_v2_is_parsed() {
        let expected = Some(Stat { periods: 100, throttled: 40, us: 2_500_000 });
        assert_eq!(stat("usage_usec 9\nnr_periods 100\nnr_throttled 40\nthrottled_usec 2500000\n"), expected);
        assert_eq!(stat("nr_periods 100\nnr_throttled 40\nthrottled_time 2500000000\n"), expected);
        assert_eq!(stat("usage_usec 9\nuser_usec 5\n"), None, "no controller");
    }

    #[test]
    fn only_cgroups_throttled_in_the_window_are_named() {
        let quotas =
            |throttled| Quotas([("/sys/fs/cgroup/a".into(), Stat { periods: 100, throttled, us: throttled })].into());
        assert!(quotas(5).since(&quotas(5)).is_empty());
        let found = quotas(9).since(&quotas(5));
        assert_eq!((found.len(), found[0].cgroup.as_str(), found[0].throttled_periods), (1, "/a", 4));
    }
}
