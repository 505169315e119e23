//! Which processes have sockets open: for packets that were not seen in the context of their owner.

use std::{io, sync::Mutex};

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::{
    bpf::{self, Pod, Program, lock},
    wire::Error,
};

/// The iterator of `holders.h`, in one object.
pub struct Holders {
    program: Program,
    wanted: MapHandle,
    /// The kernel's list of wanted sockets is for one at a time.
    asking: Mutex<()>,
}

impl Holders {
    pub fn new(program: Program, wanted: MapHandle) -> Self {
        Holders { program, wanted, asking: Mutex::default() }
    }

    pub fn rehearse(&self) -> io::Result<()> {
        self.program.try_iterator()
    }

    /// The sockets with these cookies or addresses, and all TCP listeners, once for each process that has
    /// them open. `T` is the object's `open_socket`.
    pub fn find<T: Pod>(&self, wanted: impl IntoIterator<Item = u64>) -> Result<Vec<T>, Error> {
        let _asking = lock(&self.asking);
        let mut asked = Vec::new();
        for socket in wanted {
            self.wanted.update(bpf::bytes(&socket), bpf::bytes(&0u32), MapFlags::ANY)?;
            asked.push(socket);
        }
        let mut found = Vec::new();
        let read = self.program.each(|socket| found.push(*socket));
        for socket in asked {
            self.wanted.delete(bpf::bytes(&socket))?;
        }
        read?;
        Ok(found)
    }
}
