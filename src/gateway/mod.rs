//! The gateway: what MCP clients and people at a shell talk to. It has no privilege; it asks the daemon.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use serde_json::{Map, Value};
use tokio::sync::Notify;

use crate::{
    limits,
    recorder::time::Period,
    sync::lock,
    tools::{Answer, Question, Tool, diagnose::Diagnose, status::Status},
    untrusted, wire,
};

pub mod apps;
pub mod audit;
pub mod cli;
pub mod clients;
pub mod daemon;
pub mod doctor;
pub mod exchange;
pub mod fingerprint;
pub mod hosts;
pub mod http;
mod lines;
pub mod live;
pub mod manual;
mod memory;
pub mod metrics;
pub mod offer;
pub mod page;
pub mod paint;
pub mod past;
mod places;
pub mod prompts;
pub mod readings;
mod resources;
pub mod series;
pub mod server;
pub mod settings;
pub mod skills;
mod standard;
pub mod stdio;
pub mod timeline;
pub mod top;
mod unread;

use daemon::{Daemon, Opened};
use hosts::Host;
use http::callers::Sender;
use memory::{Memory, Reserved};
use metrics::Metrics;
use past::{Asked, Past};
pub use places::{Place, Places};
use readings::Readings;

/// Why there is no answer. The message includes the next step.
#[derive(Debug)]
pub enum Failure {
    /// There is no such tool, and the message lists those that exist: the only error that MCP requires as a protocol error.
    UnknownTool(String),
    /// The daemon has no sample.
    Daemon(wire::Error),
    /// netmond is unavailable, or it disconnected.
    Absent(String),
    /// A bound of the gateway was reached.
    Busy(String),
    /// The caller's credentials do not allow it.
    Forbidden(String),
    /// Another host has no answer; its own words.
    Elsewhere(String),
    /// The gateway is stopping.
    Ending,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Failure::Daemon(e) => f.write_str(&untrusted::lines(&e.to_string())), // it may name an interface
            Failure::UnknownTool(text)
            | Failure::Absent(text)
            | Failure::Busy(text)
            | Failure::Forbidden(text)
            | Failure::Elsewhere(text) => f.write_str(text),
            Failure::Ending => {
                f.write_str("netmon-mcp is shutting down and stopped the measurement; call again after the restart")
            }
        }
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// Whether the caller asked for something that is not allowed or does not exist.
    pub fn is_usage(&self) -> bool {
        matches!(self, Failure::UnknownTool(_) | Failure::Daemon(wire::Error::InvalidInput(_)))
    }

    /// One word for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Failure::UnknownTool(_) => "unknown_tool",
            Failure::Daemon(wire::Error::Cancelled) => "cancelled",
            Failure::Daemon(wire::Error::InvalidInput(_)) => "invalid_input",
            Failure::Daemon(wire::Error::Busy(_)) | Failure::Busy(_) => "busy",
            Failure::Daemon(wire::Error::Unavailable { .. }) => "unavailable",
            Failure::Forbidden(_) => "forbidden",
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
    /// The default of the argument `interface`.
    interface: Option<String>,
    /// Of tool calls under way.
    pub places: Arc<Places>,
    /// The memory for answers over HTTP.
    memory: Memory,
    hosts: Vec<Arc<Host>>,
    /// The recording.
    pub past: Past,
    /// The tools as clients see them, once they were listed.
    tools: OnceLock<Vec<rmcp::model::Tool>>,
    /// What this server says of itself, once it was asked.
    about: OnceLock<rmcp::model::ServerConfig>,
    pub metrics: Arc<Metrics>,
}

/// A call that is ready to be made: its input is checked.
pub struct Call {
    question: &'static Question,
    input: Value,
    /// The host to ask, if it is not this one.
    host: Option<Arc<Host>>,
    /// The period of the past that it is about; none if it is about now.
    past: Option<Period>,
    /// The length of its window.
    pub duration: Duration,
    /// Ends the window early, for an answer about the time until then.
    pub enough: Arc<Notify>,
    /// Set when the window opens; at once where another host is asked, which does not say.
    pub opened: Arc<Opened>,
}

impl Call {
    /// The host that it asks, if that is not this one.
    pub fn host(&self) -> Option<&str> {
        self.host.as_ref().map(|host| host.named.name.as_str())
    }

    /// Whether there is a window that `enough` can end.
    pub fn can_end_early(&self) -> bool {
        self.host.is_none() && !self.duration.is_zero()
    }
}

impl Gateway {
    pub fn new(daemon: Daemon, interface: Option<String>, hosts: Vec<Host>) -> Self {
        let memory = Memory::default();
        let hosts = hosts.into_iter().map(|host| Arc::new(host.counted(&memory.budget))).collect();
        Gateway {
            daemon,
            interface,
            places: Arc::default(),
            memory,
            hosts,
            past: Past::new(past::RECORDING.into()),
            tools: OnceLock::new(),
            about: OnceLock::new(),
            metrics: Arc::default(),
        }
    }

