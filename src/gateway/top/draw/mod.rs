//! From what is to be shown to characters. Pure: the same view and screen give the same frame.

use std::collections::BTreeSet;

use ratatui::{buffer::Buffer, layout::Rect, style::Style};

use super::{
    clock, pages, text,
    theme::Theme,
    units::{Unit, figure},
    view::{Prompt, View},
};
use crate::gateway::live::{Screen, State};

mod details;
mod graph;
mod help;
mod rows;

/// Draws everything.
pub fn draw(buffer: &mut Buffer, view: &View, theme: Theme) {
    let area = buffer.area;
    if area.width < pages::COLUMNS || area.height < pages::ROWS {
        return too_small(buffer, area);
    }
    let places = pages::places(view.page, area);
    tabs(buffer, places.tabs, view, theme);
    status(buffer, places.status, view, theme);
    match (&view.details, view.help) {
        (_, Some(first)) => help::draw(buffer, places.body, first, theme),
        (Some(details), None) => details::draw(buffer, places.body, details, view, theme),
        (None, None) if !view.has_data() => waiting(buffer, places.body, view),
        (None, None) => {
            if let Some(area) = places.graph {
                graph::draw(buffer, area, view, theme);
            }
            for (at, area) in places.boxes.iter().enumerate() {
                rows::draw(buffer, *area, at, view, theme);
            }
            trouble(buffer, places.body, view, theme);
        }
    }
    footer(buffer, places.footer, view, theme);
    if let (None, Some(notice)) = (&view.prompt, &view.notice) {
        over(buffer, places.body.union(places.footer), &format!("! {notice}"), theme.warning());
    }
}

fn too_small(buffer: &mut Buffer, area: Rect) {
    let (columns, rows) = (pages::COLUMNS, pages::ROWS);
    let words = format!(
        "netmon-mcp top needs {columns} columns and {rows} rows. This terminal has {} columns and {} rows: make it larger, or q quits.",
        area.width, area.height
    );
    lines(buffer, area, &words, Style::new());
}

/// A text in lines; how many.
fn lines(buffer: &mut Buffer, area: Rect, words: &str, style: Style) -> u16 {
    let lines = text::wrap(words, area.width.into());
    for (line, y) in lines.iter().zip(area.top()..area.bottom()) {
        buffer.set_string(area.x, y, line, style);
    }
    lines.len() as u16
}

fn tabs(buffer: &mut Buffer, area: Rect, view: &View, theme: Theme) {
    for (page, (x, label)) in super::tabs::labels(area.width).into_iter().enumerate() {
        let style = if page == view.page { theme.selected() } else { Style::new() };
        buffer.set_string(area.x + x, area.y, label, style);
    }
}

/// Which moment is shown, how the host is, and how much it carries.
fn status(buffer: &mut Buffer, area: Rect, view: &View, theme: Theme) {
    let screen = &*view.screen;
    let state = match (view.is_past, view.is_paused, screen.state) {
        (true, ..) => "PAST",
        (_, true, _) => "PAUSED",
        (_, _, State::Lost) => "LOST",
        (_, _, State::Starting) => "STARTING",
        _ => "LIVE",
    };
    let style = if state == "LIVE" { theme.good() } else { theme.warning() };
    buffer.set_string(area.x, area.y, format!("[{state}]"), style.patch(theme.strong()));
    let right = summary(view);
    let right_at = usize::from(area.width).saturating_sub(text::width(&right));
    buffer.set_string(area.x + right_at as u16, area.y, &right, Style::new());
    let left = text::width(state) + 3;
    let (words, style) = headline(screen, theme);
    buffer.set_string(area.x + left as u16, area.y, text::cut(&words, right_at.saturating_sub(left + 1)), style);
}

fn summary(view: &View) -> String {
    let screen = &*view.screen;
    let Some(point) = &screen.point else { return String::new() };
    let rate = |value| figure(value, Unit::Rate, view.rates);
    let at = if view.is_past { view.clock.moment(screen.at_ms) } else { view.clock.time(screen.at_ms) };
    format!("↓ {}  ↑ {}  {at}", rate(point.rx_bits_per_second), rate(point.tx_bits_per_second))
}

/// The state of the host. It never says that nothing is wrong.
fn headline(screen: &Screen, theme: Theme) -> (String, Style) {
    let diagnosis = screen.answer(crate::gateway::live::asked::DIAGNOSIS);
    let faults: Vec<&str> = screen
        .findings
        .iter()
        .filter(|episode| episode.active && episode.severity != "info")
        .map(|episode| episode.code.as_str())
        .collect();
    let (judged, total) = (&diagnosis["checks"]["judged"], &diagnosis["checks"]["total"]);
    match (diagnosis["healthy"].as_bool(), judged.as_u64().zip(total.as_u64())) {
        _ if !faults.is_empty() => {
            let count = crate::answer::count(faults.len() as u64, "fault", "faults");
            let codes: BTreeSet<&str> = faults.into_iter().collect();
            let codes = codes.into_iter().collect::<Vec<_>>().join(", ");
            (format!("! {count}: {codes}"), theme.warning())
        }
        (Some(true), Some((judged, total))) => (format!("No fault seen ({judged} of {total} checks)"), theme.good()),
        (_, Some((judged, total))) => {
            (format!("No fault seen by the {judged} of {total} checks that could run"), Style::new())
        }
        _ => (String::new(), Style::new()),
    }
}

