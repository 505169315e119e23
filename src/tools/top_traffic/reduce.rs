//! What a recording keeps of the traffic of hours: the largest sockets, and of the others sums by process, service and
//! remote.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{DefaultHasher, Hash, Hasher},
};

use super::{CommonRemote, Group, Key, Sample};
use crate::{answer, limits};

/// Sockets that keep rows of their own.
const SOCKETS: usize = limits::SUM_ROWS / 4;

/// What the sum of many windows keeps.
pub fn reduce(mut sum: Sample) -> Sample {
    if sum.rows.len() <= SOCKETS {
        return sum;
    }
    let (sockets, sums): (Vec<_>, Vec<_>) = sum.rows.into_iter().partition(|row| row.port.is_none());
    let (mut rows, _) = answer::largest(sockets, usize::MAX, |row| row.bytes.sum());
    let rest = rows.split_off(rows.len().min(SOCKETS));
    let mut sums = add_up(rest.into_iter().map(|row| of_service(row, true)).chain(sums));
    if sums.len() > limits::SUM_ROWS {
        sums = add_up(sums.into_iter().map(|row| of_service(row, false)));
    }
    let (sums, cut) = answer::largest(sums, limits::SUM_ROWS, |row| row.bytes.sum());
    rows.extend(sums);
    let mut room = 2 * limits::ROWS_MAX;
    for row in &mut rows {
        row.sockets.truncate(room); // the newest are first
        room -= row.sockets.len();
    }
    sum.rows = rows;
    sum.rows_cut = sum.rows_cut.max(cut);
    sum
}

fn add_up(rows: impl Iterator<Item = Group>) -> Vec<Group> {
    let mut sums = HashMap::<Key, Group>::new();
    for row in rows {
        match sums.entry(row.key) {
            Entry::Vacant(entry) => drop(entry.insert(row)),
            Entry::Occupied(mut entry) => entry.get_mut().add(row),
        }
    }
    sums.into_values().collect()
}

/// A row as one of those of its process, protocol and service: the end with the lower port.
fn of_service(row: Group, with_remote: bool) -> Group {
    let ports = [row.local.map_or(0, |end| end.port), row.remote.and_then(|end| end.port).unwrap_or_default()];
    let is_ours = match row.port {
        Some(_) => row.local.is_some(),
        None => ports[1] == 0 || (ports[0] != 0 && ports[0] <= ports[1]),
    };
    let remote = row.remote.filter(|_| with_remote);
    let remote = remote.map(|end| CommonRemote { port: end.port.filter(|_| !is_ours), ..end });
    let service = row.port.unwrap_or(if is_ours { ports[0] } else { ports[1] });
    let mut hasher = DefaultHasher::new();
    let address = remote.map(|end| end.address);
    (&row.process, row.protocol.map(|protocol| protocol as u8), service, is_ours, address).hash(&mut hasher);
    let local = row.local.filter(|_| is_ours);
    Group { key: Key::Socket(hasher.finish()), local, remote, port: Some(service), ..row }
}
