//! A path between two namespaces that this process carries packet by packet. The kernel does not see its delay and
//! loss, like faults elsewhere on the network.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::channel,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::harness::*;

/// Whether the wire loses a packet: by its number (from 0), and its bytes from the IP header on.
pub type Loses = fn(u64, &[u8]) -> bool;

/// Two tun devices and the wire between them.
pub struct Wire {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Devices called `name` in both namespaces. Each packet takes `delay`, and `loses` decides its loss.
    pub fn new(name: &str, client: &Netns, server: &Netns, delay: Duration, loses: Loses) -> Wire {
        let (a, b) = (tun(name, client), tun(name, server));
        // Room for all of TCP's packets in flight, so that only the wire loses packets.
        for netns in [client, server] {
            netns.ip(&format!("link set {name} txqueuelen 10000"));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let both = [(a.try_clone().unwrap(), b.try_clone().unwrap()), (b, a)];
        let threads = both.into_iter().flat_map(|(from, to)| carry(from, to, delay, loses, &stop)).collect();
        Wire { stop, threads }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Two threads: one takes packets, the other delivers them when they are due.
fn carry(mut from: File, mut to: File, delay: Duration, loses: Loses, stop: &Arc<AtomicBool>) -> [JoinHandle<()>; 2] {
    let (send, receive) = channel::<(Instant, Vec<u8>)>();
    let stop = Arc::clone(stop);
    let take = move || {
        let (mut buffer, mut number) = (vec![0; 65_536], 0);
        while !stop.load(Ordering::Relaxed) {
            let tick = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            if poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&tick)) != Ok(1) {
                continue;
            }
            let Ok(length) = from.read(&mut buffer) else { return };
            if !loses(number, &buffer[..length])
                && send.send((Instant::now() + delay, buffer[..length].to_vec())).is_err()
            {
                return;
            }
            number += 1;
        }
    };
    let give = move || {
        for (due, packet) in receive {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let _ = to.write(&packet);
        }
    };
    [thread::spawn(take), thread::spawn(give)]
}

/// A tun device in a namespace; closing its file removes it.
pub fn tun(name: &str, netns: &Netns) -> File {
    const TUNSETIFF: u64 = 0x4004_54ca;
    const IFF_TUN_NO_PI: u16 = 0x0001 | 0x1000;
    netns.enter(|| {
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
        let mut request = [0u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&IFF_TUN_NO_PI.to_ne_bytes());
        // SAFETY: the request is a `struct ifreq`, 40 bytes that live through the call.
        assert_eq!(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) }, 0, "no tun device");
        file
    })
}
