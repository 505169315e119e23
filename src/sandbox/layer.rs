//! The layers of a sandbox, and for which role they are.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The layer that keeps memory out of swap.
pub const MEMORY: &str = "memory";

/// One thing that was given up, or could not be.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct Layer {
    pub name: String,
    pub applied: bool,
    // What it withholds, or why it is not there.
    pub detail: String,
}

impl Layer {
    pub(super) fn new(name: &str, result: Result<String, String>) -> Self {
        let applied = result.is_ok();
        Layer { name: name.into(), applied, detail: result.unwrap_or_else(|reason| reason) }
    }

    /// Whether the host should apply it and does not. Whether memory may be swapped is the administrator's choice.
    pub fn is_lacking(&self) -> bool {
        !self.applied && self.name != MEMORY
    }
}

/// What a process still has to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// Serve samples: attach what is loaded, read maps and the kernel's tables.
    Daemon,
    /// Speak MCP and call the daemon. It listens already and can open only the files that it must reload.
    Gateway,
    /// A gateway that draws on a terminal, and reads the recording.
    Viewer,
    /// A gateway that also asks an authorization server, or other hosts over HTTP: it resolves names, and connects.
    ClientGateway,
    /// Ask the daemon, and write a recording in one folder.
    Recorder,
    /// A gateway that starts ssh to ask other hosts, and ssh does what ssh does.
    SshGateway,
}
