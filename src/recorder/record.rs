//! The recorder: a client of the daemon that keeps one stream of readings of everything, and stores them.

use std::{
    fs, io,
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

use super::{
    hook::Hook,
    incidents::Tracker,
    replay,
    series::figures,
    store::{Bounds, Entry, Gap, Kind, Part, Recording, Sqlite, Store, Trouble, Window},
    stream::{Next, Ready, Stream, wait},
    time::{Micros, Period, now, shown},
};
use crate::{
    limits,
    sandbox::folder_of,
    supervisor::Supervisor,
    tools::diagnose::parts::{self, Judge, Split},
};

/// How to record.
#[derive(Clone, Debug)]
pub struct Options {
    pub path: PathBuf,
    pub bounds: Bounds,
    pub interval: Duration,
    /// The incident program with its arguments; empty if there is none.
    pub on_incident: Vec<String>,
}

/// A way to ask the daemon; why there is none otherwise.
pub type Dial<'a> = dyn FnMut() -> Result<UnixStream, String> + 'a;

/// Records until SIGTERM or SIGINT. `confine` drops the privileges that recording does not need.
pub fn run(options: Options, dial: &mut Dial, confine: impl FnOnce()) -> anyhow::Result<()> {
    let (signalled, on_signal) = UnixStream::pair()?;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        signal_hook::low_level::pipe::register(signal, on_signal.try_clone()?)?;
    }
    let supervisor = Supervisor::from_environment();
    let mut recorder = Recorder::new(options)?;
    confine();
    supervisor.ready();
    let path = recorder.options.path.display();
    tracing::info!(path = %path, interval_s = recorder.options.interval.as_secs_f64(), "recording");
    recorder.record(dial, &signalled, &supervisor);
    supervisor.stopping();
    Ok(())
}

/// Clocks at one moment.
#[derive(Clone, Copy)]
struct Clocks {
    wall_us: Micros,
    /// Since the host started, asleep or not; and awake only.
    boot_us: Micros,
    awake_us: Micros,
}

impl Clocks {
    fn now() -> Self {
        let of = |clock| {
            let time = clock_gettime(clock);
            time.tv_sec * 1_000_000 + time.tv_nsec / 1_000
        };
        Clocks { wall_us: now(), boot_us: of(ClockId::Boottime), awake_us: of(ClockId::Monotonic) }
    }

    /// The clocks at an earlier moment of CLOCK_MONOTONIC. A moment that is later, or before `since`, is of another
    /// host's clock, and counts as now.
    fn at(self, monotonic_ns: u64, since: Clocks) -> Self {
        let moment = (monotonic_ns / 1_000) as Micros;
        let ago = if (since.awake_us..=self.awake_us).contains(&moment) { self.awake_us - moment } else { 0 };
        Clocks { wall_us: self.wall_us - ago, boot_us: self.boot_us - ago, awake_us: self.awake_us - ago }
    }

    /// By how much the clock on the wall was set since then, and how long the host slept.
    fn since(self, before: Clocks) -> (Micros, Micros) {
        let boot = self.boot_us - before.boot_us;
        ((self.wall_us - before.wall_us) - boot, boot - (self.awake_us - before.awake_us))
    }
}

/// Beyond this a clock was set, and did not drift.
const STEP: Micros = 1_000_000;

struct Recorder {
    options: Options,
    store: Sqlite,
    boot: String,
    host: String,
    tracker: Tracker,
    judge: Judge,
    hook: Option<Hook>,
    /// When the stream was asked for.
    asked: Clocks,
    /// When the last window ended.
    last: Option<Clocks>,
    /// Why nothing was recorded before the window that comes, and since when.
    gap: Option<Gap>,
    /// Windows that wait to be written.
    pending: Vec<Entry>,
    /// Windows that could not be written and are forgotten.
    lost: u64,
    /// The last logged trouble.
    told: Option<Kind>,
}

