//! The gateway: an MCP server without any privilege, and the command line.

use std::process::ExitCode;

/// The settings that come from the environment.
const VARIABLES: [&str; 3] = ["NET_IFACE", "MCP_TRANSPORT", "MCP_PORT"];

fn main() -> ExitCode {
    if let Err(e) = netmon_mcp::starter::give_up_root() {
        eprintln!("netmon-mcp: dropping root failed, so it exits: {e}");
        return ExitCode::FAILURE;
    }
    for variable in VARIABLES {
        if std::env::var_os(variable).is_some_and(|value| value.is_empty()) {
            // Set to nothing, as `${NET_IFACE:-}` does, is not set.
            // SAFETY: no other thread runs yet that could read the environment.
            unsafe { std::env::remove_var(variable) };
        }
    }
    netmon_mcp::memory::share_arenas(1);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("netmon-mcp: {e}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(netmon_mcp::gateway::cli::run());
    // A thread may sit in read(2) on a terminal's input; it has nothing to say any more.
    runtime.shutdown_background();
    code
}
