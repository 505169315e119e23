//! One session for any number of viewers.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::{Screen, State, frames::Frames};
use crate::{
    gateway::{Failure, Gateway, readings::Readings},
    limits,
    recorder::time,
    sync::lock,
    tools::{Json, Tool, diagnose::Diagnose, status::Status},
};

/// Screens of this host, while somebody looks. The first viewer begins the measurement, the last one ends it.
pub struct Live {
    gateway: Arc<Gateway>,
    every: Duration,
    screen: watch::Sender<Arc<Screen>>,
    is_running: Mutex<bool>,
}

impl Live {
    /// A reading as often as this: 100 ms to 60 s.
    pub fn new(gateway: Arc<Gateway>, every: Duration) -> Arc<Live> {
        Arc::new(Live { gateway, every, screen: watch::Sender::default(), is_running: Mutex::default() })
    }

    /// Screens from now on; the first one may be [`State::Starting`]. Dropping the receiver ends the view. Must be called in a
    /// tokio runtime.
    pub fn watch(self: &Arc<Self>) -> watch::Receiver<Arc<Screen>> {
        let mut is_running = lock(&self.is_running);
        let receiver = self.screen.subscribe();
        if !std::mem::replace(&mut *is_running, true) {
            tokio::spawn(Arc::clone(self).run());
        }
        receiver
    }

    async fn run(self: Arc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.screen.closed() => {}
                () = self.follow() => {}
            }
            let mut is_running = lock(&self.is_running);
            if self.screen.receiver_count() == 0 {
                *is_running = false;
                self.screen.send_replace(Arc::default()); // the next viewer starts anew
                return;
            }
        }
    }

    /// Measures, again and again.
    async fn follow(&self) {
        let mut frames = Frames::default();
        loop {
            let Err(e) = self.measure(&mut frames).await;
            self.show(frames.without(State::Lost, e.to_string()));
            frames.begin_again();
            tokio::time::sleep(limits::LIVE_RETRY).await;
        }
    }

    /// Shows readings until there are no more, and says why.
    async fn measure(&self, frames: &mut Frames) -> Result<std::convert::Infallible, Failure> {
        let mut arguments = Map::new();
        arguments.insert("limit".into(), json!(limits::LIVE_ROWS));
        let call = self.gateway.prepare(Diagnose::NAME, arguments)?;
        let mut readings = self.gateway.watch(call, self.every).await?;
        let (mut clock, mut asked) = (Clock::start(), None::<Instant>);
        loop {
            let sample = self.sample(&mut readings, frames).await?;
            if asked.is_none_or(|at| at.elapsed() >= limits::LIVE_STATUS_EVERY) {
                asked = Some(Instant::now());
                frames.status(self.status().await.unwrap_or_default());
            }
            frames.cpu(clock.percent());
            let (mut made, at) = (std::mem::take(frames), time::now());
            // Others are served meanwhile.
            let work = tokio::task::spawn_blocking(move || {
                let screen = made.add(&sample, at);
                let long = sample.get().len() > limits::SAMPLE_KEPT;
                drop(sample);
                if long {
                    crate::memory::give_back();
                }
                (made, screen)
            });
            let (made, screen) =
                work.await.map_err(|_| Failure::Daemon(crate::wire::Error::Panicked(Diagnose::NAME.into())))?;
            *frames = made;
            self.show(screen);
        }
    }

    /// The next sample. Says so if it is late.
    async fn sample(&self, readings: &mut Readings, frames: &mut Frames) -> Result<Json, Failure> {
        let mut next = std::pin::pin!(readings.sample());
        let patience = self.every + limits::LIVE_LATE;
        let begun = Instant::now();
        loop {
            match tokio::time::timeout(patience, &mut next).await {
                Ok(Ok(Some(sample))) => return Ok(sample),
                Ok(Ok(None)) => return Err(crate::gateway::readings::gone("it closed the connection")),
                Ok(Err(e)) => return Err(e),
                Err(_) => {
                    let seconds = begun.elapsed().as_secs();
                    self.show(frames.without(State::Lost, format!("netmond has not answered for {seconds} s")));
                }
            }
        }
    }

    async fn status(&self) -> Option<Value> {
        let call = self.gateway.prepare(Status::NAME, Map::new()).ok()?;
        Some(self.gateway.call(call).await.ok()?.structured)
    }

    fn show(&self, screen: Screen) {
        self.screen.send_replace(Arc::new(screen));
    }
}

/// The CPU time of this process.
struct Clock {
    at: Instant,
    used: Duration,
}

impl Clock {
    fn start() -> Clock {
        let used = clock_gettime(ClockId::ProcessCPUTime);
        let used =
            Duration::new(used.tv_sec.try_into().unwrap_or_default(), used.tv_nsec.try_into().unwrap_or_default());
        Clock { at: Instant::now(), used }
    }

    /// Since the last call, of one core.
    fn percent(&mut self) -> f64 {
        let before = std::mem::replace(self, Clock::start());
        let (used, time) = (self.used.saturating_sub(before.used), self.at - before.at);
        (used.as_secs_f64() / time.as_secs_f64().max(1e-3) * 1e4).round() / 1e2
    }
}
