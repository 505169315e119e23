//! What the gateway and the daemon say to each other: a line of JSON with the request, one with the answer, and one in
//! between when the window opens, if that was asked for. A request may ask for a reading every so often instead: then
//! each is a line. Closing the connection cancels the request; closing it for writing only ends its window now, and the
//! answer, or the last reading, comes. After an answer the connection takes the next request.

use std::io;

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

/// Raised with every change that an older peer would misread.
pub const VERSION: u32 = 2;

/// The byte that a gateway sends with a connection to the daemon that it started: whether another connection follows.
pub const MORE: u8 = b'm';
/// It will not: what the request does not need is not loaded.
pub const LAST: u8 = b'l';

/// The question of a gateway.
#[derive(Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`] of the gateway.
    pub version: u32,
    /// A tool's name.
    pub tool: String,
    /// The tool's `Input`.
    pub input: Value,
    /// Whether the daemon says when the window opens. Before that it may have to load the tool.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tell_opened: bool,
    /// Milliseconds from one reading to the next, 100 to 60,000: a sample each, until the client hangs up. The window that
    /// the input asks for is then not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_ms: Option<u64>,
}

/// A line of a daemon: the window has opened, or a sample, or why there is none. The last two end a request that asks
/// for one answer; of one that asks for readings only an error does.
#[derive(Serialize, Deserialize, Debug, Default)]
pub struct Response {
    /// [`VERSION`] of the daemon.
    pub version: u32,
    /// The kernel counts from now on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub opened: bool,
    /// The tool's `Sample`, as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

impl Response {
    /// As a line of the socket.
    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// The line that says that the window has opened.
pub fn opened() -> Vec<u8> {
    Response { version: VERSION, opened: true, ..Response::default() }.line()
}

/// Why the daemon has no sample. The message includes the next step.
#[derive(Serialize, Deserialize, thiserror::Error, Clone, Debug, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Error {
    /// The gateway and the daemon are of different releases.
    #[error(
        "netmond speaks version {daemon} of the socket protocol, netmon-mcp version {gateway}; restart the older one"
    )]
    Version { daemon: u32, gateway: u32 },
    /// No such tool in this release.
    #[error("unknown tool {0}; `netmon-mcp tools` lists the tools")]
    UnknownTool(String),
    /// The kernel refused the tool's BPF object when the daemon started.
    #[error("{tool} is not available on this host: {reason}")]
    Unavailable { tool: String, reason: String },
    /// Invalid input; the text has the allowed values.
    #[error("{0}")]
    InvalidInput(String),
    /// Who asked may not.
    #[error("{0}")]
    Forbidden(String),
    /// A bound was reached.
    #[error("{0}")]
    Busy(String),
    /// What was to be measured is absent, or disappeared.
    #[error("{0}")]
    Gone(String),
    /// The kernel said no to something that it allowed before.
    #[error("the kernel refused: {0}")]
    Kernel(String),
    /// The client disconnected, so nobody reads this.
    #[error("cancelled")]
    Cancelled,
    /// The daemon is stopping.
    #[error("netmond is shutting down and stopped the measurement; call again after the restart")]
    ShuttingDown,
    /// A bug, in a tool.
    #[error("internal error in {0}: see netmond's log, and please report it. netmond keeps running")]
    Panicked(String),
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        Error::Kernel(format!("{e}{}", remedy(e.kind(), e.raw_os_error())))
    }
}

impl From<libbpf_rs::Error> for Error {
    fn from(e: libbpf_rs::Error) -> Self {
        let kind = match e.kind() {
            libbpf_rs::ErrorKind::OutOfMemory => io::ErrorKind::OutOfMemory,
            _ => io::ErrorKind::Other,
        };
        Error::Kernel(format!("{e:#}{}", remedy(kind, None)))
    }
}

/// The fix for an exhausted resource.
fn remedy(kind: io::ErrorKind, errno: Option<i32>) -> &'static str {
    match (kind, errno) {
        (io::ErrorKind::OutOfMemory, _) => {
            ". netmond has too little memory for its maps: raise MemoryMax= of its unit, or leave a tool out (--without)"
        }
        (_, Some(libc::EMFILE | libc::ENFILE)) => {
            ". netmond reached its limit of open files: raise LimitNOFILE= of its unit, or make fewer calls at once"
        }
        (io::ErrorKind::StorageFull, _) => {
            ". A kernel map or table is full: make fewer calls at once, and please report this"
        }
        _ => "",
    }
}
