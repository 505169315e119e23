//! `netmon-mcp top`: the live view at a terminal.
//!
//! ```text
//!   live::Live ──▶ Screen ─┐                     ┌─ pages, tables   what there is to see
//!   live::Then ──▶ Screen ─┤                     ▼
//!   keys, mouse ─▶ input ──┴▶ view ── listing ─▶ draw ─▶ terminal (ratatui draws only what differs)
//! ```
//!
//! Only this file, `terminal` and `messages` do I/O. The rest is pure: the same keys and screens give the same characters.

use std::{io::IsTerminal, sync::Arc, thread, time::Duration};

use anyhow::Context;
use ratatui::crossterm::event::{self, Event};
use serde_json::{Value, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    Failure, Gateway,
    live::{Live, Screen, Then, Wanted},
    paint,
};
use crate::{
    limits,
    recorder::time::{Micros, now},
    tools::{Tool, trace_latency::TraceLatency},
};

mod cell;
mod clock;
mod columns;
mod draw;
mod groups;
mod input;
mod listing;
mod messages;
mod pages;
mod tables;
mod tabs;
mod terminal;
mod text;
mod theme;
mod units;
mod view;

use clock::Clock;
use messages::Messages;
use terminal::Stage;
use theme::Theme;
use view::{Effect, View};

/// How it begins.
pub struct Options {
    /// A reading as often as this.
    pub every: Duration,
    /// Begin with this moment of the recording.
    pub at: Option<Micros>,
}

/// What is under way besides the screens.
enum Done {
    Then(Wanted, Result<Screen, Failure>),
    Latency(Result<Value, Failure>),
}

/// What an event leads to.
#[derive(Clone, Copy, PartialEq)]
enum Change {
    None,
    Visible,
    Quit,
}

/// The view, and where its data come from.
struct Top {
    gateway: Arc<Gateway>,
    live: Arc<Live>,
    then: Arc<Then>,
    view: View,
    theme: Theme,
    /// None until somebody wants to see now.
    screens: Option<watch::Receiver<Arc<Screen>>>,
    work: JoinSet<Done>,
    /// A window of the recording is read; another one that is wanted meanwhile waits.
    is_reading: bool,
    next: Option<Wanted>,
    is_asking_latency: bool,
    latency: Option<Result<Value, String>>,
}

/// The moment that a person means, in the time zone of the host.
pub fn moment(text: &str) -> Result<Micros, String> {
    Clock::local().meant(text, now())
}

/// Shows the host until somebody quits.
pub async fn run(gateway: Gateway, options: Options) -> anyhow::Result<()> {
    anyhow::ensure!(
        std::io::stdin().is_terminal() && std::io::stdout().is_terminal(),
        "top needs a terminal. For a pipe or a script: netmon-mcp diagnose --watch -o ndjson"
    );
    let _messages = Messages::keep().context("preparing the terminal failed")?;
    let gateway = Arc::new(gateway);
    let mut stage = Stage::open().context("preparing the terminal failed")?;
    gateway.confine();
    let mut top = Top {
        live: Live::new(Arc::clone(&gateway), options.every),
        gateway,
        then: Arc::default(),
        view: View::new(Clock::local()),
        theme: Theme { has_colors: paint::wanted() },
        screens: None,
        work: JoinSet::new(),
        is_reading: false,
        next: None,
        is_asking_latency: false,
        latency: None,
    };
    match options.at {
        Some(moment) => top.read(Wanted::At(moment)),
        None => top.screens = Some(top.live.watch()),
    }
    top.follow(&mut stage).await
}

/// Keys and the mouse, from a thread of their own: reading them blocks.
fn events() -> mpsc::UnboundedReceiver<std::io::Result<Event>> {
    let (send, receive) = mpsc::unbounded_channel();
    // From now on a new size of the terminal is an event. The first frame is drawn after this, in the size of then.
    let _ = event::poll(Duration::ZERO); // the thread tells an error
    thread::spawn(move || {
        loop {
            let event = event::read();
            let has_ended = event.is_err();
            if send.send(event).is_err() || has_ended {
                return;
            }
        }
    });
    receive
}

impl Top {
    /// Draws after every change, until a key or a signal ends it.
    async fn follow(&mut self, stage: &mut Stage) -> anyhow::Result<()> {
        let mut events = events();
        let (mut terminate, mut hangup) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut is_changed = true;
        loop {
            if std::mem::take(&mut is_changed) {
                self.draw(stage)?;
            }
            self.ask_latency();
            tokio::select! {
                biased;
                _ = terminate.recv() => return Ok(()),
                _ = hangup.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                event = events.recv() => {
                    let mut next = Some(event.context("the terminal is closed")?);
                    // All keys that wait are one change.
                    while let Some(event) = next {
                        match self.handle(&event.context("reading the terminal failed")?, stage)? {
                            Change::Quit => return Ok(()),
                            change => is_changed |= change == Change::Visible,
                        }
                        next = events.try_recv().ok();
                    }
                }
                screen = next(&mut self.screens) => is_changed = self.show(screen),
                Some(done) = self.work.join_next() => is_changed = self.finish(done),
            }
        }
    }

