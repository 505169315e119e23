//! A box with the rows of a table.

use ratatui::{buffer::Buffer, layout::Rect, style::Style};

use crate::gateway::{
    live::Screen,
    top::{
        cell::Cell,
        columns::{GAP, Shown, fit},
        listing::{Listing, Order, Row},
        pages::PAGES,
        tables::Table,
        text,
        theme::Theme,
        units::{Rates, bars},
        view::{HEAD, View, visible},
    },
};

/// Draws a box of the open page.
pub fn draw(buffer: &mut Buffer, area: Rect, at: usize, view: &View, theme: Theme) {
    let (table, screen) = (view.table(at), &*view.screen);
    let listing = view.listing(at, screen);
    let is_focused = view.focused() == at && view.details.is_none();
    title(buffer, area, &head_line(view, at, table, &listing), is_focused, theme);
    let below = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
    if listing.rows.is_empty() {
        let words = nothing(table, screen, &listing, view);
        for (line, y) in text::wrap(&words, area.width.into()).iter().zip(below.top()..below.bottom()) {
            buffer.set_string(area.x, y, line, theme.dim());
        }
        return;
    }
    let order = view.order(table);
    let columns = fit(table, &listing, view.rates, order.column, area.width.into());
    let sheet = Sheet { table, columns, order, rates: view.rates, theme };
    sheet.heads(buffer, below);
    let place = view.place(at);
    let rows = listing.rows.iter().enumerate().skip(place.first).take(visible(area));
    for ((row_at, row), y) in rows.zip(area.y + HEAD..area.bottom()) {
        sheet.row(buffer, Rect { y, height: 1, ..area }, row, is_focused && row_at == place.at);
    }
}

/// The title, how many rows there are, and what the keys have changed.
fn head_line(view: &View, at: usize, table: &'static Table, listing: &Listing) -> String {
    let mut words = table.title.to_owned();
    let tables = PAGES[view.page].boxes[at];
    if let Some(chosen) = tables.iter().position(|other| std::ptr::eq(*other, table)).filter(|_| tables.len() > 1) {
        words += &format!(" (v: {} of {})", chosen + 1, tables.len());
    }
    let rows = listing.rows.len();
    match (view.filter.is_empty(), listing.hidden) {
        (true, _) if rows > 0 => words += &format!(" · {rows}"),
        (false, hidden) => words += &format!(" · {rows} of {}", rows + hidden),
        _ => {}
    }
    let cut = view.screen.answer(table.answer)["measured"]["rows_cut"].as_u64().unwrap_or_default();
    if cut > 0 {
        words += &format!(" ({cut} more not read)");
    }
    match PAGES[view.page].tool {
        "" => words,
        tool => format!("{words} · {tool}"),
    }
}

/// A line with the title of a box.
pub fn title(buffer: &mut Buffer, area: Rect, words: &str, is_focused: bool, theme: Theme) {
    let mark = if is_focused { "▶" } else { "─" };
    let words = text::cut(words, usize::from(area.width).saturating_sub(4));
    let rest = usize::from(area.width).saturating_sub(text::width(&words) + 3);
    let style = if is_focused { theme.strong() } else { Style::new() };
    buffer.set_string(area.x, area.y, mark, theme.frame());
    buffer.set_string(area.x + 2, area.y, &words, style);
    buffer.set_string(area.x + 3 + text::width(&words) as u16, area.y, "─".repeat(rest), theme.frame());
}

/// Why there is no row.
fn nothing(table: &Table, screen: &Screen, listing: &Listing, view: &View) -> String {
    match screen.errors.get(table.answer) {
        Some(reason) => reason.clone(),
        None if listing.hidden > 0 => format!("No row has “{}” (Esc shows all).", view.filter),
        None if screen.answers.contains_key(table.answer) => table.empty.to_owned(),
        None if view.is_past => "The recorder does not keep this.".to_owned(),
        None => "No answer yet.".to_owned(),
    }
}

/// How the rows of a table are drawn.
struct Sheet {
    table: &'static Table,
    columns: Vec<Shown>,
    order: Order,
    rates: Rates,
    theme: Theme,
}

impl Sheet {
    fn heads(&self, buffer: &mut Buffer, area: Rect) {
        let mut x = area.x;
        for Shown { at, width } in &self.columns {
            let column = &self.table.columns[*at];
            let words = match (self.order.column == Some(*at), self.order.down) {
                (true, true) => format!("{} ▼", column.title),
                (true, false) => format!("{} ▲", column.title),
                _ => column.title.to_owned(),
            };
            put(buffer, x, area.y, &words, *width, column.right, self.theme.head());
            x += (*width + GAP) as u16;
        }
    }

    fn row(&self, buffer: &mut Buffer, line: Rect, row: &Row, is_selected: bool) {
        if is_selected {
            buffer.set_style(line, self.theme.selected());
        }
        let mut x = line.x;
        for Shown { at, width } in &self.columns {
            let (column, cell) = (&self.table.columns[*at], &row.cells[*at]);
            let words = match cell {
                Cell::Bars(values) => bars(values, *width),
                cell => cell.shown(self.rates),
            };
            // One style for a selected row: a colour on a colour may be unreadable.
            let style = if is_selected { self.theme.selected() } else { self.theme.cell(column.title, &words) };
            put(buffer, x, line.y, &words, *width, column.right, style);
            x += (*width + GAP) as u16;
        }
    }
}

fn put(buffer: &mut Buffer, x: u16, y: u16, words: &str, width: usize, right: bool, style: Style) {
    let words = text::cut(words, width);
    let indent = if right { width - text::width(&words) } else { 0 };
    let x = x.saturating_add(indent as u16);
    if x < buffer.area.right() {
        buffer.set_string(x, y, words, style);
    }
}
