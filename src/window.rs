//! A window: the time in which a tool watches, on behalf of a client who may hang up at any moment.

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
    time::{ClockId, clock_gettime},
};

use crate::{bpf::lock, wire::Error};

/// What a request holds until its answer is on its way.
pub type Kept = Mutex<Vec<Box<dyn Send>>>;

/// One client's measurement with one tool.
pub struct Window<'a> {
    client: &'a UnixStream,
    stop: &'a OwnedFd,
    asked: Instant,
    kept: &'a Kept,
    /// How many windows the tool has open, and whether this is one of them.
    open: Option<&'a AtomicUsize>,
    counted: AtomicBool,
    /// Which part of a larger window this is.
    part: Option<(&'a Parts, usize)>,
}

/// A window that is made of several tools' windows: which of them have opened, or ended without.
pub struct Parts {
    settled: Vec<AtomicBool>,
    bell: Bell,
}

impl Parts {
    pub fn new(count: usize) -> Result<Self, Error> {
        Ok(Parts { settled: (0..count).map(|_| AtomicBool::new(false)).collect(), bell: Bell::new()? })
    }

    /// Says that a part has opened, or never will.
    pub fn settle(&self, part: usize) {
        self.settled[part].store(true, Ordering::Release);
        self.bell.ring();
    }

    /// Waits until all parts have settled, at most until `end`.
    pub fn wait(&self, window: &Window, end: Instant) -> Result<(), Error> {
        while !self.settled.iter().all(|settled| settled.load(Ordering::Acquire)) {
            if !window.sleep_until_rung(end, &self.bell)? {
                break;
            }
            self.bell.silence();
        }
        Ok(())
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        if let (Some(open), true) = (self.open, *self.counted.get_mut()) {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl<'a> Window<'a> {
    /// A window of the client who asked at `asked`; `stop` hangs up when the daemon is to end.
    pub fn new(client: &'a UnixStream, stop: &'a OwnedFd, asked: Instant, kept: &'a Kept) -> Self {
        Window { client, stop, asked, kept, open: None, counted: AtomicBool::new(false), part: None }
    }

    /// The same client's window with a tool that counts its open windows in `open`.
    pub fn of(&self, open: &'a AtomicUsize) -> Window<'a> {
        let Window { client, stop, asked, kept, part, .. } = *self;
        Window { client, stop, asked, kept, open: Some(open), counted: AtomicBool::new(false), part }
    }

    /// A part of this window, for another tool to watch in.
    pub fn part<'b>(&'b self, parts: &'b Parts, part: usize) -> Window<'b> {
        let Window { client, stop, asked, kept, .. } = *self;
        Window { client, stop, asked, kept, open: None, counted: AtomicBool::new(false), part: Some((parts, part)) }
    }

    /// Says that the kernel counts from now on: everything is attached, the first reading taken.
    pub fn opened(&self) -> Instant {
        if let (Some(open), false) = (self.open, self.counted.swap(true, Ordering::Relaxed)) {
            open.fetch_add(1, Ordering::Relaxed);
        }
        if let Some((parts, part)) = self.part {
            parts.settle(part);
        }
        Instant::now()
    }

    /// Sleeps through a window of `duration` that began with the question, and returns its length
    /// from `opened`, the moment from which the kernel counted. Attaching takes the kernel 5-15 ms (an RCU
    /// grace period); the answer should not come later for it, unless it took a tenth of the window.
    pub fn wait(&self, opened: Instant, duration: Duration) -> Result<(), Error> {
        let end = (self.asked + duration).max(opened + duration.mul_f64(0.9));
        self.sleep_until(end).map(|_| ())
    }

    /// Sleeps until `end` (true), or until the client wants the answer as it is now (false); fails as soon as nobody
    /// waits for the answer any more.
    pub fn sleep_until(&self, end: Instant) -> Result<bool, Error> {
        self.until(end, None).map(|woken| woken != Woken::ByClient)
    }

    /// Sleeps until `bell` rings (true), or `end` has come or the client wants the answer now (false).
    pub fn sleep_until_rung(&self, end: Instant, bell: &Bell) -> Result<bool, Error> {
        self.until(end, Some(bell)).map(|woken| woken == Woken::ByBell)
    }

    /// When a window of this length ends that began with the question.
    pub fn end(&self, duration: Duration) -> Instant {
        self.asked + duration
    }

    /// Keeps something until the answer is on its way: detaching costs an RCU grace period.
    pub fn keep(&self, thing: impl Send + 'static) {
        lock(self.kept).push(Box::new(thing));
    }

    /// A client that hangs up cancels. One that only says that it will write nothing more (a half-close) has seen
    /// enough and waits for the answer.
    fn until(&self, end: Instant, bell: Option<&Bell>) -> Result<Woken, Error> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let mut fds = vec![PollFd::new(self.client, PollFlags::RDHUP), PollFd::new(self.stop, PollFlags::empty())];
            fds.extend(bell.map(|bell| PollFd::new(&bell.0, PollFlags::IN)));
            match poll(&mut fds, Some(&timeout)) {
                Err(Errno::INTR) => continue,
                Err(e) => return Err(std::io::Error::from(e).into()),
                Ok(0) => return Ok(Woken::AtEnd),
                Ok(_) => {}
            }
            if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
                return Err(Error::Cancelled);
            }
            if fds[1].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
                return Err(Error::ShuttingDown);
            }
            if fds[0].revents().contains(PollFlags::RDHUP) {
                return Ok(Woken::ByClient);
            }
            if fds.get(2).is_some_and(|fd| fd.revents().contains(PollFlags::IN)) {
                return Ok(Woken::ByBell);
            }
        }
    }
}

/// What ended a sleep.
#[derive(PartialEq)]
enum Woken {
    AtEnd,
    ByBell,
    ByClient,
}

/// Wakes a window from another thread.
pub struct Bell(OwnedFd);

impl Bell {
    pub fn new() -> Result<Self, Error> {
        Ok(Bell(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(std::io::Error::from)?))
    }

    /// Rings; a bell that rings already stays so.
    pub fn ring(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Silences it until the next [`ring`](Self::ring).
    pub fn silence(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

/// CLOCK_MONOTONIC in nanoseconds, which is what `bpf_ktime_get_ns` reads.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
