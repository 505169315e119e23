//! The tools of a daemon: loaded side by side, each on a thread of its own that holds the capabilities and reads no input.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use caps::CapsHashSet;
use serde_json::{Value, value::RawValue};

use crate::{
    daemon::{
        kernel::{
            Common, Loader, Optional, Program,
            feature::{Feature, Release},
            features::Features,
        },
        session::Session,
        window::Window,
    },
    memory, sandbox,
    sync::lock,
    untrusted,
    wire::Error,
};

/// A tool that is loaded.
pub trait Measures: Send + Sync {
    /// Opens a session, for the `Input` of the tool.
    fn open<'a>(&'a self, input: &Value, host: &'a Host) -> Result<Opened<'a>, Error>;
}

/// A session, whose samples are JSON.
pub struct Opened<'a> {
    /// The requested length of the window.
    pub duration: Duration,
    pub session: Box<dyn Session<Box<RawValue>> + 'a>,
}

/// An open session of a tool, which `status` counts.
pub struct Measurement<'a> {
    tool: &'static str,
    open: Opened<'a>,
    /// None where the tool has no window.
    windows: Option<&'a AtomicUsize>,
}

impl Measurement<'_> {
    /// The requested length of the window.
    pub fn duration(&self) -> Duration {
        self.open.duration
    }
}

/// A panic of the tool becomes an error.
impl Session<Box<RawValue>> for Measurement<'_> {
    fn watch(&mut self, window: &Window, end: Instant) -> Result<bool, Error> {
        guarded(self.tool, || self.open.session.watch(window, end))
    }

    fn read(&mut self, is_last: bool) -> Result<Box<RawValue>, Error> {
        guarded(self.tool, || self.open.session.read(is_last))
    }
}

impl Drop for Measurement<'_> {
    fn drop(&mut self) {
        if let Some(windows) = self.windows {
            windows.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn guarded<T>(tool: &str, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Error::Panicked(tool.into())))
}

/// A tool as the daemon sees it.
pub struct Sampler {
    pub name: &'static str,
    pub since: Release,
    pub features: &'static [Feature],
    pub optional: &'static [Optional],
    pub asks: fn() -> Vec<&'static str>,
    pub load: fn(&mut Loader) -> Result<Box<dyn Measures>, Error>,
}

/// The kernel features that the programs of all tools except those in `without` need.
pub fn features(samplers: &'static [Sampler], without: &[String]) -> impl Iterator<Item = Feature> {
    let loaded = |sampler: &&Sampler| !without.iter().any(|name| name == sampler.name);
    samplers.iter().filter(loaded).flat_map(|sampler| sampler.features.iter().copied())
}

/// A tool that the daemon has tried to load.
pub struct Loaded {
    /// Its programs.
    pub programs: Vec<Program>,
    /// The capabilities that the tool needs on this kernel while serving.
    pub keeps: CapsHashSet,
    /// The tool, or why it is unavailable.
    tool: Result<Box<dyn Measures>, String>,
}

impl Loaded {
    /// Why the tool is not available, if it is not.
    pub fn reason(&self) -> Option<&str> {
        self.tool.as_ref().err().map(String::as_str)
    }

    fn unavailable(reason: String) -> Loaded {
        Loaded { programs: Vec::new(), keeps: CapsHashSet::new(), tool: Err(reason) }
    }

    fn load(sampler: &Sampler, features: &Arc<Features>, common: &Arc<Common>) -> Loaded {
        let begun = Instant::now();
        let mut loader = Loader::new(Arc::clone(features), Arc::clone(common), sampler.optional);
        match catch_unwind(AssertUnwindSafe(|| (sampler.load)(&mut loader))) {
            Ok(Ok(tool)) => {
                tracing::debug!(tool = sampler.name, ms = begun.elapsed().as_millis() as u64, "loaded");
                let keeps = features.keeps(sampler.features.iter().copied());
                Loaded { programs: loader.programs, keeps, tool: Ok(tool) }
            }
            Ok(Err(e)) => {
                tracing::warn!(tool = sampler.name, "unavailable: {e}");
                let running = Release::running();
                let age = if running < sampler.since {
                    format!("; it needs Linux {} or newer, and this host runs {running}", sampler.since)
                } else {
                    String::new()
                };
                Loaded::unavailable(format!("{e}{age}"))
            }
            Err(_) => Loaded::unavailable(Error::Panicked(sampler.name.into()).to_string()),
        }
    }
}

