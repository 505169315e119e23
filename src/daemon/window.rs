//! A window: the time in which a tool measures, for a client that may disconnect at any moment.

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Instant,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
    time::{ClockId, clock_gettime},
};

use crate::wire::Error;

/// One client's measurement.
pub struct Window<'a> {
    client: &'a UnixStream,
    stop: &'a OwnedFd,
}

impl<'a> Window<'a> {
    /// A window of the client; `stop` hangs up when the daemon is to end.
    pub fn new(client: &'a UnixStream, stop: &'a OwnedFd) -> Self {
        Window { client, stop }
    }

    /// Sleeps until `end` (true), or until the client wants the answer early (false); fails as soon as the client is
    /// gone.
    pub fn sleep_until(&self, end: Instant) -> Result<bool, Error> {
        self.until(end, None).map(|woken| woken != Woken::ByClient)
    }

    /// The same, or until `bell` rings.
    pub fn sleep_until_rung(&self, end: Instant, bell: &Bell) -> Result<Woken, Error> {
        self.until(end, Some(bell))
    }

    /// A disconnected client cancels. A client that only closes its sending side (a half-close) ends the window early
    /// and waits for the answer.
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

/// The reason why a sleep ended.
#[derive(PartialEq)]
pub enum Woken {
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
