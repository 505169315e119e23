//! Access to the daemon: users, the number of simultaneous requests, and time limits for questions and answers.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{SendFlags, send},
};
use serde_json::Value;

use super::turns::Turns;
use crate::{
    budget::{Budget, Full, Held},
    limits,
    logging::Throttle,
    sync::lock,
    wire::Error,
};

/// The users with requests under way.
pub struct Peers {
    /// The users that may connect, besides root; empty: every user who can open the socket.
    allowed: Vec<u32>,
    at_work: Mutex<BTreeMap<u32, usize>>,
    /// The memory of answers, from before they are made until they are taken.
    memory: Arc<Budget<u32>>,
    logs: Mutex<BTreeMap<u32, Arc<Log>>>,
    /// The length of each tool's last answer: the best guess for the next one.
    last: Mutex<BTreeMap<String, usize>>,
    long: Turns,
}

/// The log budget of one user: one user's lines do not hide another's. Refusals do not hide requests.
pub struct Log {
    pub requests: Throttle,
    pub refusals: Throttle,
}

/// A connection that is worked on, until this is dropped.
pub struct Peer<'a> {
    peers: &'a Peers,
    pub uid: u32,
    /// 0 where our PID namespace does not know it.
    pub pid: i32,
}

impl Peers {
    pub fn new(allowed: Vec<u32>) -> Self {
        let memory = Budget::new(limits::SAMPLES_BYTES, limits::SAMPLES_BYTES_OF_A_USER);
        Peers {
            allowed,
            at_work: Mutex::default(),
            memory,
            logs: Mutex::default(),
            last: Mutex::default(),
            long: Turns::default(),
        }
    }

    /// Accepts a connection by its credentials (`SO_PEERCRED`).
    pub fn admit(&self, stream: &UnixStream) -> Result<Peer<'_>, Error> {
        let credentials = credentials(stream)?;
        self.take_on(credentials.uid, credentials.pid)
    }

    fn take_on(&self, uid: u32, pid: i32) -> Result<Peer<'_>, Error> {
        if !self.allowed.is_empty() && uid != 0 && !self.allowed.contains(&uid) {
            return Err(Error::Forbidden(format!(
                "uid {uid} may not use netmond: add --allow-uid {uid} to netmond's command line"
            )));
        }
        let mut at_work = lock(&self.at_work);
        if at_work.values().sum::<usize>() >= limits::REQUESTS {
            return Err(busy("netmond", limits::REQUESTS));
        }
        let own = at_work.entry(uid).or_default();
        if *own >= limits::REQUESTS_OF_A_USER {
            return Err(busy(&format!("uid {uid}"), limits::REQUESTS_OF_A_USER));
        }
        *own += 1;
        Ok(Peer { peers: self, uid, pid })
    }
}

