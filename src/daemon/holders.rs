//! The processes that hold sockets: for packets that were seen outside the context of their owner.

use std::sync::Mutex;

use libbpf_rs::MapHandle;

use crate::{
    daemon::kernel::{Listed, Pod, Program},
    sync::lock,
    wire::Error,
};

/// The iterator of `holders.h`, in one object.
pub struct Holders {
    /// On a kernel that loads it: else nobody is found.
    program: Option<Program>,
    wanted: MapHandle,
    /// The kernel's list of wanted sockets serves one reader at a time.
    asking: Mutex<()>,
}

impl Holders {
    pub fn new(program: Option<Program>, wanted: MapHandle) -> Self {
        Holders { program, wanted, asking: Mutex::default() }
    }

    /// The sockets with these cookies or addresses, and all TCP listeners, once for each process that holds them; a
    /// manager's come last, because it holds sockets for others. `T` is the object's `open_socket`.
    pub fn find<T: Pod>(
        &self,
        wanted: impl IntoIterator<Item = u64>,
        is_managed: impl Fn(&T) -> bool,
    ) -> Result<Vec<T>, Error> {
        let Some(program) = &self.program else { return Ok(Vec::new()) };
        let _asking = lock(&self.asking);
        let _listed = Listed::add(&self.wanted, wanted, &0u32)?;
        let mut found = Vec::new();
        program.each(|socket| found.push(*socket))?;
        found.sort_by_key(|socket| is_managed(socket));
        Ok(found)
    }
}
