//! The traffic of all sockets over time.

use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::Style,
    widgets::{Sparkline, Widget},
};

use super::rows;
use crate::gateway::{
    live::Point,
    top::{
        theme::Theme,
        units::{Unit, figure},
        view::View,
    },
};

/// Draws what was received, and beside it what was sent. Both have one scale.
pub fn draw(buffer: &mut Buffer, area: Rect, view: &View, theme: Theme) {
    let halves: [Rect; 2] = Layout::horizontal([Constraint::Fill(1); 2]).spacing(1).areas(area);
    let values = |read: fn(&Point) -> f64| view.screen.history.iter().map(|point| read(point)).collect::<Vec<_>>();
    let both = [values(|point| point.rx_bits_per_second), values(|point| point.tx_bits_per_second)];
    let most = both.iter().flatten().copied().fold(0.0, f64::max);
    for ((area, values), (name, style)) in
        halves.into_iter().zip(&both).zip([("Received", theme.received()), ("Sent", theme.sent())])
    {
        half(buffer, area, values, most, view, (name, style, theme));
    }
}

fn half(buffer: &mut Buffer, area: Rect, values: &[f64], most: f64, view: &View, look: (&str, Style, Theme)) {
    let (name, style, theme) = look;
    let shown = &values[values.len().saturating_sub(area.width.into())..];
    let peak = shown.iter().copied().fold(0.0, f64::max);
    let rate = |value| figure(value, Unit::Rate, view.rates);
    let words = format!("{name} {} · peak {}", rate(values.last().copied().unwrap_or_default()), rate(peak));
    rows::title(buffer, area, &words, false, theme);
    let blank = vec![None; usize::from(area.width).saturating_sub(shown.len())];
    let data: Vec<Option<u64>> = blank.into_iter().chain(shown.iter().map(|value| Some(*value as u64))).collect();
    let plot = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
    Sparkline::default().data(data).max((most as u64).max(1)).style(style).render(plot, buffer);
}
