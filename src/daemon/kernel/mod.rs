//! What every tool needs of eBPF: loading an object, attaching on demand, reading maps.
//!
//! libbpf-rs opens, relocates and loads. What is kept afterwards are file descriptors: libbpf's own
//! view of an object (with a parsed copy of the kernel's BTF) is dropped, so an idle daemon is small.

use std::{
    ffi::c_int,
    fs::File,
    io::{self, Read},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::Path,
    ptr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use libbpf_rs::{TC_EGRESS, TC_INGRESS, TcHook, TcHookBuilder};
use libbpf_sys::{
    BPF_TCX_EGRESS, BPF_TCX_INGRESS, BPF_TRACE_ITER, BPF_XDP, bpf_iter_create, bpf_link_create, bpf_link_create_opts,
    bpf_prog_get_info_by_fd, bpf_prog_info, bpf_raw_tracepoint_open,
};

pub mod btf;
mod common;
mod denied;
pub mod feature;
pub mod features;
mod hub;
mod loader;
mod maps;
mod probe;
mod rooms;

pub use common::Common;
pub use loader::{Loader, Optional, Ring, adopt_libbpf, lacks};
pub use maps::{Listed, delete, entries, field, per_cpu, per_cpu_array, remove, set, set_on_every_cpu};
pub use probe::LOOPBACK;
use rooms::ROOMS;

/// A C struct of a BPF program that any bytes of its size are a value of.
///
/// # Safety
/// The type is `repr(C)` and has only integers, arrays of them, and structs of such.
pub unsafe trait Pod: Copy + Send + 'static {}

/// Implements [`Pod`] for structs of a skeleton.
macro_rules! pod {
    ($($struct:ty),+ $(,)?) => {
        $(
            // SAFETY: the skeleton is made from C, where these are integers, arrays of integers, and structs of such; it
            // writes padding out as a field.
            unsafe impl $crate::daemon::kernel::Pod for $struct {}
        )+
    };
}
pub(crate) use pod;

pod!(u32, u64);

/// The record of a ring buffer in `bytes`; what the kernel left out at its end, where there was nothing, is zero.
pub fn read_record<T: Pod>(bytes: &[u8]) -> T {
    let mut value = MaybeUninit::<T>::zeroed();
    let length = bytes.len().min(size_of::<T>());
    // SAFETY: both are at least `length` long, and `T: Pod` takes any bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), value.as_mut_ptr().cast(), length);
        value.assume_init()
    }
}

