//! The past: the recording of an ended fault, across restarts and kills.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use netmon_mcp::recorder::{
    store::{Facts, Recording, Sqlite},
    time::{self, Period},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{command_line::cli, harness::*};

/// A folder for a recorder that was root and becomes nobody.
pub fn recording() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = folder.path().join("recording.sqlite");
    (folder, path)
}

/// A recorder of this test.
pub struct Recorder(pub Child);

impl Recorder {
    pub fn start(socket: &Path, path: &Path, arguments: &[&str]) -> Recorder {
        Recorder(Recorder::command(socket, path, arguments).spawn().unwrap())
    }

    fn command(socket: &Path, path: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(GATEWAY);
        command.args(["record", "--interval", "1", "--socket"]).arg(socket).arg("--recording").arg(path);
        command.args(arguments).env("RUST_LOG", "warn").stdin(Stdio::null());
        command
    }

    /// Ends it like systemd; whether it exited successfully.
    pub fn terminate(&mut self) -> bool {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), rustix::process::Signal::TERM)
            .unwrap();
        self.0.wait().unwrap().success()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn facts(path: &Path) -> Option<Facts> {
    Sqlite::read(path).ok()?.facts().ok()
}

/// Waits until everything until now is recorded.
pub fn until_recorded(path: &Path) {
    let now = time::now();
    until("the recorder has written all of it", || facts(path)?.period.filter(|period| period.end_us > now).map(drop));
}

/// A tool's answer about a period, over the command line.
pub fn ask_past(socket: &Path, path: &Path, question: &str, period: Period) -> Value {
    let [since, until] = [period.begin_us, period.end_us].map(time::shown);
    let line = format!("{question} since={since} until={until} --json");
    let output = cli(socket, &line).arg("--recording").arg(path).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The findings with an owner in this network namespace.
fn findings<'a>(answer: &'a Value, netns: &Netns, code: &str) -> Vec<&'a Value> {
    let all = answer["findings"].as_array().unwrap().iter();
    all.filter(|f| f["code"] == code && f["evidence"]["owner"]["netns"] == netns.inode()).collect()
}

/// Refused connects; none follows later.
fn fault(pair: &Pair, port: u16) -> Period {
    let begin_us = time::now();
    for _ in 0..20 {
        connect(&pair.a, SocketAddr::new(B.parse().unwrap(), port)).unwrap_err();
    }
    Period { begin_us, end_us: time::now() }
}

#[test]
fn past_fault_is_found_with_since() {
    let (_folder, path) = recording();
    let (pair, daemon) = (Pair::new(), Daemon::start());
    let mut recorder = Recorder::start(&daemon.socket, &path, &[]);
    until("a window is recorded", || facts(&path)?.period);
    let fault = fault(&pair, 21_190);
    until_recorded(&path);
    let quiet = time::now();
    until_recorded(&path);
    let diagnosis = ask_past(&daemon.socket, &path, "diagnose limit=1000", fault);
    let found = findings(&diagnosis, &pair.a, "connection_refused");
    assert_eq!(found.len(), 1, "{diagnosis:#}");
    assert!(found[0]["evidence"]["first_seen"].is_string(), "{found:#?}");
    assert_eq!(diagnosis["recorded"]["gaps"], json!([]), "{diagnosis:#}");
    // Filters narrow what is judged.
    for (filter, count) in [("port=21190", 1), ("port=21191", 0), ("remote=10.77.0.2", 1), ("remote=10.77.0.9", 0)] {
        let narrowed = ask_past(&daemon.socket, &path, &format!("diagnose limit=1000 {filter}"), fault);
        assert_eq!(findings(&narrowed, &pair.a, "connection_refused").len(), count, "{filter}: {narrowed:#}");
    }
    // Each asked tool answers separately, with its usual filters.
    let connections = ask_past(&daemon.socket, &path, "trace_connections port=21190 outcome=failed", fault);
    assert_eq!(connections["outcomes"]["refused"], 20, "{connections:#}");
    let none = ask_past(&daemon.socket, &path, "trace_connections port=21191", fault);
    assert_eq!(none["connections"], json!([]));
    let later = ask_past(
        &daemon.socket,
        &path,
        "trace_connections port=21190",
        Period { begin_us: quiet, end_us: time::now() },
    );
    assert_eq!(later["connections"], json!([]), "{later:#}");
    assert!(recorder.terminate(), "it ends well");
    // There is no writer any more, and the whole file is read.
    let again = ask_past(&daemon.socket, &path, "trace_connections port=21190 outcome=failed", fault);
    assert_eq!(again["outcomes"]["refused"], 20);
}

