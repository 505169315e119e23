//! The windows that are open, by number: the kernel keeps a flow's slot while one of them may have seen the flow.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use libbpf_rs::MapHandle;

use super::skel::types;
use crate::bpf::{self, Pod, lock};

// SAFETY: integers, without padding.
unsafe impl Pod for types::windows {}

/// Numbers windows as they open.
pub struct Windows {
    /// The program's `.data`.
    data: MapHandle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    newest: u32,
    open: BTreeSet<u32>,
}

/// An open window's number.
pub struct Numbered {
    windows: Arc<Windows>,
    number: u32,
}

impl Windows {
    pub fn new(data: MapHandle) -> Self {
        Windows { data, state: Mutex::default() }
    }

    /// Opens one: what the kernel sees from now on is of its time.
    pub fn open(self: &Arc<Self>) -> libbpf_rs::Result<Numbered> {
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
        bpf::set(&self.data, 0u32, &types::windows { newest: state.newest, oldest })
    }
}

impl Drop for Numbered {
    fn drop(&mut self) {
        let mut state = lock(&self.windows.state);
        state.open.remove(&self.number);
        if let Err(e) = self.windows.tell(&state) {
            tracing::warn!("flows of drops whose window has ended keep their slots: {e}");
        }
    }
}
