//! Questions about the past: the recording is read here, by the gateway itself.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, watch};

use super::{Failure, fingerprint::Fingerprint, timeline};
use crate::{
    answer, limits,
    recorder::{
        replay,
        store::{Incident, Kind, Minute, Recording, Sqlite, connections_of},
        time::{self, Period},
    },
    sync::lock,
    tools::{Answer, Question, Tool, profile_tcp::ProfileTcp},
    wire::Error,
};

/// A window of the recording.
const WINDOW: time::Micros = 10 * time::SECOND;

impl Followed {
    /// Reads the state until nobody follows it. The files say by their times whether there is anything new.
    async fn read(self: Arc<Self>, path: PathBuf) {
        let mut tick = tokio::time::interval(limits::RECORDING_FOLLOWED_EVERY);
        let mut seen = None;
        loop {
            tick.tick().await;
            {
                let mut is_read = lock(&self.is_read);
                if self.state.receiver_count() == 0 {
                    *is_read = false;
                    self.state.send_replace(None);
                    return;
                }
            }
            let written = written(&path);
            if seen.replace(written.clone()) == Some(written) {
                continue;
            }
            let path = path.clone();
            let read = tokio::task::spawn_blocking(move || Sqlite::read(&path)?.revision());
            let state = read.await.ok().and_then(Result::ok).unwrap_or_default();
            self.state.send_if_modified(|last| last.replace(state) != Some(state));
        }
    }
}

/// When a recording and its journal were written last, and how long they are.
fn written(path: &Path) -> Vec<Option<(SystemTime, u64)>> {
    let state = |path: &PathBuf| {
        let data = fs::metadata(path).ok()?;
        Some((data.modified().ok()?, data.len()))
    };
    connections_of(path)[..2].iter().map(state).collect()
}

/// What identifies the finding of an incident.
fn recorded(incident: &Incident) -> Fingerprint {
    Fingerprint::of(&serde_json::from_str(&incident.finding).unwrap_or_default())
}

/// The times to the first byte of the listener that a finding is about: at its address with the most replies.
fn first_byte_at(listeners: &Value, evidence: &Value) -> Value {
    let address = |of: &Value| of["address"].as_str().and_then(|text| text.parse::<IpAddr>().ok());
    let (all, netns) = (address(&evidence["local"]), &evidence["owner"]["netns"]);
    let is_it = |row: &&Value| {
        row["owner"]["netns"] == *netns
            && (all.is_some_and(|all| all.is_unspecified()) || address(&row["local"]) == all)
            && row["local"]["port"] == evidence["local"]["port"]
    };
    let rows = listeners.as_array().into_iter().flatten().filter(is_it);
    let row = rows.max_by_key(|row| row["first_byte_us"]["count"].as_u64());
    row.map(|row| row["first_byte_us"].clone()).unwrap_or_default()
}

/// Where the recording is, unless the settings say.
pub const RECORDING: &str = "/var/lib/netmon/recording.sqlite";

/// The arguments that every recorded tool takes beside its own.
pub const SINCE: &str = "since";
pub const UNTIL: &str = "until";

/// The recording that this gateway reads.
pub struct Past {
    path: PathBuf,
    /// One question at a time: each may take as much memory as a window of a busy host.
    place: Arc<Semaphore>,
    /// The state of the incidents, while somebody follows it: one task reads it for all.
    followed: Arc<Followed>,
}

#[derive(Default)]
struct Followed {
    state: watch::Sender<Option<Revision>>,
    is_read: Mutex<bool>,
}

/// Another one whenever an incident began or ended. There is one of a recording that cannot be read, too.
pub type Revision = (i64, i64);

/// The period that a call is about, as the caller wrote it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    since: Option<String>,
    until: Option<String>,
}

impl Past {
    pub fn new(path: PathBuf) -> Self {
        Past { path, place: Arc::new(Semaphore::new(1)), followed: Arc::default() }
    }

    /// The state of the incidents from now on; `None` until it was read for the first time.
    pub fn follow(&self) -> watch::Receiver<Option<Revision>> {
        let mut is_read = lock(&self.followed.is_read);
        let receiver = self.followed.state.subscribe();
        if !std::mem::replace(&mut *is_read, true) {
            tokio::spawn(Arc::clone(&self.followed).read(self.path.clone()));
        }
        receiver
    }

