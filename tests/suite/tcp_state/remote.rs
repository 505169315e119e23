//! A simulated remote host behind a tun device, with configurable delay of acknowledgements.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Write},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use crate::harness::{Netns, open_tun};

pub const HERE: [u8; 4] = [10, 79, 0, 1];
pub const THERE: [u8; 4] = [10, 79, 0, 2];

/// A remote's acknowledgement policy: after a delay, or at once after a number of segments.
#[derive(Clone, Copy)]
pub struct Acknowledges {
    pub after: Duration,
    pub at_once: u32,
}

fn checksum(parts: [&[u8]; 2]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
    while sum >> 16 != 0 {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !sum as u16
}

/// A segment from the remote, as a packet.
fn packet(ports: [[u8; 2]; 2], seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    let options: &[u8] = if flags & 2 != 0 { &[2, 4, 5, 180] } else { &[] }; // the maximum segment size: 1,460
    let mut tcp = [&ports[0][..], &ports[1], &seq.to_be_bytes(), &ack.to_be_bytes()].concat();
    tcp.extend([(5 + options.len() as u8 / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(options);
    let pseudo = [&THERE[..], &HERE, &[0, 6, 0, tcp.len() as u8]].concat();
    let sum = checksum([&pseudo, &tcp]).to_be_bytes();
    tcp[16..18].copy_from_slice(&sum);
    let mut ip = [&[0x45, 0, 0, 20 + tcp.len() as u8, 0, 0, 0, 0, 64, 6, 0, 0], &THERE[..], &HERE].concat();
    let sum = checksum([&ip, &[]]).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    [ip, tcp].concat()
}

/// The interface `far`; the namespace removes it and the remote.
pub fn remote(netns: &Netns, acknowledges: Acknowledges) {
    let file = open_tun(netns, "far", &["10.79.0.1/24"]);
    let (send, replies) = channel::<(Instant, Vec<u8>)>();
    let mut to = file.try_clone().unwrap();
    thread::spawn(move || {
        let mut due = Vec::<(Instant, Vec<u8>)>::new();
        loop {
            due.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
            while due.last().is_some_and(|(at, _)| *at <= Instant::now()) {
                let _ = due.pop().map(|(_, packet)| to.write(&packet));
            }
            let next =
                due.last().map_or(Duration::from_secs(1), |(at, _)| at.saturating_duration_since(Instant::now()));
            match replies.recv_timeout(next) {
                Ok(reply) => due.push(reply),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                Err(_) => return,
            }
        }
    });
    thread::spawn(move || serve(file, acknowledges, |wait, packet| send.send((Instant::now() + wait, packet)).is_ok()));
}

fn serve(mut from: File, acknowledges: Acknowledges, reply: impl Fn(Duration, Vec<u8>) -> bool) {
    let (mut buffer, mut unacknowledged) = (vec![0; 65_536], HashMap::<u16, u32>::new());
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let all = &buffer[..length];
        if all[0] >> 4 != 4 || all[9] != 6 {
            continue;
        }
        let tcp = &all[20..];
        let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
        let ports = [[tcp[2], tcp[3]], [tcp[0], tcp[1]]];
        let (seq, ack, flags) = (word(4), word(8), tcp[13]);
        let data = (tcp.len() - usize::from(tcp[12] >> 4) * 4) as u32;
        let way = Duration::from_millis(1);
        if flags & 2 != 0 {
            reply(way, packet(ports, 1_000, seq + 1, 0x12));
        } else if data > 0 {
            let count = unacknowledged.entry(u16::from_be_bytes(ports[1])).or_default();
            *count += 1;
            let wait = if *count >= acknowledges.at_once { way } else { acknowledges.after };
            *count %= acknowledges.at_once;
            reply(wait, packet(ports, ack, seq + data, 0x10));
        }
    }
}
