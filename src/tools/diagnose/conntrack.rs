//! The connection tracking tables. Each network namespace has its own, with one limit for all; a process shows its
//! namespace's in /proc, readable by everyone.

use std::{collections::HashMap, fs, os::unix::fs::MetadataExt};

use crate::limits;

/// What is known of a table.
struct Table {
    entries: u64,
    /// Failed insertions since the namespace was created.
    insert_failed: u64,
}

/// The tables, by the inodes of their files: all processes of a namespace show the same file.
#[derive(Default)]
pub struct Tables(HashMap<u64, Table>);

impl Tables {
    /// Reads them; none where connections are not tracked.
    pub fn read() -> Tables {
        let mut tables = HashMap::new();
        if limit().is_none() {
            return Tables(tables);
        }
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for pid in processes.take(limits::NAMESPACE_PROCESSES) {
            let path = format!("/proc/{pid}/net/stat/nf_conntrack");
            let Ok(inode) = fs::metadata(&path).map(|file| file.ino()) else { continue };
            // To look up a file costs less than to read it.
            if !tables.contains_key(&inode)
                && let Some(table) = fs::read_to_string(&path).ok().and_then(|text| table(&text))
            {
                tables.insert(inode, table);
            }
        }
        Tables(tables)
    }

    /// Entries of the fullest table, and how many each may have; `None` where connections are not tracked.
    pub fn fullest(&self) -> Option<(u64, u64)> {
        Some((self.0.values().map(|table| table.entries).max()?, limit()?))
    }

    /// The most failed insertions in any table since an earlier reading.
    pub fn clashes_since(&self, before: &Tables) -> u64 {
        let grown =
            |(inode, now): (&u64, &Table)| Some(now.insert_failed.saturating_sub(before.0.get(inode)?.insert_failed));
        self.0.iter().filter_map(grown).max().unwrap_or_default()
    }
}

fn limit() -> Option<u64> {
    fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").ok()?.trim().parse().ok()
}

fn table(stat: &str) -> Option<Table> {
    Some(Table { entries: entries(stat)?, insert_failed: insert_failed(stat) })
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
