//! Who may ask, how many questions at once, and how long one may take to be put and the answer to be taken.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{bpf::lock, limits, wire::Error};

/// Everybody who asks now.
pub struct Peers {
    /// The only users who may ask, besides root; anyone who may open the socket if there are none.
    allowed: Vec<u32>,
    at_work: Mutex<BTreeMap<u32, usize>>,
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
        Peers { allowed, at_work: Mutex::default() }
    }

    /// Takes a connection on, by what the kernel says of who made it (`SO_PEERCRED`).
    pub fn admit(&self, stream: &UnixStream) -> Result<Peer<'_>, Error> {
        let credentials = credentials(stream)?;
        self.take_on(credentials.uid, credentials.pid)
    }

    fn take_on(&self, uid: u32, pid: i32) -> Result<Peer<'_>, Error> {
        if !self.allowed.is_empty() && uid != 0 && !self.allowed.contains(&uid) {
            return Err(Error::Forbidden(format!(
                "uid {uid} may not ask this netmond, which was started with --allow-uid for others; add it there"
            )));
        }
        let mut at_work = lock(&self.at_work);
        if at_work.values().sum::<usize>() >= limits::REQUESTS {
            return Err(busy("netmond is", limits::REQUESTS));
        }
        let own = at_work.entry(uid).or_default();
        if *own >= limits::REQUESTS_OF_A_USER {
            return Err(busy(&format!("for uid {uid} netmond is"), limits::REQUESTS_OF_A_USER));
        }
        *own += 1;
        Ok(Peer { peers: self, uid, pid })
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
    Error::Busy(format!("{who} at work on {limit} requests, which is its limit; try again when some have ended"))
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

/// What a client says up to the end of the line, of its input, of `bytes` or of `time`: a timeout of
/// the socket alone would let it send a byte now and then for ever.
pub fn read_line(mut stream: &UnixStream, bytes: usize, time: Duration) -> io::Result<Vec<u8>> {
    let (end, mut line, mut chunk) = (Instant::now() + time, Vec::new(), [0; 4096]);
    while line.len() < bytes && line.last() != Some(&b'\n') {
        stream.set_read_timeout(Some(left(end)?))?;
        let room = chunk.len().min(bytes - line.len());
        match stream.read(&mut chunk[..room]) {
            Ok(0) => break,
            Ok(n) => line.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(line)
}

/// Hands a client its answer, which it must have taken within `time`.
pub fn write_all(mut stream: &UnixStream, mut bytes: &[u8], time: Duration) -> io::Result<()> {
    let end = Instant::now() + time;
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(end)?))?;
        match stream.write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
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
    use super::*;

    #[test]
    fn one_user_cannot_take_every_place() {
        let peers = Peers::new(vec![]);
        let first: Vec<_> = (0..limits::REQUESTS_OF_A_USER).map(|_| peers.take_on(1000, 1).ok().unwrap()).collect();
        let refusal = peers.take_on(1000, 1).err().unwrap().to_string();
        assert!(refusal.contains("for uid 1000"), "{refusal}");
        let rest = limits::REQUESTS - limits::REQUESTS_OF_A_USER;
        let second: Vec<_> = (0..rest).map(|_| peers.take_on(1001, 2).ok().unwrap()).collect();
        assert!(matches!(peers.take_on(1001, 2), Err(Error::Busy(_))), "all places are taken");
        drop((first, second));
        assert!(peers.take_on(1000, 1).is_ok() && lock(&peers.at_work).is_empty(), "and given back");
    }

    #[test]
    fn a_list_of_users_keeps_the_others_out_but_not_root() {
        let peers = Peers::new(vec![998]);
        assert!(peers.take_on(998, 1).is_ok() && peers.take_on(0, 1).is_ok());
        assert!(matches!(peers.take_on(999, 1), Err(Error::Forbidden(_))));
    }

    #[test]
    fn a_line_ends_at_its_end_its_bound_or_its_time() {
        let read = |said: &[u8], bytes| {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(said).unwrap();
            read_line(&ours, bytes, Duration::from_millis(20)).map_err(|e| e.kind())
        };
        assert_eq!(read(b"a question\n", 100).as_deref(), Ok(&b"a question\n"[..]));
        assert_eq!(read(b"too long\n", 4).as_deref(), Ok(&b"too "[..]));
        assert!(matches!(read(b"stalls", 100), Err(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)));
    }

    #[test]
    fn who_sends_a_byte_now_and_then_is_cut_off_too() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            while theirs.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let begun = Instant::now();
        assert!(read_line(&ours, 1 << 20, Duration::from_millis(100)).is_err());
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
