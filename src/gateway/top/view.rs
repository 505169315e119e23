//! What a person has chosen: the page, the rows, the order, the moment. Pure: an action changes it, and may ask for something.

use std::{collections::HashMap, sync::Arc};

use ratatui::layout::Rect;
use serde_json::Value;

use super::{
    clock::Clock,
    input::Action,
    listing::{Listing, Order, list},
    pages::PAGES,
    tables::Table,
    units::Rates,
};
use crate::{
    gateway::live::{Screen, State, Wanted},
    recorder::time::{Micros, SECOND},
};

mod rows;
#[cfg(test)]
mod tests;

pub use rows::{HEAD, visible};

/// What an action asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    None,
    Quit,
    Suspend,
    /// Draw every character again.
    Redraw,
    /// A window of the recording.
    Then(Wanted),
}

/// A text that is typed.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    Filter,
    Time(String),
}

/// The selected row of a box, and the first visible one.
#[derive(Clone, Debug, Default)]
pub struct Place {
    key: Option<String>,
    pub at: usize,
    pub first: usize,
}

/// Details of a row.
pub struct Details {
    pub table: &'static Table,
    key: String,
    /// The row as it was last.
    pub row: Value,
    /// It is not in the answer any more.
    pub gone: bool,
    /// The first visible line.
    pub first: usize,
}

/// What is shown.
pub struct View {
    pub clock: Clock,
    /// The screen that is shown.
    pub screen: Arc<Screen>,
    /// The newest one, while another one is shown.
    live: Arc<Screen>,
    pub page: usize,
    /// The box of each page that keys are for.
    focus: [usize; PAGES.len()],
    /// The table of each box.
    chosen: HashMap<(usize, usize), usize>,
    places: HashMap<(usize, usize), Place>,
    orders: HashMap<*const Table, Order>,
    pub filter: String,
    pub prompt: Option<Prompt>,
    pub rates: Rates,
    pub is_paused: bool,
    pub help: Option<usize>,
    pub details: Option<Details>,
    /// A window of the recording is shown.
    pub is_past: bool,
    /// What went wrong, until the next key.
    pub notice: Option<String>,
    area: Rect,
}

impl View {
    pub fn new(clock: Clock) -> View {
        View {
            clock,
            screen: Arc::default(),
            live: Arc::default(),
            page: 0,
            // Traffic is what most people come for.
            focus: std::array::from_fn(|page| if page == 0 { 2 } else { 0 }),
            chosen: HashMap::new(),
            places: HashMap::new(),
            orders: HashMap::new(),
            filter: String::new(),
            prompt: None,
            rates: Rates::default(),
            is_paused: false,
            help: None,
            details: None,
            is_past: false,
            notice: None,
            area: Rect::default(),
        }
    }

    /// Notes the newest screen; whether anything visible changes.
    pub fn update(&mut self, screen: Arc<Screen>) -> bool {
        self.live = screen;
        if self.is_past || self.is_paused {
            return false;
        }
        self.show(Arc::clone(&self.live));
        true
    }

    /// Shows a window of the recording, which somebody asked for.
    pub fn recall(&mut self, wanted: Wanted, screen: Screen) {
        match wanted {
            Wanted::Step { from, windows: 1.. } if self.is_past && screen.at_ms * 1_000 <= from => return self.now(),
            Wanted::At(moment) => self.notice = self.gap(moment, &screen),
            _ => {}
        }
        self.is_past = true;
        self.show(Arc::new(screen));
    }

    /// Why another moment is shown than the one that was asked for.
    fn gap(&self, moment: Micros, screen: &Screen) -> Option<String> {
        let end_us = screen.at_ms * 1_000;
        let begin_us = end_us - (screen.window_ms * 1e3) as Micros;
        let is_other = moment > end_us + SECOND || moment < begin_us - SECOND;
        let [asked, shown] = [moment / 1_000, screen.at_ms].map(|ms| self.clock.moment(ms));
        is_other.then(|| format!("nothing is recorded at {asked}; this is the nearest window, which ended at {shown}"))
    }

    fn show(&mut self, screen: Arc<Screen>) {
        self.screen = screen;
        let Some(details) = &mut self.details else { return };
        let rows = (details.table.rows)(&self.screen);
        let row = rows.into_iter().find(|row| (details.table.key)(row) == details.key);
        details.gone = row.is_none();
        if let Some(row) = row {
            details.row = row.into_owned();
        }
    }

    fn now(&mut self) {
        (self.is_past, self.is_paused) = (false, false);
        self.show(Arc::clone(&self.live));
    }

    /// The box that keys are for.
    pub fn focused(&self) -> usize {
        self.focus[self.page]
    }

