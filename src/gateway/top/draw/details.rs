//! Everything that is known of a row.

use ratatui::{buffer::Buffer, layout::Rect, style::Style};
use serde_json::Value;

use super::rows;
use crate::{
    answer::{self, count},
    gateway::{
        live::Screen,
        top::{
            cell::Cell,
            listing::{Order, list},
            tables::{self, Table},
            text,
            theme::Theme,
            units::{Rates, figure, unit_of},
            view::{Details, View},
        },
    },
};

/// Tables with rows of the same process, and how many rows and cells of each are shown.
const RELATED: [&Table; 4] = [&tables::FLOWS, &tables::CONNECTIONS, &tables::SOCKETS, &tables::DNS];
const RELATED_ROWS: usize = 10;
const RELATED_CELLS: usize = 5;
/// A space at which no line ends, in a cell.
const WHOLE: &str = "\u{a0}";
/// The widest column of names.
const NAMES: usize = 34;

/// A line of the details.
enum Line {
    Head(String),
    Text(String, Style),
    Field(String, String),
}

/// Draws the details over the page.
pub fn draw(buffer: &mut Buffer, area: Rect, details: &Details, view: &View, theme: Theme) {
    let state = if details.gone { "not in the newest answer" } else { "Esc goes back" };
    rows::title(buffer, area, &format!("{}: details ({state})", details.table.title), true, theme);
    let inside = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
    let lines = lines(details, view, theme);
    let printed = print(&lines, usize::from(inside.width), theme);
    let first = details.first.min(printed.len().saturating_sub(inside.height.into()));
    let left = printed.len() - first;
    for (parts, y) in printed.iter().skip(first).take(fitting(inside, left)).zip(inside.top()..) {
        for (x, words, style) in parts {
            buffer.set_string(inside.x + *x as u16, y, words, *style);
        }
    }
    more(buffer, inside, left, theme);
}

/// The number of lines to show: all, or all but one, which says how many are below.
pub fn fitting(inside: Rect, left: usize) -> usize {
    let height = inside.height.into();
    if left <= height { left } else { height.saturating_sub(1) }
}

/// Says how many of the lines that are left are below.
pub fn more(buffer: &mut Buffer, inside: Rect, left: usize, theme: Theme) {
    let below = left - fitting(inside, left);
    if below > 0 {
        let words = format!(" {}: ↓ ", count(below as u64, "more line", "more lines"));
        let x = inside.right().saturating_sub(text::width(&words) as u16);
        buffer.set_string(x, inside.bottom().saturating_sub(1), words, theme.selected());
    }
}

fn lines(details: &Details, view: &View, theme: Theme) -> Vec<Line> {
    let row = &details.row;
    let mut lines = Vec::new();
    if row["code"].is_string() {
        finding(row, view, theme, &mut lines);
        return lines;
    }
    fields(row, view.rates, &mut lines);
    lines.extend(related(details, &view.screen, view.rates));
    lines
}

fn finding(row: &Value, view: &View, theme: Theme, lines: &mut Vec<Line>) {
    let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let severity = tables::severity(row);
    lines.push(Line::Text(format!("{severity} {}", text("code")), theme.cell("severity", severity)));
    lines.push(Line::Text(text("summary"), Style::new()));
    let at = |name: &str| row[name].as_i64().map_or_else(|| "-".into(), |ms| view.clock.moment(ms));
    let time = match row["active"] == true {
        true => format!("since {}", at("since_ms")),
        false => format!("from {} to {}", at("since_ms"), at("last_ms")),
    };
    lines.push(Line::Text(time, theme.dim()));
    if row["next_step"].is_string() {
        lines.push(Line::Head("Next step".into()));
        lines.push(Line::Text(text("next_step"), theme.strong()));
    }
    if let Some(explains) = row["explains"].as_array().filter(|list| !list.is_empty()) {
        lines.push(Line::Head("Explains".into()));
        lines.push(Line::Text(joined(explains), Style::new()));
    }
    lines.push(Line::Head("Evidence".into()));
    fields(&row["evidence"], view.rates, lines);
}

