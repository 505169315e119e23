//! The rows of a table, filtered and sorted. Pure: the same screen gives the same rows.

use std::{borrow::Cow, cmp::Ordering, collections::HashMap};

use serde_json::Value;

use super::{
    cell::{Cell, Source},
    tables::Table,
};
use crate::gateway::live::Screen;

/// An order of rows: by a column, or as the answer has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    pub column: Option<usize>,
    /// The largest first.
    pub down: bool,
}

impl Order {
    /// The first one of a table.
    pub fn of(table: &Table) -> Order {
        let (column, down) = table.order.map_or((None, true), |(column, down)| (Some(column), down));
        Order { column, down }
    }

    /// The next one of the columns that are shown, or the previous one; between the last and the first, the order of the answer.
    /// Figures begin with the largest, text with the first letter.
    pub fn step(self, table: &Table, shown: &[usize], by: isize) -> Order {
        let places: Vec<_> = std::iter::once(None).chain(shown.iter().copied().map(Some)).collect();
        let at = places.iter().position(|column| *column == self.column).unwrap_or_default() as isize;
        let column = places[(at + by).rem_euclid(places.len() as isize) as usize];
        Order { column, down: column.is_none_or(|column| table.columns[column].right) }
    }
}

/// A row of a table.
pub struct Row<'a> {
    /// The same in the next reading.
    pub key: String,
    pub value: Cow<'a, Value>,
    pub cells: Vec<Cell>,
}

/// What a table shows of a screen.
pub struct Listing<'a> {
    pub rows: Vec<Row<'a>>,
    /// Rows that the filter hides.
    pub hidden: usize,
}

/// The rows that have every word of the filter, in this order. Equal rows keep their order from one reading to the next.
pub fn list<'a>(table: &Table, screen: &'a Screen, filter: &str, order: Order) -> Listing<'a> {
    let words: Vec<String> = filter.split_whitespace().map(str::to_lowercase).collect();
    let mut seen = HashMap::<String, usize>::new();
    let mut rows = Vec::new();
    let mut hidden = 0;
    for value in (table.rows)(screen) {
        let source = Source { row: &value, screen };
        let cells: Vec<Cell> = table.columns.iter().map(|column| (column.read)(&source)).collect();
        if !matches(&cells, &words) {
            hidden += 1;
            continue;
        }
        let mut key = (table.key)(&value);
        let count = seen.entry(key.clone()).or_default();
        *count += 1;
        if *count > 1 {
            key += &format!(" {count}");
        }
        rows.push(Row { key, value, cells });
    }
    if let Some(column) = order.column {
        rows.sort_by(|a, b| compare(a, b, column, order.down));
    }
    Listing { rows, hidden }
}

fn compare(a: &Row, b: &Row, column: usize, down: bool) -> Ordering {
    let by_cell = a.cells[column].compare(&b.cells[column]);
    let by_cell = if down { by_cell.reverse() } else { by_cell };
    by_cell.then_with(|| a.key.cmp(&b.key))
}

/// Figures do not count: every rate has `bit/s`.
fn matches(cells: &[Cell], words: &[String]) -> bool {
    if words.is_empty() {
        return true;
    }
    let texts =
        cells.iter().filter_map(|cell| if let Cell::Text(text) = cell { Some(text.to_lowercase()) } else { None });
    let text = texts.collect::<Vec<_>>().join(" ");
    words.iter().all(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::gateway::top::{tables::PROCESSES, units::Rates};

    fn screen(rows: Value) -> Screen {
        let mut screen = Screen::default();
        screen.answers.insert("processes", json!({"rows": rows}));
        screen
    }

    fn row(process: &str, bytes: u64) -> Value {
        json!({"owner": {"process": process}, "rx_bytes": bytes, "tx_bytes": 0, "rx_bits_per_second": bytes})
    }

    fn names(listing: &Listing) -> Vec<String> {
        listing.rows.iter().map(|row| row.cells[0].shown(Rates::Bits)).collect()
    }

    #[test]
    fn rows_have_every_word_of_the_filter() {
        let screen = screen(json!([row("curl", 1), row("sshd", 2), row("curl-loop", 3)]));
        let listing = list(&PROCESSES, &screen, "LOOP curl", Order::of(&PROCESSES));
        assert_eq!((names(&listing), listing.hidden), (vec!["curl-loop".into()], 2));
        let units = list(&PROCESSES, &screen, "bit", Order::of(&PROCESSES));
        assert!(units.rows.is_empty(), "the unit of a figure is not a word of its row");
    }

    #[test]
    fn equal_rows_do_not_change_places() {
        let order = Order::of(&PROCESSES);
        let (one, other) =
            (json!([row("b", 5), row("a", 5), row("c", 9)]), json!([row("a", 5), row("c", 9), row("b", 5)]));
        let (one, other) = (screen(one), screen(other));
        assert_eq!(names(&list(&PROCESSES, &one, "", order)), ["c", "a", "b"]);
        assert_eq!(names(&list(&PROCESSES, &other, "", order)), ["c", "a", "b"]);
    }

    #[test]
    fn sorting_steps_through_the_shown_columns() {
        let shown = [0, 1, 3];
        let next = Order { column: Some(1), down: true }.step(&PROCESSES, &shown, 1);
        assert_eq!(next, Order { column: Some(3), down: true });
        let answer = next.step(&PROCESSES, &shown, 1);
        assert_eq!(answer, Order { column: None, down: true }, "as the answer has them");
        let first = answer.step(&PROCESSES, &shown, 1);
        assert_eq!(first, Order { column: Some(0), down: false }, "text begins with its first letter");
        assert_eq!(first.step(&PROCESSES, &shown, -1), answer);
    }

    #[test]
    fn rows_with_one_key_are_distinct() {
        let screen = screen(json!([row("curl", 1), row("curl", 1)]));
        let listing = list(&PROCESSES, &screen, "", Order::of(&PROCESSES));
        assert_ne!(listing.rows[0].key, listing.rows[1].key);
    }
}
