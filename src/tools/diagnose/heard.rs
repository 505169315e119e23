//! Which questions were answered.

use std::collections::BTreeMap;

/// The questions that were answered, and whether the answer was complete.
#[derive(Default)]
pub struct Heard(BTreeMap<&'static str, bool>);

impl Heard {
    pub fn insert(&mut self, question: &'static str, complete: bool) {
        self.0.insert(question, complete);
    }

    /// Whether a question was answered.
    pub fn any(&self, question: &str) -> bool {
        self.0.contains_key(question)
    }

    /// Whether a question was answered completely.
    pub fn all(&self, question: &str) -> bool {
        self.0.get(question) == Some(&true)
    }
}