    /// Says in a diagnosis since when its findings are recorded, and how many other incidents the last hour had.
    pub async fn mention(&self, answer: &mut Answer) {
        self.compare(answer).await;
        let path = self.path.clone();
        let period = Period { begin_us: time::now() - time::HOUR, end_us: time::now() };
        let read = tokio::task::spawn_blocking(move || Sqlite::read(&path)?.incidents(period));
        let Ok(Ok(incidents)) = read.await else { return }; // `status` says what is wrong with the recording
        let mut others: Vec<_> = incidents.iter().collect();
        let mut lines = String::new();
        for finding in answer.structured["findings"].as_array_mut().into_iter().flatten() {
            let own = Fingerprint::of(finding);
            let (here, elsewhere) = others.into_iter().partition(|incident| recorded(incident).is_same(&own));
            others = elsewhere;
            let here: Vec<&Incident> = here;
            let Some(newest) = here.first() else { continue };
            let (from, to) = (time::shown(newest.begin_us), newest.closed.then(|| time::shown(newest.end_us)));
            let until = to.as_deref().map_or("and goes on".into(), |to| format!("to {to}"));
            lines += &format!("  {} from {from} {until}\n", newest.code);
            let recorded = match to {
                Some(to) => json!({"from": from, "to": to}),
                None => json!({"from": from}),
            };
            finding["evidence"].as_object_mut().map(|evidence| evidence.insert("recorded".into(), recorded));
        }
        if !lines.is_empty() {
            answer.text += &format!("\nRecorded in the last hour:\n{lines}");
        }
        if !others.is_empty() {
            let count = answer::count(others.len() as u64, "other incident", "other incidents");
            answer.text += &format!("\n{count} in the last hour: netmon-mcp incidents since=-1h\n");
            answer.structured["other_incidents"] = others.len().into();
        }
    }

