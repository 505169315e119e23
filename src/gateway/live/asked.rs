//! The questions behind a screen, live and of the past.

use serde_json::{Value, json};

use crate::{
    limits,
    tools::{
        Tool, profile_tcp::ProfileTcp, snapshot_interfaces::SnapshotInterfaces, snapshot_sockets::SnapshotSockets,
        top_traffic::TopTraffic, trace_connections::TraceConnections, trace_dns::TraceDns, trace_drops::TraceDrops,
    },
};

/// The period that an answer is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Over {
    /// The newest reading: rates, and what is open.
    Reading,
    /// The last seconds: events, which a reading of a second would show for a second.
    Recent,
}

/// A question to a tool.
pub struct Asked {
    /// The name of its answer in [`Screen::answers`](super::Screen::answers).
    pub name: &'static str,
    pub tool: &'static str,
    pub over: Over,
    with: fn() -> Value,
}

impl Asked {
    /// The tool's input.
    pub fn input(&self) -> Value {
        let mut input = (self.with)();
        input["limit"] = limits::LIVE_ROWS.into();
        input
    }
}

macro_rules! asked {
    ($name:literal, $tool:ty, $over:ident, $with:tt) => {
        Asked { name: $name, tool: <$tool>::NAME, over: Over::$over, with: || json!($with) }
    };
}

/// Every question, except the one to `diagnose`.
pub const ASKED: &[Asked] = &[
    asked!("interfaces", SnapshotInterfaces, Reading, {}),
    asked!("processes", TopTraffic, Reading, {"group_by": "process"}),
    asked!("units", TopTraffic, Reading, {"group_by": "unit"}),
    asked!("containers", TopTraffic, Reading, {"group_by": "container"}),
    asked!("remotes", TopTraffic, Reading, {"group_by": "remote"}),
    asked!("flows", TopTraffic, Reading, {"group_by": "connection"}),
    asked!("sockets", SnapshotSockets, Reading, {}),
    asked!("connections", TraceConnections, Recent, {}),
    asked!("tcp", ProfileTcp, Recent, {}),
    asked!("drops", TraceDrops, Recent, {}),
    asked!("dns", TraceDns, Recent, {}),
];

/// The answer of `diagnose`.
pub const DIAGNOSIS: &str = "diagnosis";
/// The answer of `status`.
pub const STATUS: &str = "status";
