//! The page in Chromium, with real traffic behind it, and the view of a chat in a scripted host. `make page-test` runs them:
//! most machines that run the suite have no browser.

// A test that cannot continue fails.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

#[allow(dead_code)] // only a part of the suite's harness is used
#[path = "../suite/harness/mod.rs"]
mod harness;
#[allow(dead_code)]
#[path = "../suite/http_harness.rs"]
mod http_harness;

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use harness::{installed::succeeds, *};
use http_harness::*;
use netmon_mcp::recorder::store::{Recording, Sqlite};
use tempfile::TempDir;

const TIME_LIMIT: Duration = Duration::from_secs(10 * 60);
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// Nothing listens there.
const PORT: u16 = 21_731;

fn script(name: &str) -> Command {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = here.join("target/page");
    let status = Command::new(here.join("tests/page/install")).arg(&packages).status().unwrap();
    assert!(status.success(), "tests/page/install failed; it needs npm and its registry");
    let mut node = Command::new("node");
    node.arg(here.join("tests/page").join(name)).arg(packages).arg(path_of("chromium"));
    node
}

/// A server with a token and with a recording that is being written.
struct Served {
    server: Server,
    _recorder: Ended,
    _folder: TempDir,
    _daemon: Daemon,
}

fn serve() -> Served {
    let (daemon, folder) = (Daemon::own(), TempDir::new().unwrap());
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let [tokens, recording]: [PathBuf; 2] = ["tokens", "recording.sqlite"].map(|name| folder.path().join(name));
    fs::write(&tokens, format!("browser {TOKEN}\n")).unwrap();
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&tokens, Some(NOBODY), None).unwrap();
    let mut command = Command::new(GATEWAY);
    command.args(["record", "--interval", "1", "--socket"]).arg(&daemon.socket).arg("--recording").arg(&recording);
    let recorder = Ended(command.env("RUST_LOG", "warn").stdin(Stdio::null()).spawn().unwrap());
    until("a window is recorded", || Sqlite::read(&recording).ok()?.facts().ok()?.period);
    let arguments = ["--tokens", tokens.to_str().unwrap(), "--recording", recording.to_str().unwrap()];
    let server = Server::start_with_credentials(&daemon.socket, &arguments);
    Served { server, _recorder: recorder, _folder: folder, _daemon: daemon }
}

/// Runs a script beside connects that are refused.
fn runs_beside_refused_connects(name: &str) {
    let (pair, served, ended) = (Pair::new(), serve(), AtomicBool::new(false));
    let url = format!("http://{}", served.server.address);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let _ = connect(&pair.a, SocketAddr::new(B.parse().unwrap(), PORT));
                thread::sleep(Duration::from_millis(50));
            }
        });
        let mut driver = script(name);
        driver.args([&url, TOKEN, &PORT.to_string()]);
        let output = driver.output();
        ended.store(true, Ordering::Relaxed);
        let output = output.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{out}\n{err}\n{}", served.server.log());
        println!("{out}");
    });
}

#[test]
fn browser_shows_the_fault_live_and_recorded() {
    runs_beside_refused_connects("browser.mjs");
}

#[test]
fn chat_view_uses_only_the_bridge_of_its_host() {
    runs_beside_refused_connects("host.mjs");
}

#[test]
fn plot_library_is_the_one_of_the_registry() {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/vendor"));
    command.arg("--check");
    succeeds(command);
}
