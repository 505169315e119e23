//! One attached program for each tracepoint that several tools use: it runs their programs one after the other, by tail
//! calls. To enter an attached program costs more than a tail call (docs/costs.md).
//!
//! Every program is attached by itself while the kernel measures run times (`kernel.bpf_stats_enabled`), since it does not
//! count tail calls. It is the same where the kernel refuses a hub, or a program in one.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::{Arc, Mutex, OnceLock},
};

use libbpf_rs::{
    MapCore, MapFlags, MapHandle, MapMut, ProgramMut,
    skel::{OpenSkel, SkelBuilder},
};

use super::{Link, Program, bytes, object};
use crate::{sync::lock, wire::Error};

#[allow(clippy::all, clippy::pedantic, clippy::restriction, dead_code, non_camel_case_types, non_snake_case)]
mod skel {
    include!(concat!(env!("OUT_DIR"), "/hub.rs"));
}

/// The only key of a map with a next program.
const NEXT: u32 = 0;

/// The hubs, loaded when the first tool needs one.
#[derive(Default)]
pub struct Hubs(OnceLock<HashMap<String, Arc<Hub>>>);

impl Hubs {
    /// The hub at the tracepoint of this section, if there is one. The first caller holds the capabilities for loading.
    pub fn at(&self, section: &str) -> Option<Arc<Hub>> {
        let load = || {
            load().unwrap_or_else(|e| {
                tracing::info!("every program is attached by itself: {e}");
                HashMap::new()
            })
        };
        self.0.get_or_init(load).get(section).cloned()
    }
}

fn load() -> Result<HashMap<String, Arc<Hub>>, Error> {
    let mut object = object();
    let skel = skel::HubSkelBuilder::default().open(&mut object)?.load()?;
    let (progs, maps) = (&skel.progs, &skel.maps);
    let hubs = [
        (&progs.state_hub, &maps.after_state_hub),
        (&progs.departure_hub, &maps.after_departure_hub),
        (&progs.arrival_hub, &maps.after_arrival_hub),
    ];
    hubs.into_iter().map(|(program, next)| Hub::new(program, next)).collect()
}

/// A program that is attached while others are in its chain.
pub struct Hub {
    program: Program,
    next: MapHandle,
    chain: Mutex<Chain>,
}

#[derive(Default)]
struct Chain {
    link: Option<Link>,
    members: Vec<Member>,
}

impl Chain {
    fn detach_if_empty(&mut self) {
        if self.members.is_empty() {
            self.link = None;
        }
    }
}

/// A program in a chain: its number, to find it again, and where it goes on.
struct Member {
    id: u64,
    program: Program,
    next: Arc<MapHandle>,
}

/// Where a program of a tool belongs.
pub struct Place {
    pub hub: Arc<Hub>,
    /// Where the program goes on.
    pub next: Arc<MapHandle>,
}

/// A program is in the chain until this is dropped.
pub struct Linked {
    hub: Arc<Hub>,
    id: u64,
}

impl Hub {
    fn new(program: &ProgramMut<'_>, next: &MapMut<'_>) -> Result<(String, Arc<Hub>), Error> {
        let section = program.section().to_string_lossy().into_owned();
        let program = Program::new(&program.name().to_string_lossy(), program.as_fd().try_clone_to_owned()?);
        Ok((section, Arc::new(Hub { program, next: MapHandle::try_from(next)?, chain: Mutex::default() })))
    }

    /// Its program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Appends a program to the chain.
    pub fn append(self: &Arc<Self>, program: &Program, next: &Arc<MapHandle>) -> io::Result<Linked> {
        let mut chain = lock(&self.chain);
        if chain.link.is_none() {
            chain.link = Some(self.program.attach()?);
        }
        let last = chain.members.last().map_or(&self.next, |last| &last.next);
        if let Err(e) = go_on(next, None).and_then(|()| go_on(last, Some(program.as_fd()))) {
            chain.detach_if_empty();
            return Err(e);
        }
        let id = chain.members.iter().map(|member| member.id + 1).max().unwrap_or_default();
        chain.members.push(Member { id, program: program.clone(), next: Arc::clone(next) });
        Ok(Linked { hub: Arc::clone(self), id })
    }
}

impl Drop for Linked {
    /// Events that are under way may still reach the program, as with every link.
    fn drop(&mut self) {
        let mut chain = lock(&self.hub.chain);
        let Some(at) = chain.members.iter().position(|member| member.id == self.id) else { return };
        let after = chain.members.get(at + 1).map(|member| member.program.as_fd());
        let before =
            at.checked_sub(1).and_then(|at| chain.members.get(at)).map_or(&self.hub.next, |member| &member.next);
        if let Err(e) = go_on(before, after) {
            tracing::warn!("removing a program from a tracepoint failed: {e}");
        }
        chain.members.remove(at);
        chain.detach_if_empty();
    }
}

/// Sets the program that follows.
fn go_on(map: &MapHandle, next: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let done = match next {
        Some(program) => map.update(bytes(&NEXT), &program.as_raw_fd().to_ne_bytes(), MapFlags::ANY),
        None => map.delete(bytes(&NEXT)),
    };
    match done {
        Err(e) if next.is_none() && e.kind() == libbpf_rs::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|e| io::Error::other(format!("{e:#}"))),
    }
}

/// Whether the kernel measures run times now.
pub fn are_runs_measured() -> bool {
    fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|enabled| enabled.trim() != "0")
}