impl Recorder {
    fn new(options: Options) -> anyhow::Result<Self> {
        let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
        let boot = read("/proc/sys/kernel/random/boot_id")?;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let mut store = Sqlite::write(&options.path, options.bounds, options.interval, now())?;
        let open = match store.open_incidents() {
            Err(e) if e.kind == Kind::Corrupt => {
                store.begin_again(options.interval, now())?;
                Vec::new()
            }
            open => open?,
        };
        let tracker = Tracker::resume(open);
        let mut gap = None;
        if let Some(period) = store.facts()?.period {
            let last = store.spans(Period { begin_us: period.end_us - 1, end_us: Micros::MAX })?.pop();
            let rebooted = last.is_some_and(|span| span.boot != boot);
            let reason = if rebooted { "the host was restarted" } else { "the recorder did not run" };
            let begin_us = period.end_us;
            gap = Some(Gap { period: Period { begin_us, end_us: begin_us }, reason: reason.into() });
        }
        let hook = Hook::start(&options.on_incident)?;
        let (asked, last, pending) = (Clocks::now(), None, Vec::new());
        let judge = Judge::default();
        Ok(Recorder {
            options,
            store,
            boot,
            host,
            tracker,
            judge,
            hook,
            asked,
            last,
            gap,
            pending,
            lost: 0,
            told: None,
        })
    }

    /// Records until SIGTERM. netmond may restart meanwhile.
    fn record(&mut self, dial: &mut Dial, signals: &UnixStream, supervisor: &Supervisor) {
        let mut complained = false;
        loop {
            let every = self.options.interval;
            self.asked = Clocks::now();
            let begun = dial().and_then(|socket| Stream::begin(socket, every).map_err(|e| e.to_string()));
            let reason = match begun {
                Ok(stream) => match self.follow(stream, signals, supervisor, &mut complained) {
                    None => return,
                    Some(reason) => reason,
                },
                Err(reason) => reason,
            };
            if !std::mem::replace(&mut complained, true) {
                tracing::warn!("recording is paused: {reason}. It continues when netmond answers");
            }
            self.begin_gap(&reason);
            supervisor.alive();
            if matches!(wait(None, signals, Instant::now() + limits::RECORDER_RETRY), Ready::Signal) {
                return;
            }
        }
    }

    /// Follows one stream: why it ended, or nothing if it is time to end.
    fn follow(
        &mut self,
        mut stream: Stream,
        signals: &UnixStream,
        supervisor: &Supervisor,
        complained: &mut bool,
    ) -> Option<String> {
        let (mut is_last, mut is_open) = (false, false);
        let nothing = UnixStream::pair().ok()?; // after the first signal there is none to wait for
        loop {
            let signals = if is_last { &nothing.0 } else { signals };
            match stream.next(signals, supervisor.interval()) {
                Next::Opened => {
                    is_open = true;
                    if std::mem::take(complained) {
                        tracing::info!("recording continues");
                    }
                }
                Next::Sample(sample) => {
                    if let Err(reason) = self.take(sample.get()) {
                        tracing::warn!("recording a reading failed: {reason}");
                        self.last = None;
                    }
                    supervisor.alive();
                }
                Next::Quiet => supervisor.alive(),
                Next::Signal if !is_open => return None,
                Next::Signal => {
                    is_last = true;
                    stream.enough();
                }
                Next::Gone(_) if is_last => return None,
                Next::Gone(reason) => return Some(reason),
            }
        }
    }

    fn begin_gap(&mut self, reason: &str) {
        self.judge = Judge::default();
        let begin_us = self.last.take().map(|last| last.wall_us);
        if let (None, Some(begin_us)) = (&self.gap, begin_us) {
            let period = Period { begin_us, end_us: begin_us };
            self.gap = Some(Gap { period, reason: format!("netmond was unavailable: {reason}") });
        }
    }

