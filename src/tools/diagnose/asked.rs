//! The questions to the other tools, and how their answers become evidence: one table.

use std::time::Duration;

use serde_json::json;

use super::{
    coverage::{incomplete, not_judged},
    evidence::Evidence,
    heard::Heard,
    held_requests,
    questions::{Asked, Replies, Reply, When},
    read,
};
use crate::{
    answer::Measured,
    limits,
    tools::{
        Tool, profile_tcp::ProfileTcp, snapshot_interfaces::SnapshotInterfaces, snapshot_sockets::SnapshotSockets,
        top_traffic::TopTraffic, trace_connections::TraceConnections, trace_dns::TraceDns, trace_drops::TraceDrops,
    },
};

/// A question: its name, the tool, when it is put, what it asks for, and how the one answer is read, or `each` of several.
macro_rules! asked {
    ($name:literal, $tool:ty, $when:ident, $with:tt, each $read:path) => {
        asked!(@ $name, $tool, $when, $with, |asked, samples, window, evidence| {
            let outputs = samples.iter().map(|sample| read::report::<$tool>(asked, sample, window));
            outputs.collect::<Result<_, _>>().map(|outputs| $read(outputs, evidence))
        })
    };
    ($name:literal, $tool:ty, $when:ident, $with:tt, $read:path) => {
        asked!(@ $name, $tool, $when, $with, |asked, samples, window, evidence| {
            read::one::<$tool>(asked, samples, window).map(|output| $read(output, evidence))
        })
    };
    (@ $name:literal, $tool:ty, $when:ident, $with:tt, $read:expr) => {
        Asked { name: $name, tool: <$tool>::NAME, when: When::$when, with: || json!($with), read: $read }
    };
}

/// The questions. The sockets tell clients from servers, so what is read later may rely on them.
pub const ASKED: &[Asked] = &[
    asked!("sockets", SnapshotSockets, End, {"detail": true}, read::sockets),
    asked!("connections", TraceConnections, Throughout, {}, read::connections),
    asked!("tcp", SnapshotSockets, Often, {"protocol": "tcp", "detail": true, "limit": limits::DIAGNOSED_CONNECTIONS}, each read::readings),
    asked!("profile", ProfileTcp, Throughout, {}, read::profile),
    asked!("drops", TraceDrops, Throughout, {"include_benign": true}, read::drops),
    asked!("dns", TraceDns, Throughout, {}, read::dns),
    asked!("traffic", TopTraffic, Throughout, {"group_by": "connection"}, read::traffic),
    asked!("interfaces", SnapshotInterfaces, Throughout, {}, read::interfaces),
];

/// The evidence, and how much of it there is.
pub struct Read {
    pub evidence: Evidence,
    pub heard: Heard,
    pub blind_spots: Vec<String>,
    pub lost_events: u64,
}

/// Reads every reply. An invalid or missing reply is a blind spot.
///
/// `asked_for` is the requested window, `window` the actual one.
pub fn read(replies: &Replies, asked_for: Duration, window: Duration) -> Read {
    let evidence = Evidence { window, ..Evidence::default() };
    let mut read = Read { evidence, heard: Heard::default(), blind_spots: Vec::new(), lost_events: 0 };
    let (mut missing, mut limits) = (Vec::new(), Vec::new());
    for asked in ASKED {
        match add(asked, replies, asked_for, &mut read.evidence) {
            Ok(measured) => {
                let lacks = incomplete(&measured);
                read.heard.insert(asked.name, lacks.is_empty());
                missing.extend(lacks.into_iter().map(|what| (asked, what)));
                read.lost_events += measured.lost_events;
                let told = measured.limits.iter().filter(|limit| !limit.code.blinds());
                limits.extend(told.map(|limit| format!("{}: {limit}", asked.tool)));
            }
            Err(reason) => missing.push((asked, reason)),
        }
    }
    read::join(&mut read.evidence);
    read.blind_spots = not_judged(missing);
    read.blind_spots.extend(limits);
    read.blind_spots.extend(read::elsewhere(&read.evidence));
    read.blind_spots.extend(held_requests::left_out(&read.evidence));
    read
}

/// One tool's answer, added to the evidence.
fn add(asked: &Asked, replies: &Replies, window: Duration, evidence: &mut Evidence) -> Result<Measured, String> {
    match replies.get(asked.name) {
        Some(Reply::Samples(samples)) => (asked.read)(asked, samples, window, evidence),
        Some(Reply::Error(reason)) => Err(reason.clone()),
        None => Err("netmond did not run it: netmond has another version; restart both".into()),
    }
}
