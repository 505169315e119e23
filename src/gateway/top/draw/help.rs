//! The keys, on a page of their own.

use ratatui::{buffer::Buffer, layout::Rect, style::Style};

use super::{details, rows};
use crate::gateway::top::{clock, text, theme::Theme};

/// Keys, and what they do.
const KEYS: [(&str, &str); 23] = [
    ("1 … 9, 0, Tab", "a page; Shift-Tab: the page before"),
    ("↑ ↓ or k j", "a row; the mouse selects, too"),
    ("PgUp PgDn, t b", "a box full of rows; the first row, the last row"),
    ("f F", "the next box of the overview, the box before"),
    ("Enter", "details: every field, evidence, next step; or click again"),
    ("Esc", "back; without details: clear the filter"),
    ("/", "filter: rows that have every word, in every box"),
    ("s S or > <", "sort by the next column, the one before; after the last, no order"),
    ("r", "reverse the order"),
    ("v", "another table: by unit, remote, …; listeners; resets"),
    ("u", "rates in bits or bytes per second"),
    ("Space or p", "pause, go on"),
    ("← →", "a window of the recording back, forward"),
    ("[ ] or Shift ← →", "six windows back, forward"),
    ("g", "go to a time of the recording"),
    ("Home", "the start of the recording"),
    ("n or End", "now"),
    ("Ctrl-L", "draw again"),
    ("Ctrl-Z", "suspend; fg continues"),
    ("q or Ctrl-C", "quit"),
    ("", ""),
    ("▼ ▲", "the sorted column: largest first, smallest first"),
    ("▶", "the box that keys are for"),
];

/// Draws the help over the page.
pub fn draw(buffer: &mut Buffer, area: Rect, first: usize, theme: Theme) {
    rows::title(buffer, area, "Keys (Esc goes back)", true, theme);
    let inside = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
    let names = KEYS.iter().map(|(key, _)| text::width(key)).max().unwrap_or_default() as u16;
    let times = format!("Times: {}.", clock::FORMS);
    let more = [
        "Events and findings are about the last 10 to 20 s; rates and sockets about the newest reading.".to_owned(),
        times,
        "netmon-mcp top --help and `man netmon-mcp` say more.".to_owned(),
    ];
    let keys = KEYS.iter().map(|(key, meaning)| (*key, (*meaning).to_owned()));
    let lines: Vec<_> = keys
        .map(|(key, meaning)| (key, names + 2, meaning))
        .chain(more.map(|words| ("", 0, words)))
        .flat_map(|(key, indent, words)| {
            let wrapped = text::wrap(&words, usize::from(inside.width.saturating_sub(indent)));
            let parts = if wrapped.is_empty() { vec![words] } else { wrapped };
            parts.into_iter().enumerate().map(move |(at, words)| (if at == 0 { key } else { "" }, indent, words))
        })
        .collect();
    let first = first.min(lines.len().saturating_sub(inside.height.into()));
    let left = lines.len() - first;
    let shown = lines.iter().skip(first).take(details::fitting(inside, left));
    for ((key, indent, words), y) in shown.zip(inside.top()..) {
        buffer.set_string(inside.x, y, key, theme.strong());
        buffer.set_string(inside.x + indent, y, words, Style::new());
    }
    details::more(buffer, inside, left, theme);
}
