//! What the gateway and the daemon say to each other: one line of JSON each way, one request a
//! connection. Closing the connection cancels the request; closing it for writing only ends its window now.

use std::io;

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

/// Raised with every change that an older peer would misread.
pub const VERSION: u32 = 1;

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
}

/// The answer of a daemon: a sample, or why there is none.
#[derive(Serialize, Deserialize, Debug)]
pub struct Response {
    /// [`VERSION`] of the daemon.
    pub version: u32,
    /// The tool's `Sample`, as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

/// Why the daemon has no sample. The message tells the reader what to do next.
#[derive(Serialize, Deserialize, thiserror::Error, Clone, Debug, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Error {
    /// The gateway and the daemon are of different releases.
    #[error(
        "the daemon speaks version {daemon} of the socket protocol and the gateway version {gateway}; restart whichever of netmond and netmon-mcp is the older"
    )]
    Version { daemon: u32, gateway: u32 },
    /// No such tool in this release.
    #[error("no tool named {0}; `netmon-mcp tools` lists them")]
    UnknownTool(String),
    /// The kernel refused the tool's BPF object when the daemon started.
    #[error("{tool} is not available on this host: {reason}")]
    Unavailable { tool: String, reason: String },
    /// What was asked cannot be meant; the text says what is allowed.
    #[error("{0}")]
    InvalidInput(String),
    /// Who asked may not.
    #[error("{0}")]
    Forbidden(String),
    /// A bound was reached.
    #[error("{0}")]
    Busy(String),
    /// What was measured disappeared.
    #[error("{0}")]
    Gone(String),
    /// The kernel said no to something that it allowed before.
    #[error("the kernel refused: {0}")]
    Kernel(String),
    /// The client hung up, so nobody reads this.
    #[error("cancelled")]
    Cancelled,
    /// The daemon was told to stop.
    #[error("netmond is shutting down and ended the measurement; call again when it is back")]
    ShuttingDown,
    /// A bug, in a tool.
    #[error("{0} failed inside netmond, which goes on; its log has the details. Please report this")]
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

/// What to do about a resource that ran out.
fn remedy(kind: io::ErrorKind, errno: Option<i32>) -> &'static str {
    match (kind, errno) {
        (io::ErrorKind::OutOfMemory, _) => {
            ". There is no memory for netmond's maps: give it more (MemoryMax= of its unit), or leave a tool out (--without)"
        }
        (_, Some(libc::EMFILE | libc::ENFILE)) => {
            ". netmond may have no more open files: raise LimitNOFILE= of its unit, or ask less at once"
        }
        (io::ErrorKind::StorageFull, _) => {
            ". A map or a table of the kernel is full: ask less at once, and report this"
        }
        _ => "",
    }
}
