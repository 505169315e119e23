//! The windows that are open, by number: the kernel keeps a slot of its tables while one of them may have seen what has it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use libbpf_rs::MapHandle;

use crate::bpf::{self, Pod, lock};

/// Numbers windows as they open; `T` is `struct windows` of `windows.h`, of the tool's own skeleton.
pub struct Windows<T> {
    /// The program's `.data`.
    data: MapHandle,
    /// Of the newest and the oldest.
    of: fn(u32, u32) -> T,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    newest: u32,
    open: BTreeSet<u32>,
}

/// An open window's number.
pub struct Numbered<T: Pod> {
    windows: Arc<Windows<T>>,
    number: u32,
}

impl<T: Pod> Windows<T> {
    pub fn new(data: MapHandle, of: fn(u32, u32) -> T) -> Arc<Self> {
        Arc::new(Windows { data, of, state: Mutex::default() })
    }

    /// Opens one: what the kernel sees from now on is of its time.
    pub fn open(self: &Arc<Self>) -> libbpf_rs::Result<Numbered<T>> {
        let mut state = lock(&self.state);
        state.newest += 1;
        let number = state.newest;
        state.open.insert(number);
        let numbered = Numbered { windows: Arc::clone(self), number };
        let told = self.tell(&state);
        drop(state);
        told.map(|()| numbered)
    }

    fn tell(&self, state: &State) -> libbpf_rs::Result<()> {
        let oldest = state.open.first().copied().unwrap_or(state.newest);
        bpf::set(&self.data, 0u32, &(self.of)(state.newest, oldest))
    }
}

impl<T: Pod> Numbered<T> {
    /// Whether what was seen when `newest` was the newest window was seen in this one.
    pub fn has_seen(&self, newest: u32) -> bool {
        newest.wrapping_sub(self.number) as i32 >= 0
    }
}

impl<T: Pod> Drop for Numbered<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.windows.state);
        state.open.remove(&self.number);
        if let Err(e) = self.windows.tell(&state) {
            tracing::warn!("what was seen in windows that have ended keeps its slots: {e}");
        }
    }
}
