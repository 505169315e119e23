//! Where log lines go: a person's terminal, or the journal when systemd runs us. Never stdout, which is MCP's.
//!
//! What happened is the message, and its particulars are fields (`NETMON_TOOL`, `NETMON_UID`, `NETMON_MS` … in the journal).
//! The daemon never logs what a client asked or was told. A gateway that serves HTTP logs what was asked, and by whom.

use std::{
    io,
    sync::Mutex,
    time::{Duration, Instant},
};

use tracing_subscriber::{EnvFilter, Layer, Registry, layer::SubscriberExt, util::SubscriberInitExt};

use crate::sync::lock;

/// The format of log lines.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq)]
pub enum Format {
    /// The journal if systemd connected us to it, else text.
    #[default]
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
    /// The native protocol of the journal, with fields.
    Journal,
}

/// Starts logging. `RUST_LOG` overrides `default`.
pub fn start(default: &str, format: Format) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::registry().with(layer(format)).with(filter).init();
}

fn layer(format: Format) -> Box<dyn Layer<Registry> + Send + Sync> {
    let journal = format == Format::Journal || format == Format::Auto && under_systemd();
    if let Some(Ok(journal)) = journal.then(tracing_journald::layer) {
        return journal.with_field_prefix(Some("NETMON".into())).boxed();
    }
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
    match format {
        Format::Json => lines.json().flatten_event(true).boxed(),
        _ => lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).boxed(),
    }
}

/// systemd names the device and inode of the stream that it connected to the journal (systemd.exec(5)).
fn under_systemd() -> bool {
    let Some(named) = std::env::var_os("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(io::stderr()).is_ok_and(|stat| *named == *format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Bounds what one kind of line may add to the log, and counts what was left out.
pub struct Throttle {
    per_second: u32,
    state: Mutex<Second>,
}

struct Second {
    began: Option<Instant>,
    admitted: u32,
    skipped: u64,
}

impl Throttle {
    pub const fn new(per_second: u32) -> Self {
        Throttle { per_second, state: Mutex::new(Second { began: None, admitted: 0, skipped: 0 }) }
    }

    /// `None` if this line is to be left out, else how many were since the last that was not.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut state = lock(&self.state);
        if state.began.is_none_or(|began| now.saturating_duration_since(began) >= Duration::from_secs(1)) {
            (state.began, state.admitted) = (Some(now), 0);
        }
        if state.admitted == self.per_second {
            state.skipped += 1;
            return None;
        }
        state.admitted += 1;
        Some(std::mem::take(&mut state.skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttle_drops_and_counts_excess_lines() {
        let (throttle, now) = (Throttle::new(2), Instant::now());
        let admitted: Vec<_> = (0..5).map(|_| throttle.admit_at(now)).collect();
        assert_eq!(admitted, [Some(0), Some(0), None, None, None]);
        assert_eq!(throttle.admit_at(now + Duration::from_secs(1)), Some(3));
        assert_eq!(throttle.admit_at(now + Duration::from_secs(2)), Some(0));
    }
}
