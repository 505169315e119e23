//! Daemons with a few tools. Loading every tool takes more CPU time than many tests.

use netmon_mcp::tools::SAMPLERS;

use super::{Daemon, Netns};

/// Tools that load fast.
const LIGHT: [&str; 3] = ["network-monitor", "snapshot_interfaces", "snapshot_sockets"];

/// Tools that list the sockets of processes.
const SOCKETS: [&str; 4] = ["profile_tcp", "snapshot_sockets", "top_traffic", "trace_connections"];

impl Daemon {
    /// A netmond with only one tool and `status`.
    pub fn of(tool: &str) -> Daemon {
        Daemon::with(&[tool])
    }

    pub fn of_sockets() -> Daemon {
        Daemon::with(&SOCKETS)
    }

    /// For tests of the gateway.
    pub fn light() -> Daemon {
        Daemon::with(&LIGHT)
    }

    /// A netmond with only these tools and `status`.
    pub fn with(tools: &[&str]) -> Daemon {
        // In a guest, the daemon of all tests has every tool.
        if std::env::var_os("NETMON_TEST_SOCKET").is_some() {
            Daemon::start()
        } else {
            Daemon::start_with(&only(tools))
        }
    }
}

/// The same in a namespace.
pub fn daemon_for(tool: &str, netns: &Netns) -> Daemon {
    netns.enter(|| Daemon::start_with(&only(&[tool])))
}

/// The arguments of a netmond with only these tools and `status`.
fn only(tools: &[&str]) -> Vec<&'static str> {
    let others = SAMPLERS.iter().map(|sampler| sampler.name).filter(|name| !tools.contains(name) && *name != "status");
    others.flat_map(|name| ["--without", name]).collect()
}
