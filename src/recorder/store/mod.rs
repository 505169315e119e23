//! The storage of a recording. There is one engine, SQLite; another one implements the same two traits.

use std::{fmt, path::PathBuf};

use super::time::{Micros, Period};
use crate::sandbox::folder_of;

mod error;
mod hours;
mod packing;
mod sqlite;
#[cfg(test)]
mod tests;
mod upkeep;

pub use sqlite::{Bounds, Sqlite, connections_of};

/// Two windows are adjacent if the time between them is at most this: the clock on the wall may be corrected.
pub const ADJACENT: Micros = 500_000;

/// A period in which everything was read, and what it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    pub begin_us: Micros,
    pub end_us: Micros,
    /// As the kernel's clock measured it.
    pub length_us: Micros,
    pub boot: String,
    pub host: String,
    pub version: String,
    pub parts: Vec<Part>,
}

/// What one tool saw of a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The question of `diagnose` that it answers.
    pub part: String,
    pub tool: String,
    /// The tool's `Sample`, as JSON.
    pub sample: String,
}

/// A finding above info, from the first window that has it to the last.
#[derive(Clone, Debug, PartialEq)]
pub struct Incident {
    /// In the store; none before it is written.
    pub id: Option<i64>,
    /// The same finding, whatever its figures are.
    pub identity: String,
    pub code: String,
    pub severity: String,
    pub begin_us: Micros,
    pub end_us: Micros,
    /// Three windows did not have it.
    pub closed: bool,
    /// How many windows have it.
    pub windows: i64,
    pub host: String,
    /// JSON.
    pub finding: String,
}

/// A figure of a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    pub subject: String,
    pub name: String,
    pub value: f64,
    pub count: i64,
}

/// A figure of a minute.
#[derive(Clone, Debug, PartialEq)]
pub struct Minute {
    pub minute_us: Micros,
    pub figure: Figure,
}

/// Why nothing was recorded from one moment to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Gap {
    pub period: Period,
    pub reason: String,
}

/// When a window was, without what was in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub id: i64,
    pub period: Period,
    pub length_us: Micros,
    pub boot: String,
    pub host: String,
    /// The release that recorded it.
    pub version: String,
}

/// Windows that follow each other within an hour, and have a sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Hour {
    pub id: i64,
    /// The ids of the first and the last window.
    pub first: i64,
    pub last: i64,
    pub period: Period,
    pub length_us: Micros,
    pub version: String,
}

/// What is written at once.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Why nothing was recorded before the window.
    pub gap: Option<Gap>,
    pub window: Window,
    pub figures: Vec<Figure>,
}

/// What a recording holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// From the first window to the last; none if there is none.
    pub period: Option<Period>,
    /// The last write.
    pub written_us: Micros,
    pub interval_ms: i64,
    pub windows: i64,
    /// On disk.
    pub bytes: u64,
    /// Windows that could not be written.
    pub lost_windows: i64,
}

/// Why a recording cannot be written or read.
#[derive(Clone, Debug, PartialEq)]
pub struct Trouble {
    pub kind: Kind,
    pub path: PathBuf,
    /// The engine's words.
    pub reason: String,
}

/// What is wrong with a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There is no file.
    Absent,
    /// A newer release has written it.
    Newer,
    /// It is damaged, or no recording.
    Corrupt,
    /// The disk, or what the file may take of it, is full.
    Full,
    /// The file or its folder cannot be written.
    Denied,
    /// The file cannot be read.
    Unreadable,
    /// Another recorder writes it.
    InUse,
    Other,
}

