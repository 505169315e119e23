//! The daemon's part: every tool that has something to say is asked at once, for the same window.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use crate::{
    limits,
    tools::Host,
    window::{Parts, Window},
    wire::Error,
};

/// How often sockets are read: a state that lasts a tenth of the window is seen. Reading 1,000 takes 2 ms.
const READINGS: u32 = 11;

/// What the tools said, by the name of the question in [`ASKED`].
pub type Heard = BTreeMap<String, Reply>;

/// A tool's sample, or why there is none.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// One, or as many as it was asked for.
    Samples(Vec<Box<RawValue>>),
    Error(String),
}

/// When a question is put.
#[derive(Clone, Copy, PartialEq)]
enum When {
    Throughout,
    /// From the beginning to the end, [`READINGS`] times.
    Often,
    End,
}

/// A question to another tool.
pub struct Asked {
    /// What its reply is called.
    pub name: &'static str,
    pub tool: &'static str,
    when: When,
}

const fn asked(name: &'static str, tool: &'static str, when: When) -> Asked {
    Asked { name, tool, when }
}

/// The questions.
pub const ASKED: &[Asked] = &[
    asked("sockets", "snapshot_sockets", When::End),
    asked("connections", "trace_connections", When::Throughout),
    asked("tcp", "snapshot_sockets", When::Often),
    asked("profile", "profile_tcp", When::Throughout),
    asked("drops", "trace_drops", When::Throughout),
    asked("dns", "trace_dns", When::Throughout),
    asked("traffic", "top_traffic", When::Throughout),
    asked("interfaces", "snapshot_interfaces", When::Throughout),
];

impl Asked {
    /// The tool's `Input` for a window.
    pub fn input(&self, duration: Duration) -> Value {
        // The rows that a person does not want, we do.
        let mut input = json!({"limit": limits::DIAGNOSED_ROWS});
        if self.when == When::Throughout {
            input["duration_ms"] = (duration.as_millis() as u64).into();
        }
        match self.tool {
            "trace_drops" => input["include_benign"] = true.into(),
            "top_traffic" => input["group_by"] = "connection".into(),
            _ => {}
        }
        if self.when == When::Often {
            input["protocol"] = "tcp".into();
            input["detail"] = true.into();
            input["limit"] = limits::DIAGNOSED_CONNECTIONS.into();
        }
        input
    }
}

/// Asks everyone, and returns what they said with the length of the window.
pub fn gather(host: &Host, window: &Window, duration: Duration) -> Result<(Heard, Duration), Error> {
    let parts = Parts::new(ASKED.len())?;
    let ask = |i: usize| {
        let asked = &ASKED[i];
        let input = asked.input(duration);
        let sample = || host.sample(asked.tool, &input, &window.part(&parts, i));
        let at = |share: u32| window.sleep_until(window.end(duration * share / (READINGS - 1)));
        let result = match asked.when {
            When::Throughout => sample().map(|sample| vec![sample]),
            When::Often => (0..READINGS).map(|n| at(n).and_then(|_| sample()).inspect(|_| parts.settle(i))).collect(),
            When::End => {
                parts.settle(i);
                at(READINGS - 1).and_then(|_| sample()).map(|sample| vec![sample])
            }
        };
        parts.settle(i); // an error is no less final
        result
    };
    thread::scope(|scope| {
        let (ask, begun) = (&ask, Instant::now());
        let spawn = |i: usize| {
            let builder = thread::Builder::new().name(ASKED[i].tool.into()).stack_size(limits::THREAD_STACK);
            builder.spawn_scoped(scope, move || ask(i))
        };
        let threads: Vec<_> = (0..ASKED.len()).map(spawn).collect();
        // All are attached, or have failed: from now on nothing is missed.
        parts.wait(window, window.end(duration))?;
        window.opened();
        let mut heard = Heard::new();
        for (asked, thread) in ASKED.iter().zip(threads) {
            let reply = match thread.map_err(Error::from).map(thread::ScopedJoinHandle::join) {
                Ok(Ok(Ok(samples))) => Reply::Samples(samples),
                Ok(Ok(Err(e @ (Error::Cancelled | Error::ShuttingDown)))) => return Err(e),
                Ok(Ok(Err(e))) | Err(e) => Reply::Error(e.to_string()),
                Ok(Err(_)) => return Err(Error::Panicked("diagnose".into())),
            };
            heard.insert(asked.name.into(), reply);
        }
        Ok((heard, begun.elapsed().min(duration)))
    })
}
