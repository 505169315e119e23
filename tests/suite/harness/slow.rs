//! A slow path between two network namespaces, with tun: some kernels lack netem.

use std::{
    fs::File,
    io::{Read, Write},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use super::{Netns, open_tun};

pub const SLOW_A: &str = "10.78.0.1";
pub const SLOW_B: &str = "10.78.0.2";
pub const SLOW_A6: &str = "fd78::1";
pub const SLOW_B6: &str = "fd78::2";

/// Two namespaces, each with an interface `slow`. Packets leave at the other one after a delay, until this is dropped.
pub struct SlowPair {
    pub a: Netns,
    pub b: Netns,
}

impl SlowPair {
    pub fn new(delay: Duration) -> SlowPair {
        let (a, b) = (Netns::new(), Netns::new());
        let (end_a, end_b) = (tun(&a, SLOW_A, SLOW_A6), tun(&b, SLOW_B, SLOW_B6));
        carry(end_a.try_clone().unwrap(), end_b.try_clone().unwrap(), delay);
        carry(end_b, end_a, delay);
        SlowPair { a, b }
    }
}

fn tun(netns: &Netns, v4: &str, v6: &str) -> File {
    open_tun(netns, "slow", &[&format!("{v4}/24"), &format!("{v6}/64")])
}

/// Two threads: one takes each packet as it comes, the other delivers it when it is due. They end with the interfaces,
/// which end with their namespaces.
fn carry(mut from: File, mut to: File, delay: Duration) {
    let (send, packets) = channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if send.send((Instant::now() + delay, buffer[..length].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, packet) in packets {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let _ = to.write(&packet); // the interface is going away
        }
    });
}
