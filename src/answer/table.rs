//! Tables for people: as wide as what is in them, but at a terminal not wider than that.

use std::sync::atomic::{AtomicU16, Ordering};

use comfy_table::{CellAlignment, Table, presets};
use textwrap::{Options, WordSeparator, WordSplitter};

use super::followed::placed;

/// Columns of the terminal that tables are for; 0 where there is none.
static TERMINAL: AtomicU16 = AtomicU16::new(0);

/// Says that tables are for a terminal so wide. Only the command line does; files and models read tables as they are.
pub fn fit(columns: u16) {
    TERMINAL.store(columns, Ordering::Relaxed);
}

/// A sentence, or several, for a terminal: broken between words, and continued with this indent. Commands to paste are
/// left whole.
pub fn prose(text: &str, indent: usize) -> String {
    broken(TERMINAL.load(Ordering::Relaxed).into(), text, indent)
}

fn broken(width: usize, text: &str, indent: usize) -> String {
    if width == 0 {
        return text.into();
    }
    let words = text.trim_start();
    let (begin, more) = (&text[..text.len() - words.len()], " ".repeat(indent.min(width / 2)));
    let options = Options::new(width).initial_indent(begin).subsequent_indent(&more).break_words(false);
    let options = options.word_separator(WordSeparator::AsciiSpace).word_splitter(WordSplitter::NoHyphenation);
    textwrap::fill(words, options)
}

/// An aligned table without borders. A header that starts with `?` is of a column that a narrow terminal does without;
/// of these the last go first. A header that then starts with `>` is of a column of figures, one with `~` of words that change
/// while the row is the same.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let width = TERMINAL.load(Ordering::Relaxed);
    let is_key = |at: &usize| !header[*at].trim_start_matches('?').starts_with(['>', '~']);
    let key = |row: &[String; N]| (0..N).filter(is_key).map(|at| row[at].as_str()).collect::<Vec<_>>().join("\0");
    match placed(&header.join("\0"), rows.into_iter().collect(), key) {
        Err(rows) => within(width, header, rows),
        Ok(placed) => {
            let marks: Vec<bool> = placed.iter().map(|marked| marked.is_new).collect();
            let width = if width == 0 { 0 } else { width.saturating_sub(MARK.len() as u16).max(1) };
            marked(&within(width, header, placed.into_iter().map(|marked| marked.row)), &marks)
        }
    }
}

/// Before a row that is new.
const MARK: &str = "+ ";

/// The table with a mark before the rows that are new. A row has as many lines as the header.
fn marked(text: &str, marks: &[bool]) -> String {
    let lines = text.lines().count() / (marks.len() + 1);
    let is_new = |line: usize| line.is_multiple_of(lines) && line >= lines && marks[line / lines - 1];
    let line = |(at, line): (usize, &str)| format!("{}{line}\n", if is_new(at) { MARK } else { "  " });
    text.lines().enumerate().map(line).collect()
}

/// A table that is too wide loses its optional columns first. If it is still too wide, it continues in indented lines,
/// from one column to the next.
fn within<const N: usize>(width: u16, header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<_> = rows.into_iter().collect();
    let all: Vec<usize> = (0..N).collect();
    let whole = of_columns(&all, &header, &rows);
    if width == 0 {
        return whole.trim_fmt() + "\n";
    }
    let widths = whole.column_max_content_widths();
    let kept = fitting(all, &header, &widths, width);
    let parts = fold(&kept, &widths, width);
    let parts: Vec<_> = parts.into_iter().map(|part| of_columns(part, &header, &rows).trim_fmt()).collect();
    match parts.as_slice() {
        [part] => part.clone() + "\n",
        _ => interleave(&parts),
    }
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

/// The columns without as many of the optional ones as it takes to fit, from the last to the first.
fn fitting(mut columns: Vec<usize>, header: &[&str], widths: &[u16], width: u16) -> Vec<usize> {
    let taken = |columns: &[usize]| columns.iter().map(|at| widths[*at] + GAP).sum::<u16>().saturating_sub(GAP);
    while taken(&columns) > width {
        let Some(last) = columns.iter().rposition(|at| header[*at].starts_with('?')) else { break };
        columns.remove(last);
    }
    columns
}

/// The columns that share a line.
fn fold<'a>(columns: &'a [usize], widths: &[u16], width: u16) -> Vec<&'a [usize]> {
    let (mut parts, mut begin, mut taken) = (Vec::new(), 0, 0u16);
    for (i, column) in columns.iter().map(|at| widths[*at]).enumerate() {
        if i > begin && taken.saturating_add(column) > width {
            parts.push(&columns[begin..i]);
            (begin, taken) = (i, INDENT.len() as u16);
        }
        taken = taken.saturating_add(column + GAP);
    }
    parts.push(&columns[begin..]);
    parts
}

/// Some of the columns. A cell is one line: input from outside was cleaned.
fn of_columns<const N: usize>(columns: &[usize], header: &[&str; N], rows: &[[String; N]]) -> Table {
    let mut table = Table::new();
    let header: Vec<_> = columns.iter().map(|at| header[*at].trim_start_matches('?')).collect();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().map(|h| h.trim_start_matches(['>', '~'])));
    table.add_rows(rows.iter().map(|row| columns.iter().map(|at| &row[*at])));
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
    fn prose_breaks_between_words() {
        assert_eq!(broken(0, "an answer without a terminal", 2), "an answer without a terminal");
        assert_eq!(broken(12, "it is broken between words", 2), "it is broken\n  between\n  words");
        assert_eq!(broken(12, "one-long-name-of a service", 0), "one-long-name-of\na service");
        assert_eq!(broken(4, "  unbreakable 192.0.2.123:59122", 0), "  unbreakable\n192.0.2.123:59122");
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

    #[test]
    fn new_rows_have_a_mark_on_their_first_line() {
        assert_eq!(marked("name\na\nb\n", &[false, true]), "  name\n  a\n+ b\n");
        assert_eq!(marked("name\n    more\na\n    1\n", &[true]), "  name\n      more\n+ a\n      1\n");
    }

    #[test]
    fn narrow_table_drops_optional_columns_from_the_last() {
        let row = || [["curl[7]", "tcp", "1.0 ms", "nginx.service"].map(String::from)];
        let shown = |width| within(width, ["process", "?", "?>rtt", "?unit"], row());
        assert_eq!(shown(0), "process          rtt  unit\ncurl[7]  tcp  1.0 ms  nginx.service\n");
        assert_eq!(shown(35), shown(0));
        assert_eq!(shown(34), "process          rtt\ncurl[7]  tcp  1.0 ms\n");
        assert_eq!(shown(12), "process\ncurl[7]  tcp\n");
        assert_eq!(shown(3), "process\ncurl[7]\n");
    }
}
