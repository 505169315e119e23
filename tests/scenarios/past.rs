//! The same scenarios in the past: a recorder runs beside them, and each is diagnosed again with `since` and `until`.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use netmon_mcp::recorder::{
    store::{Recording, Sqlite},
    time::{self, Micros, Period},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::*;

/// Faults have ended for so long when the recording is asked.
const AGO: Duration = Duration::from_secs(60);

/// The windows of the recording, in seconds: scenarios wait for whole ones. `NETMON_PAST_INTERVAL=10` makes the usual ones,
/// which are judged when they are recorded.
fn interval() -> String {
    std::env::var("NETMON_PAST_INTERVAL").unwrap_or_else(|_| "2".into())
}

/// A recorder of this test's own.
pub struct Past {
    recorder: Mutex<Ended>,
    /// The netmond that took the place of the test's, after restarts.
    successor: Mutex<Option<Ended>>,
    begun_us: Micros,
    path: PathBuf,
    _folder: TempDir,
}

impl Past {
    /// Starts to record, if `NETMON_PAST` is set. `NETMON_PAST=restart` restarts recorder and daemon after each round.
    pub fn begin(daemon: &Daemon) -> Option<Past> {
        std::env::var_os("NETMON_PAST")?;
        let folder = TempDir::new().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let path = folder.path().join("recording.sqlite");
        let recorder = Mutex::new(record(&daemon.socket, &path));
        let past = Past { recorder, successor: Mutex::default(), begun_us: time::now(), path, _folder: folder };
        until("a window is recorded", || past.end());
        REMOVED_NAMESPACES.next();
        Some(past)
    }

    pub fn restarts() -> bool {
        std::env::var_os("NETMON_PAST").is_some_and(|how| how == "restart")
    }

    /// Kills recorder and daemon after a round, and starts both again, if that is asked for.
    pub fn after_round(&self, daemon: &Daemon) {
        REMOVED_NAMESPACES.next();
        if !Past::restarts() {
            return;
        }
        let (mut recorder, mut successor) = (self.recorder.lock().unwrap(), self.successor.lock().unwrap());
        recorder.0.kill().unwrap();
        recorder.0.wait().unwrap();
        let pid = successor.as_ref().map_or_else(|| daemon.pid(), |daemon| daemon.0.id());
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
        *successor = None;
        until("netmond is gone", || UnixStream::connect(&daemon.socket).is_err().then_some(()));
        let mut command = Command::new(DAEMON);
        command.arg("--socket").arg(&daemon.socket).args(["--group", GROUP]).env("RUST_LOG", "warn");
        *successor = Some(Ended(command.stdin(Stdio::null()).spawn().unwrap()));
        until("netmond serves again", || ask(&daemon.socket, "{\"version\":2,\"tool\":\"status\",\"input\":{}}").ok());
        *recorder = record(&daemon.socket, &self.path);
        drop((recorder, successor));
        self.pass();
    }

    /// The reasons of gaps in the whole recording.
    pub fn gaps(&self) -> Vec<String> {
        let all = Period { begin_us: self.begun_us, end_us: time::now() };
        let gaps = Sqlite::read(&self.path).unwrap().gaps(all).unwrap();
        gaps.into_iter().map(|gap| gap.reason).collect()
    }

    /// The end of what is recorded.
    fn end(&self) -> Option<Micros> {
        Some(Sqlite::read(&self.path).ok()?.facts().ok()?.period?.end_us)
    }

    /// Waits until everything until now is recorded. What follows is in other windows.
    pub fn pass(&self) {
        let now = time::now();
        until("everything is recorded", || self.end().filter(|end| *end > now).map(drop));
    }

    /// Waits until everything is recorded, and has ended long enough ago.
    pub fn settle(&self) {
        let ended = Instant::now();
        self.pass();
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

fn record(socket: &Path, path: &Path) -> Ended {
    let mut command = Command::new(GATEWAY);
    command.args(["record", "--socket"]).arg(socket).arg("--recording").arg(path).args(["--interval", &interval()]);
    Ended(command.env("RUST_LOG", "warn").stdin(Stdio::null()).spawn().unwrap())
}
