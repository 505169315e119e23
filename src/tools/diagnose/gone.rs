//! A peer that does not answer any more.

use std::time::Duration;

use crate::answer::{Endpoint, Owner};

/// An established connection with a silent peer.
#[derive(Default, Clone, Debug)]
pub struct Silent {
    pub owner: Owner,
    pub local: Option<Endpoint>,
    pub remote: Option<Endpoint>,
    pub inbound: bool,
    /// Since something came, when it was read last.
    pub silence: Option<Duration>,
    /// In the window, and how many probes in a row had no answer.
    pub retransmits: u64,
    pub probes: u64,
    /// The error with which it ended; `None` while it is open.
    pub errno: Option<String>,
    /// Its process had closed it before.
    pub closing: bool,
}