#[test]
fn restart_is_recorded_as_a_gap_with_reason() {
    let (_folder, path) = recording();
    let (pair, mut daemon) = (Pair::new(), Daemon::own());
    let recorder = Recorder::start(&daemon.socket, &path, &[]);
    until("a window is recorded", || facts(&path)?.period);
    let before = fault(&pair, 21_192);
    until_recorded(&path);
    daemon.kill();
    daemon.restart();
    until_recorded(&path);
    drop(recorder); // by SIGKILL
    let recorder = Recorder::start(&daemon.socket, &path, &[]);
    until_recorded(&path);
    let after = fault(&pair, 21_193);
    until_recorded(&path);
    let period = Period { begin_us: before.begin_us, end_us: after.end_us };
    let diagnosis = ask_past(&daemon.socket, &path, "diagnose limit=1000", period);
    assert_eq!(findings(&diagnosis, &pair.a, "connection_refused").len(), 2, "{diagnosis:#}");
    assert_eq!(diagnosis["healthy"], false);
    let gaps = diagnosis["recorded"]["gaps"].as_array().unwrap();
    let reasons: Vec<_> = gaps.iter().filter_map(|gap| gap["reason"].as_str()).collect();
    assert!(reasons.iter().any(|reason| reason.starts_with("netmond was unavailable")), "{gaps:?}");
    assert!(reasons.iter().any(|reason| reason.contains("the recorder did not run")), "{gaps:?}");
    drop(recorder);
}

/// From the first window to three windows after the last one: journal and log agree, and the program runs.
#[test]
fn incident_hook_runs_at_begin_and_end() {
    let (folder, path) = recording();
    let told = folder.path().join("told");
    let (pair, daemon) = (Pair::new(), Daemon::start());
    let script = format!("cat >> {}; exit 3", told.display());
    let arguments: Vec<_> = ["sh", "-c", script.as_str()].iter().flat_map(|word| ["--on-incident", *word]).collect();
    let log = folder.path().join("log");
    let mut command = Recorder::command(&daemon.socket, &path, &arguments);
    let _recorder = Recorder(command.stderr(fs::File::create(&log).unwrap()).spawn().unwrap());
    until("a window is recorded", || facts(&path)?.period);
    let period = fault(&pair, 21_194);
    let ours = |row: &&Value| row["evidence"]["owner"]["netns"] == pair.a.inode();
    let mut client = Client::connect_to({
        let mut command = Command::new(GATEWAY);
        command.arg("--socket").arg(&daemon.socket).arg("--recording").arg(&path);
        command
    });
    let since = time::shown(period.begin_us);
    let ended = until("the incident has ended", || {
        let answer = client.call("incidents", json!({"since": since, "limit": 1_000})).unwrap();
        let row = answer["incidents"].as_array().unwrap().iter().find(ours)?.clone();
        row["to"].is_string().then_some(row)
    });
    assert_eq!((&ended["code"], &ended["severity"]), (&json!("connection_refused"), &json!("warning")));
    let lines = until("the program was told", || {
        let lines: Vec<Value> =
            fs::read_to_string(&told).ok()?.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let of_ours = |line: &&Value| line["finding"]["evidence"]["owner"]["netns"] == pair.a.inode();
        let events: Vec<_> = lines.iter().filter(of_ours).map(|line| line["event"].clone()).collect();
        (events.len() >= 2).then_some(events)
    });
    assert_eq!(lines, ["begun", "ended"]);
    until("its exit status is logged", || {
        fs::read_to_string(&log).ok()?.contains("on_incident failed: exit status: 3").then_some(())
    });
    let status = client.call("status", json!({})).unwrap();
    assert_eq!(status["recording"]["active"], true, "{}", status["recording"]);
    assert_eq!(status["recording"]["lost_windows"], 0);
    let changes = client.call("changes", json!({})).unwrap();
    assert!(changes["not_enough"].as_str().unwrap().contains("too little recorded"), "{changes}");
}