/// Every field, with its place in the row.
fn fields(value: &Value, rates: Rates, lines: &mut Vec<Line>) {
    let bare = |name: &str| name.split('.').map(answer::label).collect::<Vec<_>>().join(".");
    flatten("", value, &mut |name, value| {
        let has_unit = value.is_number() && unit_of(name).is_some();
        lines.push(Line::Field(if has_unit { bare(name) } else { name.into() }, shown(name, value, rates)));
    });
}

fn flatten(name: &str, value: &Value, put: &mut impl FnMut(&str, &Value)) {
    let inner = |part: &str| if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") };
    match value {
        Value::Null => {}
        Value::Object(fields) => fields.iter().for_each(|(part, value)| flatten(&inner(part), value, put)),
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            for (at, item) in items.iter().enumerate() {
                flatten(&inner(&(at + 1).to_string()), item, put);
            }
        }
        value => put(name, value),
    }
}

/// A value, with its unit if its name has one.
fn shown(name: &str, value: &Value, rates: Rates) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => joined(items),
        Value::Number(number) => match (unit_of(name), number.as_f64()) {
            (Some(unit), Some(value)) => figure(value, unit, rates),
            _ => number.to_string(),
        },
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        other => other.to_string(),
    }
}

fn joined(items: &[Value]) -> String {
    let words = items.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned));
    words.collect::<Vec<_>>().join(", ")
}

/// What else the screen has of the same process.
fn related(details: &Details, screen: &Screen, rates: Rates) -> Vec<Line> {
    let pid = &details.row["owner"]["pid"];
    if pid.is_null() {
        return Vec::new();
    }
    let mut lines = Vec::new();
    for table in RELATED.into_iter().filter(|table| !std::ptr::eq(*table, details.table)) {
        let listing = list(table, screen, "", Order::of(table));
        let same: Vec<_> = listing.rows.iter().filter(|row| row.value["owner"]["pid"] == *pid).collect();
        if same.is_empty() {
            continue;
        }
        lines.push(Line::Head(format!("{} of this process · {}", table.title, same.len())));
        for row in same.into_iter().take(RELATED_ROWS) {
            let cells = row.cells.iter().zip(table.columns);
            let told = cells.filter(|(_, column)| !["process", "history"].contains(&column.title));
            // A figure says nothing without its name.
            let words = told.map(|(cell, column)| match cell {
                Cell::Figure(..) => format!("{} {}", column.title, cell.shown(rates)),
                cell => cell.shown(rates),
            });
            let known = words.filter(|words| words != "-").take(RELATED_CELLS).map(|words| words.replace(' ', WHOLE));
            lines.push(Line::Text(known.collect::<Vec<_>>().join("  "), Style::new()));
        }
    }
    lines
}

/// Parts of lines, each at its column.
type Printed = Vec<Vec<(usize, String, Style)>>;

fn print(lines: &[Line], width: usize, theme: Theme) -> Printed {
    let name = |line: &Line| match line {
        Line::Field(name, _) => text::width(name),
        _ => 0,
    };
    let names = lines.iter().map(name).max().unwrap_or_default().clamp(1, NAMES);
    let mut printed: Printed = Vec::new();
    for line in lines {
        match line {
            Line::Head(words) => printed.extend([vec![], vec![(0, text::cut(words, width), theme.strong())]]),
            Line::Text(words, style) => {
                let lines = text::wrap(words, width).into_iter().map(|words| words.replace(WHOLE, " "));
                printed.extend(lines.map(|words| vec![(0, words, *style)]));
            }
            Line::Field(name, value) => {
                let at = names + 2;
                let long = text::width(name) > names;
                if long {
                    printed.push(vec![(0, text::cut(name, width), theme.dim())]);
                }
                for (line, words) in text::wrap(value, width.saturating_sub(at).max(1)).into_iter().enumerate() {
                    let head = (line == 0 && !long).then(|| (0, name.clone(), theme.dim()));
                    printed.push(head.into_iter().chain([(at, words, Style::new())]).collect());
                }
            }
        }
    }
    printed
}
