//! What every tool needs of eBPF: loading an object, attaching on demand, reading maps.
//!
//! libbpf-rs opens, relocates and loads. What is kept afterwards are file descriptors: libbpf's own
//! view of an object (with a parsed copy of the kernel's BTF) is dropped, so an idle daemon is small.

use std::{
    collections::BTreeMap,
    ffi::c_int,
    fs::File,
    io::{self, Read},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use libbpf_rs::{MapHandle, MapMut, ProgramMut, TC_EGRESS, TC_INGRESS, TcHook, TcHookBuilder};
use libbpf_sys::{
    BPF_TCX_EGRESS, BPF_TCX_INGRESS, BPF_TRACE_ITER, BPF_XDP, bpf_iter_create, bpf_iter_link_info, bpf_link_create,
    bpf_link_create_opts, bpf_prog_get_info_by_fd, bpf_prog_info, bpf_raw_tracepoint_open,
};

use crate::tools::trace_drops::Verdicts;

mod maps;

pub use maps::{counter, entries, per_cpu, per_cpu_array, set, set_on_every_cpu};

/// A C struct of a BPF program that any bytes of its size are a value of.
///
/// # Safety
/// The type is `repr(C)` and has only integers, arrays of them, and structs of such.
pub unsafe trait Pod: Copy + Send + 'static {}

// SAFETY: integers.
unsafe impl Pod for u32 {}
// SAFETY: integers.
unsafe impl Pod for u64 {}

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

/// The contents of a map's value, whatever its type was poisoned by: our maps hold plain figures.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Collects what a tool loads, so that `status` can say what it costs.
#[derive(Default)]
pub struct Loader {
    /// The programs, in the order of loading.
    pub programs: Vec<Program>,
    /// What had to be loaded before anything else, with more capabilities.
    pub verdicts: Option<Arc<Verdicts>>,
}

impl Loader {
    /// Keeps a loaded program beyond the life of its object.
    pub fn program(&mut self, program: &ProgramMut<'_>) -> io::Result<Program> {
        let program = Program(Arc::new(Loaded {
            name: program.name().to_string_lossy().into_owned(),
            fd: program.as_fd().try_clone_to_owned()?,
            links: AtomicUsize::new(0),
        }));
        self.programs.push(program.clone());
        Ok(program)
    }

    /// Keeps a map beyond the life of its object.
    pub fn map(&mut self, map: &MapMut<'_>) -> libbpf_rs::Result<MapHandle> {
        MapHandle::try_from(map)
    }
}

/// A loaded program. Attaching it needs no capability on Linux 6.1 and newer, but for clsact.
#[derive(Clone)]
pub struct Program(Arc<Loaded>);

struct Loaded {
    name: String,
    fd: OwnedFd,
    links: AtomicUsize,
}

/// Packets that arrive at an interface, or leave it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Direction {
    Ingress,
    Egress,
}

impl Program {
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
    /// (seen on Linux 7.3, not on 6.18).
    pub fn misses(&self) -> io::Result<u64> {
        self.info().map(|info| info.recursion_misses)
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

    /// Attaches a `tp_btf` program to its tracepoint.
    pub fn trace(&self) -> io::Result<Link> {
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

    /// Runs an iterator to its end and returns what it wrote.
    pub fn iterate(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        self.read(None, |bytes| out.extend_from_slice(bytes))?;
        Ok(out)
    }

    /// Runs an iterator to its end and gives every record that it writes to `take`, so that 100,000
    /// of them need no room at once.
    pub fn each<T: Pod>(&self, take: impl FnMut(&T)) -> io::Result<()> {
        self.read(None, records(take))
    }

    /// The same over the elements of a map.
    pub fn each_in<T: Pod>(&self, map: &MapHandle, take: impl FnMut(&T)) -> io::Result<()> {
        self.read(Some(map), records(take))
    }

    /// Makes an iterator, without running it.
    pub fn try_iterator(&self) -> io::Result<()> {
        self.iterator(None).map(drop)
    }

    fn iterator(&self, map: Option<&MapHandle>) -> io::Result<File> {
        let mut target = bpf_iter_link_info::default();
        let mut options = bpf_link_create_opts { sz: size_of::<bpf_link_create_opts>() as _, ..Default::default() };
        if let Some(map) = map {
            target.map.map_fd = map.as_fd().as_raw_fd() as u32;
            options.iter_info = &mut target;
            options.iter_info_len = size_of::<bpf_iter_link_info>() as u32;
        }
        // SAFETY: `options`, and what it points to, are valid for the call; it says its size.
        let link = check(unsafe { bpf_link_create(self.0.fd.as_raw_fd(), 0, BPF_TRACE_ITER, &options) })?;
        // SAFETY: the link is open.
        check(unsafe { bpf_iter_create(link.as_raw_fd()) }).map(File::from)
    }

    fn read(&self, map: Option<&MapHandle>, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let (mut chunk, mut file) = (vec![0; 1 << 16], self.iterator(map)?);
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
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Hold::Clsact(ifindex, direction) = self.hold
            && let Err(e) = self.program.clsact_hook(ifindex, direction).detach()
        {
            tracing::warn!(program = self.program.name(), "a clsact filter could not be removed: {e:#}");
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

/// libbpf returns a descriptor, or the negative errno.
fn check(fd_or_errno: c_int) -> io::Result<OwnedFd> {
    match fd_or_errno {
        // SAFETY: the kernel has just given us this descriptor, and nobody else holds it.
        fd if fd > 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}

/// Links that several windows share: the first one attaches, the last one detaches.
pub struct Shared<K: Ord> {
    held: Mutex<BTreeMap<K, (usize, Vec<Link>)>>,
}

/// A window's share of [`Shared`] links.
pub struct Held<K: Ord + Clone> {
    shared: Arc<Shared<K>>,
    key: K,
}

impl<K: Ord + Clone> Shared<K> {
    pub fn new() -> Arc<Self> {
        Arc::new(Shared { held: Mutex::default() })
    }

    /// Makes sure that the links of `key` are attached until the last share of them is dropped.
    pub fn hold<E>(self: &Arc<Self>, key: K, attach: impl FnOnce() -> Result<Vec<Link>, E>) -> Result<Held<K>, E> {
        let mut held = lock(&self.held);
        match held.get_mut(&key) {
            Some((windows, _)) => *windows += 1,
            None => {
                held.insert(key.clone(), (1, attach()?));
            }
        }
        Ok(Held { shared: Arc::clone(self), key })
    }
}

impl<K: Ord + Clone> Drop for Held<K> {
    fn drop(&mut self) {
        // Detached under the lock: a window that opens now must not count what the old link still sees.
        let mut held = lock(&self.shared.held);
        if let Some((windows, _)) = held.get_mut(&self.key) {
            *windows -= 1;
            if *windows == 0 {
                held.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_whole_however_they_arrive() {
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
}
