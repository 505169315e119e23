//! Tables for people: as wide as what is in them, but at a terminal not wider than that.

use std::{
    ops::Range,
    sync::atomic::{AtomicU16, Ordering},
};

use comfy_table::{CellAlignment, Table, presets};

/// Columns of the terminal that tables are for; 0 where there is none.
static TERMINAL: AtomicU16 = AtomicU16::new(0);

/// Says that tables are for a terminal so wide. Only the command line does; files and models read tables as they are.
pub fn fit(columns: u16) {
    TERMINAL.store(columns, Ordering::Relaxed);
}

/// An aligned table without borders. A header that starts with `>` is of a column of figures.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    within(TERMINAL.load(Ordering::Relaxed), header, rows)
}

/// A table that is too wide goes on in lines that are indented, from one column to the next: nothing is cut, and what
/// belongs together stays below each other.
fn within<const N: usize>(width: u16, header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<_> = rows.into_iter().collect();
    let whole = of_columns(0..N, &header, &rows);
    let parts = if width == 0 { Vec::new() } else { fold(&whole.column_max_content_widths(), width) };
    if parts.len() < 2 {
        return whole.trim_fmt() + "\n";
    }
    interleave(&parts.into_iter().map(|part| of_columns(part, &header, &rows).trim_fmt()).collect::<Vec<_>>())
}

/// Line by line of all parts.
fn interleave(parts: &[String]) -> String {
    let mut lines: Vec<_> = parts.iter().map(|part| part.split('\n')).collect();
    let mut text = String::new();
    while let Some(first) = lines[0].next() {
        text.extend([first, "\n"]);
        for line in lines[1..].iter_mut().filter_map(Iterator::next) {
            text.extend([INDENT, line, "\n"]);
        }
    }
    text
}

const INDENT: &str = "    ";
const GAP: u16 = 2;

/// Which columns share a line.
fn fold(widths: &[u16], width: u16) -> Vec<Range<usize>> {
    let (mut parts, mut begin, mut taken) = (Vec::new(), 0, 0u16);
    for (i, column) in widths.iter().enumerate() {
        if i > begin && taken.saturating_add(*column) > width {
            parts.push(begin..i);
            (begin, taken) = (i, INDENT.len() as u16);
        }
        taken = taken.saturating_add(column + GAP);
    }
    parts.push(begin..widths.len());
    parts
}

/// Some of the columns. A cell is one line: what came from outside was cleaned.
fn of_columns<const N: usize>(columns: Range<usize>, header: &[&str; N], rows: &[[String; N]]) -> Table {
    let mut table = Table::new();
    let header = &header[columns.clone()];
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().map(|h| h.trim_start_matches('>')));
    table.add_rows(rows.iter().map(|row| &row[columns.clone()]));
    for (header, column) in header.iter().zip(table.column_iter_mut()) {
        column.set_padding((0, GAP));
        if header.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_columns_are_aligned() {
        let text = table(["name", ">bytes"], [["a".into(), "1".into()], ["long".into(), "1000".into()]]);
        assert_eq!(text, "name  bytes\na         1\nlong   1000\n");
    }

    #[test]
    fn wide_table_wraps_between_columns() {
        let rows = || [["curl[7]", "192.0.2.2:59122", "1.0 ms", "-"], ["é[10]", "x", "260 µs", "receiver"]];
        let told =
            |width| within(width, ["process", "local", ">rtt", "limited by"], rows().map(|row| row.map(String::from)));
        let whole = "process  local               rtt  limited by\n\
                     curl[7]  192.0.2.2:59122  1.0 ms  -\n\
                     é[10]    x                260 µs  receiver\n";
        assert_eq!([told(0), told(44), told(200)], [whole; 3]);
        let folded = "process  local               rtt\n    limited by\n\
                      curl[7]  192.0.2.2:59122  1.0 ms\n    -\n\
                      é[10]    x                260 µs\n    receiver\n";
        assert_eq!([told(43), told(32)], [folded; 2]);
        let narrow = told(10);
        assert!(
            narrow.starts_with("process\n    local\n       rtt\n    limited by\ncurl[7]\n    192.0.2.2:59122\n"),
            "{narrow}"
        );
    }
}
