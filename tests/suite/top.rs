//! The live view at a terminal: the real program, its keys, and what it shows of a recording and of a daemon.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::*;

mod recorded;
mod screen;

use recorded::{Fixed, fixed};
use screen::OnTerminal;

/// The end of the fixed recording, as a person writes it.
const AT: &str = "2026-01-31 03:12";
const SIZES: [[u16; 2]; 4] = [[80, 24], [100, 30], [132, 43], [160, 50]];

/// The view of the fixed recording, at its end.
fn recorded(size: [u16; 2], fixed: &Fixed, environment: &[(&str, &str)]) -> OnTerminal {
    let [socket, path] = [&fixed.socket, &fixed.path].map(|path| path.to_str().unwrap());
    let arguments = ["--socket", socket, "--recording", path, "top", "--at", AT];
    let view = OnTerminal::open(size, &arguments, environment);
    view.until_shown("[PAST]");
    view
}

fn live(daemon: &Daemon, size: [u16; 2]) -> OnTerminal {
    OnTerminal::open(size, &["--socket", daemon.socket.to_str().unwrap(), "top", "--delay", "0.2"], &[])
}

/// What a person sees is compared with tests/suite/top/NAME.txt.
fn is_reviewed(view: &OnTerminal, name: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/top").join(name).with_extension("txt");
    let now = view.text();
    if std::env::var_os("NETMON_REVIEW").is_some() {
        fs::write(&file, &now).unwrap();
    }
    let reviewed = fs::read_to_string(&file).unwrap_or_default();
    let hint = "if that is meant, run `make reviewed` and review the difference";
    assert!(now == reviewed, "{} differs; {hint}. It is now:\n{now}", file.display());
}

#[test]
fn screens_match_the_reviewed_files() {
    let fixed = fixed();
    for [columns, rows] in SIZES {
        let mut view = recorded([columns, rows], &fixed, &[]);
        is_reviewed(&view, &format!("overview-{columns}x{rows}"));
        view.press("2v");
        view.until_shown("Traffic by unit");
        view.press("3\r");
        view.until_shown("Connections: details");
        is_reviewed(&view, &format!("connection-{columns}x{rows}"));
    }
}

#[test]
fn every_page_matches_its_reviewed_file() {
    let fixed = fixed();
    let mut view = recorded([100, 30], &fixed, &[]);
    for (key, name, words) in [
        ("2", "traffic", "top_traffic"),
        ("3", "connections", "trace_connections"),
        ("4", "sockets", "snapshot_sockets"),
        ("v", "listeners", "Listeners"),
        ("5", "tcp", "profile_tcp"),
        ("6", "drops", "trace_drops"),
        ("v", "reasons", "Drops by reason"),
        ("7", "dns", "trace_dns"),
        ("8", "interfaces", "snapshot_interfaces"),
        ("9", "findings", "diagnose"),
        ("\r", "finding", "Next step"),
        ("?", "help", "Keys"),
        ("0", "latency", "The recorder does not keep this"),
    ] {
        view.press(key);
        view.until_shown(words);
        is_reviewed(&view, name);
    }
}

#[test]
fn keys_filter_sort_and_change_units() {
    let fixed = fixed();
    let mut view = recorded([132, 43], &fixed, &[]);
    view.press("2");
    let all = view.until_shown("▶ Traffic by process");
    view.press("/PYTHON3");
    view.until_shown("filter: PYTHON3");
    assert_ne!(view.until_shown("▶ Traffic by process"), all, "it says how many rows there are of all");
    view.press("zzz");
    view.until_shown("No row has “PYTHON3zzz”");
    view.press("\x1b");
    assert_eq!(view.until_shown("▶ Traffic by process"), all);
    view.until_shown("bytes ▼");
    view.press("s");
    view.until_shown("share ▼");
    view.press("Sr");
    view.until_shown("bytes ▲");
    view.until_shown("Mbit/s");
    view.press("u");
    view.until_shown("kB/s");
    view.until_gone("Mbit/s");
}