/// Whether a client hangs up within this time.
fn hangs_up(client: &UnixStream, time: Duration) -> bool {
    let mut fds = [PollFd::new(client, PollFlags::empty())];
    let timeout = Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
    poll(&mut fds, Some(&timeout)).is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// The user of a connection; none, if the kernel does not know it.
pub fn uid(stream: &UnixStream) -> u32 {
    credentials(stream).map_or(u32::MAX, |credentials| credentials.uid)
}

impl Peers {
    /// The log budget of this user. Idle users are removed when there are many.
    pub fn log(&self, uid: u32) -> Arc<Log> {
        let mut logs = lock(&self.logs);
        if logs.len() >= limits::USERS_LOGGED && !logs.contains_key(&uid) {
            logs.retain(|_, log| Arc::strong_count(log) > 1);
        }
        let log = || Log {
            requests: Throttle::new(limits::LOG_LINES_PER_SECOND),
            refusals: Throttle::new(limits::LOG_LINES_PER_SECOND),
        };
        Arc::clone(logs.entry(uid).or_insert_with(|| Arc::new(log())))
    }
}

impl Peer<'_> {
    pub fn log(&self) -> Arc<Log> {
        self.peers.log(self.uid)
    }

    /// Memory for the answer to this request. A user waits for own answers to be taken, and not for long; a client that
    /// has hung up does not wait.
    pub fn reserve(&self, client: &UnixStream, tool: &str, input: &Value) -> Result<Held<u32>, Error> {
        let (mut held, end) = (Held::nothing(&self.peers.memory, self.uid), Instant::now() + limits::ANSWER_TIME);
        let (bytes, mut look) = (self.peers.expected(tool, input), limits::MEMORY_LOOK);
        while let Err(full) = held.resize(bytes) {
            if Instant::now() > end {
                return Err(self.no_memory(full));
            }
            if hangs_up(client, look) {
                return Err(Error::Cancelled);
            }
            look = (look * 2).min(limits::MEMORY_LOOK_MAX);
        }
        if bytes > limits::SAMPLE_HELD_MIN {
            self.peers.long.wait(self.uid);
        }
        Ok(held)
    }

    /// Holds what the answer takes until it is taken, now that it is there.
    pub fn hold(&self, held: &mut Held<u32>, tool: &str, bytes: usize) -> Result<(), Error> {
        self.peers.long.made(self.uid);
        let mut last = lock(&self.peers.last);
        let last = last.entry(tool.into()).or_default();
        *last = bytes.max(*last / 2);
        held.resize(bytes).map_err(|full| self.no_memory(full))
    }

    fn no_memory(&self, full: Full) -> Error {
        let (whose, limit) = match full {
            Full::Share => (format!("the answers to uid {}", self.uid), limits::SAMPLES_BYTES_OF_A_USER),
            Full::Total => ("all answers".into(), limits::SAMPLES_BYTES),
        };
        Error::Busy(format!(
            "{whose} exceed netmond's memory limit of {} MB: read the pending answers, request fewer rows (limit), \
             and try again",
            limit >> 20
        ))
    }
}

impl Peers {
    /// The expected length of an answer: that of the tool's last answer, or of its rows.
    fn expected(&self, tool: &str, input: &Value) -> usize {
        let last = lock(&self.last).get(tool).copied().unwrap_or_default();
        let rows = input.get("limit").and_then(Value::as_u64).unwrap_or_default().min(limits::ROWS_MAX as u64) as usize;
        let bytes = last.max(rows * limits::ROW_BYTES) * limits::ENCODING_COST;
        bytes.clamp(limits::SAMPLE_HELD_MIN, limits::SAMPLES_BYTES_OF_A_USER)
    }
}

/// Not by rustix, to which a process without a pid here is an error, and its uid the number of that.
fn credentials(stream: &UnixStream) -> io::Result<libc::ucred> {
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    let to = std::ptr::from_mut(&mut credentials).cast();
    // SAFETY: the option is a struct ucred, of the size that is passed.
    match unsafe { libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, to, &mut length) } {
        0 => Ok(credentials),
        _ => Err(io::Error::last_os_error()),
    }
}

fn busy(who: &str, limit: usize) -> Error {
    Error::Busy(format!("{who} reached the limit of {limit} simultaneous requests; try again when some have ended"))
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        let mut at_work = lock(&self.peers.at_work);
        if let Some(own) = at_work.get_mut(&self.uid) {
            *own -= 1;
            if *own == 0 {
                at_work.remove(&self.uid);
            }
        }
    }
}

/// The lines of a client.
pub struct Lines<'a> {
    stream: &'a UnixStream,
    /// Bytes of the next lines.
    ahead: Vec<u8>,
}

impl<'a> Lines<'a> {
    pub fn new(stream: &'a UnixStream) -> Self {
        Lines { stream, ahead: Vec::new() }
    }