/// A tool and its state.
struct Slot {
    loaded: OnceLock<Loaded>,
    /// Windows that are open now.
    windows: AtomicUsize,
}

/// Which tools may be loaded now.
#[derive(Default)]
struct Queue {
    /// Those that a request waits for come first.
    wanted: BTreeSet<&'static str>,
    /// Whether the others may be loaded as well.
    rest: bool,
    /// The number of tools that are being loaded.
    busy: usize,
    /// The number of tools that still wait to be loaded.
    left: usize,
    /// The daemon ends: nothing more is loaded.
    closed: bool,
}

/// Everything that the daemon has loaded, or is loading.
pub struct Host {
    features: Arc<Features>,
    common: Arc<Common>,
    samplers: &'static [Sampler],
    slots: BTreeMap<&'static str, Slot>,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// When it began.
    pub started: Instant,
}

impl Host {
    /// Starts to load every tool except those in `without`; a tool that the kernel refuses does not stop the others.
    /// The loading threads inherit the caller's current capabilities, and drop them when they are done.
    pub fn start(samplers: &'static [Sampler], features: Features, without: &[String]) -> Arc<Host> {
        let slot = |sampler: &Sampler| (sampler.name, Slot { loaded: OnceLock::new(), windows: AtomicUsize::new(0) });
        let host = Arc::new(Host {
            features: Arc::new(features),
            common: Arc::default(),
            samplers,
            slots: samplers.iter().map(slot).collect(),
            queue: Mutex::default(),
            changed: Condvar::new(),
            started: Instant::now(),
        });
        lock(&host.queue).left = samplers.len();
        for sampler in samplers {
            if without.iter().any(|name| name == sampler.name) {
                host.publish(sampler, Loaded::unavailable("disabled with --without".into()));
            } else if sampler.features.is_empty() {
                host.publish(sampler, Loaded::load(sampler, &host.features, &host.common));
            } else {
                host.start_loader(sampler);
            }
        }
        host
    }

    fn start_loader(self: &Arc<Self>, sampler: &'static Sampler) {
        let host = Arc::clone(self);
        let work = move || {
            if host.wait_for_turn(sampler.name) {
                let loaded = Loaded::load(sampler, &host.features, &host.common);
                // The tool is announced only after this thread has dropped its capabilities.
                let loaded = match sandbox::cut_to(&CapsHashSet::new()) {
                    Ok(()) => loaded,
                    Err(e) => Loaded::unavailable(format!("dropping capabilities failed: {e}")),
                };
                host.finish(sampler, loaded);
            }
        };
        if let Err(e) = thread::Builder::new().name(format!("load {}", sampler.name)).spawn(work) {
            let loaded = Loaded::unavailable(format!("netmond could not start a thread to load it: {e}"));
            self.publish(sampler, loaded);
        }
    }

    /// Waits until the tool may be loaded; false if the daemon ends before.
    fn wait_for_turn(&self, name: &'static str) -> bool {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let mut queue = lock(&self.queue);
        loop {
            let first = queue.wanted.contains(name);
            if queue.closed {
                return false;
            }
            if queue.busy < processors && (first || queue.rest && queue.wanted.is_empty()) {
                queue.wanted.remove(name);
                queue.busy += 1;
                return true;
            }
            queue = self.wait(queue);
        }
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, sampler: &Sampler, loaded: Loaded) {
        lock(&self.queue).busy -= 1;
        self.publish(sampler, loaded);
    }

    fn publish(&self, sampler: &Sampler, loaded: Loaded) {
        if let Some(slot) = self.slots.get(sampler.name) {
            let _ = slot.loaded.set(loaded); // each is loaded once
        }
        let mut queue = lock(&self.queue);
        queue.left -= 1;
        let whole = queue.left == 0;
        drop(queue);
        if whole {
            self.features.forget_types();
            memory::give_back();
        }
        self.changed.notify_all();
    }

    /// Continues loading with the tools that were not requested yet.
    pub fn load_rest(&self) {
        lock(&self.queue).rest = true;
        self.changed.notify_all();
    }

    /// Waits until all tools are loaded.
    pub fn load_all(&self) {
        self.load_rest();
        let mut queue = lock(&self.queue);
        while queue.left > 0 && !queue.closed {
            queue = self.wait(queue);
        }
    }

    /// Loading has stopped, and nothing waits for it.
    pub fn close(&self) {
        lock(&self.queue).closed = true;
        self.changed.notify_all();
    }

