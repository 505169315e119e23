//! Viewers of the live page: however many, the daemon has one session. Each screen is written once for all of them, and a
//! slow viewer gets the newest screen instead of those that it missed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Instant,
};

use axum::body::{Body, Bytes};
use futures::stream;
use serde_json::Map;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{callers::Sender, identity::Identity};
use crate::{
    gateway::{
        audit,
        live::{Live, Screen},
        metrics::Metrics,
    },
    limits,
    sync::lock,
};

/// The viewers, and the newest screen as they get it.
pub struct Viewers {
    live: Arc<Live>,
    watching: Mutex<HashMap<Identity, usize>>,
    written: Mutex<Option<(Arc<Screen>, Bytes)>>,
}

/// A viewer. Its end is a line in the log.
struct Viewer {
    viewers: Arc<Viewers>,
    sender: Sender,
    metrics: Arc<Metrics>,
    begun: Instant,
    screens: watch::Receiver<Arc<Screen>>,
    ended: CancellationToken,
    /// It has the points before the first screen.
    has_history: bool,
}

impl Viewers {
    pub fn new(live: Arc<Live>) -> Viewers {
        Viewers { live, watching: Mutex::default(), written: Mutex::default() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        lock(&self.watching).values().sum()
    }

    fn add(&self, identity: &Identity) -> Result<(), String> {
        let mut watching = lock(&self.watching);
        let all = watching.values().sum::<usize>();
        let own = watching.entry(identity.clone()).or_default();
        if *own >= limits::VIEWERS_OF_A_CLIENT || all >= limits::VIEWERS {
            let (own, all) = (limits::VIEWERS_OF_A_CLIENT, limits::VIEWERS);
            return Err(format!("limit of live pages reached: {own} of one client, {all} in total"));
        }
        *own += 1;
        Ok(())
    }

    fn remove(&self, identity: &Identity) {
        let mut watching = lock(&self.watching);
        if let Some(own) = watching.get_mut(identity) {
            *own = own.saturating_sub(1);
        }
        watching.retain(|_, own| *own > 0);
    }

    /// The event of a screen. The first viewer that asks writes it.
    fn event(&self, screen: &Arc<Screen>) -> Bytes {
        let mut written = lock(&self.written);
        match &*written {
            Some((known, event)) if Arc::ptr_eq(known, screen) => event.clone(),
            _ => {
                let event = event("screen", &screen.json());
                *written = Some((Arc::clone(screen), event.clone()));
                event
            }
        }
    }
}

fn event(name: &str, data: &str) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into() // JSON has no line break
}

/// Events for one viewer, or why there is no place for it.
pub fn stream(
    viewers: &Arc<Viewers>,
    sender: Sender,
    metrics: &Arc<Metrics>,
    ended: CancellationToken,
) -> Result<Body, String> {
    viewers.add(&sender.caller.identity)?;
    tracing::info!(target: "netmon_mcp::audit", tool = audit::LIVE, who = %sender.caller.identity, peer = %sender.peer, "view");
    let screens = viewers.live.watch();
    let viewer = Viewer {
        viewers: Arc::clone(viewers),
        sender,
        metrics: Arc::clone(metrics),
        begun: Instant::now(),
        screens,
        ended,
        has_history: false,
    };
    Ok(Body::from_stream(stream::unfold(viewer, async |mut viewer| {
        let event = viewer.next().await?;
        Some((Ok::<_, std::convert::Infallible>(event), viewer))
    })))
}

impl Viewer {
    /// The next event; none when the server stops.
    async fn next(&mut self) -> Option<Bytes> {
        if !std::mem::replace(&mut self.has_history, true) {
            let screen = Arc::clone(&self.screens.borrow());
            self.screens.mark_changed(); // it is an event as well
            return Some(event("history", &screen.history_json()));
        }
        tokio::select! {
            changed = self.screens.changed() => changed.ok()?,
            () = self.ended.cancelled() => return None,
        }
        let screen = Arc::clone(&self.screens.borrow_and_update());
        Some(self.viewers.event(&screen))
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.viewers.remove(&self.sender.caller.identity);
        let arguments = audit::Arguments::of(&Map::new());
        let took = self.begun.elapsed();
        let entry = audit::Entry { tool: audit::LIVE, arguments, sender: Some(&self.sender), took };
        entry.write_outcome(Ok(()), None, &self.metrics);
    }
}
