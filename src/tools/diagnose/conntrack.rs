//! The fill level of the connection tracking tables. Each network namespace has its own, with one limit for all; a
//! process shows its namespace's in /proc, readable by everyone.

use std::{collections::HashMap, fs};

use crate::limits;

/// Entries of the fullest table, and how many each may have; `None` where connections are not tracked.
pub fn fullest() -> Option<(u64, u64)> {
    let limit = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").ok()?.trim().parse().ok()?;
    Some((statistics().filter_map(|(_, text)| entries(&text)).max()?, limit))
}

/// What each process shows of its namespace's table.
fn statistics() -> impl Iterator<Item = (u32, String)> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let file = |pid: u32| Some((pid, fs::read_to_string(format!("/proc/{pid}/net/stat/nf_conntrack")).ok()?));
    processes.take(limits::NAMESPACE_PROCESSES).filter_map(file)
}

/// The number of failed insertions since a namespace was created, as its processes show it.
#[derive(Default)]
pub struct Clashes(HashMap<u32, u64>);

impl Clashes {
    pub fn read() -> Clashes {
        Clashes(statistics().map(|(pid, text)| (pid, insert_failed(&text))).collect())
    }

    /// The most of any namespace since an earlier reading.
    pub fn since(&self, before: &Clashes) -> u64 {
        let grown = |(pid, now): (&u32, &u64)| Some(now.saturating_sub(*before.0.get(pid)?));
        self.0.iter().filter_map(grown).max().unwrap_or_default()
    }
}

/// The sum over CPUs, a line each.
fn insert_failed(stat: &str) -> u64 {
    let mut lines = stat.lines();
    let header = lines.next().unwrap_or_default();
    let Some(column) = header.split_whitespace().position(|name| name == "insert_failed") else { return 0 };
    let figure = |line: &str| u64::from_str_radix(line.split_whitespace().nth(column)?, 16).ok();
    lines.filter_map(figure).sum()
}

/// The kernel drops new entries from the limit on, and the number changes while we read.
pub fn is_full((entries, limit): (u64, u64)) -> bool {
    entries as f64 >= 0.9 * limit as f64
}

/// The first column of every line but the header is the whole table's, in hexadecimal.
fn entries(stat: &str) -> Option<u64> {
    u64::from_str_radix(stat.lines().nth(1)?.split_whitespace().next()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conntrack_files_are_parsed() {
        assert_eq!(entries("entries  clashres found\n0000001f  0 0\n0000001f 0 0\n"), Some(31));
        assert_eq!(entries(""), None);
        assert_eq!(insert_failed("entries insert_failed\n00000001 0000000a\n00000001 00000002\n"), 12);
        assert!(is_full((19, 20)) && !is_full((10, 20)));
    }
}
