//! The command line.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    Failure, Gateway, clients,
    daemon::Daemon,
    doctor,
    hosts::{Host, look},
    http::{self, tokens},
    manual, offer, paint,
    settings::{Settings, Transport},
    stdio,
};
use crate::{
    logging,
    recorder::{hook, record as recorder},
    sandbox::{Reach, Role},
    starter,
    tools::{Answer, Question, Tool, diagnose},
    version::VERSION,
};

mod asking;
mod call;
mod completion;
mod csv;
mod watch;

use asking::{Asking, Form, How, tool_names};
use call::call;

/// Measures this host's network in the kernel, with eBPF, and answers over MCP.
///
/// Without a command it is an MCP server on standard input and output, for a client that starts it.
#[derive(Parser)]
#[command(
    name = "netmon-mcp",
    version = VERSION.as_str(),
    after_help = "Examples:
  netmon-mcp diagnose
  netmon-mcp top_traffic duration=10s
  netmon-mcp snapshot_sockets state=listen -o csv
  netmon-mcp trace_connections --help        (what may be asked, and in which words)
  sudo netmon-mcp status                     (no service: starts a daemon for the call)"
)]
pub struct Arguments {
    /// The file of settings [default: /etc/netmon/netmon.toml, if it is there].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the settings, say what is wrong with them, and do nothing else.
    #[arg(long, value_enum, value_name = "DEPTH", num_args = 0..=1, require_equals = true, default_missing_value = "full")]
    check_config: Option<Check>,
    #[command(flatten)]
    settings: Settings,
    /// How to log, on standard error: `auto` is the journal under systemd, else text.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: logging::Format,
    #[command(subcommand)]
    command: Option<Command>,
}

/// How deep `--check-config` looks.
#[derive(Clone, Copy, ValueEnum)]
enum Check {
    /// The settings and every file that they name.
    Full,
    /// Only what is written: no other file is opened. For settings that are checked before they are on their host.
    Syntax,
}

#[derive(Subcommand)]
enum Command {
    /// Serve MCP on standard input and output (what happens without a command).
    Stdio,
    /// Serve MCP over HTTP: with tokens at http://127.0.0.1:8080/mcp, else on a Unix socket for the group netmon.
    Http,
    /// Make a bearer token for a client, and print its line for the token file.
    Token {
        /// What the log calls the client.
        name: String,
        /// Print a line with the token's digest, which nobody can use, and the token itself on standard error.
        #[arg(long)]
        digest: bool,
    },
    #[command(flatten)]
    Tool(Asking),
    /// Ask one tool and print its answer, as the tool's own command does.
    #[command(after_help = asking::EXAMPLES)]
    Call {
        /// The tool; `netmon-mcp tools` tells them apart.
        #[arg(value_parser = tool_names())]
        tool: String,
        #[command(flatten)]
        how: How,
    },
    /// List the tools, or one of them with its arguments.
    Tools {
        /// The tool whose arguments are explained.
        #[arg(value_parser = tool_names())]
        tool: Option<String>,
    },
    /// Record what every tool that diagnose asks sees, for questions about the past (`since`, `until`), until SIGTERM.
    Record,
    /// Run a program for each line of standard input, for a recorder that may not.
    #[command(hide = true)]
    IncidentHook {
        #[arg(last = true)]
        argv: Vec<String>,
    },
    /// Say what this host allows, what is missing, and how to fix it.
    Doctor,
    /// Show how to point MCP clients at this server.
    Clients,
    /// Print a completion script for a shell: commands, tools, their arguments, names of processes and interfaces.
    Completions {
        /// Where it is to complete, such as in `eval "$(netmon-mcp completions bash)"`.
        #[arg(value_parser = completion::shells())]
        shell: String,
    },
    /// Print the manual page.
    Man,
}

