//! Long answers are made in turn.

use std::{
    collections::BTreeSet,
    sync::{Condvar, Mutex},
};

use crate::{limits, sync::lock};

/// The users with a long answer in progress. netmond makes one at a time per user: many at once would use all CPUs, and
/// other users would wait.
#[derive(Default)]
pub struct Turns {
    of: Mutex<BTreeSet<u32>>,
    made: Condvar,
}

impl Turns {
    /// Waits for this user's long answer to be made, if one is; not for long, since making one may fail.
    pub fn wait(&self, uid: u32) {
        let of = lock(&self.of);
        let waited = self.made.wait_timeout_while(of, limits::LONG_ANSWER_WAIT, |of| of.contains(&uid));
        if let Ok((mut of, _)) = waited {
            of.insert(uid);
        }
    }

    pub fn made(&self, uid: u32) {
        if lock(&self.of).remove(&uid) {
            self.made.notify_all();
        }
    }
}
