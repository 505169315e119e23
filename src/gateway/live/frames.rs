//! From samples to screens. No I/O: a test feeds it literal samples.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json, value::RawValue};

use super::{
    Cost, Screen, State,
    asked::{ASKED, DIAGNOSIS, Over, STATUS},
    episodes::{Episode, Episodes},
    history::{History, Point, Reading},
    parts::Parts,
    recent::Recent,
};
use crate::{
    limits,
    recorder::time::Micros,
    tools::{Question, Tool, diagnose::Diagnose},
};

/// What a feed keeps from one screen to the next.
#[derive(Default)]
pub struct Frames {
    screen: Screen,
    history: History,
    episodes: Episodes,
    recent: Recent,
    /// Before this the answers about the last seconds stay as they are.
    pub(super) due: Option<Instant>,
}

impl Frames {
    /// The screen after another sample, which was taken at this moment.
    pub fn add(&mut self, sample: &RawValue, at: Micros) -> Screen {
        let begun = Instant::now();
        if let Err(reason) = self.read(sample, at / 1_000) {
            return self.without(State::Lost, reason);
        }
        self.screen.cost =
            Cost { sample_bytes: sample.get().len(), work_us: micros(begun.elapsed()), ..self.screen.cost };
        self.next(State::Live, None)
    }

    /// The last screen, when there is no data, and why.
    pub fn without(&mut self, state: State, reason: String) -> Screen {
        self.next(state, Some(reason))
    }

    /// The figures of a sample alone. The tables stay as they are.
    pub fn point_of(sample: &RawValue, at: Micros) -> Result<Point, String> {
        let mut frames = Frames::default();
        let parts = Parts::of(sample.get())?;
        for asked in ASKED.iter().filter(|asked| ["interfaces", "processes"].contains(&asked.name)) {
            note(&mut frames.screen, asked.name, parts.answer(asked, asked.input()));
        }
        let window_ms = Duration::from_nanos(parts.window_ns).as_secs_f64() * 1e3;
        Ok(Point { at_ms: at / 1_000, window_ms, ..frames.point(&parts) })
    }

    /// Adds a point of an earlier reading.
    pub fn remember(&mut self, point: Arc<Point>) {
        self.history.push(point);
    }

    /// Adds what is recorded of a finding.
    pub fn recall(&mut self, recorded: Episode) {
        self.episodes.recall(recorded);
        self.screen.findings = self.episodes.all();
    }

    /// The last screen, which is of the past.
    pub fn recorded(mut self) -> Screen {
        self.next(State::Recorded, None)
    }

    /// Notes the answer of `status`.
    pub fn status(&mut self, answer: Value) {
        self.screen.answers.insert(STATUS, answer);
    }

    /// What was measured before a gap does not belong to what comes after it.
    pub fn begin_again(&mut self) {
        (self.recent, self.due) = (Recent::default(), None);
    }

    /// Notes the CPU time of this process since the previous screen.
    pub fn cpu(&mut self, percent: f64) {
        self.screen.cost.cpu_percent = percent;
    }

    fn next(&mut self, state: State, reason: Option<String>) -> Screen {
        self.screen.number += 1;
        (self.screen.state, self.screen.reason) = (state, reason);
        self.screen.clone()
    }

    fn read(&mut self, sample: &RawValue, at_ms: i64) -> Result<(), String> {
        let parts = Parts::of(sample.get())?;
        let window = Duration::from_nanos(parts.window_ns);
        let question = Question::named(Diagnose::NAME).ok_or("unknown tool diagnose")?;
        (self.screen.at_ms, self.screen.window_ms) = (at_ms, window.as_secs_f64() * 1e3);
        self.answers(&parts, Over::Reading);
        self.recent.add(question, sample, window)?;
        self.summarize(question, at_ms)?;
        let point = Point { at_ms, window_ms: self.screen.window_ms, ..self.point(&parts) };
        self.history.add(Point { findings: self.episodes.faults(), ..point });
        self.screen.history = self.history.points();
        self.screen.point = self.screen.history.last().cloned();
        Ok(())
    }

    /// Answers about the last seconds, as often as that takes at most [`limits::LIVE_SHARE`] of the time.
    fn summarize(&mut self, question: &'static Question, at_ms: i64) -> Result<(), String> {
        let begun = Instant::now();
        if self.due.is_some_and(|due| begun < due) {
            return Ok(());
        }
        let Some(sum) = self.recent.sum(question)? else { return Ok(()) };
        let parts = Parts::of(sum.get())?;
        self.answers(&parts, Over::Recent);
        let window = Duration::from_nanos(parts.window_ns);
        self.screen.recent_ms = window.as_secs_f64() * 1e3;
        let asked = window.clamp(limits::WINDOW_MIN, limits::WINDOW_MAX).as_millis() as u64;
        let input = json!({"duration_ms": asked, "limit": limits::LIVE_ROWS});
        let diagnosis = (question.report)(input, sum.get()).map_err(|e| e.to_string())?.structured;
        self.episodes.note(diagnosis["findings"].as_array().map_or(&[], Vec::as_slice), at_ms);
        self.screen.findings = self.episodes.all();
        self.screen.answers.insert(DIAGNOSIS, diagnosis);
        self.due = Some(Instant::now() + begun.elapsed() * limits::LIVE_SHARE);
        Ok(())
    }

    fn answers(&mut self, parts: &Parts, over: Over) {
        for asked in ASKED.iter().filter(|asked| asked.over == over) {
            note(&mut self.screen, asked.name, parts.answer(asked, asked.input()));
        }
    }

    /// The figures of a reading, without its time.
    fn point(&self, parts: &Parts) -> Point {
        // Rows are not needed, but sums.
        let of = |name: &str, limit: usize| {
            let asked = ASKED.iter().find(|asked| asked.name == name);
            asked.and_then(|asked| parts.answer(asked, json!({"limit": limit})).ok()).unwrap_or_default()
        };
        let screen = &self.screen;
        Point::of(&Reading {
            interfaces: screen.answer("interfaces"),
            processes: screen.answer("processes"),
            connections: &of("connections", 1),
            drops: &of("drops", 1),
            dns: &of("dns", 1),
            tcp: &of("tcp", limits::LIVE_ROWS),
        })
    }
}

/// Notes an answer, or why there is none.
fn note(screen: &mut Screen, name: &'static str, answer: Result<Value, String>) {
    let Screen { answers, errors, .. } = screen;
    fn put<T>(map: &mut BTreeMap<&'static str, T>, name: &'static str, value: Option<T>) {
        match value {
            Some(value) => map.insert(name, value),
            None => map.remove(name),
        };
    }
    let (answer, error) = match answer {
        Ok(answer) => (Some(answer), None),
        Err(error) => (None, Some(error)),
    };
    put(answers, name, answer);
    put(errors, name, error);
}

fn micros(length: Duration) -> u64 {
    length.as_micros().try_into().unwrap_or(u64::MAX)
}