/// Runs the program.
pub async fn run() -> ExitCode {
    if completion::complete(Arguments::command) {
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    logging::start("warn,netmon_mcp=info", arguments.log_format);
    let settings = match Settings::find(arguments.config.as_deref()) {
        Ok(file) => arguments.settings.over(file),
        Err(fault) => return fail(&fault.to_string()),
    };
    if starter::was_root() && !settings.hosts.is_empty() {
        return fail(
            "other hosts are asked as an ordinary user, with that user's keys and settings of ssh: run netmon-mcp without sudo",
        );
    }
    if let Some(depth) = arguments.check_config {
        return check(&settings, depth);
    }
    if let Some(Command::IncidentHook { argv }) = &arguments.command {
        return hook::serve(argv).map_or_else(|e| fail(&e.to_string()), |()| ExitCode::SUCCESS);
    }
    let socket = settings.socket.clone().unwrap_or_else(|| super::daemon::SOCKET.into());
    if let Some(Command::Record) = arguments.command {
        return record(&settings, socket).map_or_else(|e| fail(&format!("{e:#}")), |()| ExitCode::SUCCESS);
    }
    let mut daemon = Daemon::new(socket.clone(), settings.role(), settings.reach());
    if matches!(arguments.command, Some(Command::Tool(_) | Command::Call { .. } | Command::Doctor)) {
        daemon = daemon.single();
    }
    let ways = settings.ways();
    let hosts = settings.hosts.iter().map(|named| Host::new(named.clone(), &ways)).collect();
    let gateway = Gateway::new(daemon, settings.interface.clone(), hosts).recorded_in(settings.recording.path());
    let command = arguments.command.unwrap_or_else(|| default_command(settings.transport));
    if matches!(command, Command::Stdio | Command::Tool(_) | Command::Call { .. }) {
        gateway.confine();
    }
    let done = match command {
        Command::Stdio => stdio::serve(gateway).await,
        Command::Http => http::serve(&settings.http, gateway).await,
        Command::Token { name, digest } => token(&name, digest),
        Command::Tool(Asking { tool, how }) | Command::Call { tool, how } => return call(&gateway, &tool, how).await,
        Command::Record | Command::IncidentHook { .. } => Ok(()), // done by now
        Command::Doctor => {
            let (text, well) = doctor::examine(&gateway, &socket).await;
            return match print(&text) {
                Ok(()) if well => ExitCode::SUCCESS,
                Ok(()) => ExitCode::FAILURE,
                Err(e) => fail(&e.to_string()),
            };
        }
        Command::Tools { tool } => return tools(&gateway, tool.as_deref()),
        Command::Clients => {
            let command =
                std::env::current_exe().map_or_else(|_| "netmon-mcp".into(), |path| path.display().to_string());
            print(&clients::instructions(&command))
        }
        Command::Completions { shell } => completion::script(&shell).and_then(|script| print(&script)),
        Command::Man => manual::page(Arguments::command()).and_then(|page| print(&page)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&format!("{e:#}")),
    }
}

/// Records until it is told to stop.
fn record(settings: &Settings, socket: PathBuf) -> anyhow::Result<()> {
    let options = settings.recording.options().map_err(anyhow::Error::msg)?;
    // Whoever reads is of the recorder's group.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o027));
    let own = vec![recorder::folder(&options.path).with_context(|| {
        format!("{}: its folder cannot be used; make it, or name another file with --recording", options.path.display())
    })?];
    let daemon = Daemon::new(socket, Role::Recorder, Reach { own, ..Reach::default() });
    let confine = || daemon.confine(Reach::default());
    recorder::run(options, &mut || daemon.dial().map_err(|e| e.to_string()), confine)
}

/// Lists the tools that are served, or shows one with its arguments.
fn tools(gateway: &Gateway, name: Option<&str>) -> ExitCode {
    let tools = offer::tools(gateway.hosts());
    let text = match name {
        None => manual::list(&tools),
        Some(name) => match tools.iter().find(|tool| tool.name == name) {
            Some(tool) => manual::describe(tool),
            None => return usage_error(NO_HOSTS, Form::Text), // every other name is served
        },
    };
    print(&text).map_or_else(|e| fail(&e.to_string()), |()| ExitCode::SUCCESS)
}

const NO_HOSTS: &str = "no other host is configured: give --host NAME=TARGET (such as --host web1=ssh:root@web1), or [hosts] in the settings";

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
fn check(settings: &Settings, depth: Check) -> ExitCode {
    let checked = match depth {
        Check::Full => http::check(&settings.http).map(|_| ()),
        Check::Syntax => http::check_syntax(&settings.http),
    };
    match checked {
        Ok(()) => print("The settings are good.\n").map_or_else(|e| fail(&e.to_string()), |()| ExitCode::SUCCESS),
        Err(e) => fail(&e.to_string()),
    }
}

fn token(name: &str, digest: bool) -> anyhow::Result<()> {
    let is_word = !name.is_empty() && !name.contains(char::is_whitespace) && !name.starts_with('#');
    anyhow::ensure!(is_word, "invalid name for a client: use one word that does not begin with #");
    let token = tokens::generate()?;
    if !digest {
        return print(&format!("{name} {token}\n"));
    }
    print(&format!("{name} {}\n", tokens::digest_of(&token)))?;
    eprintln!("The token of {name}, which is shown only now: {token}");
    Ok(())
}

/// Prints: whether somebody still reads.
fn put(text: &str) -> anyhow::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e).context("the answer could not be written"),
        Ok(()) => Ok(true),
    }
}

/// Prints, and does not mind a reader who has seen enough; a full disk is another matter.
fn print(text: &str) -> anyhow::Result<()> {
    put(text).map(|_| ())
}

/// An answer as it is printed.
fn written(tool: &str, answer: Answer, form: Form) -> anyhow::Result<String> {
    let Answer { structured, text } = answer;
    Ok(match form {
        Form::Json => format!("{structured:#}\n"),
        Form::Ndjson => format!("{structured}\n"),
        Form::Csv => {
            let schema = Question::named(tool).map_or_else(look::output, |question| (question.whole_schema)());
            csv::table(&structured, &schema)?
        }
        Form::Text if tool == DIAGNOSE && paint::wanted() => paint::diagnosis(&text, structured["healthy"].as_bool()),
        Form::Text => text,
    })
}

/// Ctrl-C, as it comes.
fn interrupts() -> Result<Signal, Failure> {
    signal(SignalKind::interrupt()).map_err(|e| Failure::Absent(format!("no signals: {e}")))
}

fn fail(text: &str) -> ExitCode {
    complain(text, Form::Text);
    ExitCode::FAILURE
}

/// What clap exits with, too.
fn usage_error(text: &str, form: Form) -> ExitCode {
    complain(text, form);
    ExitCode::from(USAGE)
}

/// Says on standard error what is wrong: as JSON where the answer would have been JSON.
fn complain(text: &str, form: Form) {
    match form {
        Form::Json | Form::Ndjson => eprintln!("{}", serde_json::json!({ "error": text })),
        Form::Text | Form::Csv => eprintln!("netmon-mcp: {text}"),
    }
}

/// The tool that finds faults.
const DIAGNOSE: &str = diagnose::Diagnose::NAME;

/// With `--exit-code`: a finding is above info.
const FAULT_FOUND: u8 = 3;

/// An unknown tool or key, a value that is not allowed.
const USAGE: u8 = 2;

/// What a shell expects of a program that SIGINT has ended.
const INTERRUPTED: u8 = 128 + 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_definition_is_consistent() {
        Arguments::command().debug_assert();
    }
}
