//! Colour for people at a terminal. The tools' texts have none, since models and files read them too.

use std::io::IsTerminal;

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[1;33m";
const CYAN: &str = "\x1b[36m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// Whether standard output takes colour: a terminal, and nobody asked for none (no-color.org).
pub fn wanted() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// `text` with a diagnosis' lines coloured: severities, and below them evidence dim and commands bold.
pub fn diagnosis(text: &str) -> String {
    text.split_inclusive('\n').map(line).collect()
}

fn line(line: &str) -> String {
    let (body, end) = line.strip_suffix('\n').map_or((line, ""), |body| (body, "\n"));
    let colour = match body.split_once(' ').map(|(word, _)| word) {
        Some("CRITICAL") => RED,
        Some("WARNING") => YELLOW,
        Some("INFO") => CYAN,
        Some("Nothing") => GREEN,
        _ if body.starts_with("    ") => DIM,
        _ if body.starts_with("  netmon-mcp ") => BOLD,
        _ => return line.to_owned(),
    };
    // Only the severity and the code stand out; the summary is for reading.
    match body.split_once(": ").filter(|_| [RED, YELLOW, CYAN].contains(&colour)) {
        Some((head, summary)) => format!("{colour}{head}{PLAIN}: {summary}{end}"),
        None => format!("{colour}{body}{PLAIN}{end}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn severities_stand_out_and_nothing_is_lost() {
        let text = "1 finding.\n\nWARNING resets: x: y\n    count  3\n  netmon-mcp call profile_tcp\n";
        let painted = diagnosis(text);
        assert!(painted.contains("\x1b[1;33mWARNING resets\x1b[0m: x: y\n"), "{painted:?}");
        assert!(painted.contains("\x1b[1m  netmon-mcp call profile_tcp\x1b[0m\n"), "{painted:?}");
        let bare = [BOLD, DIM, YELLOW, PLAIN].iter().fold(painted, |text, code| text.replace(code, ""));
        assert_eq!(bare, text);
    }
}
