//! `hosts`: the gateway's own tool, which lists the other hosts with their state.

use std::sync::Arc;

use futures::future::join_all;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Host, State};
use crate::{
    answer,
    gateway::Failure,
    tools::{Answer, output_schema},
    wire,
};

/// The tool that lists them. It is the gateway's own, and only there if there are any.
pub use crate::gateway::http::identity::HOSTS_TOOL as TOOL;

/// Its title.
pub const TITLE: &str = "Other hosts";

/// When to use it.
pub const DESCRIPTION: &str =
    "Lists the other hosts that every tool can measure (argument host), and whether they answer now.";

/// Its answer.
#[derive(Serialize, JsonSchema)]
struct States {
    hosts: Vec<State>,
}

/// The schema of its question, which has no argument.
pub fn input() -> Value {
    json!({"type": "object", "properties": {}, "additionalProperties": false})
}

/// The schema of its answer.
pub fn output() -> Value {
    output_schema::<States>()
}

/// Checks the arguments: there must be none.
pub fn check(arguments: &Map<String, Value>) -> Result<(), Failure> {
    match arguments.iter().find(|(_, value)| !value.is_null()) {
        Some(_) => Err(wire::Error::InvalidInput(format!("{TOOL} takes no arguments")).into()),
        None => Ok(()),
    }
}

/// Tries to reach every host, all at once, each for as long as a connection may take; then lists them.
pub async fn states(hosts: &[Arc<Host>]) -> Answer {
    let hosts = join_all(hosts.iter().map(|host| host.look())).await;
    let rows = hosts.iter().map(|host| {
        let state = if host.connected { "connected" } else { "unreachable" };
        let more = host.reason.clone().or_else(|| host.version.clone()).unwrap_or_default();
        [host.name.clone(), host.target.clone(), state.into(), more]
    });
    let text = answer::table(["host", "target", "state", "version, or error"], rows);
    Answer { structured: serde_json::to_value(States { hosts }).unwrap_or_default(), text }
}

/// The hosts that have not answered yet, as the progress of [`states`].
pub fn progress(hosts: &[Arc<Host>]) -> String {
    let names: Vec<_> = hosts.iter().filter(|host| host.is_connecting()).map(|host| host.named.name.as_str()).collect();
    format!("connecting to {}", names.join(", "))
}
