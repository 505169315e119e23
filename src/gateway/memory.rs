//! The memory that answers over HTTP may take, in total and for one client: what reading a sample takes, then what its
//! answer takes until the client has it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Instant,
};

use serde_json::Value;

use super::{Failure, http::identity::Identity};
use crate::{
    budget::{Budget, Full, Held},
    limits,
    sync::lock,
};

/// The budget, and the size of each tool's last answer: the best guess for the next one.
pub struct Memory {
    pub budget: Arc<Budget<Identity>>,
    last: Mutex<HashMap<&'static str, usize>>,
}

/// A budget for answers.
pub fn budget() -> Arc<Budget<Identity>> {
    Budget::new(limits::ANSWERS_BYTES, limits::ANSWERS_BYTES_OF_A_CALLER)
}

impl Default for Memory {
    fn default() -> Self {
        Memory { budget: budget(), last: Mutex::default() }
    }
}

impl Memory {
    /// Holds what a call will probably take. A client waits for its own answers to be sent, and not for long.
    pub async fn reserve(&self, who: &Identity, tool: &str, input: &Value) -> Result<Reserved, Failure> {
        let (mut held, end) = (Held::nothing(&self.budget, who.clone()), Instant::now() + limits::CALL_WAIT);
        let bytes = self.expected(tool, input);
        loop {
            match held.resize(bytes) {
                Ok(()) => return Ok(Reserved(Some(Arc::new(Mutex::new(held))))),
                Err(full) if Instant::now() > end => return Err(Failure::Busy(refusal(full))),
                Err(_) => tokio::time::sleep(limits::MEMORY_LOOK).await,
            }
        }
    }

    /// Remembers how long an answer was.
    pub fn note(&self, tool: &'static str, bytes: usize) {
        let mut last = lock(&self.last);
        let last = last.entry(tool).or_default();
        *last = bytes.max(*last / 2);
    }

    fn expected(&self, tool: &str, input: &Value) -> usize {
        let last = lock(&self.last).get(tool).copied().unwrap_or_default();
        let rows = input.get("limit").and_then(Value::as_u64).unwrap_or_default().min(limits::ROWS_MAX as u64) as usize;
        let bytes = last.max(rows * limits::ROW_BYTES) * limits::ANSWER_COST;
        bytes.clamp(limits::ANSWER_HELD_MIN, limits::ANSWERS_BYTES_OF_A_CALLER)
    }
}

/// The memory that a call may take, until the last clone is dropped. Work on a thread of its own keeps a clone, because
/// it continues after its client has disconnected. Calls that are not over HTTP reserve nothing.
#[derive(Clone, Default)]
pub struct Reserved(Option<Arc<Mutex<Held<Identity>>>>);

impl Reserved {
    /// Holds `bytes`, or says why not.
    pub fn holds(&self, bytes: usize) -> Result<(), Failure> {
        let Some(held) = &self.0 else { return Ok(()) };
        lock(held).resize(bytes).map_err(|full| Failure::Busy(refusal(full)))
    }

    /// Holds `bytes` if that is more than what is held already.
    pub fn holds_at_least(&self, bytes: usize) -> Result<(), String> {
        let Some(held) = &self.0 else { return Ok(()) };
        let mut held = lock(held);
        if bytes <= held.bytes() { Ok(()) } else { held.resize(bytes).map_err(refusal) }
    }
}

/// Why another host's answer was not taken.
pub fn too_long_an_answer() -> String {
    refusal(Full::Share)
}

fn refusal(full: Full) -> String {
    let megabytes = |bytes: usize| bytes >> 20;
    let (whose, limit) = match full {
        Full::Share => ("your answers", megabytes(limits::ANSWERS_BYTES_OF_A_CALLER)),
        Full::Total => ("all answers together", megabytes(limits::ANSWERS_BYTES)),
    };
    format!(
        "{whose} exceed the memory limit of {limit} MB: request fewer rows (limit) or narrow the filters, read the \
         pending answers, and try again"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn expected_memory_follows_limit_and_previous_answer() {
        let memory = Memory::default();
        assert_eq!(memory.expected("status", &json!({})), limits::ANSWER_HELD_MIN);
        let rows = |n: u64| memory.expected("snapshot_sockets", &json!({"limit": n}));
        assert!(rows(2_000) > rows(1_000) && rows(10_000) == rows(u64::MAX));
        memory.note("top_traffic", 3 << 20);
        assert_eq!(memory.expected("top_traffic", &json!({})), (3 << 20) * limits::ANSWER_COST);
        memory.note("top_traffic", 0);
        memory.note("top_traffic", 0);
        assert!(memory.expected("top_traffic", &json!({})) < (1 << 20) * limits::ANSWER_COST, "it is forgotten");
    }

    #[tokio::test]
    async fn unread_answers_block_only_their_own_client() {
        let memory = Memory::default();
        let [greedy, other] = [1, 2].map(Identity::Uid);
        let all = json!({"limit": 10_000});
        let mut kept = Vec::new();
        loop {
            let next = memory.reserve(&greedy, "snapshot_sockets", &all);
            match tokio::time::timeout(limits::MEMORY_LOOK / 2, next).await {
                Ok(held) => kept.push(held.unwrap()),
                Err(_) => break,
            }
        }
        assert!(!kept.is_empty() && memory.reserve(&other, "snapshot_sockets", &all).await.is_ok());
    }

    #[tokio::test]
    async fn memory_is_reserved_until_the_last_work_ends() {
        let (memory, who, all) = (Memory::default(), Identity::Uid(1), json!({"limit": 10_000}));
        let reserve = || memory.reserve(&who, "snapshot_sockets", &all);
        let reserved = reserve().await.unwrap();
        let work = reserved.clone();
        drop(reserved); // the client has hung up
        assert!(tokio::time::timeout(limits::MEMORY_LOOK / 2, reserve()).await.is_err());
        drop(work);
        assert!(reserve().await.is_ok());
    }
}
