//! The command line.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{CommandFactory, Parser, Subcommand, builder::PossibleValuesParser};
use clap_complete::Shell;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Failure, Gateway, clients,
    daemon::Daemon,
    doctor,
    hosts::Host,
    http::{self, tokens},
    manual, paint,
    settings::{Settings, Transport},
    stdio,
};
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
  netmon-mcp call diagnose
  netmon-mcp call snapshot_interfaces
  netmon-mcp call network-monitor operation=incoming duration=2
  netmon-mcp call network-monitor operation=outgoing --json
  sudo netmon-mcp call status        (no service: starts a daemon for the call)"
)]
pub struct Arguments {
    /// The file of settings [default: /etc/netmon/netmon.toml, if it is there].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the settings, say what is wrong with them, and do nothing else.
    #[arg(long)]
    check_config: bool,
    #[command(flatten)]
    settings: Settings,
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
    /// Serve MCP over HTTP, at http://127.0.0.1:8080/mcp unless told otherwise.
    Http,
    /// Make a bearer token for a client: a line for the file of tokens.
    Token {
        /// What the log calls the client.
        name: String,
    },
    /// Ask one tool and print its answer.
    ///
    /// Ctrl-C ends an open window and prints what was measured until then; a second one cancels.
    /// The exit code is 0 with an answer, 1 with an error, 2 for a command line that cannot be meant.
    #[command(after_help = CALL_EXAMPLES)]
    Call {
        /// The tool; `netmon-mcp tools` tells them apart.
        #[arg(value_parser = PossibleValuesParser::new(QUESTIONS.iter().map(|q| q.name)))]
        tool: String,
        /// Its arguments, as key=value; `netmon-mcp tools TOOL` explains them. None is needed but network-monitor's operation.
        #[arg(value_name = "KEY=VALUE", value_parser = key_value)]
        arguments: Vec<(String, String)>,
        /// Print the structured answer.
        #[arg(long)]
        json: bool,
    },
    /// List the tools, or one of them with its arguments.
    Tools {
        /// The tool whose arguments are explained.
        #[arg(value_parser = PossibleValuesParser::new(QUESTIONS.iter().map(|q| q.name)))]
        tool: Option<String>,
    },
    /// Say what this host allows, what is missing, and how to mend it.
    Doctor,
    /// Show how to point MCP clients at this server.
    Clients,
    /// Print a completion script for a shell.
    Completions {
        /// Where it is to complete, such as in `eval "$(netmon-mcp completions bash)"`.
        shell: Shell,
    },
    /// Print the manual page.
    Man,
}

const CALL_EXAMPLES: &str = "Examples:
  netmon-mcp call top_traffic
  netmon-mcp call trace_connections outcome=failed duration_ms=10000
  netmon-mcp call snapshot_sockets state=listen port=443
  netmon-mcp call trace_drops remote=10.0.0.0/8 --json | jq .drops";