    /// Waits until the client sends data, or disconnects; false after this time without data, or if `stop` is closed.
    pub fn wait(&self, stop: &OwnedFd, time: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.stream, PollFlags::IN), PollFd::new(stop, PollFlags::empty())];
        let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
        let ready = !self.ahead.is_empty() || rustix::io::retry_on_intr(|| poll(&mut fds, Some(&time)))? > 0;
        Ok(ready && fds[1].revents().is_empty())
    }

    /// The bytes up to the end of the line, of the input, of `bytes` or of `time`: a timeout of the socket alone would
    /// let a client send one byte at a time for ever.
    pub fn next(&mut self, bytes: usize, time: Duration) -> io::Result<Vec<u8>> {
        let (end, mut chunk, mut stream) = (Instant::now() + time, [0; 4096], self.stream);
        loop {
            let newline = self.ahead.iter().position(|byte| *byte == b'\n');
            if let Some(length) = newline.map(|at| at + 1).or((self.ahead.len() >= bytes).then_some(bytes)) {
                let rest = self.ahead.split_off(length.min(bytes));
                return Ok(std::mem::replace(&mut self.ahead, rest));
            }
            self.stream.set_read_timeout(Some(left(end)?))?;
            match stream.read(&mut chunk) {
                Ok(0) => return Ok(std::mem::take(&mut self.ahead)),
                Ok(n) => self.ahead.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Hands a client its answer, which it must have taken within `time`.
///
/// The kernel applies the timeout of a socket to each part of a large write: a client that takes a little now and then
/// would never reach it.
pub fn write_all(stream: &UnixStream, mut bytes: &[u8], time: Duration) -> io::Result<()> {
    let end = Instant::now() + time;
    while !bytes.is_empty() {
        let left = left(end)?;
        match send(stream, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::AGAIN) => {
                let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
                match poll(&mut [PollFd::new(stream, PollFlags::OUT)], Some(&timeout)) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// The time until `end`; an error when it has come (a timeout of zero would mean none).
fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, thread};

    use super::*;

    #[test]
    fn requests_per_user_are_limited() {
        let peers = Peers::new(vec![]);
        let first: Vec<_> = (0..limits::REQUESTS_OF_A_USER).map(|_| peers.take_on(1000, 1).ok().unwrap()).collect();
        let refusal = peers.take_on(1000, 1).err().unwrap().to_string();
        assert!(refusal.contains("uid 1000 reached the limit"), "{refusal}");
        let others = |_| (1001..).find_map(|uid| peers.take_on(uid, 2).ok());
        let second: Vec<_> = (0..limits::REQUESTS - limits::REQUESTS_OF_A_USER).filter_map(others).collect();
        assert!(matches!(peers.take_on(2000, 2), Err(Error::Busy(_))), "all places are taken");
        drop((first, second));
        assert!(peers.take_on(1000, 1).is_ok() && lock(&peers.at_work).is_empty(), "and given back");
    }

    #[test]
    fn log_rate_is_limited_per_user() {
        let peers = Peers::new(vec![]);
        while peers.log(1).requests.admit().is_some() {}
        assert!(peers.log(1).refusals.admit().is_some() && peers.log(2).requests.admit().is_some());
        (0..2 * limits::USERS_LOGGED as u32).for_each(|uid| drop(peers.log(uid)));
        assert!(lock(&peers.logs).len() <= limits::USERS_LOGGED);
    }

    /// A client that reads no answers waits for its own memory; other users do not wait.
    #[test]
    fn unread_answers_block_only_their_own_user() {
        let peers = Peers::new(vec![]);
        let (client, theirs) = UnixStream::pair().unwrap();
        let (greedy, other) = (peers.take_on(1000, 1).ok().unwrap(), peers.take_on(1001, 2).ok().unwrap());
        let all = serde_json::json!({"limit": 10_000});
        let bytes = peers.expected("snapshot_sockets", &all);
        assert!(bytes * 2 < limits::SAMPLES_BYTES_OF_A_USER, "{bytes}");
        let mut kept = Vec::new();
        while (kept.len() + 1) * bytes <= limits::SAMPLES_BYTES_OF_A_USER {
            kept.push(greedy.reserve(&client, "snapshot_sockets", &all).ok().unwrap());
        }
        let mut more = Held::nothing(&peers.memory, 1000);
        let refused = more.resize(bytes).map_err(|full| greedy.no_memory(full)).unwrap_err().to_string();
        assert!(refused.contains("uid 1000") && refused.contains("limit"), "{refused}");
        assert!(other.reserve(&client, "snapshot_sockets", &all).is_ok());
        drop(theirs);
        let begun = Instant::now();
        assert!(matches!(greedy.reserve(&client, "snapshot_sockets", &all), Err(Error::Cancelled)));
        assert!(begun.elapsed() < limits::ANSWER_TIME / 2, "who has hung up waits for nothing");
        let mut one = kept.pop().unwrap();
        assert!(greedy.hold(&mut one, "snapshot_sockets", 100).is_ok() && more.resize(bytes).is_ok(), "it was shorter");
    }

    #[test]
    fn long_answers_are_serialized_per_user() {
        let peers = Peers::new(vec![]);
        let (client, _theirs) = UnixStream::pair().unwrap();
        let (one, other) = (peers.take_on(1000, 1).ok().unwrap(), peers.take_on(1001, 2).ok().unwrap());
        let ask = |peer: &Peer, limit: u64| {
            let begun = Instant::now();
            let held = peer.reserve(&client, "snapshot_sockets", &serde_json::json!({"limit": limit})).ok().unwrap();
            (held, begun.elapsed())
        };
        let (mut first, waited) = ask(&one, 10_000);
        assert!(waited < limits::LONG_ANSWER_WAIT);
        assert!(ask(&other, 10_000).1 < limits::LONG_ANSWER_WAIT, "another user does not wait");
        assert!(ask(&one, 1).1 < limits::LONG_ANSWER_WAIT, "nor does a short answer");
        thread::scope(|scope| {
            let second = scope.spawn(|| ask(&one, 10_000).1);
            thread::sleep(limits::LONG_ANSWER_WAIT / 10);
            assert!(!second.is_finished());
            one.hold(&mut first, "snapshot_sockets", 100).ok().unwrap();
            assert!(second.join().unwrap() < limits::LONG_ANSWER_WAIT, "the first one is made");
        });
        assert!(ask(&one, 10_000).1 >= limits::LONG_ANSWER_WAIT, "the one before could be a window");
    }

    #[test]
    fn allowed_users_and_root_are_admitted() {
        let peers = Peers::new(vec![998]);
        assert!(peers.take_on(998, 1).is_ok() && peers.take_on(0, 1).is_ok());
        assert!(matches!(peers.take_on(999, 1), Err(Error::Forbidden(_))));
    }

    #[test]
    fn line_ends_at_newline_size_limit_or_timeout() {
        let read = |said: &[u8], bytes| {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(said).unwrap();
            Lines::new(&ours).next(bytes, Duration::from_millis(20)).map_err(|e| e.kind())
        };
        assert_eq!(read(b"a question\n", 100).as_deref(), Ok(&b"a question\n"[..]));
        assert_eq!(read(b"too long\n", 4).as_deref(), Ok(&b"too "[..]));
        assert!(matches!(read(b"stalls", 100), Err(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)));
    }

    #[test]
    fn several_lines_in_one_read_are_split() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"one\ntwo\nthree").unwrap();
        drop(theirs);
        let mut lines = Lines::new(&ours);
        let read: Vec<_> = (0..4).map(|_| lines.next(100, Duration::from_secs(5)).unwrap()).collect();
        assert_eq!(read, [&b"one\n"[..], b"two\n", b"three", b""]);
    }

    #[test]
    fn slow_sender_hits_the_deadline() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            while theirs.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let begun = Instant::now();
        assert!(Lines::new(&ours).next(1 << 20, Duration::from_millis(100)).is_err());
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
