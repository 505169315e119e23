//! The gateway: an MCP server without any privilege, and the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    netmon_mcp::memory::share_one_arena();
    let _ = netmon_mcp::sandbox::no_new_privileges();
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
