//! The gateway: what MCP clients and people at a shell talk to. It has no privilege; it asks the daemon.

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use serde_json::{Map, Value};
use tokio::sync::{Notify, Semaphore};

use crate::{
    bpf::lock,
    limits, memory,
    tools::{Answer, QUESTIONS, Question},
    untrusted, wire,
};

pub mod audit;
pub mod cli;
pub mod clients;
pub mod daemon;
pub mod doctor;
pub mod hosts;
pub mod http;
pub mod manual;
pub mod metrics;
pub mod paint;
pub mod prompts;
pub mod server;
pub mod settings;
pub mod stdio;

use daemon::Daemon;
use hosts::Host;
use metrics::Metrics;

/// Why there is no answer. The message tells the reader what to do next.
#[derive(Debug)]
pub enum Failure {
    /// There is no such tool: the one error that MCP wants as a protocol error.
    UnknownTool(String),
    /// The daemon has no sample.
    Daemon(wire::Error),
    /// There is no daemon to ask, or it went away.
    Absent(String),
    /// A bound of the gateway was reached.
    Busy(String),
    /// Another host has no answer; its own words.
    Elsewhere(String),
    /// The gateway was told to stop.
    Ending,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Failure::UnknownTool(name) => {
                let names: Vec<_> = QUESTIONS.iter().map(|question| question.name).collect();
                write!(f, "no tool named {name}; there are: {}", names.join(", "))
            }
            Failure::Daemon(e) => f.write_str(&untrusted::lines(&e.to_string())), // it may name an interface
            Failure::Absent(text) | Failure::Busy(text) | Failure::Elsewhere(text) => f.write_str(text),
            Failure::Ending => {
                f.write_str("netmon-mcp is shutting down and ended the measurement; call again when it is back")
            }
        }
    }
}

impl Failure {
    /// One word for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Failure::UnknownTool(_) => "unknown_tool",
            Failure::Daemon(wire::Error::Cancelled) => "cancelled",
            Failure::Daemon(wire::Error::InvalidInput(_)) => "invalid_input",
            Failure::Daemon(wire::Error::Busy(_)) | Failure::Busy(_) => "busy",
            Failure::Daemon(wire::Error::Unavailable { .. }) => "unavailable",
            Failure::Daemon(_) => "failed",
            Failure::Elsewhere(_) => "failed_elsewhere",
            Failure::Absent(_) => "no_daemon",
            Failure::Ending => "shutting_down",
        }
    }
}

impl From<wire::Error> for Failure {
    fn from(e: wire::Error) -> Self {
        Failure::Daemon(e)
    }
}

/// The way to the daemon, for any number of clients.
pub struct Gateway {
    daemon: Daemon,
    /// What `interface` is where a tool takes one and the caller names none.
    interface: Option<String>,
    calls: Semaphore,
    hosts: Vec<Arc<Host>>,
    /// The tools as clients see them, once they were listed.
    tools: OnceLock<Vec<rmcp::model::Tool>>,
    pub metrics: Arc<Metrics>,
}

/// A call that is ready to be made: its input is checked.
pub struct Call {
    question: &'static Question,
    input: Value,
    /// The host to ask, if it is not this one.
    host: Option<Arc<Host>>,
    /// How long it will watch.
    pub duration: Duration,
    /// Ends the window early, for an answer about the time until then.
    pub enough: Arc<Notify>,
}

impl Call {
    /// Whether there is a window that `enough` can end.
    pub fn can_end_early(&self) -> bool {
        self.host.is_none() && !self.duration.is_zero()
    }
}

impl Gateway {
    pub fn new(daemon: Daemon, interface: Option<String>, hosts: Vec<Host>) -> Self {
        let hosts = hosts.into_iter().map(Arc::new).collect();
        Gateway {
            daemon,
            interface,
            calls: Semaphore::new(limits::CALLS),
            hosts,
            tools: OnceLock::new(),
            metrics: Arc::default(),
        }
    }

