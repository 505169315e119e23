//! The TCP sockets of the host, read with the iterators of a tool: what processes hold, in every network namespace; what is
//! in the daemon's own, held or not; and orphans of others, which their process has closed and which still send.
//! `bpf/accept_queue.h` and `bpf/orphans.h` list what no process holds; here is counted what these could not reach.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    sync::Mutex,
    thread::{self, Builder},
};

use libbpf_rs::{MapHandle, MapMut, ProgramMut};

use crate::{
    daemon::kernel::{self, Iterate, Loader, Pod},
    limits,
    numbers::owner,
    sync::lock,
    tcp::Unread,
    wire::Error,
};

const CLAIM_UNREAD: u8 = owner::CLAIM_UNREAD as u8;

/// The record of a socket that an iterator writes.
pub trait Row: Pod + Sync {
    fn cookie(&self) -> u64;
    /// The process that holds it; 0: none.
    fn pid(&self) -> u32;
    /// Whose it is of several processes that hold it: the lowest, which is 0 (`enum claim` of `owner.h`).
    fn claim(&self) -> u8;
    /// Whether its process has closed it.
    fn is_orphan(&self) -> bool {
        false
    }
    /// Listeners: the number of connections in the accept queue without a row. io_uring rings: the number of sockets
    /// without a row.
    fn unread(&self) -> u32 {
        0
    }
    /// Whether it is such a ring.
    fn is_ring(&self) -> bool {
        self.claim() == CLAIM_UNREAD
    }
}

/// Implements [`Row`] for a struct by its fields of these names.
macro_rules! row {
    ($struct:ty $(, $orphan:ident, $unread:ident)?) => {
        impl $crate::daemon::sockets::Row for $struct {
            fn cookie(&self) -> u64 {
                self.cookie
            }
            fn pid(&self) -> u32 {
                self.pid
            }
            fn claim(&self) -> u8 {
                self.claim
            }
            $(
                fn is_orphan(&self) -> bool {
                    self.$orphan != 0
                }
                fn unread(&self) -> u32 {
                    self.$unread
                }
            )?
        }
    };
}
pub(crate) use row;

/// Gives what an iterator over the files of processes writes, in the order of owners: a socket that several hold is the
/// first one's. A manager (process 1 of the host or of a container, a user's systemd) comes after the others, since it
/// holds what it activates for them, and after that children whose parent has the socket; of these each socket comes
/// once, if `wanted`.
pub fn by_owner<T: Row>(held: &Iterate, wanted: impl Fn(&T) -> bool, mut take: impl FnMut(&T)) -> io::Result<()> {
    let mut later = HashMap::new();
    held.each(|row: &T| match row.claim() {
        0 | CLAIM_UNREAD => take(row),
        claim if wanted(row) => {
            let known = later.entry(row.cookie()).or_insert(*row);
            if claim < known.claim() {
                *known = *row;
            }
        }
        _ => {}
    })?;
    later.values().for_each(take);
    Ok(())
}

/// The iterators of a tool over TCP sockets; what the kernel refuses shows nothing.
pub struct Sockets {
    held: Iterate,
    ours: Iterate,
    orphans: Iterate,
    bss: MapHandle,
    fields: OrphanFields,
    /// A reader of orphans at a time: they share the room for the copy of a socket, and the place to go on from.
    reading: Mutex<()>,
}

/// Where the counters of `orphans.h` are in the `.bss` of a tool.
pub struct OrphanFields {
    /// `offset_of!(types::bss, orphans_from)`.
    pub from: usize,
    /// `offset_of!(types::bss, orphans_untracked)`.
    pub untracked: usize,
}

impl Sockets {
    /// Of the programs `list_held`, `list_tcp` and `list_orphans` of an object.
    pub fn new(
        loader: &mut Loader,
        [held, ours, orphans]: [&ProgramMut; 3],
        bss: &MapMut,
        fields: OrphanFields,
    ) -> Result<Self, Error> {
        Ok(Sockets {
            held: loader.iterator(held)?,
            ours: loader.iterator(ours)?,
            orphans: loader.iterator(orphans)?,
            bss: loader.map(bss)?,
            fields,
            reading: Mutex::default(),
        })
    }

    /// Every row that the programs write, one program after the other.
    pub fn each<T: Pod>(&self, mut take: impl FnMut(&T)) -> io::Result<()> {
        self.held.each(&mut take)?;
        // After what is held: what a process closes in between is in the table by then.
        self.each_orphan(&mut take)?;
        self.ours.each(take)
    }

    /// Every row, once for each process that holds the socket, in the [order of owners](by_owner), what nobody holds
    /// last; says what could not be read. The kernel is asked for what is held and what is ours at once: with 100,000
    /// sockets either takes it a tenth of a second.
    pub fn each_by_owner<T: Row>(&self, mut take: impl FnMut(&T)) -> io::Result<Unread> {
        let mut reading = Reading::begin();
        let mut take = |row: &T| {
            reading.add(row);
            take(row);
        };
        thread::scope(|scope| {
            let list = || {
                let mut rows = Vec::new();
                self.ours.each(|row: &T| rows.push(*row)).map(|()| rows)
            };
            let ours = Builder::new().stack_size(limits::THREAD_STACK).spawn_scoped(scope, list)?;
            by_owner(&self.held, |_| true, &mut take)?;
            self.each_orphan(&mut take)?;
            ours.join().map_err(|_| io::Error::other("reading our own sockets failed"))??.iter().for_each(take);
            Ok::<_, io::Error>(())
        })?;
        Ok(reading.end())
    }