    fn draw(&mut self, stage: &mut Stage) -> std::io::Result<()> {
        let (view, theme) = (&mut self.view, self.theme);
        stage.draw(|frame| {
            view.settle(frame.area());
            draw::draw(frame.buffer_mut(), view, theme);
        })
    }

    /// Does what a key or the mouse asks for.
    fn handle(&mut self, event: &Event, stage: &mut Stage) -> anyhow::Result<Change> {
        let Some(action) = input::action(event, self.view.prompt.is_some()) else { return Ok(Change::None) };
        match self.view.apply(action) {
            Effect::None => {}
            Effect::Quit => return Ok(Change::Quit),
            Effect::Suspend => stage.suspend()?,
            Effect::Redraw => stage.clear()?,
            Effect::Then(wanted) => self.read(wanted),
        }
        if !self.view.is_past && !self.is_reading && self.screens.is_none() {
            self.screens = Some(self.live.watch());
        }
        Ok(Change::Visible)
    }

    /// Notes a screen of now; whether to draw.
    fn show(&mut self, screen: Arc<Screen>) -> bool {
        let screen = match &self.latency {
            Some(answer) => Arc::new(with_latency((*screen).clone(), answer)),
            None => screen,
        };
        self.view.update(screen)
    }

    /// Reads a window of the recording. Of those that are wanted meanwhile, only the last one is read.
    fn read(&mut self, wanted: Wanted) {
        if std::mem::replace(&mut self.is_reading, true) {
            self.next = Some(wanted);
            return;
        }
        let (gateway, then) = (Arc::clone(&self.gateway), Arc::clone(&self.then));
        self.work.spawn(async move { Done::Then(wanted, then.screen(&gateway.past, wanted).await) });
    }

    /// Whether to draw.
    fn finish(&mut self, done: Result<Done, tokio::task::JoinError>) -> bool {
        match done {
            Ok(Done::Then(wanted, read)) => {
                self.is_reading = false;
                match read {
                    Ok(screen) => self.view.recall(wanted, screen),
                    Err(e) => self.view.notice = Some(e.to_string()),
                }
                if let Some(wanted) = self.next.take() {
                    self.read(wanted);
                }
                if !self.view.is_past && !self.is_reading && self.screens.is_none() {
                    self.screens = Some(self.live.watch());
                }
                true
            }
            Ok(Done::Latency(answer)) => {
                self.is_asking_latency = false;
                self.latency = Some(answer.map_err(|e| e.to_string()));
                let newest = self.screens.as_ref().map(|screens| Arc::clone(&screens.borrow()));
                newest.is_some_and(|screen| self.show(screen))
            }
            Err(_) => {
                (self.is_reading, self.is_asking_latency) = (false, false);
                true
            }
        }
    }

    /// Asks the tool that the feed does not ask, while its page is open: one window after another.
    fn ask_latency(&mut self) {
        let is_open = self.view.page == pages::LATENCY && !self.view.is_past && !self.view.is_paused;
        if !is_open || self.is_asking_latency || self.screens.is_none() {
            return;
        }
        self.is_asking_latency = true;
        let (gateway, failed_before) = (Arc::clone(&self.gateway), matches!(self.latency, Some(Err(_))));
        self.work.spawn(async move {
            if failed_before {
                tokio::time::sleep(limits::LIVE_RETRY).await;
            }
            let window = limits::TOP_LATENCY.as_millis() as u64;
            let input = json!({"duration_ms": window, "limit": limits::LIVE_ROWS});
            let Value::Object(arguments) = input else { return Done::Latency(Err(Failure::Ending)) };
            let answer = match gateway.prepare(TraceLatency::NAME, arguments) {
                Ok(call) => gateway.call(call).await,
                Err(e) => Err(e),
            };
            Done::Latency(answer.map(|answer| answer.structured))
        });
    }
}

/// The next screen of now, if somebody follows it.
async fn next(screens: &mut Option<watch::Receiver<Arc<Screen>>>) -> Arc<Screen> {
    let Some(screens) = screens else { return std::future::pending().await };
    match screens.changed().await {
        Ok(()) => Arc::clone(&screens.borrow_and_update()),
        Err(_) => std::future::pending().await, // the feed lives as long as this view
    }
}

/// The screen with the answer about latency.
fn with_latency(mut screen: Screen, answer: &Result<Value, String>) -> Screen {
    match answer {
        Ok(answer) => drop(screen.answers.insert("latency", answer.clone())),
        Err(reason) => drop(screen.errors.insert("latency", reason.clone())),
    }
    screen
}
