//! Colour for people at a terminal. The tools' texts have none, since models and files read them too.

use std::ops::Range;

use anstream::{AutoStream, ColorChoice};

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[1;33m";
const CYAN: &str = "\x1b[36m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// Whether standard output takes colour: a terminal does, unless NO_COLOR, CLICOLOR or CLICOLOR_FORCE say otherwise
/// (no-color.org, bixense.com/clicolors).
pub fn wanted() -> bool {
    AutoStream::choice(&std::io::stdout()) != ColorChoice::Never
}

/// Colours a diagnosis: the headline by the state of the host, severities, evidence dim and commands bold.
pub fn diagnosis(text: &str, healthy: Option<bool>) -> String {
    let mut lines = text.split_inclusive('\n');
    let headline = lines.next().map(|first| whole(first, headline_colour(healthy)));
    headline.into_iter().chain(lines.map(line)).collect()
}

/// Green is a promise: every check was judged, and nothing is above info.
fn headline_colour(healthy: Option<bool>) -> &'static str {
    match healthy {
        Some(true) => GREEN,
        Some(false) => BOLD,
        None => YELLOW,
    }
}

/// All of a line in one colour.
fn whole(line: &str, colour: &str) -> String {
    let (body, end) = split(line);
    format!("{colour}{body}{PLAIN}{end}")
}

/// A line and its end.
fn split(line: &str) -> (&str, &str) {
    line.strip_suffix('\n').map_or((line, ""), |body| (body, "\n"))
}

fn line(line: &str) -> String {
    let (body, end) = split(line);
    let colour = match body.split_once(' ').map(|(word, _)| word) {
        Some("CRITICAL") => RED,
        Some("WARNING") => YELLOW,
        Some("INFO") => CYAN,
        _ if body.starts_with("    ") => DIM,
        _ if body.starts_with("  netmon-mcp ") => BOLD,
        _ => return line.to_owned(),
    };
    // Only the severity and the code stand out; the summary is for reading.
    match body.split_once(": ").filter(|_| [RED, YELLOW, CYAN].contains(&colour)) {
        Some((head, summary)) => format!("{colour}{head}{PLAIN}: {summary}{end}"),
        None => whole(line, colour),
    }
}

/// What a cell of a column means: the colour for it, if it should stand out.
type Meaning = fn(&str) -> Option<&'static str>;

/// The columns with a meaning, by their headers.
const COLUMNS: [(&str, Meaning); 8] = [
    ("outcome", outcome),
    ("state", state),
    ("limited by", limited_by),
    ("available", available),
    ("dropped", counted),
    ("errors+drops", counted),
    ("retransmits", counted),
    ("retrans", counted),
];

fn outcome(cell: &str) -> Option<&'static str> {
    match cell {
        "established" | "NOERROR" | "given up" | "-" => None,
        "connecting" | "pending" | "NXDOMAIN" => Some(YELLOW),
        _ => Some(RED),
    }
}

fn state(cell: &str) -> Option<&'static str> {
    ["down", "close_wait", "syn_sent", "unreachable"].contains(&cell).then_some(YELLOW)
}

fn limited_by(cell: &str) -> Option<&'static str> {
    (!["-", "application"].contains(&cell)).then_some(YELLOW)
}

fn available(cell: &str) -> Option<&'static str> {
    (cell == "no").then_some(RED)
}

fn counted(cell: &str) -> Option<&'static str> {
    cell.starts_with(|first: char| first.is_ascii_digit() && first != '0').then_some(YELLOW)
}

/// Colours the tables of an answer: headers bold, and what is wrong in red or yellow. Words say the same.
pub fn tables(text: &str) -> String {
    /// Fewer are a sentence with a gap.
    const CELLS: usize = 3;
    let (mut columns, mut begins) = (Vec::new(), true);
    let mut painted = String::new();
    for line in text.split_inclusive('\n') {
        let (body, _) = split(line);
        let cells = cells(body);
        let is_header = std::mem::replace(&mut begins, body.is_empty()) && cells.len() >= CELLS;
        if is_header || body.is_empty() {
            columns = cells.into_iter().filter_map(|cell| column(body, &cell)).collect();
            painted += &if is_header { whole(line, BOLD) } else { line.into() };
        } else {
            painted += &row(line, &columns);
        }
    }
    painted
}

