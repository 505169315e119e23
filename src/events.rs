//! Rare events from a ring buffer, fanned out to every open window.
//!
//! The first subscription attaches the programs and starts a thread that reads the ring; with the
//! last one the programs are detached and the thread ends. So nothing runs while nobody asks.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use libbpf_rs::{MapHandle, RingBuffer, RingBufferBuilder};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::BorrowedFd,
};

use crate::{
    bpf::{self, Link, Pod, lock},
    limits,
    wire::Error,
};

type Subscriber<T> = Box<dyn FnMut(&T) + Send>;
type Subscribers<T> = Arc<Mutex<Vec<(u64, Subscriber<T>)>>>;
type Attach = Box<dyn Fn() -> Result<Vec<Link>, Error> + Send + Sync>;

/// A stream of `T` from one ring buffer.
pub struct Events<T: Pod> {
    attach: Attach,
    ring: Mutex<RingBuffer<'static>>,
    state: Mutex<State>,
    subscribers: Subscribers<T>,
    next: AtomicU64,
}

#[derive(Default)]
struct State {
    subscriptions: usize,
    links: Vec<Link>,
    reading: bool,
}

/// One window's share of the events, until it is dropped.
pub struct Subscription<T: Pod> {
    events: Arc<Events<T>>,
    id: u64,
}

impl<T: Pod> Events<T> {
    /// Events of the ring buffer `map`; `attach` attaches the programs that write it.
    pub fn new(
        map: &MapHandle,
        attach: impl Fn() -> Result<Vec<Link>, Error> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, Error> {
        let subscribers: Subscribers<T> = Arc::default();
        let fan_out = Arc::clone(&subscribers);
        let mut builder = RingBufferBuilder::new();
        builder.add(map, move |bytes| {
            if let Some(event) = bpf::read(bytes) {
                lock(&fan_out).iter_mut().for_each(|(_, subscriber)| subscriber(&event));
            }
            0
        })?;
        Ok(Arc::new(Events {
            attach: Box::new(attach),
            ring: Mutex::new(builder.build()?),
            state: Mutex::default(),
            subscribers,
            next: AtomicU64::new(0),
        }))
    }

    /// Calls `subscriber` with every event from now on, on the thread that reads the ring: it must
    /// be quick. The programs are attached when this returns.
    pub fn subscribe(self: &Arc<Self>, subscriber: impl FnMut(&T) + Send + 'static) -> Result<Subscription<T>, Error> {
        let mut state = lock(&self.state);
        if state.subscriptions == 0 {
            self.drain(); // what was left behind when the last window closed
            state.links = (self.attach)()?;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.subscribers).push((id, Box::new(subscriber)));
        state.subscriptions += 1;
        if !state.reading {
            let events = Arc::clone(self);
            thread::Builder::new()
                .name("events".into())
                .stack_size(limits::THREAD_STACK)
                .spawn(move || events.pump())?;
            state.reading = true;
        }
        Ok(Subscription { events: Arc::clone(self), id })
    }

    fn pump(&self) {
        let fd = lock(&self.ring).epoll_fd();
        // SAFETY: the ring, which owns the descriptor, lives as long as `self`.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        loop {
            let tick = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&tick));
            let mut state = lock(&self.state);
            if state.subscriptions == 0 {
                state.reading = false;
                return;
            }
            drop(state);
            self.drain();
        }
    }

    fn drain(&self) {
        let _ = lock(&self.ring).consume();
    }
}

impl<T: Pod> Subscription<T> {
    /// Delivers what the kernel has written by now. A window calls it at its end.
    pub fn drain(&self) {
        self.events.drain();
    }
}

impl<T: Pod> Drop for Subscription<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.events.state);
        lock(&self.events.subscribers).retain(|(id, _)| *id != self.id);
        state.subscriptions -= 1;
        if state.subscriptions == 0 {
            state.links.clear();
        }
    }
}
