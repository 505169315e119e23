//! What a question is about, of a sample that has every socket as a row: as the daemon would have counted it.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
};

use super::{Bytes, Group, GroupBy, Input, Key, Sample};
use crate::{
    answer::{Protocol, Protocols},
    filter::Filter,
};

/// The rows that a question is about, put together as it wants them.
pub fn narrow(input: &Input, mut sample: Sample) -> Sample {
    if !(input.filter().matches_everything() && input.protocol == Protocols::All) {
        if input.remote.is_some() {
            // Sums of a recording may have lost their remotes.
            let wider = Input { remote: None, ..input.clone() };
            let is_lost = |row: &&Group| row.port.is_some() && row.remote.is_none() && wants(&wider, row);
            sample.rows_cut += sample.rows.iter().filter(is_lost).map(|row| row.connections).sum::<u64>();
        }
        sample.rows.retain(|row| wants(input, row));
        sample.total = sample.rows.iter().fold(Bytes::default(), |mut sum, row| {
            sum += row.bytes;
            sum
        });
    }
    if input.group_by == GroupBy::Connection {
        return sample;
    }
    let (mut groups, names) = (Vec::<Group>::new(), RandomState::new());
    let mut places = HashMap::<(Key, String), usize>::new();
    for row in sample.rows {
        let row = of(input.group_by, row, &names);
        // A number of a process may have been another one's before.
        let comm = if input.group_by == GroupBy::Process { row.process.comm.clone() } else { String::new() };
        match places.entry((row.key, comm)) {
            Entry::Occupied(place) => groups[*place.get()].add(row),
            Entry::Vacant(place) => {
                place.insert(groups.len());
                groups.push(row);
            }
        }
    }
    Sample { rows: groups, ..sample }
}

fn wants(input: &Input, row: &Group) -> bool {
    let filter = Filter { process: input.process.as_ref(), pid: input.pid, remote: None, port: input.port };
    let protocol = match input.protocol {
        Protocols::All => true,
        Protocols::Tcp => row.protocol == Some(Protocol::Tcp),
        Protocols::Udp => row.protocol == Some(Protocol::Udp),
    };
    let ports = match row.port {
        Some(port) => [port, port], // a sum of a recording
        None => [row.local.map_or(0, |end| end.port), row.remote.and_then(|end| end.port).unwrap_or_default()],
    };
    protocol
        && filter.owner(row.process.pid, row.process.comm.as_bytes())
        && filter.ends([0; 16], ports)
        && input.remote.is_none_or(|range| row.remote.is_some_and(|remote| range.includes(remote.address)))
}

/// A row of a socket as one of its group.
fn of(group_by: GroupBy, row: Group, names: &RandomState) -> Group {
    let remote = row.remote;
    // The lower of both, since clients take high ones.
    let ports = (row.local.map_or(0, |end| end.port), remote.and_then(|end| end.port).unwrap_or_default());
    let port = row.port.unwrap_or(match ports {
        (local, 0) => local,
        (local, remote) => local.min(remote),
    });
    let cgroup = || names.hash_one(&row.process.cgroup);
    let key = match group_by {
        GroupBy::Process if row.process.pid == 0 => Key::Unowned(cgroup()),
        GroupBy::Process => Key::Process(row.process.pid),
        GroupBy::Connection => row.key,
        GroupBy::Remote => Key::Remote(remote.map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |remote| remote.address)),
        GroupBy::Unit | GroupBy::Container => Key::Cgroup(cgroup()),
        GroupBy::Netns => Key::Netns(row.process.netns),
        GroupBy::Port => Key::Port(port),
    };
    Group {
        key,
        local: None,
        remote: remote.filter(|_| group_by == GroupBy::Remote),
        port: (group_by == GroupBy::Port).then_some(port),
        ..row
    }
}
