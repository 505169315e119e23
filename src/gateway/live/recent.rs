//! The last seconds: a sliding window over the samples, in two halves. A fault shows in ten seconds.

use std::time::Duration;

use serde_json::value::RawValue;

use crate::{
    limits,
    tools::{Json, Question},
};

/// The samples of the last [`LIVE_RECENT`](limits::LIVE_RECENT), at most of twice as long.
#[derive(Default)]
pub struct Recent {
    /// The half that is complete.
    earlier: Option<Json>,
    /// The half that grows.
    current: Option<Json>,
    /// What is not part of it yet.
    pending: Vec<Json>,
    /// The length of the half that grows, `pending` included.
    length: Duration,
}

impl Recent {
    /// Adds the newest sample.
    pub fn add(&mut self, question: &Question, sample: &RawValue, length: Duration) -> Result<(), String> {
        let bytes = |samples: &[Json]| samples.iter().map(|sample| sample.get().len()).sum::<usize>();
        let full = self.current.as_ref().is_some_and(|current| current.get().len() > limits::LIVE_BYTES);
        if self.length >= limits::LIVE_RECENT || full {
            self.settle(question)?;
            self.earlier = self.current.take();
            self.length = Duration::ZERO;
        }
        self.pending.push(sample.to_owned());
        self.length += length;
        if bytes(&self.pending) > limits::LIVE_BYTES { self.settle(question) } else { Ok(()) }
    }

    /// The sample of all of it.
    pub fn sum(&mut self, question: &Question) -> Result<Option<Json>, String> {
        self.settle(question)?;
        let halves: Vec<_> = self.earlier.iter().chain(&self.current).cloned().collect();
        if halves.is_empty() { Ok(None) } else { fold(question, halves).map(Some) }
    }

    /// Merges what waits.
    fn settle(&mut self, question: &Question) -> Result<(), String> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let samples = self.current.take().into_iter().chain(self.pending.drain(..)).collect();
        self.current = Some(fold(question, samples)?);
        Ok(())
    }
}

fn fold(question: &Question, mut samples: Vec<Json>) -> Result<Json, String> {
    match samples.len() {
        1 => Ok(samples.swap_remove(0)),
        _ => (question.fold)(samples).map_err(|e| e.to_string()),
    }
}
