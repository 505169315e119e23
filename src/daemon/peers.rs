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

use super::answers::{Answers, Claim};
use crate::{limits, logging::Throttle, sync::lock, wire::Error};

/// The users with requests under way.
pub struct Peers {
    /// The users that may connect, besides root; empty: every user who can open the socket.
    allowed: Vec<u32>,
    at_work: Mutex<BTreeMap<u32, usize>>,
    answers: Answers,
    logs: Mutex<BTreeMap<u32, Arc<Log>>>,
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
        Peers { allowed, at_work: Mutex::default(), answers: Answers::new(), logs: Mutex::default() }
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

    /// Memory for the answer to a request of this peer.
    pub fn claim<'a>(&'a self, client: &'a UnixStream, tool: &'a str) -> Claim<'a> {
        self.peers.answers.claim(self.uid, client, tool)
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
    use std::io::Write;

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
