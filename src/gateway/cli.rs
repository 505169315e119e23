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

use super::{
    Failure, Gateway, clients,
    daemon::Daemon,
    doctor,
    hosts::Host,
    http::{self, tokens},
    paint,
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
            print(&text);
            return if well { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        Command::Tools { tool } => {
            print(&tool.and_then(|name| Question::named(&name)).map_or_else(list, describe));
            Ok(())
        }
        Command::Clients => {
            let command =
                std::env::current_exe().map_or_else(|_| "netmon-mcp".into(), |path| path.display().to_string());
            print(&clients::instructions(&command));
            Ok(())
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "netmon-mcp", &mut io::stdout());
            Ok(())
        }
        Command::Man => clap_mangen::Man::new(Arguments::command()).render(&mut io::stdout()).map_err(Into::into),
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
        Ok(_) => {
            print("The settings are good.\n");
            ExitCode::SUCCESS
        }
        Err(e) => fail(&e.to_string()),
    }
}

fn token(name: &str) -> anyhow::Result<()> {
    anyhow::ensure!(!name.contains(char::is_whitespace) && !name.starts_with('#'), "a client's name is one word");
    print(&format!("{name} {}\n", tokens::generate()?));
    Ok(())
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
        Ok(answer) if tool == "diagnose" && paint::wanted() => print(&paint::diagnosis(&answer.text)),
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
