//! One log line per call: caller, tool, outcome. They are separate fields in the journal.

use std::time::Duration;

use serde_json::{Map, Value};

use super::{Failure, hosts::look, http::callers::Sender, metrics::Metrics};
use crate::{
    limits,
    tools::{Answer, Question},
    untrusted,
};

/// What a completion is called that asks the daemon: it costs as much as a call.
pub const COMPLETION: &str = "completion/complete";
/// What the stream of screens is called.
pub const LIVE: &str = "live";

/// A call's arguments, as text that is safe to log and not long.
pub struct Arguments(String);

impl Arguments {
    pub fn of(arguments: &Map<String, Value>) -> Self {
        if arguments.is_empty() {
            return Arguments("{}".into());
        }
        let text = serde_json::to_string(arguments).unwrap_or_default();
        // Quotes and backslashes are JSON's own; what could act on a terminal is not.
        Arguments(untrusted::short(&text, limits::AUDIT_CHARS))
    }
}

/// A call that has ended.
pub struct Entry<'a> {
    pub tool: &'a str,
    pub arguments: Arguments,
    /// The caller, over HTTP. On standard input, the caller is the user that started this process, and netmond logs
    /// that user.
    pub sender: Option<&'a Sender>,
    pub took: Duration,
}

impl Entry<'_> {
    /// Writes the line and counts the call.
    pub fn write(&self, result: &Result<Answer, Failure>, metrics: &Metrics) {
        let answer = result.as_ref().ok();
        self.write_outcome(result.as_ref().map(|_| ()), answer, metrics);
    }

    /// The same of what may not be a tool's answer.
    pub fn write_outcome(&self, outcome: Result<(), &Failure>, answer: Option<&Answer>, metrics: &Metrics) {
        let error = outcome.err();
        let outcome = error.map_or("ok", Failure::kind);
        let lost = answer.and_then(|answer| answer.structured["measured"]["lost_events"].as_u64());
        let known = match Question::named(self.tool) {
            Some(question) => question.name,
            None if self.tool == look::TOOL => look::TOOL,
            None if self.tool == COMPLETION => COMPLETION,
            None if self.tool == LIVE => LIVE,
            None => "unknown",
        };
        metrics.called(known, outcome, self.took, lost.unwrap_or_default());
        let Some(sender) = self.sender else { return };
        // Of each client by itself: what one asks does not hide what another does.
        let Some(skipped) = sender.caller.audited.admit() else { return };
        let rows = answer.and_then(rows);
        let error = error.map(|e| untrusted::short(&e.to_string(), limits::AUDIT_CHARS));
        tracing::info!(
            target: "netmon_mcp::audit",
            tool = untrusted::short(self.tool, limits::LOGGED_CHARS),
            arguments = self.arguments.0,
            who = %sender.caller.identity,
            peer = %sender.peer,
            ms = self.took.as_millis() as u64,
            rows,
            outcome,
            error,
            skipped,
            "call"
        );
    }
}

/// How many rows an answer has: those of its longest list.
fn rows(answer: &Answer) -> Option<u64> {
    let lists = answer.structured.as_object()?.values().filter_map(Value::as_array);
    lists.map(|list| list.len() as u64).max()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn logged_arguments_are_cut_and_escaped() {
        let shown = |value: Value| Arguments::of(value.as_object().unwrap()).0;
        assert_eq!(shown(json!({})), "{}");
        assert_eq!(shown(json!({"a": "\u{1b}[2J\u{202e}"})), "{\"a\":\"\\u001b[2J\u{fffd}\"}");
        assert_eq!(shown(json!({"a": "é".repeat(100_000)})).chars().count(), limits::AUDIT_CHARS + 1);
    }

    #[test]
    fn logged_rows_are_those_of_the_longest_list() {
        let answer = |structured| Answer { structured, text: String::new() };
        assert_eq!(rows(&answer(json!({"a": [1], "b": [1, 2], "c": 9}))), Some(2));
        assert_eq!(rows(&answer(json!({"a": 1}))), None);
    }
}
