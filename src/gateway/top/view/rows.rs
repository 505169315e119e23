//! The rows of the boxes: which one is selected, which ones are visible, their order.

use std::sync::Arc;

use ratatui::layout::{Position, Rect};

use super::{Details, View};
use crate::gateway::top::{
    columns::fit,
    input::Action,
    listing::Order,
    pages::{self, PAGES, Places},
    tables::Table,
    tabs,
};

/// Lines of a box above its rows: its title, and the heads of the columns.
pub const HEAD: u16 = 2;

/// Rows that a box shows.
pub fn visible(area: Rect) -> usize {
    area.height.saturating_sub(HEAD).max(1).into()
}

impl View {
    /// Follows the rows and the size of the terminal. Call it before drawing.
    pub fn settle(&mut self, area: Rect) {
        self.area = area;
        let screen = Arc::clone(&self.screen);
        let areas = pages::places(self.page, area).boxes;
        for (at, area) in areas.iter().enumerate() {
            let listing = self.listing(at, &screen);
            let place = self.places.entry((self.page, at)).or_default();
            let found = place.key.as_ref().and_then(|key| listing.rows.iter().position(|row| row.key == *key));
            place.at = found.unwrap_or(place.at).min(listing.rows.len().saturating_sub(1));
            let height = visible(*area);
            place.first = place.first.min(listing.rows.len().saturating_sub(height));
            place.first = place.first.clamp((place.at + 1).saturating_sub(height), place.at);
        }
    }

    /// What is to be done with the rows of the page.
    pub(super) fn on_rows(&mut self, action: Action) {
        match action {
            Action::Focus(by) => {
                let count = PAGES[self.page].boxes.len() as isize;
                self.focus[self.page] = (self.focused() as isize + by).rem_euclid(count) as usize;
            }
            Action::Move(by) => self.select(by),
            Action::Leap(by) => self.select(by * self.height() as isize),
            Action::Edge(by) => self.select(by.saturating_mul(isize::MAX / 2)),
            Action::Sort(by) => {
                let shown = self.shown_columns();
                self.sort(|table, order| order.step(table, &shown, by));
            }
            Action::Reverse => self.sort(|_, order| Order { down: !order.down, ..order }),
            Action::Change => {
                *self.chosen.entry((self.page, self.focused())).or_default() += 1;
                self.places.remove(&(self.page, self.focused()));
            }
            Action::Open => self.open(),
            Action::Click { column, row } => self.click(Position::new(column, row)),
            Action::Wheel { column, row, by } => {
                if let Some(at) = self.box_at(Position::new(column, row)) {
                    self.focus[self.page] = at;
                }
                self.select(by);
            }
            _ => {}
        }
    }

    /// Rows of the focused box.
    fn height(&self) -> usize {
        pages::places(self.page, self.area).boxes.get(self.focused()).map_or(1, |area| visible(*area))
    }

    fn select(&mut self, by: isize) {
        let at = self.place(self.focused()).at.saturating_add_signed(by);
        self.select_row(at);
    }

    fn select_row(&mut self, at: usize) {
        let screen = Arc::clone(&self.screen);
        let focused = self.focused();
        let listing = self.listing(focused, &screen);
        let at = at.min(listing.rows.len().saturating_sub(1));
        let key = listing.rows.get(at).map(|row| row.key.clone());
        let place = self.places.entry((self.page, focused)).or_default();
        (place.at, place.key) = (at, key);
    }

    /// The columns of the focused box that fit.
    fn shown_columns(&self) -> Vec<usize> {
        let (focused, table) = (self.focused(), self.table(self.focused()));
        let width = self.layout().boxes.get(focused).map_or(0, |area| area.width.into());
        let listing = self.listing(focused, &self.screen);
        let columns = fit(table, &listing, self.rates, self.order(table).column, width);
        columns.into_iter().map(|column| column.at).collect()
    }

    fn sort(&mut self, change: impl Fn(&'static Table, Order) -> Order) {
        let table = self.table(self.focused());
        let order = change(table, self.order(table));
        self.orders.insert(std::ptr::from_ref(table), order);
    }

    fn open(&mut self) {
        let (focused, screen) = (self.focused(), Arc::clone(&self.screen));
        let table = self.table(focused);
        let listing = self.listing(focused, &screen);
        let Some(row) = listing.rows.into_iter().nth(self.place(focused).at) else { return };
        let row = row.value.into_owned();
        let key = (table.key)(&row);
        self.details = Some(Details { table, key, row, gone: false, first: 0 });
    }

    fn layout(&self) -> Places {
        pages::places(self.page, self.area)
    }

    fn box_at(&self, position: Position) -> Option<usize> {
        self.layout().boxes.iter().position(|area| area.contains(position))
    }

    /// A click opens a page, selects a row, or opens the selected row.
    fn click(&mut self, position: Position) {
        let layout = self.layout();
        if layout.tabs.contains(position) {
            if let Some(page) = tabs::at(layout.tabs.width, position.x) {
                self.open_page(page);
            }
            return;
        }
        let Some(at) = self.box_at(position) else { return };
        self.focus[self.page] = at;
        let (place, area) = (self.place(at), layout.boxes[at]);
        let Some(line) = position.y.checked_sub(area.y + HEAD) else { return };
        let row = place.first + usize::from(line);
        if row >= self.listing(at, &Arc::clone(&self.screen)).rows.len() {
            return;
        }
        if place.key.is_some() && place.at == row {
            self.open();
        }
        self.select_row(row);
    }
}
