//! Sockets in CLOSE_WAIT: the peer has closed them.

use std::collections::BTreeMap;

use super::paths::Series;
use crate::tools::snapshot_sockets::{Socket, State};

/// The number of sockets per program (network namespace and name) that were seen in CLOSE_WAIT and are closed now.
pub fn closed_late(readings: &[Series]) -> BTreeMap<(Option<u32>, Option<String>), u64> {
    let clock = |socket: &Socket| socket.tcp.as_ref().map(|tcp| tcp.clock_jiffies);
    let ends = || readings.iter().filter_map(|series| clock(series.last()?));
    // Jiffies wrap; one reading takes less than a half of them.
    let Some(end) = ends().reduce(|a, b| if (b.wrapping_sub(a) as i32) > 0 { b } else { a }) else {
        return BTreeMap::new();
    };
    let Some(begin) = readings.iter().filter_map(|series| clock(series.first()?)).min_by_key(|at| at.wrapping_sub(end))
    else {
        return BTreeMap::new();
    };
    // Of eleven readings: a socket that is missing in the last two is closed.
    let is_gone = |last: &Socket| clock(last).is_some_and(|at| end.wrapping_sub(at) > end.wrapping_sub(begin) / 8);
    let mut closed = BTreeMap::new();
    for series in readings {
        let (Some(last), true) = (series.last(), series.iter().any(|socket| socket.state == State::CloseWait)) else {
            continue;
        };
        if last.state != State::CloseWait || is_gone(last) {
            *closed.entry((last.owner.netns, last.owner.process.clone())).or_default() += 1;
        }
    }
    closed
}
