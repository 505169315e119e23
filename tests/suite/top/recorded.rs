//! A recording that is always the same: a minute and a half of a host, at fixed times.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::PathBuf,
    time::Duration,
};

use netmon_mcp::{
    recorder::{
        store::{Bounds, Entry, Incident, Part, Sqlite, Store, Window},
        time::{Micros, SECOND},
    },
    tools::diagnose::parts,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::past::recording;

/// 2026-01-31 03:12:00 UTC: the end of the last window.
pub const END: Micros = 1_769_829_120 * SECOND;
/// Windows, and how busy each is.
const LOADS: [u64; 9] = [0, 1, 3, 9, 30, 12, 4, 1, 20];
const LENGTH: Micros = 10 * SECOND;

/// The recording, and a netmond that does not answer: the view does not start one.
pub struct Fixed {
    _folder: TempDir,
    _silent: UnixListener,
    pub path: PathBuf,
    pub socket: PathBuf,
}

/// The recording, with a finding that ended and one that goes on.
pub fn fixed() -> Fixed {
    let (folder, path) = recording();
    let socket = folder.path().join("netmond.sock");
    let silent = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let bounds = Bounds { bytes: 1 << 30, age: Duration::from_secs(86_400), whole: Duration::from_secs(86_400) };
    let mut store = Sqlite::write(&path, bounds, Duration::from_secs(10), END).unwrap();
    let entries: Vec<Entry> = LOADS.iter().enumerate().map(|(at, load)| entry(at, *load)).collect();
    let mut incidents = [incident("no_route", 2, 4, true), incident("dns_unanswered", 3, 9, false)];
    store.append(&entries, &mut incidents).unwrap();
    drop(store);
    Fixed { _folder: folder, _silent: silent, path, socket }
}

fn begin(window: usize) -> Micros {
    END - LENGTH * (LOADS.len() - window) as Micros
}

fn entry(at: usize, load: u64) -> Entry {
    let seed = include_str!("../../../fuzz/seeds/reports/10-diagnose");
    let mut sample: Value = serde_json::from_str(seed.lines().nth(2).unwrap()).unwrap();
    scale(&mut sample, load);
    let parts = parts::split(&sample.to_string()).unwrap().parts;
    let part = |part: parts::Part| Part { part: part.part.into(), tool: part.tool.into(), sample: part.sample };
    let window = Window {
        begin_us: begin(at),
        end_us: begin(at) + LENGTH,
        length_us: LENGTH,
        boot: "b".into(),
        host: "h".into(),
        version: "1".into(),
        parts: parts.into_iter().map(part).collect(),
    };
    Entry { gap: None, window, figures: Vec::new() }
}

/// Windows of 10 s with so much traffic.
fn scale(value: &mut Value, load: u64) {
    const BYTES: [&str; 2] = ["rx_bytes", "tx_bytes"];
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == "window_ns" {
                    *value = (LENGTH * 1_000).into();
                } else if BYTES.contains(&name.as_str()) && value.is_u64() {
                    *value = (value.as_u64().unwrap() * load * 1_000).into();
                } else {
                    scale(value, load);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| scale(item, load)),
        _ => {}
    }
}

fn incident(code: &str, from: usize, to: usize, closed: bool) -> Incident {
    let finding = json!({
        "code": code, "severity": "critical", "summary": format!("what {code} means here"),
        "evidence": {"interface": "eth0", "count": 7}, "next_step": "netmon-mcp diagnose",
    });
    Incident {
        id: None,
        identity: code.into(),
        code: code.into(),
        severity: "critical".into(),
        begin_us: begin(from),
        end_us: begin(to),
        closed,
        windows: (to - from) as i64,
        host: "h".into(),
        finding: finding.to_string(),
    }
}
