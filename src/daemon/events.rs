//! Rare events from a ring buffer, fanned out to every open window.
//!
//! The first subscription attaches the programs, maps the ring and starts a thread that reads it. With the last one the
//! programs are detached, the thread ends, and the ring is unmapped. So nothing runs or is held without an open window.

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
    daemon::{
        kernel::{self, Link, Pod},
        shared::{Held, Shared},
    },
    limits,
    sync::lock,
    wire::Error,
};

type Subscriber<T> = Box<dyn FnMut(&T) + Send>;
type Subscribers<T> = Arc<Mutex<Vec<(u64, Subscriber<T>)>>>;
type Attach = Box<dyn Fn() -> Result<Vec<Link>, Error> + Send + Sync>;

/// A stream of `T` from one ring buffer.
pub struct Events<T: Pod> {
    attach: Attach,
    map: MapHandle,
    ring: Mutex<Option<RingBuffer<'static>>>,
    /// Whether a thread reads the ring.
    reading: Mutex<bool>,
    links: Arc<Shared<()>>,
    subscribers: Subscribers<T>,
    next: AtomicU64,
}

/// One window's share of the events, until it is dropped.
pub struct Subscription<T: Pod> {
    events: Arc<Events<T>>,
    id: u64,
    _links: Held<()>,
}

impl<T: Pod> Events<T> {
    /// Events of the ring buffer `map`; `attach` attaches the programs that write it.
    pub fn new(
        map: &MapHandle,
        attach: impl Fn() -> Result<Vec<Link>, Error> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Events {
            attach: Box::new(attach),
            map: MapHandle::try_from(map)?,
            ring: Mutex::default(),
            reading: Mutex::default(),
            links: Shared::new(),
            subscribers: Arc::default(),
            next: AtomicU64::new(0),
        }))
    }

    fn open(&self) -> Result<(), Error> {
        let fan_out = Arc::clone(&self.subscribers);
        let mut builder = RingBufferBuilder::new();
        builder.add(&self.map, move |bytes| {
            let event = kernel::read_record(bytes);
            lock(&fan_out).iter_mut().for_each(|(_, subscriber)| subscriber(&event));
            0
        })?;
        *lock(&self.ring) = Some(builder.build()?);
        Ok(())
    }

    /// Calls `subscriber` with every event from now on, on the thread that reads the ring: it must
    /// be quick. The programs are attached when this returns.
    pub fn subscribe(self: &Arc<Self>, subscriber: impl FnMut(&T) + Send + 'static) -> Result<Subscription<T>, Error> {
        let mut reading = lock(&self.reading);
        if !*reading {
            self.open()?;
        }
        let links = self.links.hold((), || {
            self.drain(); // what was left behind when the last window closed
            (self.attach)()
        });
        let links = links.and_then(|links| {
            if !*reading {
                let events = Arc::clone(self);
                let pump = move || events.pump();
                thread::Builder::new().name("events".into()).stack_size(limits::THREAD_STACK).spawn(pump)?;
            }
            Ok(links)
        });
        let links = links.inspect_err(|_| {
            if !*reading {
                *lock(&self.ring) = None;
            }
        })?;
        *reading = true;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.subscribers).push((id, Box::new(subscriber)));
        Ok(Subscription { events: Arc::clone(self), id, _links: links })
    }

    fn pump(&self) {
        let Some(fd) = lock(&self.ring).as_ref().map(RingBuffer::epoll_fd) else { return };
        // SAFETY: the ring, which owns the descriptor, is taken below, at the end of this function, and nowhere else
        // while this thread reads.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        loop {
            // The kernel wakes us when much is unread, and a window drains the ring itself at its end.
            let tick = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
            let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&tick));
            let mut reading = lock(&self.reading);
            if lock(&self.subscribers).is_empty() {
                *reading = false;
                *lock(&self.ring) = None;
                return;
            }
            drop(reading);
            self.drain();
        }
    }

    /// Delivers the current content of the ring, but not later events: a flood that is faster than this reader would
    /// never end.
    fn drain(&self) {
        if let Some(ring) = &*lock(&self.ring) {
            ring.consume_raw_n(limits::RING_RECORDS);
        }
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
        lock(&self.events.subscribers).retain(|(id, _)| *id != self.id);
    }
}
