//! What several tools say of TCP.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    answer::{Code, Limitation},
    limits,
};

/// What a sender waits for: room at the receiver, room in its own send buffer, the network (full congestion window, loss,
/// congestion control's pace), or the application (no more data, or too little for Nagle, a cork or the pace it asked for).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum LimitedBy {
    Receiver,
    SendBuffer,
    Network,
    Application,
}

impl fmt::Display for LimitedBy {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.serialize(f)
    }
}

/// How many sockets could not be read.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq)]
pub struct Unread {
    /// Connections that wait to be accepted, beyond what is read of one listener.
    pub waiting: u64,
    /// Orphans that are not in the table: closed by their process before it was watched, or when the table was full.
    pub orphans: u64,
    /// Sockets that processes use through io_uring only, beyond what is read of one ring.
    #[serde(default)]
    pub rings: u64,
}

impl Unread {
    /// What an answer says of it.
    pub fn limits(self) -> impl Iterator<Item = Limitation> {
        let thing = "connection in accept queues of other network namespaces";
        let why = format!("not read. The first {} per listener are, from Linux 5.17 on.", limits::WAITING);
        let waiting = Limitation::counted(Code::WaitingConnectionsUnread, self.waiting, thing, &why);
        let thing = "orphan in other network namespaces (closed by the process, still sending)";
        let why = format!("not read. At most {} that closed during a window are.", limits::ORPHANS);
        let orphans = Limitation::counted(Code::OrphansUnread, self.orphans, thing, &why);
        waiting.into_iter().chain(orphans).chain(rings(self.rings))
    }

    /// Of a window, from what could not be read at its two ends and how many orphans found no free slot in between. An
    /// orphan that could not be read at the beginning may have closed since.
    pub fn between(begin: Unread, end: Unread, untracked: u64) -> Unread {
        Unread { orphans: end.orphans.min(begin.orphans + untracked), ..end }
    }
}

/// What an answer says of sockets in rings that could not be read.
pub fn rings(unread: u64) -> Option<Limitation> {
    let thing = "file registered with io_uring that is a socket, or may be";
    let why = format!("not read. Of each ring the first {} sockets are, from Linux 5.17 on.", limits::RING_SOCKETS);
    Limitation::counted(Code::RingSocketsUnread, unread, thing, &why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unread_orphans_are_those_at_both_ends_or_without_slot() {
        let unread = |orphans| Unread { orphans, ..Unread::default() };
        assert_eq!(Unread::between(unread(3), unread(5), 0).orphans, 3);
        assert_eq!(Unread::between(unread(3), unread(5), 1).orphans, 4);
        assert_eq!(Unread::between(unread(3), unread(0), 9).orphans, 0);
    }
}