/// The value that the kernel wrote in `bytes`, or `None` if there are too few of them.
pub fn read<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: there are enough bytes, and `T: Pod` takes any.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// The bytes of a value, as a map takes them.
pub fn bytes<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: `value` is valid for its size; our structs have explicit padding, so every byte is initialised.
    unsafe { std::slice::from_raw_parts(ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// Room for the object behind a skeleton, which lives as long as `load` runs.
pub fn object() -> MaybeUninit<libbpf_rs::OpenObject> {
    MaybeUninit::uninit()
}

/// A loaded program. Attaching it needs no capability on Linux 6.1 and newer, but for clsact.
#[derive(Clone)]
pub struct Program(Arc<Loaded>);

struct Loaded {
    name: String,
    fd: OwnedFd,
    links: AtomicUsize,
    /// Where it runs with programs of other tools.
    place: OnceLock<hub::Place>,
}

/// Packets that arrive at an interface, or leave it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Direction {
    Ingress,
    Egress,
}

impl Program {
    /// A program that the kernel has loaded.
    fn new(name: &str, fd: OwnedFd) -> Program {
        Program(Arc::new(Loaded { name: name.into(), fd, links: AtomicUsize::new(0), place: OnceLock::new() }))
    }

    fn join(&self, place: hub::Place) {
        let _ = self.0.place.set(place); // it is new
    }

    /// Its name in the kernel's list of programs.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How many links hold it now.
    pub fn links(&self) -> usize {
        self.0.links.load(Ordering::Relaxed)
    }

    /// Runs and nanoseconds; zero unless `kernel.bpf_stats_enabled` is 1.
    pub fn cost(&self) -> io::Result<(u64, u64)> {
        self.info().map(|info| (info.run_cnt, info.run_time_ns))
    }

    /// How often it was not run because it was running on that processor already: a tracepoint that fires in an
    /// interrupt of its own program is skipped, and one of a thread that preempts it, where programs can be preempted
    /// (seen on Linux 7.3, not on 6.18). It also misses what its hub misses.
    pub fn misses(&self) -> io::Result<u64> {
        let of_hub = self.0.place.get().map_or(Ok(0), |place| place.hub.program().misses())?;
        self.info().map(|info| info.recursion_misses + of_hub)
    }

    /// Its number among the kernel's programs.
    pub fn id(&self) -> io::Result<u32> {
        self.info().map(|info| info.id)
    }

    fn info(&self) -> io::Result<bpf_prog_info> {
        let mut info = bpf_prog_info::default();
        let mut size = size_of::<bpf_prog_info>() as u32;
        // SAFETY: `info` is a zeroed struct of the size that is passed.
        match unsafe { bpf_prog_get_info_by_fd(self.0.fd.as_raw_fd(), &mut info, &mut size) } {
            0 => Ok(info),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        }
    }

    /// Attaches a `tp_btf` program to its tracepoint. If other tools use the tracepoint too, its hub runs the program.
    pub fn trace(&self) -> io::Result<Link> {
        let Some(place) = self.0.place.get().filter(|_| !hub::are_runs_measured()) else { return self.attach() };
        match place.hub.append(self, &place.next) {
            Ok(linked) => Ok(self.link(Hold::Hub { _linked: linked })),
            Err(e) => {
                tracing::info!(program = self.name(), "attached by itself: {e}");
                self.attach()
            }
        }
    }

    fn attach(&self) -> io::Result<Link> {
        // SAFETY: a null name means the tracepoint that the program was loaded for.
        let fd = check(unsafe { bpf_raw_tracepoint_open(ptr::null(), self.0.fd.as_raw_fd()) })?;
        Ok(self.link(Hold::Fd { _fd: fd }))
    }

    /// Attaches a `tc` program to an interface: by tcx, or clsact on kernels before 6.6.
    pub fn tc(&self, ifindex: u32, direction: Direction) -> io::Result<Link> {
        let at = if direction == Direction::Ingress { BPF_TCX_INGRESS } else { BPF_TCX_EGRESS };
        match self.create(ifindex as c_int, at, 0) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => self.clsact(ifindex, direction),
            result => Ok(self.link(Hold::Fd { _fd: result? })),
        }
    }

    /// A clsact filter outlives a crash of its owner, so a start replaces what an earlier one left.
    fn clsact(&self, ifindex: u32, direction: Direction) -> io::Result<Link> {
        self.clsact_hook(ifindex, direction)
            .create()
            .and_then(|mut hook| hook.attach())
            .map_err(|e| io::Error::other(format!("{e:#}")))?;
        Ok(self.link(Hold::Clsact(ifindex, direction)))
    }

    fn clsact_hook(&self, ifindex: u32, direction: Direction) -> TcHook {
        let at = if direction == Direction::Ingress { TC_INGRESS } else { TC_EGRESS };
        let mut builder = TcHookBuilder::new(self.0.fd.as_fd());
        builder.ifindex(ifindex as i32).replace(true).handle(1).priority(0xc000);
        builder.hook(at)
    }

    /// Attaches an XDP program: in the driver, or in the generic path that every interface has.
    pub fn xdp(&self, ifindex: u32, native: bool) -> io::Result<Link> {
        /// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` of `linux/if_link.h`.
        const SKB_MODE: u32 = 1 << 1;
        const DRV_MODE: u32 = 1 << 2;
        let flags = if native { DRV_MODE } else { SKB_MODE };
        Ok(self.link(Hold::Fd { _fd: self.create(ifindex as c_int, BPF_XDP, flags)? }))
    }

    /// Attaches a program to the root cgroup, beside those of others: it runs for every process.
    pub fn cgroup(&self, at: u32) -> io::Result<Link> {
        let root = cgroup_root().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        let folder = File::open(root)?;
        Ok(self.link(Hold::Fd { _fd: self.create(folder.as_raw_fd(), at, 0)? }))
    }

    /// Runs an iterator to its end and returns what it wrote.
    pub fn iterate(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        self.read(|bytes| out.extend_from_slice(bytes))?;
        Ok(out)
    }

    /// Runs an iterator to its end and gives every record that it writes to `take`, so that 100,000
    /// of them need no room at once.
    pub fn each<T: Pod>(&self, take: impl FnMut(&T)) -> io::Result<()> {
        self.read(records(take))
    }

    /// Makes an iterator, without running it.
    pub fn try_iterator(&self) -> io::Result<()> {
        self.iterator().map(drop)
    }

    fn iterator(&self) -> io::Result<File> {
        let link = self.create(0, BPF_TRACE_ITER, 0)?;
        // SAFETY: the link is open.
        check(unsafe { bpf_iter_create(link.as_raw_fd()) }).map(File::from)
    }

    fn read(&self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let _room = ROOMS.take();
        let (mut chunk, mut file) = (vec![0; 1 << 16], self.iterator()?);
        loop {
            match file.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(n) => take(&chunk[..n]),
                // The kernel returns control to us after a million objects that wrote nothing.
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn create(&self, target: c_int, at: u32, flags: u32) -> io::Result<OwnedFd> {
        let options = bpf_link_create_opts { sz: size_of::<bpf_link_create_opts>() as _, flags, ..Default::default() };
        // SAFETY: `options` is valid for the call, and says its size.
        check(unsafe { bpf_link_create(self.0.fd.as_raw_fd(), target, at, &options) })
    }

    fn link(&self, hold: Hold) -> Link {
        self.0.links.fetch_add(1, Ordering::Relaxed);
        Link { program: self.clone(), hold }
    }
}

/// An iterator that a kernel may refuse: then it shows nothing.
pub struct Iterate(Option<Program>);

impl Iterate {
    /// Gives every record to `take`, as [`Program::each`].
    pub fn each<T: Pod>(&self, take: impl FnMut(&T)) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |program| program.each(take))
    }

    /// Runs it for what it does, not for what it writes.
    pub fn run(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |program| program.iterate().map(drop))
    }

    /// Whether the kernel has loaded it.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

