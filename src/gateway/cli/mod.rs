//! The command line.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
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
    stdio, top,
};
use crate::{
    logging,
    recorder::{hook, record as recorder, time::Micros},
    sandbox::{Reach, Role},
    starter,
    tools::{Answer, Question, Tool, diagnose},
    version::VERSION,
};

mod asking;
mod call;
mod completion;
mod csv;
mod usage;
mod watch;

use asking::{Asking, Form, How, ToolName};
use call::call;

/// Measures this host's network in the kernel, with eBPF, and serves the results over MCP.
///
/// Without a command, it is an MCP server on standard input and output, which a client starts.
#[derive(Parser)]
#[command(
    name = "netmon-mcp",
    version = VERSION.as_str(),
    after_help = "Examples:
  netmon-mcp diagnose
  netmon-mcp top_traffic duration=10s
  netmon-mcp snapshot_sockets state=listen -o csv
  netmon-mcp trace_connections --help        (the arguments of a tool)
  sudo netmon-mcp status                     (without the service: starts netmond for the call)"
)]
pub struct Arguments {
    /// The settings file [default: /etc/netmon/netmon.toml, if it exists].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the settings, print what is wrong, and exit.
    #[arg(long, value_enum, value_name = "DEPTH", num_args = 0..=1, require_equals = true, default_missing_value = "full")]
    check_config: Option<Check>,
    #[command(flatten)]
    settings: Settings,
    /// Log format, on standard error; `auto`: the journal under systemd, else text.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: logging::Format,
    #[command(subcommand)]
    command: Option<Command>,
}

/// The depth of `--check-config`.
#[derive(Clone, Copy, ValueEnum)]
enum Check {
    /// The settings and every file in them.
    Full,
    /// Only the settings, no other file. For settings of another host.
    Syntax,
}