    /// The table of a box of the page.
    pub fn table(&self, at: usize) -> &'static Table {
        let tables = PAGES[self.page].boxes[at];
        tables[self.chosen.get(&(self.page, at)).map_or(0, |chosen| chosen % tables.len())]
    }

    pub fn order(&self, table: &'static Table) -> Order {
        self.orders.get(&std::ptr::from_ref(table)).copied().unwrap_or_else(|| Order::of(table))
    }

    /// The rows of a box.
    pub fn listing<'a>(&self, at: usize, screen: &'a Screen) -> Listing<'a> {
        let table = self.table(at);
        list(table, screen, &self.filter, self.order(table))
    }

    /// The selected row of a box. Its place follows its key.
    pub fn place(&self, at: usize) -> Place {
        self.places.get(&(self.page, at)).cloned().unwrap_or_default()
    }

    /// Changes what is shown.
    pub fn apply(&mut self, action: Action) -> Effect {
        self.notice = None;
        match action {
            Action::Quit => return Effect::Quit,
            Action::Suspend => return Effect::Suspend,
            Action::Redraw => return Effect::Redraw,
            Action::Type(_) | Action::Erase | Action::EraseAll | Action::Accept if self.prompt.is_some() => {
                return self.typed(action);
            }
            Action::Back => self.back(),
            Action::Help => self.help = if self.help.is_some() { None } else { Some(0) },
            Action::Pause => self.pause(),
            Action::Units => self.rates = self.rates.other(),
            Action::Filter => (self.prompt, self.help, self.details) = (Some(Prompt::Filter), None, None),
            Action::Time => self.prompt = Some(Prompt::Time(String::new())),
            Action::Scroll(windows) => return self.scroll(windows),
            Action::Oldest => return Effect::Then(Wanted::Oldest),
            Action::Now => self.now(),
            Action::Page(page) => self.open_page(page),
            Action::Turn(by) => {
                self.open_page((self.page as isize + by).rem_euclid(PAGES.len() as isize) as usize);
            }
            Action::Move(by) if self.overlay().is_some() => self.scroll_overlay(by),
            Action::Leap(by) if self.overlay().is_some() => {
                self.scroll_overlay(by * isize::try_from(self.area.height / 2).unwrap_or(1));
            }
            Action::Wheel { by, .. } if self.overlay().is_some() => self.scroll_overlay(by),
            Action::Click { .. } if self.overlay().is_some() => self.back(),
            other if self.overlay().is_none() => self.on_rows(other),
            _ => {}
        }
        Effect::None
    }

    fn open_page(&mut self, page: usize) {
        (self.page, self.help, self.details) = (page, None, None);
    }

    fn back(&mut self) {
        if self.prompt.is_some() {
            if self.prompt == Some(Prompt::Filter) {
                self.filter.clear();
            }
            self.prompt = None;
        } else if self.help.is_some() {
            self.help = None;
        } else if self.details.is_some() {
            self.details = None;
        } else {
            self.filter.clear();
        }
    }

    fn typed(&mut self, action: Action) -> Effect {
        let text = match &mut self.prompt {
            Some(Prompt::Time(text)) => text,
            _ => &mut self.filter,
        };
        match action {
            Action::Type(letter) => text.push(letter),
            Action::Erase => drop(text.pop()),
            Action::EraseAll => text.clear(),
            _ => return self.accept(),
        }
        Effect::None
    }

    fn accept(&mut self) -> Effect {
        let Some(Prompt::Time(text)) = self.prompt.take() else { return Effect::None };
        match self.clock.meant(&text, crate::recorder::time::now()) {
            Ok(moment) => Effect::Then(Wanted::At(moment)),
            Err(reason) => {
                self.notice = Some(reason);
                Effect::None
            }
        }
    }

    fn pause(&mut self) {
        match self.is_paused || self.is_past {
            true => self.now(),
            false => self.is_paused = true,
        }
    }

    fn scroll(&mut self, windows: i64) -> Effect {
        if !self.is_past && windows > 0 {
            return Effect::None; // now is the end
        }
        let from = if self.screen.at_ms > 0 { self.screen.at_ms * 1_000 } else { crate::recorder::time::now() };
        Effect::Then(Wanted::Step { from, windows })
    }

    /// The first line of what covers the page.
    fn overlay(&mut self) -> Option<&mut usize> {
        self.help.as_mut().or(self.details.as_mut().map(|details| &mut details.first))
    }

    fn scroll_overlay(&mut self, by: isize) {
        if let Some(first) = self.overlay() {
            *first = first.saturating_add_signed(by);
        }
    }

    /// Whether the screen has data.
    pub fn has_data(&self) -> bool {
        self.screen.state != State::Starting && self.screen.at_ms > 0
    }
}
