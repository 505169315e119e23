//! The daemon: loads every BPF object, drops its privileges, and answers the gateway's questions.

use std::{
    os::fd::{FromRawFd, OwnedFd},
    path::PathBuf,
    process::ExitCode,
};

use clap::{CommandFactory, Parser};
use netmon_mcp::{
    daemon::{
        host::{self, Host},
        kernel::{self, features::Features},
        peers::Peers,
        serve::{self, Listener},
    },
    logging, memory,
    sandbox::{self, Account},
    supervisor::{self, Supervisor},
    tools::SAMPLERS,
    version::VERSION,
};

/// Measures this host's network with eBPF, for netmon-mcp. Start it as root, or with CAP_BPF, CAP_PERFMON and
/// CAP_NET_ADMIN: it drops all unneeded privileges after loading its programs.
#[derive(Parser)]
#[command(name = "netmond", version = VERSION.as_str())]
struct Arguments {
    /// The socket to listen on, unless systemd passes one.
    #[arg(long, value_name = "PATH", default_value = "/run/netmon/netmond.sock")]
    socket: PathBuf,
    /// The group that may use netmond, besides root.
    #[arg(long, value_name = "GROUP", default_value = "netmon")]
    group: String,
    /// The user to switch to when started as root; `nobody` if it does not exist.
    #[arg(long, value_name = "USER", default_value = "netmon")]
    user: String,
    /// A tool to disable; may be repeated.
    #[arg(long, value_name = "TOOL")]
    without: Vec<String>,
    /// A user ID that may use netmond, besides root; may be repeated. Default: every user who can open the socket.
    #[arg(long, value_name = "UID")]
    allow_uid: Vec<u32>,
    /// Log format; `auto`: the journal under systemd, else text.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: logging::Format,
    /// Print the manual page.
    #[arg(long, exclusive = true)]
    man: bool,
    /// The channel to the gateway that started this daemon for itself.
    #[arg(long, value_name = "FD", hide = true)]
    parent: Option<i32>,
}

fn main() -> ExitCode {
    memory::share_arenas(1);
    let arguments = Arguments::parse();
    logging::start("info", arguments.log_format);
    kernel::adopt_libbpf();
    let done = if arguments.man { manual() } else { run(arguments) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

fn manual() -> anyhow::Result<()> {
    clap_mangen::Man::new(Arguments::command()).section("8").render(&mut std::io::stdout())?;
    Ok(())
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let listener = match arguments.parent {
        // SAFETY: the gateway passed this descriptor to us alone; nothing else in this process has it.
        Some(fd) => Listener::Parent(unsafe { OwnedFd::from_raw_fd(fd) }),
        None => match supervisor::activated()? {
            Some(listener) => Listener::Socket(listener),
            None => Listener::bind(&arguments.socket, &arguments.group)
                .map_err(|e| anyhow::anyhow!("cannot listen at {}: {e}", arguments.socket.display()))?,
        },
    };
    // Before the sandbox closes: it is a connection to systemd's socket.
    let supervisor = if arguments.parent.is_some() { Supervisor::default() } else { Supervisor::from_environment() };
    sandbox::allow_locking();
    sandbox::cut_to_loading(&Account::system(&arguments.user))?;
    tracing::info!(capabilities = sandbox::held().join(" "), "loading");
    let features = Features::probe();
    let keeps = features.keeps(host::features(SAMPLERS, &arguments.without));
    let host = Host::start(SAMPLERS, features, &arguments.without);
    // From here on this thread, and each that serves, holds what serving needs and nothing else.
    sandbox::cut_to(&keeps)?;
    sandbox::confine(sandbox::Role::Daemon, &sandbox::Reach::default());
    if matches!(listener, Listener::Socket(_)) {
        host.load_all(); // strangers may ask here: nobody is answered while a thread holds a capability
    }
    tracing::info!(capabilities = sandbox::held().join(" "), "serving");
    serve::serve(&listener, &host, &Peers::new(arguments.allow_uid), &supervisor)?;
    Ok(())
}