#[derive(Subcommand)]
enum Command {
    /// Serve MCP on standard input and output (the default).
    Stdio,
    /// Serve MCP over HTTP: with tokens at http://127.0.0.1:8080/mcp, without on a Unix socket for the group netmon.
    Http,
    /// Create a bearer token for a client, and print its line for the token file.
    Token {
        /// The client's name in the log.
        #[arg(value_parser = client_name)]
        name: String,
        /// Print a line with the token's digest, which is not a secret, and the token on standard error.
        #[arg(long)]
        digest: bool,
    },
    #[command(flatten)]
    Tool(Asking),
    /// Call a tool and print its answer; same as `netmon-mcp TOOL`.
    #[command(after_help = asking::EXAMPLES)]
    Call {
        /// The tool; `netmon-mcp tools` lists the tools.
        #[arg(value_parser = ToolName)]
        tool: String,
        #[command(flatten)]
        how: How,
    },
    /// List the tools, or the arguments of one tool.
    Tools {
        /// The tool.
        #[arg(value_parser = ToolName)]
        tool: Option<String>,
    },
    /// Watch this host at the terminal: traffic, failing connections, drops, DNS, findings; live and from the recording.
    #[command(after_help = TOP_HELP)]
    Top {
        /// Seconds between two readings, 0.1 to 60.
        #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = asking::seconds)]
        delay: Duration,
        /// Begin at a moment of the recording: 03:12, `2026-01-31 03:12` or -10m.
        #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = top::moment)]
        at: Option<Micros>,
    },
    /// Record measurements for `since` and `until`, until SIGTERM.
    Record,
    /// Run a program for each line of standard input: the sandbox of the recorder forbids that.
    #[command(hide = true)]
    IncidentHook {
        #[arg(last = true)]
        argv: Vec<String>,
    },
    /// Check this host: what works, what is missing, and how to fix it.
    Doctor,
    /// Print the configuration of MCP clients for this server.
    Clients,
    /// Print a completion script for a shell: commands, tools, arguments, process and interface names.
    Completions {
        /// The shell, for example: `eval "$(netmon-mcp completions bash)"`.
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
    let arguments: Arguments = usage::parse();
    usage::check(&arguments.settings);
    logging::start("warn,netmon_mcp=info", arguments.log_format);
    let settings = match Settings::find(arguments.config.as_deref()) {
        Ok(file) => arguments.settings.over(file),
        Err(fault) => return fail(&fault.to_string()),
    };
    if starter::was_root() && !settings.hosts.is_empty() {
        return fail(
            "other hosts are not available as root, because ssh uses your user's keys and settings: run netmon-mcp \
                without sudo",
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
    // It asks this host only.
    let is_viewer = matches!(arguments.command, Some(Command::Top { .. }));
    let role = if is_viewer { Role::Viewer } else { settings.role() };
    let mut daemon = Daemon::new(socket.clone(), role, settings.reach());
    if matches!(arguments.command, Some(Command::Tool(_) | Command::Call { .. } | Command::Doctor)) {
        daemon = daemon.single();
    }
    let ways = settings.ways();
    let hosts = settings.hosts.iter().filter(|_| !is_viewer).map(|named| Host::new(named.clone(), &ways)).collect();
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
        Command::Top { delay, at } => top::run(gateway, top::Options { every: delay, at }).await,
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

/// Records until SIGTERM.
fn record(settings: &Settings, socket: PathBuf) -> anyhow::Result<()> {
    let options = settings.recording.options();
    // Whoever reads is of the recorder's group.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o027));
    let own = vec![recorder::folder(&options.path).with_context(|| {
        format!(
            "{}: its directory is not usable; create it, or choose another file with --recording",
            options.path.display()
        )
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
            None if name == look::TOOL => return usage_error(NO_HOSTS, Form::Text),
            None => return failed(&offer::unknown_tool(name, gateway.hosts()), Form::Text),
        },
    };
    print(&text).map_or_else(|e| fail(&e.to_string()), |()| ExitCode::SUCCESS)
}

const TOP_HELP: &str = "Examples:
  netmon-mcp top
  netmon-mcp top --delay 2
  netmon-mcp top --at 03:12                             (the recording of the last night)
  netmon-mcp top --at -10m --recording copy.sqlite      (a recording of another host)

Keys:
  1 to 9, 0, Tab   pages                  /        filter as you type
  ↑ ↓, mouse       select a row           s S r    sort by the next column, the one before, reverse
  Enter            details of the row     v        another table: by unit, container, remote, connection
  Esc              back                   u        bits or bytes
  Space            pause                  ← →      back and forward in the recording
  ?                help with all keys     g n      go to a time, such as 03:12; back to now
  q, Ctrl-C        quit

It needs a terminal of at least 80 columns and 24 rows with UTF-8. NO_COLOR turns colours off. Rates and sockets are
about the newest reading; findings, failures, drops and DNS are about the last 10 to 20 seconds.";

const NO_HOSTS: &str = "no other host is configured: use --host NAME=TARGET (such as --host web1=ssh:root@web1), or \
    [hosts] in the settings";

/// The command for `MCP_TRANSPORT` or the settings file, if the command line has none.
fn default_command(transport: Option<Transport>) -> Command {
    if transport == Some(Transport::Sse) {
        tracing::warn!("MCP 2025-03-26 replaced the transport sse with http; serving http");
    }
    match transport {
        None | Some(Transport::Stdio) => Command::Stdio,
        Some(Transport::Http | Transport::Sse) => Command::Http,
    }
}

/// Prints; false if the reader has closed the pipe.
fn check(settings: &Settings, depth: Check) -> ExitCode {
    let checked = match depth {
        Check::Full => http::check(&settings.http).map(|_| ()),
        Check::Syntax => http::check_syntax(&settings.http),
    };
    match checked {
        Ok(()) => print("The settings are valid.\n").map_or_else(|e| fail(&e.to_string()), |()| ExitCode::SUCCESS),
        Err(e) => fail(&e.to_string()),
    }
}

/// A word of a line of the token file.
fn client_name(text: &str) -> Result<String, String> {
    let is_word = !text.is_empty() && !text.contains(char::is_whitespace) && !text.starts_with('#');
    if is_word { Ok(text.into()) } else { Err("expected one word that does not begin with #".into()) }
}

fn token(name: &str, digest: bool) -> anyhow::Result<()> {
    let token = tokens::generate()?;
    if !digest {
        return print(&format!("{name} {token}\n"));
    }
    print(&format!("{name} {}\n", tokens::digest_of(&token)))?;
    eprintln!("The token of {name} (shown only once): {token}");
    Ok(())
}

/// Prints, and ignores a closed pipe; a full disk is an error.
fn put(text: &str) -> anyhow::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(anyhow::anyhow!("writing the answer failed: {e}")),
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
            if let Some(cut) = structured["measured"]["rows_cut"].as_u64().filter(|cut| *cut > 0) {
                // A table has no place for it.
                eprintln!("{}: use a higher limit", crate::answer::count(cut, "more row", "more rows"));
            }
            csv::table(&structured, &schema)?
        }
        Form::Text if !paint::wanted() => text,
        Form::Text if tool == DIAGNOSE => paint::diagnosis(&text, structured["healthy"].as_bool()),
        Form::Text => paint::tables(&text),
    })
}

/// Ctrl-C, as it comes.
fn interrupts() -> Result<Signal, Failure> {
    signal(SignalKind::interrupt()).map_err(|e| Failure::Absent(format!("signal setup failed: {e}")))
}

fn fail(text: &str) -> ExitCode {
    complain(text, Form::Text);
    ExitCode::FAILURE
}

/// The error of a call.
fn failed(e: &Failure, form: Form) -> ExitCode {
    complain(&e.to_string(), form);
    if e.is_usage() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
}

/// The exit code of clap's errors, too.
fn usage_error(text: &str, form: Form) -> ExitCode {
    complain(text, form);
    ExitCode::from(USAGE)
}

/// Prints an error on standard error: as JSON if the answer would have been JSON.
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

/// The exit code that a shell expects after SIGINT.
const INTERRUPTED: u8 = 128 + 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_definition_is_consistent() {
        Arguments::command().debug_assert();
    }
}