/// What a client without sessions sends with every request.
fn meta() -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "0"},
    })
}

/// Over a session, and over a request that lasts.
#[test]
fn incidents_are_a_resource_that_notifies() {
    const URI: &str = "netmon://incidents";
    let (_folder, path) = recording();
    let (pair, daemon) = (Pair::new(), Daemon::start());
    let _recorder = Recorder::start(&daemon.socket, &path, &[]);
    until("a window is recorded", || facts(&path)?.period);
    let gateway = || {
        let mut command = Command::new(GATEWAY);
        command.arg("--socket").arg(&daemon.socket).arg("--recording").arg(&path);
        command
    };
    let mut session = Client::connect_to(gateway());
    let listed = session.request("resources/list", json!({}));
    assert_eq!(listed["result"]["resources"][0]["uri"], URI, "{listed}");
    assert_eq!(session.request("resources/subscribe", json!({"uri": URI}))["result"], json!({}));
    let refused = session.request("resources/subscribe", json!({"uri": "netmon://nothing"}));
    assert!(refused["error"]["message"].as_str().unwrap().contains(URI), "{refused}");
    let mut modern = Client::spawn(gateway());
    let filter = json!({"resourceSubscriptions": [URI]});
    modern.begin("subscriptions/listen", json!({"notifications": filter, "_meta": meta()}));
    let accepted = modern.notified("notifications/subscriptions/acknowledged");
    assert_eq!(accepted["params"]["notifications"]["resourceSubscriptions"], json!([URI]), "{accepted}");
    fault(&pair, 21_195);
    for client in [&mut session, &mut modern] {
        assert_eq!(client.notified("notifications/resources/updated")["params"]["uri"], URI);
    }
    let read = session.request("resources/read", json!({"uri": URI}));
    let contents = &read["result"]["contents"][0];
    assert_eq!((&contents["uri"], &contents["mimeType"]), (&json!(URI), &json!("application/json")), "{read}");
    let incidents: Value = serde_json::from_str(contents["text"].as_str().unwrap()).unwrap();
    assert!(!incidents["incidents"].as_array().unwrap().is_empty(), "{incidents:#}");
    assert_eq!(session.request("resources/unsubscribe", json!({"uri": URI}))["result"], json!({}));
}

#[test]
fn a_live_diagnosis_mentions_incidents_of_the_last_hour() {
    let (_folder, path) = recording();
    let (pair, daemon) = (Pair::new(), Daemon::start());
    let _recorder = Recorder::start(&daemon.socket, &path, &[]);
    until("a window is recorded", || facts(&path)?.period);
    let earlier = fault(&pair, 21_196);
    until_recorded(&path);
    let mut client = Client::connect_to({
        let mut command = Command::new(GATEWAY);
        command.arg("--socket").arg(&daemon.socket).arg("--recording").arg(&path);
        command
    });
    let asked = json!({"duration_ms": 3_000, "limit": 1_000, "netns": pair.a.inode()});
    let call = client.begin_call("diagnose", asked);
    client.until_open("diagnose", 2); // the recorder's is the other one
    fault(&pair, 21_196);
    let diagnosis = client.end_call(call).unwrap();
    let found = findings(&diagnosis, &pair.a, "connection_refused");
    assert_eq!(found.len(), 1, "{diagnosis:#}");
    let from = found[0]["evidence"]["recorded"]["from"].as_str().unwrap_or_else(|| panic!("{diagnosis:#}"));
    assert!(from <= time::shown(earlier.end_us).as_str(), "{from}");
}

/// A daemon that repeats the same sample, whenever the test allows the n-th stream.
struct Streams {
    socket: PathBuf,
    go: std::sync::mpsc::Sender<usize>,
    _folder: TempDir,
}

