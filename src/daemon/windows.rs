//! The windows that are open: by number, for the kernel, which keeps a slot of its tables while one of them may have seen
//! what has it; and by when they began, for what can be let go.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use libbpf_rs::MapHandle;

use crate::{
    daemon::{
        kernel::{self, Pod},
        window::monotonic_ns,
    },
    sync::lock,
    wire::Error,
};

/// Numbers windows as they open; `T` is `struct windows` of `windows.h`, of the tool's own skeleton.
pub struct Windows<T> {
    /// The program's `.data`.
    data: MapHandle,
    /// Of the newest, the oldest that is open, and the first since when there is always one.
    of: fn(u32, u32, u32) -> T,
    /// Lets go of what no window needs: before when the oldest of them began (CLOCK_MONOTONIC), or all.
    clear: Clear,
    state: Mutex<State>,
}

type Clear = Box<dyn Fn(Option<u64>) -> Result<(), Error> + Send + Sync>;

#[derive(Default)]
struct State {
    newest: u32,
    first: u32,
    /// When each began.
    open: BTreeMap<u32, u64>,
}

/// An open window's number. It is dropped after the window's links.
pub struct Numbered<T: Pod> {
    windows: Arc<Windows<T>>,
    number: u32,
}

impl<T: Pod> Windows<T> {
    pub fn new(
        data: MapHandle,
        of: fn(u32, u32, u32) -> T,
        clear: impl Fn(Option<u64>) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Windows { data, of, clear: Box::new(clear), state: Mutex::default() })
    }

    /// Opens one: what the kernel sees from now on is of its time.
    pub fn open(self: &Arc<Self>) -> libbpf_rs::Result<Numbered<T>> {
        let mut state = lock(&self.state);
        state.newest += 1;
        let number = state.newest;
        if state.open.is_empty() {
            state.first = number;
        }
        state.open.insert(number, monotonic_ns());
        let numbered = Numbered { windows: Arc::clone(self), number };
        let told = self.tell(&state);
        drop(state);
        told.map(|()| numbered)
    }

    fn tell(&self, state: &State) -> libbpf_rs::Result<()> {
        let oldest = state.open.first_key_value().map_or(state.newest, |(number, _)| *number);
        kernel::set(&self.data, 0u32, &(self.of)(state.newest, oldest, state.first))
    }

    fn close(&self, number: u32) -> Result<(), Error> {
        let mut state = lock(&self.state);
        state.open.remove(&number);
        self.tell(&state)?;
        (self.clear)(state.open.values().min().copied())
    }
}

impl<T: Pod> Numbered<T> {
    /// Whether what was seen when `newest` was the newest window was seen in this one; 0 is not known.
    pub fn has_seen(&self, newest: u32) -> bool {
        newest != 0 && newest.wrapping_sub(self.number) as i32 >= 0
    }
}

impl<T: Pod> Drop for Numbered<T> {
    fn drop(&mut self) {
        if let Err(e) = self.windows.close(self.number) {
            tracing::warn!("clearing the counters of closed windows failed: {e}");
        }
    }
}