    /// The features of this kernel.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Every tool, how many of its windows are open, and what was loaded of it, where that has ended.
    pub fn tools(&self) -> impl Iterator<Item = (&'static str, usize, Option<&Loaded>)> {
        self.slots.iter().map(|(name, slot)| (*name, slot.windows.load(Ordering::Relaxed), slot.loaded.get()))
    }

    /// Waits until what a request needs is loaded: the tool, and those that it asks itself.
    pub fn prepare(&self, tool: &str) -> Result<(), Error> {
        let sampler = self.samplers.iter().find(|sampler| sampler.name == tool);
        let sampler = sampler.ok_or_else(|| Error::UnknownTool(untrusted::clean(tool)))?;
        let mut names: Vec<&'static str> = (sampler.asks)();
        names.push(sampler.name);
        let mut queue = lock(&self.queue);
        let pending = |name: &&'static str| self.slots.get(*name).is_some_and(|slot| slot.loaded.get().is_none());
        queue.wanted.extend(names.iter().copied().filter(pending));
        self.changed.notify_all();
        while names.iter().any(pending) {
            if queue.closed {
                return Err(Error::ShuttingDown);
            }
            queue = self.wait(queue);
        }
        Ok(())
    }

    /// Opens a session of a tool that is [prepared](Self::prepare).
    pub fn open<'a>(&'a self, tool: &str, input: &Value) -> Result<Measurement<'a>, Error> {
        let (name, slot) = self.slots.get_key_value(tool).ok_or_else(|| Error::UnknownTool(untrusted::clean(tool)))?;
        let unavailable = |reason: &str| Error::Unavailable { tool: tool.into(), reason: reason.into() };
        let loaded = slot.loaded.get().ok_or_else(|| unavailable("still loading"))?;
        let tool = loaded.tool.as_ref().map_err(|reason| unavailable(reason))?;
        let open = guarded(name, || tool.open(input, self))?;
        let windows = (!open.duration.is_zero()).then_some(&slot.windows);
        if let Some(windows) = windows {
            windows.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Measurement { tool: name, open, windows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::session::Snapshot;

    fn host(tools: Vec<(&'static str, Loaded)>) -> Host {
        let slot = |(name, loaded)| (name, Slot { loaded: OnceLock::from(loaded), windows: AtomicUsize::new(0) });
        Host {
            features: Arc::new(Features::none()),
            common: Arc::default(),
            samplers: &[],
            slots: tools.into_iter().map(slot).collect(),
            queue: Mutex::default(),
            changed: Condvar::new(),
            started: Instant::now(),
        }
    }

    /// Panics when it is opened, or when it is read.
    struct Panics {
        opens: bool,
    }

    impl Measures for Panics {
        fn open<'a>(&'a self, _: &Value, _: &'a Host) -> Result<Opened<'a>, Error> {
            assert!(self.opens, "on purpose");
            let session = Snapshot(|| panic!("on purpose"));
            Ok(Opened { duration: Duration::ZERO, session: Box::new(session) })
        }
    }

    #[test]
    fn panicking_tool_returns_an_error_and_closes_its_window() {
        for opens in [false, true] {
            let tool: Box<dyn Measures> = Box::new(Panics { opens });
            let loaded = Loaded { programs: vec![], keeps: CapsHashSet::new(), tool: Ok(tool) };
            let host = host(vec![("broken", loaded)]);
            let result = host.open("broken", &Value::Null).and_then(|mut session| session.read(true));
            assert_eq!(result.unwrap_err(), Error::Panicked("broken".into()));
            assert_eq!(host.slots["broken"].windows.load(Ordering::Relaxed), 0);
            let absent = host.open("absent", &Value::Null).err();
            assert_eq!(absent, Some(Error::UnknownTool("absent".into())));
        }
    }

    #[test]
    fn request_for_an_unloaded_tool_ends_at_shutdown() {
        let host = Arc::new(host(vec![]));
        let slots = BTreeMap::from([("top_traffic", Slot { loaded: OnceLock::new(), windows: AtomicUsize::new(0) })]);
        static SLOW: [Sampler; 1] = [Sampler {
            name: "top_traffic",
            since: Release(0, 0),
            features: &[],
            optional: &[],
            asks: Vec::new,
            load: |_| Err(Error::Cancelled),
        }];
        let host = Arc::new(Host { slots, samplers: &SLOW, ..Arc::into_inner(host).unwrap() });
        let asking = Arc::clone(&host);
        let asked = thread::spawn(move || asking.prepare("top_traffic"));
        host.close();
        assert_eq!(asked.join().unwrap(), Err(Error::ShuttingDown));
    }
}