/// Without data: why.
fn waiting(buffer: &mut Buffer, area: Rect, view: &View) {
    let inside = Rect { x: area.x + 2, y: area.y + 1, width: area.width - 4, height: area.height - 1 };
    let words = match (&view.screen.reason, view.screen.state) {
        (Some(reason), _) => format!("{}.\n\nTrying again every second.", reason.trim_end_matches('.')),
        (None, _) => "netmond loads its programs. The first reading takes a few seconds.".into(),
    };
    let used = lines(buffer, inside, &words, Style::new());
    let past = Rect { y: inside.y + used + 1, height: inside.height.saturating_sub(used + 1), ..inside };
    let hint =
        "With a recording: ← shows its last window, g goes to a time. Questions about this host: netmon-mcp doctor.";
    lines(buffer, past, hint, Style::new());
}

/// A lost daemon, over the last lines of the page: the rest stays readable.
fn trouble(buffer: &mut Buffer, area: Rect, view: &View, theme: Theme) {
    let screen = &*view.screen;
    let Some(reason) = screen.reason.as_ref().filter(|_| screen.state == State::Lost && !view.is_past) else { return };
    let at = view.clock.time(screen.at_ms);
    let words = format!("No new data since {at}: {}. Trying again every second.", reason.trim_end_matches('.'));
    over(buffer, area, &words, theme.selected());
}

/// A text over the last lines of an area: as many as it takes.
fn over(buffer: &mut Buffer, area: Rect, words: &str, style: Style) {
    let count = text::wrap(words, usize::from(area.width) - 2).len().min(area.height.into()) as u16;
    let place = Rect { y: area.bottom() - count, height: count, ..area };
    buffer.set_style(place, style);
    for y in place.top()..place.bottom() {
        buffer.set_string(place.x, y, " ".repeat(place.width.into()), style);
    }
    lines(buffer, Rect { x: place.x + 1, width: place.width - 2, ..place }, words, style);
}

/// What is typed, or the most important keys.
fn footer(buffer: &mut Buffer, area: Rect, view: &View, theme: Theme) {
    let room = usize::from(area.width);
    let put = |buffer: &mut Buffer, words: &str, style| {
        buffer.set_string(area.x, area.y, text::cut(words, room), style);
    };
    match &view.prompt {
        Some(Prompt::Filter) => {
            put(buffer, &format!("filter: {}▏  (Enter keeps it, Esc clears it)", view.filter), theme.strong());
        }
        Some(Prompt::Time(typed)) => {
            put(buffer, &format!("go to: {typed}▏  ({})", clock::FORMS), theme.strong());
        }
        None => keys(buffer, area, view, theme),
    }
}

/// The filter, and as many of the keys as fit.
fn keys(buffer: &mut Buffer, area: Rect, view: &View, theme: Theme) {
    let time = if view.is_past { "←→ time  n now" } else { "← past" };
    let cost = match view.screen.cost.cpu_percent {
        percent if percent > 0.0 && !view.is_past => format!("{percent:.1} % CPU"),
        _ => String::new(),
    };
    let right = usize::from(area.width).saturating_sub(text::width(&cost));
    let room = right.saturating_sub(1);
    let mut words = match view.filter.as_str() {
        "" => String::new(),
        filter => text::cut(&format!("filter: {filter} (Esc clears it)  "), room),
    };
    for key in ["? help", "/ filter", "s sort", "Enter details", "Space pause", time, "q quit"] {
        if text::width(&words) + text::width(key) > room {
            break;
        }
        words += key;
        words += "  ";
    }
    buffer.set_string(area.x, area.y, words.trim_end(), theme.dim());
    buffer.set_string(area.x + right as u16, area.y, cost, theme.dim());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::top::clock::Clock;

    /// The lines of a terminal of this size.
    fn drawn(view: &View, [columns, rows]: [u16; 2]) -> Vec<String> {
        let mut buffer = Buffer::empty(Rect::new(0, 0, columns, rows));
        draw(&mut buffer, view, Theme { has_colors: false });
        let line = |y| (0..columns).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim().to_owned();
        (0..rows).map(line).collect()
    }

    const NARROW: [u16; 2] = [80, 24];

    #[test]
    fn notice_is_shown_whole() {
        let mut view = View::new(Clock::local());
        let notice = "no recording at /var/lib/netmon/recording.sqlite. Start the recorder (`sudo systemctl start \
            netmon-recorder`, or `netmon-mcp record`)";
        view.notice = Some(notice.into());
        for size in [NARROW, [120, 40]] {
            let lines = drawn(&view, size);
            assert!(lines[lines.len() - 2..].join(" ").ends_with(notice), "{lines:#?}");
        }
        assert!(drawn(&view, [160, 50])[49].ends_with(notice));
    }

    #[test]
    fn key_that_does_not_fit_is_left_out() {
        let mut view = View::new(Clock::local());
        assert!(drawn(&view, NARROW)[23].ends_with("q quit"));
        view.filter = "a filter that takes half of a line".into();
        let line = &drawn(&view, NARROW)[23];
        assert!(line.ends_with("/ filter") && line.contains("line (Esc clears it)  ? help"), "{line}");
    }

    #[test]
    fn help_is_shown_whole() {
        let mut view = View::new(Clock::local());
        view.help = Some(0);
        let lines = drawn(&view, [80, 60]);
        assert!(!lines[2..].iter().any(|line| line.ends_with('…')), "{lines:#?}");
        assert!(lines.join(" ").contains("rates and sockets about the newest reading."), "{lines:#?}");
    }
}
