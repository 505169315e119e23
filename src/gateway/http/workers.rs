//! The threads that serve clients. Each has a runtime of its own, and a connection stays with the thread that took it:
//! the tasks of a call wake each other without a system call.

use std::{
    io,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;

use crate::limits;

/// Runs until it is dropped: then every task ends, and with it what the task has opened or started.
pub struct Workers {
    handles: Vec<Handle>,
    stop: CancellationToken,
    /// Disconnected when the last thread has ended.
    running: Receiver<()>,
}

impl Workers {
    /// Starts [`limits::WORKERS`] threads. What confines this thread confines them too.
    pub fn start() -> io::Result<Workers> {
        let (runs, running) = channel();
        let mut workers = Workers { handles: Vec::new(), stop: CancellationToken::new(), running };
        for _ in 0..limits::WORKERS {
            let runtime = Builder::new_current_thread().thread_name("worker").enable_all().build()?;
            workers.handles.push(runtime.handle().clone());
            let (stop, runs) = (workers.stop.clone(), runs.clone());
            thread::Builder::new().name("worker".into()).spawn(move || run(runtime, &stop, runs))?;
        }
        Ok(workers)
    }

    /// One for each thread.
    pub fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.handles.iter()
    }
}

fn run(runtime: Runtime, stop: &CancellationToken, _runs: Sender<()>) {
    runtime.block_on(stop.cancelled());
    runtime.shutdown_background(); // an answer about the past may take seconds, and nobody waits for it
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = self.running.recv_timeout(limits::FAREWELL); // a thread may wait for somebody who does not read our log
    }
}
