//! The daemon's side: a session of every tool that has something to say, all of the same window.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use serde_json::value::RawValue;

use super::{
    Sample,
    asked::ASKED,
    census::{Census, Watched},
    conntrack,
    network::Network,
    questions::{Asked, READINGS, Reply, When},
    resolvers,
};
use crate::{
    daemon::{
        attribution::{netns_files, own_netns},
        host::{Host, Measurement},
        quotas::Quotas,
        session::Session,
        window::{Window, monotonic_ns},
    },
    limits,
    wire::Error,
};

/// How often the state of the network is read for each reading of the sockets: a link that is down for 0.3 s in a window of 10 s
/// is seen.
const LOOKS: u32 = 4;

/// What every tool sees.
pub struct Diagnosis<'a> {
    parts: Vec<Part<'a>>,
    /// The state of the network, or why it is not known.
    network: Result<Watched<'a>, String>,
    /// The last reading.
    begun: Instant,
    quotas: Quotas,
    tracked: conntrack::Tables,
    /// The client wanted the answer before the window was over.
    ended_early: bool,
}

/// A question, and the session that answers it, or why there is none.
struct Part<'a> {
    asked: &'static Asked,
    session: Result<Measurement<'a>, Error>,
    /// What it said before the end.
    samples: Vec<Box<RawValue>>,
}

impl Part<'_> {
    fn read(&mut self, is_last: bool) {
        if let Ok(session) = &mut self.session {
            match session.read(is_last) {
                Ok(sample) => self.samples.push(sample),
                Err(e) => self.session = Err(e),
            }
        }
    }

    /// What it said since the last reading.
    fn reply(&mut self) -> Reply {
        match &self.session {
            Ok(_) => Reply::Samples(std::mem::take(&mut self.samples)),
            Err(e) => Reply::Error(e.to_string()),
        }
    }
}

impl<'a> Diagnosis<'a> {
    /// All are attached, or have failed, when this returns: from then on nothing is missed.
    pub fn open(host: &'a Host, census: Result<&'a Census, &String>, duration: Duration) -> Result<Self, Error> {
        let open = |asked: &'static Asked| Part {
            asked,
            session: host.open(asked.tool, &asked.input(duration)),
            samples: Vec::new(),
        };
        let parts = at_once(ASKED, |asked| asked.tool, open)?;
        let network = census.map_err(String::clone).and_then(|census| census.open().map_err(|e| e.to_string()));
        Ok(Diagnosis {
            parts,
            network,
            begun: Instant::now(),
            quotas: Quotas::read(),
            tracked: conntrack::Tables::read(),
            ended_early: false,
        })
    }
}

impl Diagnosis<'_> {
    /// Notes what has changed since the last look.
    fn look(&mut self) {
        if let Ok(watched) = &mut self.network
            && let Err(e) = watched.look()
        {
            self.network = Err(e.to_string());
        }
    }

    fn network(&mut self) -> Option<Network> {
        let read = self.network.as_mut().ok()?.read();
        read.map_err(|e| self.network = Err(e.to_string())).ok()
    }
}

impl Session<Sample> for Diagnosis<'_> {
    /// Reads in between what is asked [often](When::Often).
    fn watch(&mut self, window: &Window, end: Instant) -> Result<bool, Error> {
        let length = end.saturating_duration_since(self.begun);
        for n in 0..(READINGS - 1) * LOOKS {
            self.ended_early = !window.sleep_until(self.begun + length * n / ((READINGS - 1) * LOOKS))?;
            if self.ended_early {
                return Ok(false);
            }
            self.look();
            if n % LOOKS != 0 {
                continue;
            }
            self.parts.iter_mut().filter(|part| part.asked.when == When::Often).for_each(|part| part.read(false));
        }
        self.ended_early = !window.sleep_until(end)?;
        Ok(!self.ended_early)
    }

    fn read(&mut self, is_last: bool) -> Result<Sample, Error> {
        let (now, ended_ns) = (Instant::now(), monotonic_ns());
        at_once(&mut self.parts, |part| part.asked.tool, |part| part.read(is_last))?;
        let heard: BTreeMap<_, _> = self.parts.iter_mut().map(|part| (part.asked.name.into(), part.reply())).collect();
        let (netns, netns_files) = (own_netns(), netns_files());
        let quotas = Quotas::read();
        let throttled = quotas.since(&self.quotas);
        self.quotas = quotas;
        let tracked = conntrack::Tables::read();
        let (fullest, clashes) = (tracked.fullest(), tracked.clashes_since(&self.tracked));
        self.tracked = tracked;
        let network = self.network();
        Ok(Sample {
            heard,
            conntrack: fullest,
            network_error: self.network.as_ref().err().cloned().unwrap_or_default(),
            network,
            netns,
            clashes,
            throttled,
            resolvers: resolvers::configured(netns, &netns_files),
            netns_files,
            ended_early: self.ended_early,
            window_ns: (now - std::mem::replace(&mut self.begun, now)).as_nanos() as u64,
            ended_ns,
            judged: None,
        })
    }
}

/// Does this with all things at once, each on a thread with its name.
fn at_once<T: Send, R: Send>(
    things: impl IntoIterator<Item = T>,
    name: impl Fn(&T) -> &str,
    work: impl Fn(T) -> R + Sync,
) -> Result<Vec<R>, Error> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = things
            .into_iter()
            .map(|thing| {
                let builder = thread::Builder::new().name(name(&thing).into()).stack_size(limits::THREAD_STACK);
                builder.spawn_scoped(scope, move || work(thing))
            })
            .collect();
        let results = threads.into_iter().map(|thread| match thread.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err(Error::Panicked("diagnose".into())),
            Err(e) => Err(e.into()),
        });
        results.collect()
    })
}
