//! What a recording keeps of a window's connections.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{ConnectionState, Direction, Row, Sample, report::weight};

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
        let port = if row.direction == Direction::Outbound { row.remote.port } else { row.local.port };
        let ends = (row.local.address, row.remote.address, port);
        groups.entry((row.process.clone(), row.direction, row.closing, ends)).or_default().push(row);
    }
    for mut group in groups.into_values() {
        if group.len() <= KEPT {
            sample.rows.append(&mut group);
            continue;
        }
        // The largest transfer shows what the path carries.
        group.sort_by_key(|row| Reverse(row.tx_bytes));
        sample.rows.push(group.remove(0));
        group.sort_by_key(|row| Reverse(weight(row, sample.ended_ns)));
        let of_each = group.len().div_ceil(KEPT - 1);
        let slowest = |rows: &[Row]| rows.first().map(|row| Row { alike: rows.len() as u32 - 1, ..row.clone() });
        sample.rows.extend(group.chunks(of_each).filter_map(slowest));
    }
    sample
}

/// It came about and ended in order, and both was seen.
fn is_undisturbed(row: &Row) -> bool {
    row.end == ConnectionState::Closed
        && (row.errno, row.retransmits, row.alike) == (0, 0, 0)
        && row.start_ns != 0
        && row.end_ns != 0
}