    /// Reads another recording than the usual one.
    pub fn recorded_in(self, path: PathBuf) -> Self {
        Gateway { past: Past::new(path), ..self }
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
            let text = format!("unknown host {}; hosts: {}", untrusted::clean(&name.to_string()), names.join(", "));
            wire::Error::InvalidInput(text).into()
        })
    }

    /// Gives up what answering does not need, for good: see [`sandbox`](crate::sandbox).
    pub fn confine(&self) {
        self.daemon.confine(hosts::reach(&self.hosts));
    }

    /// Checks a call without making it.
    pub fn prepare(&self, name: &str, mut arguments: Map<String, Value>) -> Result<Call, Failure> {
        let question = Question::named(name).ok_or_else(|| offer::unknown_tool(name, &self.hosts))?;
        let host = self.host(&mut arguments)?;
        // A tool that the recording answers reads its period itself.
        let asked = if question.recollect.is_none() { Asked::take(&mut arguments)? } else { None };
        let past = asked.as_ref().map(Asked::period).transpose()?;
        let mut input = Value::Object(arguments);
        // The interface that this gateway was set to is this host's.
        let interface = self.interface.as_deref().filter(|_| host.is_none());
        let mut duration = (question.prepare)(&mut input, interface)
            .map_err(|e| offer::unknown_argument(question, &self.hosts, &input).unwrap_or(e))?;
        if let (Some(asked), true, Some(arguments)) = (asked, host.is_some(), input.as_object_mut()) {
            asked.put(arguments); // another host's clock and recording
        }
        if past.is_some() {
            duration = Duration::ZERO;
        }
        Ok(Call { question, input, host, past, duration, enough: Arc::default(), opened: Arc::default() })
    }

    /// Begins a measurement on this host that is read every so often.
    pub async fn watch(&self, call: Call, every: Duration) -> Result<Readings, Failure> {
        match call.host() {
            Some(host) => {
                Err(wire::Error::InvalidInput(format!("--watch works on this host only: run it on {host}")).into())
            }
            None if call.past.is_some() => {
                Err(wire::Error::InvalidInput("--watch measures now: leave out since and until".into()).into())
            }
            None => Readings::begin(&self.daemon, call.question, call.input, every).await,
        }
    }

    /// Makes a call for the user that runs this gateway. Dropping the future ends the measurement.
    pub async fn call(&self, call: Call) -> Result<Answer, Failure> {
        let _place = self.places.take(0)?;
        self.make(call, None).await
    }

    /// Makes a call that has a place already. The memory of its answer counts for the sender until it is sent.
    async fn make(&self, call: Call, sender: Option<&Sender>) -> Result<Answer, Failure> {
        let question = call.question;
        let reserved = match sender {
            Some(sender) => self.memory.reserve(&sender.caller.identity, question.name, &call.input).await?,
            None => Reserved::default(),
        };
        let (answer, bytes) = match (&call.host, &call.input) {
            (Some(host), Value::Object(arguments)) => {
                let _ = call.opened.set(Instant::now()); // nobody else does
                let answer = host.call(question.name, arguments.clone(), call.duration).await?;
                let bytes = answer.bytes();
                (answer, bytes)
            }
            _ => self.measure(call, &reserved).await?,
        };
        if let Some(sender) = sender {
            self.memory.note(question.name, bytes);
            reserved.holds(bytes * limits::ANSWER_COST)?;
            sender.caller.answered(bytes);
            *lock(&sender.holds) = Some(reserved);
        }
        Ok(answer)
    }

    /// Asks the daemon, and answers from its sample; with about how long the answer is.
    async fn measure(&self, call: Call, reserved: &Reserved) -> Result<(Answer, usize), Failure> {
        let Call { question, input, past, duration, enough, opened, .. } = call;
        if past.is_some() || question.recollect.is_some() {
            let answer = match past {
                Some(period) => self.past.answer(question, input, period).await?,
                None => self.past.recollect(question, input).await?,
            };
            let bytes = answer.bytes();
            return Ok((answer, bytes));
        }
        let request = wire::Request {
            version: wire::VERSION,
            tool: question.name.into(),
            input,
            tell_opened: !duration.is_zero(),
            every_ms: None,
        };
        let sample = match self.daemon.ask(&request, duration, &enough, &opened, reserved).await {
            Err(Failure::Absent(reason)) => {
                let mut answer = (question.without_daemon)(&reason).ok_or(Failure::Absent(reason))?;
                self.past.describe(&mut answer).await; // only status answers so
                return Ok((answer, 0));
            }
            result => result?,
        };
        let (input, bytes) = (request.input, sample.get().len());
        if bytes <= limits::SAMPLE_KEPT {
            let mut answer = (question.report)(input, sample.get())?;
            self.add_past(question, &mut answer).await;
            return Ok((answer, bytes));
        }
        // A long one takes a while to read; others are answered meanwhile.
        let reserved = reserved.clone();
        let reported = tokio::task::spawn_blocking(move || {
            let answer = (question.report)(input, sample.get());
            drop(sample);
            crate::memory::give_back();
            drop(reserved);
            answer.map(|answer| {
                let bytes = answer.bytes();
                (answer, bytes)
            })
        });
        let failed = |_| wire::Error::Panicked(question.name.into());
        let (mut answer, bytes) = reported.await.map_err(failed)??;
        self.add_past(question, &mut answer).await;
        Ok((answer, bytes))
    }

    /// Adds what the recording knows of it to an answer about now.
    async fn add_past(&self, question: &Question, answer: &mut Answer) {
        match question.name {
            Status::NAME => self.past.describe(answer).await,
            Diagnose::NAME => self.past.mention(answer).await,
            _ => {}
        }
    }
}

/// The end of one client's last answer, for tools that can be continued.
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