#[test]
fn mouse_opens_pages_and_rows() {
    let fixed = fixed();
    let mut view = recorded([80, 24], &fixed, &[]);
    let click =
        |column: u16, row: u16| format!("\x1b[<0;{};{}M\x1b[<0;{};{}m", column + 1, row + 1, column + 1, row + 1);
    view.press(&click(18, 0));
    view.until_shown("▶ Connections");
    view.press(&click(3, 4));
    view.press(&click(3, 4));
    view.until_shown("Connections: details");
    view.press("\x1b");
    view.until_shown("▶ Connections");
}

#[test]
fn time_goes_back_and_forward_in_the_recording() {
    let fixed = fixed();
    let mut view = recorded([100, 30], &fixed, &[]);
    view.until_shown("2026-01-31 03:12:00 UTC");
    view.press("\x1b[D");
    view.until_shown("03:11:50 UTC");
    view.press("[");
    view.until_shown("03:10:50 UTC");
    view.press("\x1b[C");
    view.until_shown("03:11:00 UTC");
    view.press("\x1b[H");
    view.until_shown("03:10:40 UTC");
    view.press("g2026-01-31 03:11:25\r");
    view.until_shown("03:11:30 UTC");
    view.press("gyesterday\r");
    view.until_shown("invalid time `yesterday`");
    view.press("g2026-02-01 00:00\r");
    view.until_shown("nothing is recorded at 2026-02-01");
    view.until_shown("03:12:00 UTC");
    // After the newest window comes now.
    view.press("\x1b[C");
    view.until_shown("[STARTING]");
}

#[test]
fn resizing_draws_again_and_a_small_terminal_says_so() {
    let fixed = fixed();
    let mut view = recorded([80, 24], &fixed, &[]);
    view.resize([70, 20]);
    view.until_shown("needs 80 columns and 24 rows");
    view.resize([160, 50]);
    view.until_shown("1 Overview 2 Traffic 3 Connections");
    view.until_gone("needs 80 columns");
    view.press("3");
    view.until_shown("▶ Connections");
}

#[test]
fn quitting_and_signals_restore_the_terminal() {
    let fixed = fixed();
    for keys in ["q", "\x03", ""] {
        let mut view = recorded([80, 24], &fixed, &[]);
        assert!(view.is_other_screen() && !view.is_restored());
        match keys {
            "" => kill_process(Pid::from_child(&view.child), Signal::TERM).unwrap(),
            keys => view.press_last(keys),
        }
        assert!(view.child.wait().unwrap().success(), "{keys:?}");
        until("the terminal is restored", || view.is_restored().then_some(()));
    }
}

/// The state of a process: `T` is stopped.
fn is_stopped(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().rsplit(") ").next().unwrap().starts_with('T')
}

/// Ctrl-Z gives the terminal back, and SIGCONT takes it again.
fn suspend_and_continue(view: &mut OnTerminal) {
    view.press_last("\x1a");
    until("it is stopped", || is_stopped(view.child.id()).then_some(()));
    until("the terminal is restored", || view.is_restored().then_some(()));
    kill_process(Pid::from_child(&view.child), Signal::CONT).unwrap();
    until("it has the terminal again", || view.is_other_screen().then_some(()));
}

#[test]
fn ctrl_z_suspends_with_a_restored_terminal() {
    let fixed = fixed();
    let mut view = recorded([80, 24], &fixed, &[]);
    suspend_and_continue(&mut view);
    view.press("2");
    view.until_shown("▶ Traffic");
}

#[test]
fn watched_table_follows_its_terminal() {
    let daemon = Daemon::start();
    let arguments = ["--socket", daemon.socket.to_str().unwrap(), "snapshot_interfaces", "--watch=0.2"];
    let mut view = OnTerminal::open([100, 30], &arguments, &[]);
    view.until_shown("lo ");
    view.resize([40, 3]);
    view.until_shown("more lines");
    view.resize([100, 30]);
    view.until_gone("more lines");
    suspend_and_continue(&mut view);
    view.press_last("\x03");
    assert!(view.child.wait().unwrap().success());
    until("the terminal is restored at the end", || view.is_restored().then_some(()));
}