impl Streams {
    fn new(sample: Value) -> Streams {
        let folder = open_folder();
        let socket = folder.path().join("netmond.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
        let (go, going) = channel();
        let line = |value: Value| format!("{value}\n");
        thread::spawn(move || {
            let mut number = 0;
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut question = String::new();
                if BufReader::new(&stream).read_line(&mut question).unwrap_or(0) == 0 {
                    continue;
                }
                let mut said = stream.write_all(line(json!({"version": 2, "opened": true})).as_bytes());
                while said.is_ok() {
                    match going.recv() {
                        Ok(of) if of == number => {}
                        Ok(_) => continue, // for an ended stream
                        Err(_) => return,
                    }
                    said = stream.write_all(line(json!({"version": 2, "sample": sample})).as_bytes());
                }
                number += 1;
            }
        });
        Streams { socket, go, _folder: folder }
    }
}

/// At random moments: while it reads, judges, writes, and waits.
#[test]
fn killed_recorder_loses_at_most_one_window() {
    let files: Value = (0..400)
        .map(|n| (n.to_string(), json!(format!("/run/netns/{:x}", n * 7_919))))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let sample =
        json!({"heard": {}, "conntrack": null, "netns": 1, "netns_files": files, "window_ns": 1_000_000_000u64});
    let daemon = Streams::new(sample);
    let (_folder, path) = recording();
    let written = || facts(&path).map_or(0, |facts| facts.windows);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut known = 0;
    for stream in 0..100 {
        let recorder = Recorder::start(&daemon.socket, &path, &[]);
        for _ in 0..2 {
            daemon.go.send(stream).unwrap();
            until("the window is written", || (written() > known).then_some(()));
            known = written();
        }
        daemon.go.send(stream).unwrap();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let moment = Instant::now() + Duration::from_micros(random >> 50); // within 16 ms
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        drop(recorder);
        let store = Sqlite::read(&path).unwrap();
        let now = store.facts().unwrap().windows;
        assert!((known..=known + 1).contains(&now), "{now} of {known} or one more");
        for span in store.spans(Period { begin_us: 0, end_us: i64::MAX }).unwrap().iter().rev().take(3) {
            assert_eq!(store.parts(span.id, None).unwrap().len(), 1);
        }
        known = now;
        daemon.go.send(stream).unwrap(); // it notices that the client is gone
    }
}

#[test]
fn unrecorded_period_error_names_the_recorded_one() {
    let (_folder, path) = recording();
    let ask = |line: &str| {
        let output = cli(Path::new("/nowhere"), line).arg("--recording").arg(&path).output().unwrap();
        assert!(!output.status.success(), "{line}");
        String::from_utf8(output.stderr).unwrap()
    };
    let absent = ask("diagnose since=-5m");
    assert!(absent.contains("no recording at") && absent.contains("netmon-recorder"), "{absent}");
    assert!(ask("diagnose since=soon").contains("such as -10m"));
    assert!(ask("diagnose since=-1m until=-2m").contains("is not before until"));
    assert!(ask("network-monitor operation=incoming since=-1m").contains("is not recorded"));
    assert!(ask("diagnose since=-1m --watch").contains("--watch measures now"));
}

#[test]
fn answer_from_no_recording_is_a_failure() {
    let (_folder, path) = recording();
    let ask = |line: &str| {
        let output = cli(Path::new("/nowhere"), line).arg("--recording").arg(&path).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    for (line, words) in [("incidents", "No data: no recording"), ("changes", "No comparison: no recording")] {
        let (code, text) = ask(line);
        assert!(code == 1 && text.starts_with(words), "{line}: {code} {text}");
    }
    let daemon = Daemon::start();
    let _recorder = Recorder::start(&daemon.socket, &path, &[]);
    until("a window is recorded", || facts(&path)?.period);
    for line in ["incidents", "changes"] {
        let (code, text) = ask(line);
        assert!(code == 0, "{line}: {code} {text}");
        let (code, text) = ask(&format!("{line} since=-2h until=-1h"));
        assert!(code == 1 && text.contains("nothing was recorded in this period"), "{line}: {code} {text}");
    }
}
