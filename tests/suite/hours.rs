//! Answers about long periods are made of sums of hours, and say the same as those that are made of windows.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use netmon_mcp::{
    recorder::{
        replay,
        store::{Bounds, Recording, Sqlite, Store, Window},
        time::{self, Period},
    },
    tools::Question,
};
use serde_json::{Value, json};

use crate::{
    harness::{windows::*, *},
    past::{self, Recorder, facts, recording},
};

/// Windows of the usual length: of connects that are refused, and of bytes that are echoed.
fn recorded(pair: &Pair) -> Vec<Window> {
    let (_folder, path) = recording();
    let daemon = Daemon::start();
    let mut command = Command::new(GATEWAY);
    command.args(["record", "--socket"]).arg(&daemon.socket).arg("--recording").arg(&path);
    let _recorder = Recorder(command.env("RUST_LOG", "warn").stdin(Stdio::null()).spawn().unwrap());
    let echo = echo_server(&pair.b, B);
    for windows in 1..=3 {
        until("a window is recorded", || facts(&path).filter(|facts| facts.windows >= windows));
        (0..20).for_each(|_| drop(connect(&pair.a, SocketAddr::new(B.parse().unwrap(), 21_170)).unwrap_err()));
        (0..20).for_each(|_| drop(connect(&pair.a, echo).unwrap()));
    }
    past::until_recorded(&path);
    windows_of(&Sqlite::read(&path).unwrap())
}

/// A recording of these windows, over and over, with or without what was judged and summed up.
fn write(path: &Path, windows: &[Window], period: Period, with_sums: bool) {
    let long = Duration::from_secs(1 << 30);
    let bounds = Bounds { bytes: 1 << 30, age: long, whole: long };
    let mut store = Sqlite::write(path, bounds, Duration::from_secs(10), period.begin_us).unwrap();
    const LENGTH: i64 = 10 * time::SECOND;
    for n in 0..((period.end_us - period.begin_us) / LENGTH) {
        let mut entry = copy(windows, n as usize, period.begin_us + n * LENGTH, LENGTH);
        entry.window.parts.retain(|part| with_sums || part.part != "judged");
        store.append(&[entry], &mut []).unwrap();
        if with_sums {
            store.sum_up(&replay::SUMMING).unwrap();
        }
    }
}

/// What of an answer sums keep exactly, whatever other tests do meanwhile.
fn essence(tool: &str, answer: &Value, pair: &Pair) -> Value {
    match tool {
        "diagnose" => {
            let found = answer["findings"].as_array().unwrap().iter();
            let ours = found.filter(|finding| finding["evidence"]["owner"]["netns"] == pair.a.inode());
            let told = ours.map(|f| json!([f["code"], f["severity"], f["evidence"]["windows"]]));
            json!([told.collect::<Vec<_>>(), answer["healthy"], answer["checks"]])
        }
        "trace_connections" => answer["outcomes"]["refused"].clone(),
        "profile_tcp" => {
            let sent = |row: &Value| row["segments_out"].as_u64().unwrap_or_default();
            (answer["remotes"].as_array().unwrap().iter().map(sent).sum::<u64>() + sent(&answer["other"])).into()
        }
        "top_traffic" => answer["total"].clone(),
        "trace_drops" => json!([answer["packets"], answer["benign_packets"]]),
        "trace_dns" => json!([answer["summary"]["answered"], answer["summary"]["failed"]]),
        "snapshot_interfaces" => {
            let names = answer["interfaces"].as_array().unwrap().iter().map(|interface| interface["name"].to_string());
            let mut names: Vec<_> = names.collect();
            names.sort_unstable();
            names.into()
        }
        other => panic!("{other} has no sums"),
    }
}

#[test]
fn sums_of_hours_say_the_same_as_their_windows() {
    let pair = Pair::new();
    let windows = recorded(&pair);
    let folder = open_folder();
    // A quarter of an hour, an hour, and a quarter of an hour.
    let begin_us = (time::now() - 6 * time::HOUR).div_euclid(time::HOUR) * time::HOUR + time::HOUR * 3 / 4;
    let period = Period { begin_us, end_us: begin_us + time::HOUR * 3 / 2 };
    let [sums, whole] = [("sums", true), ("windows", false)].map(|(name, with_sums)| {
        let path = folder.path().join(name);
        write(&path, &windows, period, with_sums);
        path
    });
    let hours = Sqlite::read(&sums).unwrap().hours("judged", period).unwrap();
    assert_eq!(hours.len(), 2, "the last quarter is not over for certain");
    for tool in [
        "diagnose",
        "trace_connections",
        "profile_tcp",
        "top_traffic",
        "trace_drops",
        "trace_dns",
        "snapshot_interfaces",
    ] {
        let question = Question::named(tool).unwrap();
        let input = if tool == "diagnose" { json!({"limit": 1_000}) } else { json!({"limit": 10_000}) };
        let input = if tool == "snapshot_interfaces" { json!({}) } else { input };
        let ask = |path| replay::answer(path, question, input.clone(), period).unwrap().structured;
        let (of_sums, of_windows) = (ask(&sums), ask(&whole));
        assert_eq!(essence(tool, &of_sums, &pair), essence(tool, &of_windows, &pair), "{tool}");
        assert_eq!(of_sums["recorded"], of_windows["recorded"], "{tool}");
        assert_eq!(of_sums["measured"]["window_ms"], of_windows["measured"]["window_ms"], "{tool}");
    }
    let diagnosis =
        replay::answer(&sums, Question::named("diagnose").unwrap(), json!({"limit": 1_000}), period).unwrap();
    let refused = diagnosis.structured["findings"].as_array().unwrap().iter().find(|finding| {
        finding["code"] == "connection_refused" && finding["evidence"]["owner"]["netns"] == pair.a.inode()
    });
    assert!(refused.is_some(), "{}", diagnosis.text);
}
