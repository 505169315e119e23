//! The command line of a tool: `netmon-mcp TOOL key=value`, and the same after `call`.

use std::{ffi::OsStr, time::Duration};

use clap::{
    Arg, ArgMatches, Args, Command, FromArgMatches, Subcommand, ValueEnum,
    builder::{PossibleValue, StringValueParser, TypedValueParser},
};

use super::completion;
use crate::{
    gateway::{manual, offer},
    limits,
    tools::{QUESTIONS, Question},
};

pub const EXAMPLES: &str = "Examples:
  netmon-mcp diagnose --exit-code || echo \"a fault, or no answer\"
  netmon-mcp top_traffic duration=500ms
  netmon-mcp trace_connections outcome=failed duration=10s
  netmon-mcp snapshot_sockets state=listen port=443 -o csv
  netmon-mcp trace_drops remote=10.0.0.0/8 -o json | jq .drops
  netmon-mcp top_traffic --watch=2

Ctrl-C ends an open window and prints what was measured until then; a second one cancels.
Exit codes: 0 answer, 1 error, 2 usage error, 3 a fault was found (with --exit-code), 130 cancelled.";

/// The question, and the output format.
#[derive(Args)]
pub struct How {
    /// The tool's arguments, as key=value; see `netmon-mcp tools TOOL`. Times can have a unit: duration=2s.
    #[arg(value_name = "KEY=VALUE", value_parser = key_value, add = completion::arguments())]
    pub arguments: Vec<(String, String)>,
    /// Output format, on standard output. With json or ndjson, errors on standard error are JSON, too.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    output: Form,
    /// Same as `--output json`.
    #[arg(long, conflicts_with = "output")]
    json: bool,
    /// Measure until Ctrl-C. Print an answer every SECONDS (default: 1), and as text the total at the end.
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "1",
          value_parser = seconds)]
    pub watch: Option<Duration>,
    /// Exit with 3 if `diagnose` has a finding above info. 0 means that no fault was seen; `healthy` in the structured
    /// answer is null if some checks could not run.
    #[arg(long)]
    pub exit_code: bool,
}

impl How {
    pub fn form(&self) -> Form {
        if self.json { Form::Json } else { self.output }
    }
}

/// How an answer is printed.
#[derive(Clone, Copy, Default, PartialEq, ValueEnum)]
pub enum Form {
    /// Tables and lines for people.
    #[default]
    Text,
    /// The structured answer.
    Json,
    /// The structured answer on one line.
    Ndjson,
    /// The first non-empty list of the answer, with a header line.
    Csv,
}

/// A tool as a command of its own.
pub struct Asking {
    pub tool: String,
    pub how: How,
}

impl FromArgMatches for Asking {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let Some((tool, matches)) = matches.subcommand() else {
            return Err(clap::Error::new(clap::error::ErrorKind::MissingSubcommand));
        };
        Ok(Asking { tool: tool.into(), how: How::from_arg_matches(matches)? })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Asking::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Subcommand for Asking {
    fn augment_subcommands(command: Command) -> Command {
        command.subcommands(QUESTIONS.iter().map(own_command))
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        Asking::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        Question::named(name).is_some()
    }
}

/// Its `--help` is what `netmon-mcp tools TOOL` says.
fn own_command(question: &'static Question) -> Command {
    Command::new(question.name).about(question.title).defer(|command| {
        let question = Question::named(command.get_name());
        let about = question.map(|question| manual::describe(&offer::tool(question))).unwrap_or_default();
        How::augment_args(command).long_about(about).after_help(EXAMPLES)
    })
}

/// Reads the name of a tool. Which tools exist is known when the settings are read: then an unknown name is refused.
#[derive(Clone)]
pub struct ToolName;

impl TypedValueParser for ToolName {
    type Value = String;

    fn parse_ref(&self, command: &Command, argument: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, argument, value)
    }

    /// For help and completion.
    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(QUESTIONS.iter().map(|question| PossibleValue::new(question.name))))
    }
}

/// As long as a window may be.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let with_unit = || text.parse::<jiff::SignedDuration>().ok()?.try_into().ok();
    let bare = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let time: Option<Duration> = bare.or_else(with_unit);
    let allowed = limits::WINDOW_MIN..=limits::WINDOW_MAX;
    let [least, most] = [allowed.start(), allowed.end()].map(Duration::as_secs_f64);
    time.filter(|time| allowed.contains(time))
        .ok_or_else(|| format!("expected {least} s to {most} s, such as 2 or 500ms"))
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE, such as duration=2s")?;
    Ok((key.into(), value.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_may_have_units() {
        let of = |text: &str| seconds(text).map(|time| time.as_millis());
        assert_eq!((of("2"), of("0.5"), of("2s"), of("500ms")), (Ok(2_000), Ok(500), Ok(2_000), Ok(500)));
        assert!(of("70s").unwrap_err().contains("500ms") && of("x").is_err());
    }
}