/// Runs the program.
pub async fn run() -> ExitCode {
    let arguments = Arguments::parse();
    logging::start("warn,netmon_mcp=info", arguments.log_format);
    let settings = match Settings::find(arguments.config.as_deref()) {
        Ok(file) => arguments.settings.over(file),
        Err(fault) => return fail(&fault.to_string()),
    };
    if arguments.check_config {
        return check(&settings);
    }
    let socket = settings.socket.clone().unwrap_or_else(|| super::daemon::SOCKET.into());
    let role = if settings.connects() { Role::SshGateway } else { Role::Gateway };
    let daemon = Daemon::new(socket.clone(), role, settings.http.files());
    let ways = settings.ways();
    let hosts = settings.hosts.iter().map(|named| Host::new(named.clone(), &ways)).collect();
    let gateway = Gateway::new(daemon, settings.interface.clone(), hosts);
    let command = arguments.command.unwrap_or_else(|| default_command(settings.transport));
    if matches!(command, Command::Stdio | Command::Call { .. }) {
        gateway.confine();
    }
    let done = match command {
        Command::Stdio => stdio::serve(gateway).await,
        Command::Http => http::serve(&settings.http, gateway).await,
        Command::Token { name } => token(&name),
        Command::Call { tool, arguments, json } => return call(&gateway, &tool, arguments, json).await,
        Command::Doctor => {
            let (text, well) = doctor::examine(&gateway, &socket).await;
            return match print(&text) {
                Ok(()) if well => ExitCode::SUCCESS,
                Ok(()) => ExitCode::FAILURE,
                Err(e) => fail(&e.to_string()),
            };
        }
        Command::Tools { tool } => {
            print(&tool.and_then(|name| Question::named(&name)).map_or_else(manual::list, manual::describe))
        }
        Command::Clients => {
            let command =
                std::env::current_exe().map_or_else(|_| "netmon-mcp".into(), |path| path.display().to_string());
            print(&clients::instructions(&command))
        }
        Command::Completions { shell } => {
            let mut script = Vec::new(); // which may be written to: a pipe may be closed
            clap_complete::generate(shell, &mut Arguments::command(), "netmon-mcp", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Command::Man => manual::page(Arguments::command()).and_then(|page| print(&page)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&format!("{e:#}")),
    }
}

/// What `MCP_TRANSPORT` or the file of settings says, where no command does.
fn default_command(transport: Option<Transport>) -> Command {
    if transport == Some(Transport::Sse) {
        tracing::warn!("the transport sse was replaced by http in MCP 2025-03-26; serving http");
    }
    match transport {
        None | Some(Transport::Stdio) => Command::Stdio,
        Some(Transport::Http | Transport::Sse) => Command::Http,
    }
}

/// Whether the settings would do: those of a file were read already, and what they name must be there.
fn check(settings: &Settings) -> ExitCode {
    match http::check(&settings.http) {
        Ok(_) => print("The settings are good.\n").map_or_else(|e| fail(&e.to_string()), |()| ExitCode::SUCCESS),
        Err(e) => fail(&e.to_string()),
    }
}

fn token(name: &str) -> anyhow::Result<()> {
    anyhow::ensure!(!name.contains(char::is_whitespace) && !name.starts_with('#'), "a client's name is one word");
    print(&format!("{name} {}\n", tokens::generate()?))
}

/// Prints, and does not mind a reader who has seen enough; a full disk is another matter.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => anyhow::bail!("the answer could not be written: {e}"),
        _ => Ok(()),
    }
}

fn fail(text: &str) -> ExitCode {
    eprintln!("netmon-mcp: {text}");
    ExitCode::FAILURE
}

async fn call(gateway: &Gateway, tool: &str, arguments: Vec<(String, String)>, json: bool) -> ExitCode {
    if let Ok(terminal) = rustix::termios::tcgetwinsize(io::stdout()) {
        answer::fit(terminal.ws_col);
    }
    let printed = match ask(gateway, tool, arguments).await {
        Ok(Some(answer)) if json => print(&format!("{:#}\n", answer.structured)),
        Ok(Some(answer)) if tool == "diagnose" && paint::wanted() => print(&paint::diagnosis(&answer.text)),
        Ok(Some(answer)) => print(&answer.text),
        Ok(None) => return ExitCode::from(INTERRUPTED),
        Err(e) => return fail(&e.to_string()),
    };
    printed.map_or_else(|e| fail(&e.to_string()), |()| ExitCode::SUCCESS)
}

/// What a shell expects of a program that SIGINT has ended.
const INTERRUPTED: u8 = 128 + 2;

/// The answer, or nothing if it was cancelled: the first Ctrl-C ends the window, a second one cancels.
async fn ask(gateway: &Gateway, tool: &str, arguments: Vec<(String, String)>) -> Result<Option<Answer>, Failure> {
    let schema = Question::named(tool).map(|question| (question.input_schema)()).unwrap_or_default();
    let arguments: Map<String, Value> =
        arguments.into_iter().map(|(key, text)| (key.clone(), value(&schema, &key, text))).collect();
    let call = gateway.prepare(tool, arguments)?;
    let bar = progress_bar(tool, call.duration);
    let mut enough = call.can_end_early().then(|| Arc::clone(&call.enough));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| Failure::Absent(format!("no signals: {e}")))?;
    let mut work = std::pin::pin!(gateway.call(call));
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut work => break answer.map(Some),
            _ = interrupt.recv() => match enough.take() {
                Some(enough) => enough.notify_one(),
                None => break Ok(None),
            },
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
