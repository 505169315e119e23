//! Times to the first byte of replies, as several tools show them.

use serde::{Deserialize, Serialize};

use crate::{answer::Endpoint, owner::Process, times::Times};

/// Times to the first byte.
#[derive(Serialize, Deserialize, Debug, Clone, Default)]
pub struct Replies {
    pub times: Times,
    /// Exchanges without a certain request, and the connections that are no longer looked at.
    pub left_out: (u64, u64),
}

impl std::ops::AddAssign<&Replies> for Replies {
    fn add_assign(&mut self, more: &Replies) {
        self.times.add(&more.times);
        self.left_out = (self.left_out.0 + more.left_out.0, self.left_out.1 + more.left_out.1);
    }
}

impl Replies {
    pub fn is_empty(&self) -> bool {
        self.times.count() == 0 && self.left_out == (0, 0)
    }
}

/// The replies of a listener of this host, or of a server that it asks.
pub struct Replier {
    /// Without a name if several processes have the connections.
    pub process: Process,
    pub is_here: bool,
    pub end: Endpoint,
    pub replies: Replies,
    pub least_rtt_us: Option<u32>,
}

/// All of a window.
pub struct Repliers {
    pub rows: Vec<Replier>,
    pub missed: u64,
    pub window_ns: u64,
}