    /// A reading: what happened since the last one.
    fn take(&mut self, sample: &str) -> Result<(), String> {
        let Split { parts, window_ns, ended_ns } = parts::split(sample)?;
        // The reading may have waited for this process. Later events belong to the next reading.
        let clocks = Clocks::now().at(ended_ns, self.last.unwrap_or(self.asked));
        let length_us = (window_ns / 1_000) as Micros;
        let begin_us = self.begin(clocks, length_us);
        let of = |part: parts::Part| Part { part: part.part.into(), tool: part.tool.into(), sample: part.sample };
        let mut window = Window {
            begin_us,
            end_us: clocks.wall_us.max(begin_us),
            length_us,
            boot: self.boot.clone(),
            host: self.host.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            parts: parts.into_iter().map(of).collect(),
        };
        let (begin_us, end_us) = (window.begin_us, window.end_us);
        let parts::Verdict { faults, part: judged } = self.judge.window((begin_us, end_us), sample)?;
        let figures = figures(&window.parts, &faults);
        for part in &mut window.parts {
            part.sample = parts::condense(&part.part, std::mem::take(&mut part.sample))?;
        }
        window.parts.extend(judged.map(of));
        let mut gap = self.gap.take();
        if let Some(gap) = &mut gap {
            gap.period.end_us = begin_us.max(gap.period.begin_us);
        }
        let events = self.tracker.window((begin_us, end_us), &self.host, faults);
        self.write(Entry { gap, window, figures });
        for event in &events {
            event.log();
            if let Some(hook) = &mut self.hook {
                hook.tell(&event.json());
            }
        }
        crate::memory::give_back();
        Ok(())
    }

    /// When the window began: where the last one ended, unless a clock was set or the host slept in between.
    fn begin(&mut self, clocks: Clocks, length_us: Micros) -> Micros {
        let Some(last) = self.last.replace(clocks) else { return clocks.wall_us - length_us };
        let (step, slept) = clocks.since(last);
        if step.abs() < STEP && slept < STEP {
            return last.wall_us;
        }
        let begin_us = clocks.wall_us - length_us;
        let reason = if slept >= STEP {
            format!("the host slept for {} s", slept / 1_000_000)
        } else {
            let way = if step > 0 { "forward" } else { "back" };
            format!("the clock was set {way} by {} s", step.abs() / 1_000_000)
        };
        tracing::warn!(from = shown(last.wall_us), to = shown(begin_us), "{reason}; the recording is complete");
        if begin_us > last.wall_us && self.gap.is_none() {
            self.gap = Some(Gap { period: Period { begin_us: last.wall_us, end_us: begin_us }, reason });
        }
        begin_us
    }

    /// Writes a window with its incidents, and what could not be written before.
    fn write(&mut self, entry: Entry) {
        self.pending.push(entry);
        if let Err(e) = self.append() {
            self.complain(&e);
            if self.pending.len() > limits::RECORDING_PENDING {
                self.pending.remove(0);
                self.lost += 1;
            }
            return;
        }
        if self.told.take().is_some() {
            tracing::info!(written = self.pending.len(), lost = self.lost, "writing the recording works again");
        }
        self.pending.clear();
        if self.lost > 0 && self.store.lost(self.lost).is_ok() {
            self.lost = 0;
        }
        let kept = self.store.keep_bounds(now(), &replay::merge).and_then(|()| self.store.sum_up(&replay::SUMMING));
        match kept {
            Err(e) if e.kind == Kind::Corrupt => {
                if let Err(e) = self.begin_again() {
                    self.complain(&e);
                }
            }
            Err(e) => self.complain(&e),
            Ok(()) => {}
        }
    }

    /// A file that turns out to be damaged is set aside, and a new one begins.
    fn append(&mut self) -> Result<(), Trouble> {
        let mut incidents = self.tracker.unwritten();
        match self.store.append(&self.pending, &mut incidents) {
            Err(e) if e.kind == Kind::Corrupt => {
                self.begin_again()?;
                incidents = self.tracker.unwritten();
                self.store.append(&self.pending, &mut incidents)?;
            }
            done => done?,
        }
        self.tracker.written(&incidents);
        Ok(())
    }

    fn begin_again(&mut self) -> Result<(), Trouble> {
        self.store.begin_again(self.options.interval, now())?;
        self.tracker.begin_again();
        Ok(())
    }

    /// Logs a trouble, once for each kind.
    fn complain(&mut self, trouble: &Trouble) {
        if self.told.replace(trouble.kind) != Some(trouble.kind) {
            let kept = limits::RECORDING_PENDING;
            tracing::error!("{trouble}. The last {kept} windows stay in memory until writing works");
        }
    }
}

/// The recorder's directory.
pub fn folder(path: &std::path::Path) -> io::Result<PathBuf> {
    fs::canonicalize(folder_of(path))
}
