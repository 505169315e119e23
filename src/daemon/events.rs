//! Rare events from a ring buffer, fanned out to every open window.
//!
//! The first subscription attaches the programs, maps the ring and starts a thread that reads it. With the last one the
//! programs are detached, the thread ends, and the ring is unmapped. So nothing runs or is held without an open window.

use std::{
    io,
    mem::MaybeUninit,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use libbpf_rs::{RingBuffer, RingBufferBuilder};
use rustix::{
    event::{Timespec, epoll},
    fd::{AsFd, OwnedFd},
};

use crate::{
    daemon::{
        kernel::{self, Link, Pod, Ring},
        shared::{Held, Shared},
    },
    limits,
    sync::lock,
    wire::Error,
};

/// At least this many records in one read are a flood. The reader then reads often, without being woken.
const FLOOD: i32 = 256;
/// The pause between two reads in a flood. The smallest ring takes 500,000 records a second.
const FLOOD_TICK: Duration = Duration::from_millis(5);

type Subscriber<T> = Box<dyn FnMut(&T) + Send>;
type Subscribers<T> = Arc<Mutex<Vec<(u64, Subscriber<T>)>>>;
type Attach = Box<dyn Fn() -> Result<Vec<Link>, Error> + Send + Sync>;

/// A stream of `T` from one ring buffer.
pub struct Events<T: Pod> {
    attach: Attach,
    map: Ring,
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
        map: Ring,
        attach: impl Fn() -> Result<Vec<Link>, Error> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Events {
            attach: Box::new(attach),
            map,
            ring: Mutex::default(),
            reading: Mutex::default(),
            links: Shared::new(),
            subscribers: Arc::default(),
            next: AtomicU64::new(0),
        }))
    }

    /// A descriptor that is ready once each time that a program wakes the reader.
    fn woken(&self) -> io::Result<OwnedFd> {
        let woken = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&woken, self.map.records.as_fd(), epoll::EventData::new_u64(0), flags)?;
        Ok(woken)
    }

    /// Maps the ring, and returns what its reader waits for.
    fn open(&self) -> Result<OwnedFd, Error> {
        let fan_out = Arc::clone(&self.subscribers);
        let mut builder = RingBufferBuilder::new();
        builder.add(&self.map.records, move |bytes| {
            let event = kernel::read_record(bytes);
            lock(&fan_out).iter_mut().for_each(|(_, subscriber)| subscriber(&event));
            0
        })?;
        let woken = self.woken()?;
        *lock(&self.ring) = Some(builder.build()?);
        Ok(woken)
    }

    /// Calls `subscriber` with every event from now on, on the thread that reads the ring: it must
    /// be quick. The programs are attached when this returns.
    pub fn subscribe(self: &Arc<Self>, subscriber: impl FnMut(&T) + Send + 'static) -> Result<Subscription<T>, Error> {
        let mut reading = lock(&self.reading);
        let woken = if *reading { None } else { Some(self.open()?) };
        let links = self.links.hold((), || {
            self.drain(); // what was left behind when the last window closed
            (self.attach)()
        });
        let links = links.and_then(|links| {
            if let Some(woken) = woken {
                let events = Arc::clone(self);
                let pump = move || events.pump(&woken);
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

    fn pump(&self, woken: &OwnedFd) {
        loop {
            // A program wakes us when much is unread, and a window drains the ring itself at its end.
            let tick = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
            let _ = epoll::wait(woken, &mut [MaybeUninit::uninit()], Some(&tick));
            let mut reading = lock(&self.reading);
            if lock(&self.subscribers).is_empty() {
                *reading = false;
                *lock(&self.ring) = None;
                return;
            }
            drop(reading);
            while self.drain() >= FLOOD {
                thread::sleep(FLOOD_TICK);
            }
        }
    }

    /// Delivers the current content of the ring, but not later events: a flood that is faster than this reader would
    /// never end. Returns the number of events.
    fn drain(&self) -> i32 {
        // Before the read: what is written meanwhile counts as unread, and a wake-up may come too early, but not late.
        if let Err(e) = kernel::set(&self.map.unread, 0u32, &0u32) {
            tracing::debug!("resetting the counter of unread bytes failed: {e}");
        }
        lock(&self.ring).as_ref().map_or(0, |ring| ring.consume_raw_n(limits::RING_RECORDS))
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