    /// Adds to a finding of slow replies how long they took in the window before, if that is recorded; if there was none
    /// in it, in the five minutes before.
    async fn compare(&self, answer: &mut Answer) {
        let window_us = answer.structured["measured"]["window_ms"].as_f64().unwrap_or_default() * 1e3;
        let end_us = time::now() - window_us as time::Micros - WINDOW;
        let periods = [WINDOW, 30 * WINDOW].map(|length| Period { begin_us: end_us - length, end_us });
        for finding in answer.structured["findings"].as_array_mut().into_iter().flatten() {
            if finding["code"] != "slow_application" {
                continue;
            }
            let Some(question) = Question::named(ProfileTcp::NAME) else { return };
            let input = json!({"port": finding["evidence"]["local"]["port"], "limit": limits::ROWS_MAX});
            for period in periods {
                // Part of the time may not be recorded.
                let Ok(before) = self.answer(question, input.clone(), period).await else { continue };
                let first_byte = first_byte_at(&before.structured["listeners"], &finding["evidence"]);
                let parts = ["p50", "p99"].map(|part| Some((part, first_byte[part].as_u64()?)));
                for (part, us) in parts.into_iter().flatten() {
                    finding["evidence"][format!("reply_ms_{part}_before")] = (us.saturating_add(500) / 1_000).into();
                }
                if parts.iter().all(Option::is_some) {
                    break;
                }
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The minutes from a moment on, and the incidents that go on; nothing without a recording.
    pub async fn minutes(&self, from_us: time::Micros) -> Option<(Vec<Minute>, Vec<Incident>)> {
        let period = Period { begin_us: from_us, end_us: time::now() };
        let read = self.read("metrics", move |path| {
            let read = Sqlite::read(path).and_then(|read| Ok((read.series(period)?, read.incidents(period)?)));
            Ok(read.ok())
        });
        read.await.ok().flatten()
    }

    /// A period as points for a plot; without a recording, why there is none.
    pub async fn timeline(&self, period: Period) -> Result<Value, Failure> {
        let read = self.read("timeline", move |path| {
            let read = Sqlite::read(path).and_then(|recording| timeline::read(&recording, period));
            Ok(read.unwrap_or_else(|trouble| timeline::absent(period, &trouble)))
        });
        read.await
    }

    /// The answer about a period.
    pub async fn answer(&self, question: &'static Question, input: Value, period: Period) -> Result<Answer, Failure> {
        self.read(question.name, move |path| replay::answer(path, question, input, period)).await
    }

    /// The answer of a tool that asks the recording.
    pub async fn recollect(&self, question: &'static Question, input: Value) -> Result<Answer, Failure> {
        let Some(recollect) = question.recollect else {
            return Err(Error::InvalidInput(format!("{} measures", question.name)).into());
        };
        self.read(question.name, move |path| {
            let recording = Sqlite::read(path);
            recollect(&input, recording.as_ref().map(|open| open as &dyn Recording).map_err(Clone::clone), time::now())
        })
        .await
    }

    /// Says in an answer of `status` whether something records, since when, how much it holds, and what it lost.
    pub async fn describe(&self, answer: &mut Answer) {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || Sqlite::read(&path)?.facts());
        let path = self.path.display();
        let (value, line) = match read.await {
            Ok(Ok(facts)) => {
                let [from, to] =
                    [facts.period.map(|p| p.begin_us), facts.period.map(|p| p.end_us)].map(|us| us.map(time::shown));
                let late = 3 * facts.interval_ms * 1_000 + 5 * time::SECOND;
                let active = time::now() - facts.written_us <= late;
                let bytes = answer::bytes(facts.bytes);
                let state = if active { "recording" } else { "the recorder is not running" };
                let line = format!(
                    "{state}: {path} has {} to {}, {} windows, {bytes}, {} lost",
                    answer::or_dash(&from),
                    answer::or_dash(&to),
                    facts.windows,
                    facts.lost_windows
                );
                let value = json!({"path": path.to_string(), "active": active, "from": from, "to": to, "windows": facts.windows,
                    "bytes": facts.bytes, "lost_windows": facts.lost_windows});
                (value, line)
            }
            Ok(Err(trouble)) => {
                let reason = trouble.to_string();
                let absent = trouble.kind == Kind::Absent;
                let line = if absent {
                    format!("no recording: {path} does not exist")
                } else {
                    format!("recording: {reason}")
                };
                (json!({"path": path.to_string(), "active": false, "reason": reason, "absent": absent}), line)
            }
            Err(_) => return,
        };
        if let Some(structured) = answer.structured.as_object_mut() {
            structured.insert("recording".into(), value);
        }
        answer.text += &format!("\n{line}\n");
    }

    /// Reads the recording beside the other work.
    pub async fn read<T: Send + 'static>(
        &self,
        tool: &str,
        work: impl FnOnce(&Path) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Failure> {
        let place = Arc::clone(&self.place).acquire_owned().await.map_err(|_| Failure::Ending)?;
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || {
            let answer = work(&path);
            crate::memory::give_back();
            drop(place); // also when nobody waits for the answer any more
            answer
        });
        read.await.map_err(|_| Error::Panicked(tool.into()))?.map_err(Failure::from)
    }
}

impl Asked {
    /// Takes the period out of a call's arguments; none if it is about now.
    pub fn take(arguments: &mut Map<String, Value>) -> Result<Option<Asked>, Failure> {
        let mut text = |name| match arguments.shift_remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => {
                let other = crate::untrusted::clean(&other.to_string());
                Err(Error::InvalidInput(format!(
                    "{name}: invalid time {other}: expected RFC 3339, or relative such as \"-10m\""
                )))
            }
        };
        let asked = Asked { since: text(SINCE)?, until: text(UNTIL)? };
        Ok((asked != Asked::default()).then_some(asked))
    }

    /// Puts it back, for another host that answers.
    pub fn put(self, arguments: &mut Map<String, Value>) {
        for (name, text) in [(SINCE, self.since), (UNTIL, self.until)] {
            text.map(|text| arguments.insert(name.into(), text.into()));
        }
    }

    pub fn period(&self) -> Result<Period, Failure> {
        let period = time::period(self.since.as_deref(), self.until.as_deref(), limits::RECALLED, time::now());
        period.map_err(|e| Error::InvalidInput(e).into())
    }
}

/// Adds the period to what a recorded tool takes. What the answer says of it, `recorded`, is in the instructions.
pub fn extend(question: &Question, input: &mut Value) {
    if !replay::is_recorded(question.name) {
        return;
    }
    if let Some(schema) = input.as_object_mut() {
        let properties = schema.entry("properties").or_insert_with(|| json!({}));
        for name in [SINCE, UNTIL] {
            properties.as_object_mut().map(|properties| properties.insert(name.into(), json!({"type": "string"})));
        }
    }
}
