//! How full the tables of tracked connections are. Each network namespace has its own, with one limit for all; a
//! process shows its namespace's in /proc, to anyone.

use std::fs;

use crate::limits;

/// Entries of the fullest table, and how many each may have; `None` where connections are not tracked.
pub fn fullest() -> Option<(u64, u64)> {
    let limit = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").ok()?.trim().parse().ok()?;
    let processes = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit())));
    let tables = processes
        .take(limits::NAMESPACE_PROCESSES)
        .filter_map(|process| entries(&fs::read_to_string(process.path().join("net/stat/nf_conntrack")).ok()?));
    Some((tables.max()?, limit))
}

/// Full is full: the kernel drops from the limit on, and entries come and go while we look.
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
    fn the_first_column_counts() {
        assert_eq!(entries("entries  clashres found\n0000001f  0 0\n0000001f 0 0\n"), Some(31));
        assert_eq!(entries(""), None);
        assert!(is_full((19, 20)) && !is_full((10, 20)));
    }
}
