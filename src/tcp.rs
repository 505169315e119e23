//! What several tools say of TCP.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a sender waits for: room at the receiver, room in its own send buffer, the network (its
/// congestion window), or the application, which has given it all that it has.
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
