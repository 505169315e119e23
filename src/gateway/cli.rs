//! The command line.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory, Parser, Subcommand, builder::PossibleValuesParser};
use clap_complete::Shell;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};

use super::{Failure, Gateway, clients, daemon::Daemon, doctor, stdio};
use crate::{
    answer, logging,
    sandbox::Role,
    tools::{Answer, QUESTIONS, Question},
};

/// Measures this host's network in the kernel, with eBPF, and answers over MCP.
///
/// Without a command it is an MCP server on standard input and output, for a client that starts it.
#[derive(Parser)]
#[command(
    name = "netmon-mcp",
    version,
    after_help = "Examples:
  netmon-mcp call snapshot_interfaces
  netmon-mcp call network-monitor operation=incoming duration=2
  netmon-mcp call network-monitor operation=outgoing --json
  sudo netmon-mcp call status        (no service: starts a daemon for the call)"
)]
pub struct Arguments {
    /// Where netmond listens.
    #[arg(long, global = true, value_name = "PATH", default_value = super::daemon::SOCKET)]
    socket: PathBuf,
    /// The interface that network-monitor measures when none is named.
    #[arg(long, global = true, value_name = "NAME", env = "NET_IFACE")]
    interface: Option<String>,
    /// How to log, on standard error: `auto` is the journal under systemd, else text.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: logging::Format,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve MCP on standard input and output (what happens without a command).
    Stdio,
    /// Ask one tool and print its answer.
    Call {
        /// The tool; `netmon-mcp tools` tells them apart.
        #[arg(value_parser = PossibleValuesParser::new(QUESTIONS.iter().map(|q| q.name)))]
        tool: String,
        /// Its arguments, as key=value.
        #[arg(value_name = "KEY=VALUE", value_parser = key_value)]
        arguments: Vec<(String, String)>,
        /// Print the structured answer.
        #[arg(long)]
        json: bool,
    },
    /// List the tools, or one of them with its arguments.
    Tools {
        #[arg(value_parser = PossibleValuesParser::new(QUESTIONS.iter().map(|q| q.name)))]
        tool: Option<String>,
    },
    /// Say what this host allows, what is missing, and how to mend it.
    Doctor,
    /// Show how to point MCP clients at this server.
    Clients,
    /// Print a completion script for a shell.
    Completions { shell: Shell },
    /// Print the manual page.
    Man,
}

/// Runs the program.
pub async fn run() -> ExitCode {
    let arguments = Arguments::parse();
    logging::start("warn,netmon_mcp=info", arguments.log_format);
    let gateway = Gateway::new(Daemon::new(arguments.socket.clone(), Role::Gateway), arguments.interface.clone());
    if matches!(arguments.command, None | Some(Command::Stdio | Command::Call { .. })) {
        gateway.confine();
    }
    let done = match arguments.command {
        None | Some(Command::Stdio) => stdio::serve(gateway).await,
        Some(Command::Call { tool, arguments, json }) => return call(&gateway, &tool, arguments, json).await,
        Some(Command::Doctor) => {
            let (text, well) = doctor::examine(&gateway, &arguments.socket).await;
            print(&text);
            return if well { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        Some(Command::Tools { tool }) => {
            print(&tool.and_then(|name| Question::named(&name)).map_or_else(list, describe));
            Ok(())
        }
        Some(Command::Clients) => {
            let command =
                std::env::current_exe().map_or_else(|_| "netmon-mcp".into(), |path| path.display().to_string());
            print(&clients::instructions(&command));
            Ok(())
        }
        Some(Command::Completions { shell }) => {
            clap_complete::generate(shell, &mut Arguments::command(), "netmon-mcp", &mut io::stdout());
            Ok(())
        }
        Some(Command::Man) => clap_mangen::Man::new(Arguments::command()).render(&mut io::stdout()).map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&format!("{e:#}")),
    }
}

/// Prints, and does not mind a reader who has seen enough.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

fn fail(text: &str) -> ExitCode {
    eprintln!("netmon-mcp: {text}");
    ExitCode::FAILURE
}

async fn call(gateway: &Gateway, tool: &str, arguments: Vec<(String, String)>, json: bool) -> ExitCode {
    match ask(gateway, tool, arguments).await {
        Ok(answer) if json => print(&format!("{:#}\n", answer.structured)),
        Ok(answer) => print(&answer.text),
        Err(e) => return fail(&e.to_string()),
    }
    ExitCode::SUCCESS
}

async fn ask(gateway: &Gateway, tool: &str, arguments: Vec<(String, String)>) -> Result<Answer, Failure> {
    let schema = Question::named(tool).map(|question| (question.input_schema)()).unwrap_or_default();
    let arguments: Map<String, Value> =
        arguments.into_iter().map(|(key, text)| (key.clone(), value(&schema, &key, text))).collect();
    let call = gateway.prepare(tool, arguments)?;
    let bar = progress_bar(tool, call.duration);
    let mut work = std::pin::pin!(gateway.call(call));
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut work => break answer,
            _ = tick.tick() => if let Some(bar) = &bar { bar.set_position(bar.elapsed().as_millis() as u64) },
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    answer
}

/// On a terminal, for what takes longer than a blink.
fn progress_bar(tool: &str, duration: Duration) -> Option<ProgressBar> {
    if !io::stderr().is_terminal() || duration < Duration::from_millis(500) {
        return None;
    }
    let bar = ProgressBar::new(duration.as_millis() as u64).with_message(tool.to_owned());
    let style =
        ProgressStyle::with_template("{msg} {bar:40} {elapsed}").unwrap_or_else(|_| ProgressStyle::default_bar());
    Some(bar.with_style(style))
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("arguments are key=value, such as duration_ms=2000")?;
    Ok((key.into(), value.into()))
}

/// A shell has only text: what it means is the schema's to say.
fn value(schema: &Value, key: &str, text: String) -> Value {
    let kind = &schema["properties"][key]["type"];
    let is_text = |kind: &Value| {
        kind == "string" || kind.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "string"))
    };
    if is_text(kind) { Value::String(text) } else { serde_json::from_str(&text).unwrap_or(Value::String(text)) }
}

fn list() -> String {
    let first = |text: &str| text.split_inclusive(". ").next().unwrap_or_default().trim().to_owned();
    answer::table(["tool", "what for"], QUESTIONS.iter().map(|q| [q.name.to_owned(), first(q.description)]))
        + "\nnetmon-mcp tools TOOL shows a tool's arguments, netmon-mcp call TOOL [key=value ...] asks it.\n"
}

fn describe(question: &Question) -> String {
    let schema = (question.input_schema)();
    let rows = schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, property)| [name.clone(), property["description"].as_str().unwrap_or_default().to_owned()]);
    format!("{}: {}\n\n{}", question.name, question.description, answer::table(["argument", "meaning"], rows))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn text_becomes_what_the_schema_wants() {
        let schema = json!({"properties": {"name": {"type": ["string", "null"]}, "n": {"type": "integer"}}});
        assert_eq!(value(&schema, "name", "5".into()), json!("5"));
        assert_eq!(value(&schema, "n", "5".into()), json!(5));
        assert_eq!(value(&schema, "n", "x".into()), json!("x"));
        assert_eq!(value(&schema, "unknown", "true".into()), json!(true));
    }
}