impl std::error::Error for Trouble {}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (path, reason) = (self.path.display(), &self.reason);
        match self.kind {
            Kind::Absent => write!(
                f,
                "no recording at {path}. Start the recorder (`sudo systemctl start netmon-recorder`, or `netmon-mcp \
                    record`), or choose another file with --recording"
            ),
            Kind::Newer => write!(
                f,
                "a newer netmon-mcp wrote {path} ({reason}). Use that version, or choose another file with --recording"
            ),
            Kind::Corrupt => write!(f, "{path} is damaged or not a recording: {reason}"),
            Kind::Full => write!(f, "no space left to write {path}: {reason}. Free disk space, or lower max_bytes"),
            Kind::Denied => write!(
                f,
                "cannot open {path}: {reason}. The recorder runs as user {user}, who must be able to write this file \
                    and its directory (`chown {user} {folder}`), or choose another file with --recording",
                user = rustix::process::geteuid().as_raw(),
                folder = folder_of(&self.path).display(),
            ),
            Kind::Unreadable => write!(
                f,
                "cannot read {path}: {reason}. User {} must be able to read this file and its directory: become a \
                    member of their group",
                rustix::process::geteuid().as_raw(),
            ),
            Kind::InUse => {
                write!(f, "another recorder writes {path}. Stop it, or choose another file with --recording")
            }
            Kind::Other => write!(f, "{path}: {reason}"),
        }
    }
}

/// The sample of several adjacent windows together, part by part.
pub type Merge<'a> = &'a dyn Fn(Vec<Vec<Part>>) -> Result<Vec<Part>, String>;

/// Samples of a part, oldest first; why one cannot be read.
pub type Stored<'a> = dyn Iterator<Item = Result<String, String>> + 'a;

/// What is summed up of the windows of an hour.
pub struct Summing<'a> {
    pub parts: &'a [&'a str],
    pub sum: SumOf<'a>,
}

/// The sum of one part.
pub type SumOf<'a> = &'a dyn Fn(&str, &mut Stored<'_>) -> Result<String, String>;

/// A recording that is written.
pub trait Store {
    /// Adds windows, oldest first, with the incidents that began, went on or ended in them: all or none. So no reader
    /// sees a window without its incidents. A new incident gets its id.
    fn append(&mut self, entries: &[Entry], incidents: &mut [Incident]) -> Result<(), Trouble>;
    /// The findings that are not closed.
    fn open_incidents(&mut self) -> Result<Vec<Incident>, Trouble>;
    /// Says how many windows could not be written, since the recording began.
    fn lost(&mut self, windows: u64) -> Result<(), Trouble>;
    /// Merges what is old, and removes the oldest beyond the bounds: a little at a time.
    fn keep_bounds(&mut self, now: Micros, merge: Merge<'_>) -> Result<(), Trouble>;
    /// Sums up a part of an hour that is over, if there is one without sums. The sums are there when all are done.
    fn sum_up(&mut self, summing: &Summing<'_>) -> Result<(), Trouble>;
}

/// A recording that is read.
pub trait Recording {
    fn facts(&self) -> Result<Facts, Trouble>;
    /// The windows that overlap a period, oldest first.
    fn spans(&self, period: Period) -> Result<Vec<Span>, Trouble>;
    /// The parts of a window: one, or all.
    fn parts(&self, window: i64, part: Option<&str>) -> Result<Vec<Part>, Trouble>;
    /// The hours of a period that have a sum of this part, oldest first.
    fn hours(&self, part: &str, period: Period) -> Result<Vec<Hour>, Trouble>;
    /// The sum of a part in an hour.
    fn sum(&self, hour: i64, part: &str) -> Result<Option<String>, Trouble>;
    fn gaps(&self, period: Period) -> Result<Vec<Gap>, Trouble>;
    /// Findings that were there in a period, the newest first.
    fn incidents(&self, period: Period) -> Result<Vec<Incident>, Trouble>;
    /// A pair that changes whenever an incident begins or ends.
    fn revision(&self) -> Result<(i64, i64), Trouble>;
    fn series(&self, period: Period) -> Result<Vec<Minute>, Trouble>;
    /// Sums of several minutes each: traffic by process, round-trip times by remote, and all drops and failures.
    fn buckets(&self, period: Period, step_us: Micros) -> Result<Vec<Minute>, Trouble>;
}
