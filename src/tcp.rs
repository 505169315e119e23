//! TCP data that several tools share.

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

/// The number of unreadable sockets.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq)]
pub struct Unread {
    /// Connections in accept queues beyond the readable ones of one listener.
    pub waiting: u64,
    /// Orphans that are not in the table: closed by their process before it was watched, or when the table was full.
    pub orphans: u64,
    /// Sockets that processes use through io_uring only, beyond the readable ones of one ring.
    #[serde(default)]
    pub rings: u64,
}

impl Unread {
    /// The limits for the answer.
    pub fn limits(self) -> impl Iterator<Item = Limitation> {
        let thing = "connection in accept queues of other network namespaces";
        let why = format!("not read. Linux 5.17 and newer: the first {} per listener are.", limits::WAITING);
        let waiting = Limitation::counted(Code::WaitingConnectionsUnread, self.waiting, thing, &why);
        let thing = "orphan in other network namespaces (closed, still sending)";
        let why = format!("not read. Limit: {} that close during a window.", limits::ORPHANS);
        let orphans = Limitation::counted(Code::OrphansUnread, self.orphans, thing, &why);
        waiting.into_iter().chain(orphans).chain(rings(self.rings))
    }

    /// For a window: from the unreadable sockets at its two ends, and the orphans without a free slot in between. An
    /// orphan that was unreadable at the beginning may have closed since.
    pub fn between(begin: Unread, end: Unread, untracked: u64) -> Unread {
        Unread { orphans: end.orphans.min(begin.orphans + untracked), ..end }
    }
}

/// The limit for unreadable sockets in rings.
pub fn rings(unread: u64) -> Option<Limitation> {
    let thing = "file registered with io_uring that may be a socket";
    let why = format!("not read. Linux 5.17 and newer: the first {} sockets of each ring are.", limits::RING_SOCKETS);
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
