//! The times to the first byte that `replies.h` counts, and the connections that they are of.

use std::{collections::HashMap, io};

use libbpf_rs::MapHandle;

use super::{
    Histogram, Replies, Service,
    skel::types::{replier, replies, tcp_row},
};
use crate::{answer::Endpoint, daemon::kernel, limits, numbers::exchanges, owner::Process, times::Times};

/// A process that holds a socket; pid 0: none.
pub type Holder = (u32, [u8; 16]);

/// A process, its cgroup and its network namespace.
pub type SocketOwner = (Holder, u64, u32);

pub fn process(((pid, comm), cgroup, netns): &SocketOwner) -> Process {
    Process::new(*pid, comm, *cgroup, *netns)
}

/// What makes a row: the remote address, its port where we are the client, and where the address
/// means this very host, the network namespace.
#[derive(PartialEq, Eq, Hash)]
pub struct Key(pub [u8; 16], pub u16, pub u32);

impl Key {
    pub fn of(row: &tcp_row) -> Self {
        let e = &row.endpoints;
        Key::new(e.remote, if row.inbound == 0 { e.remote_port } else { 0 }, row.netns)
    }

    fn new(remote: [u8; 16], port: u16, netns: u32) -> Self {
        let address = Endpoint::new(remote, 0).address;
        Key(remote, port, if address.is_loopback() { netns } else { 0 })
    }
}

/// An address of this host, a port and a network namespace.
type Place = ([u8; 16], u16, u32);

fn place(row: &tcp_row) -> Place {
    (row.endpoints.local, row.endpoints.local_port, row.netns)
}

/// The replies at one place, and the connections that clients have to it.
#[derive(Default)]
struct Served {
    replies: Replies,
    /// With the number of connections.
    owners: HashMap<SocketOwner, u64>,
    rtt: Histogram,
}

/// The replies of a window.
#[derive(Default)]
pub struct NewReplies {
    here: HashMap<Place, Served>,
    pub there: HashMap<Key, Replies>,
}

impl NewReplies {
    /// Whether the other end of a client's connection, or our end of a server's, has replied.
    pub fn are_of(&self, row: &tcp_row) -> bool {
        if row.inbound != 0 { self.here.contains_key(&place(row)) } else { self.there.contains_key(&Key::of(row)) }
    }

    /// Round trips count although nobody replied in this reading: another one, merged with it, may have the reply.
    pub fn note_served(&mut self, row: &tcp_row, owner: SocketOwner, rtt: &Histogram) {
        let place = place(row);
        let is_known = self.here.contains_key(&place);
        let has_room = rtt.samples() > 0 && self.here.len() < limits::DIAGNOSED_ROWS;
        if row.inbound == 0 || !is_known && !has_room {
            return;
        }
        let served = self.here.entry(place).or_default();
        *served.owners.entry(owner).or_default() += 1;
        served.rtt.add(rtt);
    }

    /// Those of this host with a noted connection, or all.
    pub fn services(self, all: bool) -> Vec<Service> {
        let here = self.here.into_iter().filter(|(_, served)| all || !served.owners.is_empty());
        let service = |((address, port, netns), served): (Place, Served)| {
            let most = served.owners.iter().max_by_key(|(_, connections)| **connections);
            let unknown = Process { netns, ..Process::default() };
            let process = most.map_or(unknown, |(owner, _)| process(owner));
            Service { process, local: Endpoint::new(address, port), replies: served.replies, rtt: served.rtt }
        };
        here.map(service).collect()
    }
}

/// What was counted until now, by the bytes of the key.
pub struct CountedReplies(HashMap<Vec<u8>, (replier, replies)>);

impl CountedReplies {
    pub fn read(map: &MapHandle) -> io::Result<Self> {
        let entries = kernel::entries::<replier, replies>(map)?;
        Ok(CountedReplies(
            entries.into_iter().map(|(key, value)| (kernel::bytes(&key).to_vec(), (key, value))).collect(),
        ))
    }

    /// What was counted since an earlier reading. An entry that was removed in between has begun at another time.
    pub fn since(&self, before: &CountedReplies) -> NewReplies {
        let mut new = NewReplies::default();
        for (bytes, (replier, now)) in &self.0 {
            let earlier = before.0.get(bytes).map(|(_, replies)| replies).filter(|r| r.begun_ns == now.begun_ns);
            let of = |field: fn(&replies) -> u64| field(now) - earlier.map_or(0, field);
            let times = Times::between(
                earlier.map(|replies| &replies.times.buckets),
                &now.times.buckets,
                of(|replies| replies.times.sum_us),
                now.times.max_us,
            );
            let left_out = (of(|replies| replies.exchanges_left_out), of(|replies| replies.connections_left_out));
            let replies = Replies { times, left_out };
            if replies.is_empty() {
                continue;
            }
            if i64::from(replier.side) == exchanges::SIDE_SERVER {
                let place = (replier.address, replier.port, replier.netns);
                new.here.insert(place, Served { replies, ..Served::default() });
            } else {
                *new.there.entry(Key::new(replier.address, replier.port, replier.netns)).or_default() += &replies;
            }
        }
        new
    }
}

/// Lets go of those without a reply since the oldest window began; without a window, of all.
pub fn clear(map: &MapHandle, oldest_ns: Option<u64>) -> io::Result<()> {
    kernel::remove::<replier, replies>(map, |replies| oldest_ns.is_none_or(|oldest| replies.seen_ns < oldest))?;
    Ok(())
}
