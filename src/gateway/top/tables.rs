//! The tables: which answer they show, and their columns.

use std::borrow::Cow;

use serde_json::Value;

use super::cell::{Cell, Source};
use crate::gateway::live::Screen;

/// A column of a table.
pub struct Column {
    pub title: &'static str,
    pub need: Need,
    pub read: fn(&Source) -> Cell,
    /// Figures are at the right.
    pub right: bool,
}

/// How much a column is needed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Always,
    /// It is cut first, and left out if little of it would remain.
    Elastic,
    /// A narrow terminal does without it; of these the last go first.
    Optional,
}

/// A table of rows from an answer.
pub struct Table {
    pub title: &'static str,
    /// What it says without a row.
    pub empty: &'static str,
    /// The answer, as the screen names it: says why there is none.
    pub answer: &'static str,
    pub rows: for<'a> fn(&'a Screen) -> Vec<Cow<'a, Value>>,
    pub columns: &'static [Column],
    /// What makes a row the same row in the next reading.
    pub key: fn(&Value) -> String,
    /// The first order: the column, and whether the largest is first. None: as in the answer.
    pub order: Option<(usize, bool)>,
}

const fn text(title: &'static str, read: fn(&Source) -> Cell) -> Column {
    Column { title, need: Need::Always, read, right: false }
}

const fn number(title: &'static str, read: fn(&Source) -> Cell) -> Column {
    Column { title, need: Need::Always, read, right: true }
}

const fn optional(column: Column) -> Column {
    Column { need: Need::Optional, ..column }
}

const fn elastic(column: Column) -> Column {
    Column { need: Need::Elastic, ..column }
}

/// The figure at a path of the row.
macro_rules! at {
    ($unit:ident, $($field:literal).+) => { |source| Cell::figure(&source.row$([$field])+, Unit::$unit) };
}

/// The text at a path of the row.
macro_rules! word {
    ($($field:literal).+) => { |source| Cell::text(&source.row$([$field])+) };
}

/// The rows of a list of an answer.
macro_rules! rows {
    ($answer:literal, $list:literal) => {
        |screen| screen.rows($answer, $list).iter().map(Cow::Borrowed).collect()
    };
}

/// A key of these fields of the row.
macro_rules! key {
    ($($field:literal),+) => { |row| [$(row[$field].to_string()),+].join(" ") };
}

mod events;
mod state;

pub use events::{CONNECTIONS, DNS, DROPS, FAILURES, FINDINGS, LATENCY, REASONS, THROTTLED, severity};
pub use state::{CONTAINERS, FLOWS, INTERFACES, LISTENERS, PROCESSES, REMOTES, RESETS, SOCKETS, TCP, UNITS};
