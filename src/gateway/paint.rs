//! Colour for people at a terminal. The tools' texts have none, since models and files read them too.

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

#[cfg(test)]
mod tests {
    use super::*;

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
