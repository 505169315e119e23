//! The threads that serve clients. Each has a runtime of its own, and a connection stays with the thread that took it:
//! the tasks of a call wake each other without a system call.

use std::{
    io,
    thread::{self, JoinHandle},
};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;

use crate::limits;

/// Runs until it is dropped: then every task ends, and with it what the task has opened or started.
pub struct Workers {
    threads: Vec<(Handle, Option<JoinHandle<()>>)>,
    ended: CancellationToken,
}

impl Workers {
    /// Starts [`limits::WORKERS`] threads. What confines this thread confines them too.
    pub fn start() -> io::Result<Workers> {
        let mut workers = Workers { threads: Vec::new(), ended: CancellationToken::new() };
        for _ in 0..limits::WORKERS {
            let runtime = Builder::new_current_thread().thread_name("worker").enable_all().build()?;
            let (handle, ended) = (runtime.handle().clone(), workers.ended.clone());
            let thread = thread::Builder::new().name("worker".into()).spawn(move || run(runtime, &ended))?;
            workers.threads.push((handle, Some(thread)));
        }
        Ok(workers)
    }

    /// One for each thread.
    pub fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.threads.iter().map(|(handle, _)| handle)
    }
}

fn run(runtime: Runtime, ended: &CancellationToken) {
    runtime.block_on(ended.cancelled());
    runtime.shutdown_background(); // an answer about the past may take seconds, and nobody waits for it
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.ended.cancel();
        for thread in self.threads.iter_mut().filter_map(|(_, thread)| thread.take()) {
            let _ = thread.join(); // a panic of its own has been reported
        }
    }
}
