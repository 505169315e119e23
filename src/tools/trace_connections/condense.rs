//! What a recording keeps of a window's connections.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr};

use super::{ConnectionState, Direction, Row, Sample, report::weight};
use crate::{limits, owner::Process};

/// Rows of connections that differ only in their client's port, their times and their bytes.
const KEPT: usize = 8;

/// Of many undisturbed connections of one process with one service, a few rows stand for all.
pub fn condense(mut sample: Sample) -> Sample {
    // The windows before have a row of a connection that began in them: its end must find it when both are merged.
    let begins_here = |row: &Row| row.start_ns >= sample.opened_ns;
    let (undisturbed, rows): (Vec<Row>, Vec<Row>) =
        sample.rows.into_iter().partition(|row| is_undisturbed(row) && begins_here(row));
    sample.rows = rows;
    let mut groups = BTreeMap::<_, Vec<Row>>::new();
    for row in undisturbed {
        let ends = (row.local.address, row.remote.address, service_port(&row));
        groups.entry((row.process.clone(), row.direction, row.closing, ends)).or_default().push(row);
    }
    groups.into_values().for_each(|group| sample.rows.extend(few(group, sample.ended_ns)));
    sample
}

/// Of the sum of many windows: a few rows stand for all connections that are alike, failed ones too. If that is still too
/// much, clients' addresses and process numbers do not tell them apart.
pub fn reduce(mut sum: Sample) -> Sample {
    let exact = |row: &Row| {
        let ends = (row.local.address, row.remote.address);
        (row.process.clone(), Some(ends), kind(row), service_port(row))
    };
    let by_program = |row: &Row| {
        let process = Process { pid: 0, ..row.process.clone() };
        (process, None::<(IpAddr, IpAddr)>, kind(row), service_port(row))
    };
    sum = group(sum, exact);
    if sum.rows.len() > limits::SUM_ROWS {
        sum = group(sum, by_program);
    }
    let (opened_ns, ended_ns) = (sum.opened_ns, sum.ended_ns);
    // What goes on is found again in the next window. It must not take the places of failures.
    let goes_on = |row: &Row| row.end_ns == 0 || row.start_ns < opened_ns;
    let (open, ended): (Vec<Row>, Vec<Row>) = sum.rows.into_iter().partition(goes_on);
    let places = limits::SUM_ROWS - open.len().min(limits::SUM_ROWS / 2);
    sum.rows = Vec::new();
    for (rows, places) in [(ended, places), (open, limits::SUM_ROWS)] {
        let mut rows = rows;
        rows.sort_by_cached_key(|row| Reverse(weight(row, ended_ns)));
        let cut = rows.split_off(rows.len().min(places.min(limits::SUM_ROWS - sum.rows.len())));
        sum.cut += cut.iter().map(|row| u64::from(row.alike) + 1).sum::<u64>();
        sum.rows.append(&mut rows);
    }
    sum.updates.truncate(limits::SUM_ROWS);
    sum
}

/// How a connection ended.
fn kind(row: &Row) -> (Direction, bool, ConnectionState, i32, bool) {
    (row.direction, row.closing, row.end, row.errno, row.retransmits > 0)
}

fn service_port(row: &Row) -> u16 {
    if row.direction == Direction::Outbound { row.remote.port } else { row.local.port }
}

/// Keeps a few rows of each group of connections that began and ended in the period.
fn group<K: Ord>(mut sum: Sample, key: impl Fn(&Row) -> K) -> Sample {
    let opened_ns = sum.opened_ns;
    let is_whole = |row: &Row| row.end_ns != 0 && row.start_ns >= opened_ns;
    let (whole, rows): (Vec<Row>, Vec<Row>) = sum.rows.into_iter().partition(is_whole);
    sum.rows = rows;
    let mut groups = BTreeMap::<K, Vec<Row>>::new();
    for row in whole {
        groups.entry(key(&row)).or_default().push(row);
    }
    groups.into_values().for_each(|group| sum.rows.extend(few(group, sum.ended_ns)));
    sum
}

/// At most [`KEPT`] of a group, which stand for the others.
fn few(mut group: Vec<Row>, ended_ns: u64) -> Vec<Row> {
    if group.len() <= KEPT {
        return group;
    }
    // The largest transfer shows what the path carries.
    group.sort_by_key(|row| Reverse(row.tx_bytes));
    let mut kept = vec![group.remove(0)];
    group.sort_by_key(|row| Reverse(weight(row, ended_ns)));
    let of_each = group.len().div_ceil(KEPT - 1);
    let slowest = |rows: &[Row]| {
        let all: u32 = rows.iter().map(|row| row.alike.saturating_add(1)).fold(0, u32::saturating_add);
        let who = |row: &Row| (row.process.pid, row.local.address, row.remote.address);
        let mixed = rows.iter().any(|row| row.mixed || who(row) != who(&rows[0]));
        rows.first().map(|row| Row { alike: all - 1, mixed, ..row.clone() })
    };
    kept.extend(group.chunks(of_each).filter_map(slowest));
    kept
}

/// It came about and ended in order, and both was seen.
fn is_undisturbed(row: &Row) -> bool {
    row.end == ConnectionState::Closed
        && (row.errno, row.retransmits, row.alike) == (0, 0, 0)
        && row.start_ns != 0
        && row.end_ns != 0
}
