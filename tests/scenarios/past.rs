//! The same scenarios in the past: a recorder runs beside them, and each is diagnosed again with `since` and `until`.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use netmon_mcp::recorder::{
    store::{Recording, Sqlite},
    time::{self, Micros, Period},
};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::*;

/// Faults have ended for so long when the recording is asked.
const AGO: Duration = Duration::from_secs(60);

/// A recorder of this test's own, in the settings that users have by default.
pub struct Past {
    recorder: Child,
    path: PathBuf,
    _folder: TempDir,
}

impl Past {
    /// Starts to record, if `NETMON_PAST` asks for it.
    pub fn begin(daemon: &Daemon) -> Option<Past> {
        std::env::var_os("NETMON_PAST")?;
        let folder = TempDir::new().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let path = folder.path().join("recording.sqlite");
        let mut command = Command::new(GATEWAY);
        command.args(["record", "--socket"]).arg(&daemon.socket).arg("--recording").arg(&path);
        let recorder = command.env("RUST_LOG", "warn").stdin(Stdio::null()).spawn().unwrap();
        let past = Past { recorder, path, _folder: folder };
        until("a window is recorded", || past.end());
        Some(past)
    }

    /// The end of what is recorded.
    fn end(&self) -> Option<Micros> {
        Some(Sqlite::read(&self.path).ok()?.facts().ok()?.period?.end_us)
    }

    /// Waits until everything until now is recorded, and has ended long enough ago.
    pub fn settle(&self) {
        let (now, ended) = (time::now(), Instant::now());
        until("everything is recorded", || self.end().filter(|end| *end > now).map(drop));
        thread::sleep(AGO.saturating_sub(ended.elapsed()));
    }

    /// The diagnosis of a period.
    pub fn diagnose(&self, daemon: &Daemon, period: Period) -> Value {
        let [since, until] = [period.begin_us, period.end_us].map(time::shown);
        let mut command = Command::new(GATEWAY);
        command.args(["--socket"]).arg(&daemon.socket).arg("--recording").arg(&self.path);
        command.args(["diagnose", "limit=1000", "-o", "json"]);
        command.arg(format!("since={since}")).arg(format!("until={until}"));
        let output = command.stdin(Stdio::null()).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
    }
}

impl Drop for Past {
    fn drop(&mut self) {
        let _ = self.recorder.kill();
        let _ = self.recorder.wait();
    }
}