/// A program that is attached, until this is dropped.
pub struct Link {
    program: Program,
    hold: Hold,
}

enum Hold {
    /// Closing it detaches; so does the end of the process, however it ends.
    Fd {
        _fd: OwnedFd,
    },
    Clsact(u32, Direction),
    Hub {
        _linked: hub::Linked,
    },
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Hold::Clsact(ifindex, direction) = self.hold
            && let Err(e) = self.program.clsact_hook(ifindex, direction).detach()
        {
            tracing::warn!(program = self.program.name(), "removing a clsact filter failed: {e:#}");
        }
        self.program.0.links.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Cuts what an iterator writes into records; one may begin in one chunk and end in the next.
fn records<T: Pod>(mut take: impl FnMut(&T)) -> impl FnMut(&[u8]) {
    let mut rest = Vec::new();
    move |mut bytes| {
        if !rest.is_empty() {
            let missing = (size_of::<T>() - rest.len()).min(bytes.len());
            rest.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if let Some(record) = read(&rest) {
                take(&record);
                rest.clear();
            }
        }
        let whole = bytes.chunks_exact(size_of::<T>());
        rest.extend_from_slice(whole.remainder());
        whole.filter_map(read).for_each(|record| take(&record));
    }
}

/// Where cgroup v2 is mounted: alone, or beside v1 (the hybrid layout).
pub fn cgroup_root() -> Option<&'static str> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .find(|path| Path::new(path).join("cgroup.controllers").exists())
}

/// Whether cgroup v1 is in use: alone, or beside v2.
pub fn has_cgroup_v1() -> bool {
    cgroup_root() != Some("/sys/fs/cgroup")
}

/// libbpf returns a descriptor, or the negative errno.
fn check(fd_or_errno: c_int) -> io::Result<OwnedFd> {
    match fd_or_errno {
        // SAFETY: the kernel has just given us this descriptor, and nobody else holds it.
        fd if fd > 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_reassembled_from_any_chunks() {
        for sizes in [vec![4, 4, 4], vec![12], vec![1, 10, 1], vec![3, 3, 3, 3], vec![5, 7]] {
            let bytes: Vec<u8> = [1u32, 2, 3].iter().flat_map(|n| n.to_ne_bytes()).collect();
            let (mut found, mut at) = (Vec::new(), 0);
            let mut take = records(|n: &u32| found.push(*n));
            for size in &sizes {
                take(&bytes[at..at + size]);
                at += size;
            }
            drop(take);
            assert_eq!(found, [1, 2, 3], "{sizes:?}");
        }
    }

    /// Some kernels refuse iterators over map elements, and over sockets by map.
    #[test]
    fn bpf_programs_avoid_map_element_iterators() {
        let files = std::fs::read_dir(env!("OUT_DIR")).unwrap().map(|entry| entry.unwrap().path());
        let objects: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "o")).collect();
        assert!(objects.len() >= 6, "{objects:?}");
        for path in objects {
            let object = libbpf_rs::ObjectBuilder::default().open_file(&path).unwrap();
            for program in object.progs() {
                let section = program.section().to_string_lossy();
                let refused = ["iter/bpf_map_elem", "iter/bpf_sk_storage_map", "iter/sockmap"];
                assert!(!refused.iter().any(|kind| section.starts_with(kind)), "{}: {section}", path.display());
            }
        }
    }
}