#[test]
fn no_color_leaves_attributes_only() {
    let fixed = fixed();
    let colours = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        text.split("\x1b[").skip(1).any(|rest| {
            let code = rest.split(|c: char| c.is_ascii_alphabetic()).next().unwrap();
            rest[code.len()..].starts_with('m') && (code.starts_with("38;") || code.starts_with("48;"))
        })
    };
    assert!(colours(&recorded([80, 24], &fixed, &[]).bytes()));
    let mut plain = recorded([80, 24], &fixed, &[("NO_COLOR", "1")]);
    plain.press("9");
    plain.until_shown("CRITICAL");
    assert!(!colours(&plain.bytes()));
}

#[test]
fn top_needs_a_terminal() {
    let output = Command::new(GATEWAY).args(["--socket", "/none", "top"]).stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.contains("--watch -o ndjson"), "{error}");
    assert!(output.stdout.is_empty());
}

/// Traffic with an echo server until it is dropped.
struct Traffic {
    ended: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Traffic {
    fn start(mut stream: TcpStream) -> Traffic {
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let work = move || {
            let mut echo = [0; 10_000];
            while !end.load(Ordering::Relaxed) && stream.write_all(&[7; 10_000]).is_ok() {
                stream.read_exact(&mut echo).unwrap();
            }
        };
        Traffic { ended, thread: Some(thread::spawn(work)) }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.take().map(thread::JoinHandle::join);
    }
}

#[test]
fn live_traffic_failures_and_findings_appear() {
    let (pair, daemon) = (Pair::new(), Daemon::start());
    let server = echo_server(&pair.b, B);
    let _traffic = Traffic::start(connect(&pair.a, server).unwrap());
    let mut view = live(&daemon, [160, 50]);
    view.until_shown("[LIVE]");
    let closed = SocketAddr::new(B.parse().unwrap(), 21_740);
    view.press("2vvvv");
    view.press(&format!("/{server}"));
    let line = view.until_shown(&format!("→ {server}"));
    assert!(line.contains("bit/s"), "{line}");
    view.press("\r");
    view.press("\x1b");
    view.press("3");
    view.press(&format!("/{closed}\r"));
    let is_several = |word: &str| word.parse::<u64>().is_ok_and(|count| count > 1);
    let is_one_row = |line: &str| line.contains("  refused") && line.split_whitespace().any(is_several);
    let mut connected = None::<Instant>;
    until("equal connections are one row", || {
        // Other tests' failures may take all rows of a reading: try again after one.
        if connected.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) {
            (0..20).for_each(|_| drop(connect(&pair.a, closed).unwrap_err()));
            connected = Some(Instant::now());
        }
        view.text().lines().any(is_one_row).then_some(())
    });
    view.press("\x1b");
    view.press("9");
    view.press(&format!("/WARNING {closed}\r"));
    view.until_shown("WARNING   connection_refused");
    view.press("\r");
    view.until_shown("Next step");
    view.until_shown("netmon-mcp call trace_connections");
}

#[test]
fn pause_keeps_the_screen_and_a_lost_daemon_is_reported() {
    let mut daemon = Daemon::own();
    let mut view = live(&daemon, [100, 30]);
    view.until_shown("[LIVE]");
    view.press(" ");
    let paused = view.until_shown("[PAUSED]");
    view.press("8");
    assert_eq!(view.until_shown("[PAUSED]"), paused, "the data stay as they are");
    view.press(" ");
    view.until_shown("[LIVE]");
    daemon.kill();
    view.until_shown("[LOST]");
    view.until_shown("No new data since");
    daemon.restart();
    view.until_shown("[LIVE]");
    view.until_gone("No new data since");
}

#[test]
fn latency_is_asked_while_its_page_is_open() {
    let daemon = Daemon::own();
    let mut client = Client::connect(&daemon.socket);
    let mut view = live(&daemon, [100, 30]);
    view.until_shown("[LIVE]");
    assert_eq!(client.tool_status("trace_latency")["windows"], 0);
    view.press("0");
    client.until_open("trace_latency", 1);
    until("an answer", || (!view.text().contains("No answer yet.")).then_some(()));
    view.press("1");
    client.until_open("trace_latency", 0);
    view.press_last("q");
    client.until_detached("diagnose");
}
