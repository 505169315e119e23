//! What the objects of several tools have in common: the programs at tracepoints, and the storage of sockets.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Mutex,
};

use libbpf_rs::{
    MapCore,
    skel::{OpenSkel, Skel},
};

use super::hub::Hubs;
use crate::sync::lock;

/// The map of `bpf/storage.h`.
const STORAGES: &str = "storages";

/// Kept for all tools of a daemon.
#[derive(Default)]
pub struct Common {
    pub hubs: Hubs,
    /// The map of the first loaded object. Later objects reuse it.
    storages: Mutex<Option<OwnedFd>>,
}

impl Common {
    /// Loads an object. It reuses the shared map if there is one.
    pub fn load<'obj, O: OpenSkel<'obj>>(&self, mut open: O) -> libbpf_rs::Result<O::Output> {
        if !open.open_object().maps().any(|map| map.name() == STORAGES) {
            return open.load();
        }
        let mut storages = lock(&self.storages);
        if let Some(known) = &*storages {
            for mut map in open.open_object_mut().maps_mut().filter(|map| map.name() == STORAGES) {
                map.reuse_fd(known.as_fd())?;
            }
            drop(storages); // loading takes long
            return open.load();
        }
        let loaded = open.load()?;
        let own = loaded.object().maps().find(|map| map.name() == STORAGES);
        *storages = own.map(|map| map.as_fd().try_clone_to_owned()).transpose()?;
        Ok(loaded)
    }
}