    /// The other hosts that may be asked.
    pub fn hosts(&self) -> &[Arc<Host>] {
        &self.hosts
    }

    /// Takes `host` out of a call's arguments.
    fn host(&self, arguments: &mut Map<String, Value>) -> Result<Option<Arc<Host>>, Failure> {
        if self.hosts.is_empty() {
            return Ok(None); // then no tool has such an argument, and says so itself
        }
        let name = match arguments.shift_remove("host") {
            None | Some(Value::Null) => return Ok(None),
            Some(name) => name,
        };
        let known = self.hosts.iter().find(|host| name == host.named.name.as_str());
        known.cloned().map(Some).ok_or_else(|| {
            let names: Vec<_> = self.hosts.iter().map(|host| host.named.name.as_str()).collect();
            let text =
                format!("no host is named {}; there are: {}", untrusted::clean(&name.to_string()), names.join(", "));
            wire::Error::InvalidInput(text).into()
        })
    }

    /// Gives up now what answering does not need, and root, if we are root.
    pub fn settle(&self) -> Result<(), Failure> {
        self.daemon.settle()
    }

    /// Gives up what answering does not need, for good: see [`sandbox`](crate::sandbox).
    pub fn confine(&self) {
        self.daemon.confine();
    }

    /// Checks a call without making it.
    pub fn prepare(&self, name: &str, mut arguments: Map<String, Value>) -> Result<Call, Failure> {
        let question = Question::named(name).ok_or_else(|| Failure::UnknownTool(untrusted::clean(name)))?;
        let host = self.host(&mut arguments)?;
        let mut input = Value::Object(arguments);
        // The interface that this gateway was set to is this host's.
        let interface = self.interface.as_deref().filter(|_| host.is_none());
        let duration = (question.prepare)(&mut input, interface)?;
        Ok(Call { question, input, host, duration, enough: Arc::default() })
    }

    /// Makes a call. Dropping the future ends the measurement.
    pub async fn call(&self, call: Call) -> Result<Answer, Failure> {
        let Ok(_permit) = self.calls.try_acquire() else {
            return Err(Failure::Busy(format!(
                "{} calls are under way, which is the limit; try again when one has ended",
                limits::CALLS
            )));
        };
        if let (Some(host), Value::Object(arguments)) = (&call.host, &call.input) {
            return host.call(call.question.name, arguments.clone(), call.duration).await;
        }
        let request = wire::Request { version: wire::VERSION, tool: call.question.name.into(), input: call.input };
        let sample = match self.daemon.ask(&request, call.duration, &call.enough).await {
            Err(Failure::Absent(reason)) => {
                return (call.question.without_daemon)(&reason).ok_or(Failure::Absent(reason));
            }
            result => result?,
        };
        let (answer, bytes) = ((call.question.report)(request.input, sample.get()), sample.get().len());
        drop(sample);
        if bytes > limits::SAMPLE_KEPT {
            memory::give_back();
        }
        Ok(answer?)
    }
}

/// Where one client's last answer ended, for tools that can be continued.
#[derive(Default)]
pub struct Continuation(Mutex<Option<(Instant, Value)>>);

impl Continuation {
    /// Lets a call that follows at once begin where the last one ended, so that nothing is missed in between.
    fn resume(&self, call: &mut Call) {
        if !call.question.continues || call.host.is_some() {
            return;
        }
        let ended = lock(&self.0).take();
        if let (Some((at, next)), Some(input)) = (ended, call.input.as_object_mut())
            && at.elapsed() < limits::CONNECT_LINGER
            && input.get("after").is_none_or(Value::is_null)
        {
            input.insert("after".into(), next);
        }
    }

    fn note(&self, question: &Question, answer: &Answer) {
        if let Some(next) = answer.structured.get("next").filter(|_| question.continues) {
            *lock(&self.0) = Some((Instant::now(), next.clone()));
        }
    }
}
