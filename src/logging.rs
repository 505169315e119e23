//! Where log lines go: a person's terminal, or the journal when systemd runs us. Never stdout, which is MCP's.

use std::io;

use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// Starts logging. `RUST_LOG` overrides `default`.
pub fn start(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let journal = under_systemd().then(|| tracing_journald::layer().ok()).flatten();
    let person = journal.is_none().then(|| {
        let colour = io::IsTerminal::is_terminal(&io::stderr());
        tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(colour).with_target(false)
    });
    tracing_subscriber::registry().with(filter).with(journal).with(person).init();
}

/// systemd names the device and inode of the stream that it connected to the journal (systemd.exec(5)).
fn under_systemd() -> bool {
    let Some(named) = std::env::var_os("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(io::stderr()).is_ok_and(|stat| *named == *format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Sends what libbpf says to the log: its complaints about an object are for who debugs it, ours says what it means.
pub fn adopt_libbpf() {
    libbpf_rs::set_print(Some((
        libbpf_rs::PrintLevel::Debug,
        |_, text| tracing::debug!(target: "libbpf", "{}", text.trim_end()),
    )));
}