/// A column with a meaning: where it is on the screen, and what its cells mean.
fn column(header: &str, cell: &Range<usize>) -> Option<(Range<usize>, Meaning)> {
    let (_, meaning) = COLUMNS.iter().find(|(name, _)| *name == &header[cell.clone()])?;
    Some((places(header, cell), *meaning))
}

fn row(line: &str, columns: &[(Range<usize>, Meaning)]) -> String {
    let (mut painted, mut done) = (String::new(), 0);
    for cell in cells(line.trim_end()) {
        let at = places(line, &cell);
        let meaning = columns.iter().find(|(column, _)| at.start < column.end && column.start < at.end);
        if let Some(colour) = meaning.and_then(|(_, meaning)| meaning(&line[cell.clone()])) {
            painted += &format!("{}{colour}{}{PLAIN}", &line[done..cell.start], &line[cell.clone()]);
            done = cell.end;
        }
    }
    painted + &line[done..]
}

/// The cells of a line, which two spaces part.
fn cells(line: &str) -> Vec<Range<usize>> {
    let begin = |cell: &str| cell.as_ptr() as usize - line.as_ptr() as usize;
    let parts = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
    parts.map(|cell| begin(cell)..begin(cell) + cell.len()).collect()
}

/// Where a cell is on the screen.
fn places(line: &str, cell: &Range<usize>) -> Range<usize> {
    line[..cell.start].chars().count()..line[..cell.end].chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_stand_out_by_meaning() {
        let text = "3 rows\n\nprocess  outcome                 retransmits\nä[1]     refused (ECONNREFUSED)            0\n\
                    refused  established                       2\n\nrefused  outcome\n";
        let painted = tables(text);
        assert!(painted.contains("ä[1]     \x1b[1;31mrefused (ECONNREFUSED)\x1b[0m            0\n"), "{painted:?}");
        assert!(painted.contains("\nrefused  established                       \x1b[1;33m2\x1b[0m\n"), "{painted:?}");
        assert!(painted.contains("\x1b[1mprocess  outcome                 retransmits\x1b[0m\n"), "{painted:?}");
        let bare = [BOLD, RED, YELLOW, PLAIN].iter().fold(painted, |text, code| text.replace(code, ""));
        assert_eq!(bare, text);
    }

    #[test]
    fn every_column_with_a_meaning_is_in_a_table() {
        let tools = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/tools")).unwrap().flatten();
        let texts: String =
            tools.filter_map(|tool| std::fs::read_to_string(tool.path().join("text.rs")).ok()).collect();
        for (name, _) in COLUMNS {
            let is_header =
                ["", "?", "~", "?~", ">", "?>"].iter().any(|sign| texts.contains(&format!("\"{sign}{name}\"")));
            assert!(is_header, "{name}");
        }
    }

    #[test]
    fn answer_without_a_table_stays_plain() {
        for text in ["No TCP connection opened.\n", "", "1 UDP socket\n"] {
            assert_eq!(tables(text), text);
        }
    }

    #[test]
    fn severities_are_colored_and_text_is_unchanged() {
        let text = "1 finding\n\nWARNING resets: x: y\n    count  3\n  netmon-mcp call profile_tcp\n";
        let painted = diagnosis(text, Some(false));
        assert!(painted.contains("\x1b[1;33mWARNING resets\x1b[0m: x: y\n"), "{painted:?}");
        assert!(painted.contains("\x1b[1m  netmon-mcp call profile_tcp\x1b[0m\n"), "{painted:?}");
        let bare = [BOLD, DIM, YELLOW, PLAIN].iter().fold(painted, |text, code| text.replace(code, ""));
        assert_eq!(bare, text);
    }

    #[test]
    fn headline_is_green_only_when_healthy() {
        let headline = |healthy| diagnosis("No fault seen\nmore\n", healthy);
        assert_eq!(headline(Some(true)), "\x1b[32mNo fault seen\x1b[0m\nmore\n");
        assert_eq!(headline(None), "\x1b[1;33mNo fault seen\x1b[0m\nmore\n");
        assert!(!headline(Some(false)).contains(GREEN));
    }
}