    fn each_orphan<T: Pod>(&self, mut take: impl FnMut(&T)) -> io::Result<()> {
        if !self.orphans.is_there() {
            return Ok(());
        }
        let _one = lock(&self.reading);
        loop {
            self.orphans.each(&mut take)?;
            if kernel::field::<u64>(&self.bss, self.fields.from)? == 0 {
                return Ok(());
            }
        }
    }

    /// The number of orphans without a free slot in the table. It only grows while a window is open.
    pub fn orphans_untracked(&self) -> io::Result<u64> {
        kernel::field(&self.bss, self.fields.untracked)
    }
}

/// Counts what one reading of all sockets could not reach.
struct Reading {
    /// By listener.
    waiting: HashMap<u64, u32>,
    rings: HashMap<u64, u32>,
    orphans: HashSet<u64>,
    /// Of the host, when the reading began.
    total: u64,
}

impl Reading {
    /// Call it before the first socket is read.
    fn begin() -> Self {
        Reading { waiting: HashMap::new(), rings: HashMap::new(), orphans: HashSet::new(), total: orphans() }
    }

    fn add(&mut self, row: &impl Row) {
        if row.is_ring() {
            self.rings.insert(row.cookie(), row.unread());
        } else if row.unread() > 0 {
            self.waiting.insert(row.cookie(), row.unread());
        } else if row.is_orphan() {
            self.orphans.insert(row.cookie());
        }
    }

    /// Call it after the last socket was read. The number of orphans changes meanwhile: the lower figure counts.
    fn end(self) -> Unread {
        let sum = |unread: HashMap<u64, u32>| unread.into_values().map(u64::from).sum();
        Unread {
            waiting: sum(self.waiting),
            rings: sum(self.rings),
            orphans: self.total.min(orphans()).saturating_sub(self.orphans.len() as u64),
        }
    }
}

/// The orphans of all network namespaces: the kernel has one counter for them.
fn orphans() -> u64 {
    count(&fs::read_to_string(SOCKSTAT).unwrap_or_default(), "TCP", "orphan").unwrap_or(0)
}

/// The kernel's count of TCP sockets in our own namespace: listening, connected, and in TIME_WAIT. It does not include
/// incomplete handshakes and bound sockets. `None` if it is unavailable.
pub fn counted() -> Option<u64> {
    let ipv4 = fs::read_to_string(SOCKSTAT).ok()?;
    let ipv6 = match fs::read_to_string("/proc/net/sockstat6") {
        Ok(ipv6) => count(&ipv6, "TCP6", "inuse")?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => 0, // no IPv6
        Err(_) => return None,
    };
    Some(count(&ipv4, "TCP", "inuse")? + count(&ipv4, "TCP", "tw")? + ipv6)
}

const SOCKSTAT: &str = "/proc/net/sockstat";

fn count(sockstat: &str, protocol: &str, name: &str) -> Option<u64> {
    let counts = sockstat.lines().find_map(|line| line.strip_prefix(protocol)?.strip_prefix(": "))?;
    let mut words = counts.split(' ').skip_while(|word| *word != name);
    words.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_sockstat() {
        let text = "sockets: used 16\nTCP: inuse 1 orphan 23 tw 4 alloc 1 mem 376\nUDP: inuse 0 mem 0\n";
        assert_eq!(
            ["inuse", "orphan", "tw", "mem", "x"].map(|name| count(text, "TCP", name)).map(Option::unwrap_or_default),
            [1, 23, 4, 376, 0]
        );
        assert_eq!(count("TCP6: inuse 7\nUDP6: inuse 0\n", "TCP6", "inuse"), Some(7));
        assert_eq!(count("", "TCP", "orphan"), None);
    }

    #[derive(Clone, Copy)]
    struct Example {
        cookie: u64,
        pid: u32,
        claim: u8,
        orphan: u8,
        unread: u32,
    }

    kernel::pod!(Example);
    row!(Example, orphan, unread);

    #[test]
    fn shared_listener_or_ring_counts_once() {
        let mut reading = Reading { waiting: HashMap::new(), rings: HashMap::new(), orphans: HashSet::new(), total: 0 };
        for (cookie, unread, orphan) in [(1, 72, 0), (1, 72, 0), (2, 8, 0), (3, 0, 1)] {
            reading.add(&Example { cookie, pid: 1, claim: 0, orphan, unread });
        }
        for cookie in [4, 4] {
            reading.add(&Example { cookie, pid: 0, claim: CLAIM_UNREAD, orphan: 0, unread: 5 });
        }
        assert_eq!(reading.end(), Unread { waiting: 80, orphans: 0, rings: 5 });
    }
}
