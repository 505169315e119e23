//! From messages at interfaces to queries with their answers.

use std::{
    collections::HashMap,
    net::IpAddr,
};

use super::{Seen, Transport};
use crate::{answer::Endpoint, attribution::Process, dns, limits, packet};

/// A query, and what became of it.
#[derive(Debug, Clone)]
pub struct Exchange {
    pub process: Process,
    pub name: String,
    pub kind: u16,
    pub server: Endpoint,
    pub transport: Transport,
    pub sent: u64,
    pub asked_ns: u64,
    pub answered_ns: Option<u64>,
    pub rcode: u8,
    socket: u64,
    /// Where it was first seen: seen there again, it was sent again.
    place: Place,
}

/// Direction, network namespace, interface.
type Place = (bool, u32, u32);

/// What query and answer have in common.
#[derive(PartialEq, Eq, Hash, Clone, Copy, PartialOrd, Ord)]
struct Key {
    client: Endpoint,
    server: Endpoint,
    tcp: bool,
    id: u16,
}

const MDNS: u16 = 5353;

/// What was made of all messages.
#[derive(Default)]
pub struct Exchanges {
    pub all: Vec<Exchange>,
    /// The latest exchange of a key; several keys lead to one where addresses are translated on the way.
    keys: HashMap<Key, usize>,
    /// The latest query of an id and a name, to know it again behind a translation.
    names: HashMap<(u16, String, u16), usize>,
    /// Multicast queries without an answer, by name and type.
    multicast: HashMap<(String, u16), Vec<usize>>,
}

/// Messages in the order of time.
pub fn exchanges(seen: &[Seen]) -> Vec<Exchange> {
    let mut exchanges = Exchanges::default();
    let mut streams = Streams::default();
    let mut order: Vec<&Seen> = seen.iter().collect();
    order.sort_by_key(|seen| seen.at_ns);
    for seen in order {
        let Some((ends, tcp, payload)) = payload(seen) else { continue };
        let place = (seen.egress, seen.interface.0, seen.interface.1);
        if !tcp {
            exchanges.take(seen, ends, false, payload);
            continue;
        }
        for message in streams.take((place, ends), payload) {
            exchanges.take(seen, ends, true, &message);
        }
    }
    exchanges.all
}

type Ends = (Endpoint, Endpoint);

/// Source and destination, whether it is TCP, and what the packet carries: a message of UDP, a segment of TCP with its header.
fn payload(seen: &Seen) -> Option<(Ends, bool, &[u8])> {
    let bytes = &seen.packet.0;
    let packet = packet::parse(seen.protocol, bytes)?;
    let (from, to) = packet.ports?;
    let end = |address: IpAddr, port| Endpoint { address: address.to_canonical(), port };
    let ends = (end(packet.source?, from), end(packet.destination?, to));
    match packet.protocol.as_str() {
        "udp" => Some((ends, false, bytes.get(packet.transport + 8..)?)),
        "tcp" => {
            let header = usize::from(bytes.get(packet.transport + 12)? >> 4) * 4;
            Some((ends, true, bytes.get(packet.transport..).filter(|rest| rest.len() > header)?))
        }
        _ => None,
    }
}

/// The beginnings of TCP streams, put together until their messages are whole.
#[derive(Default)]
struct Streams {
    open: HashMap<(Place, Ends), Stream>,
}

#[derive(Default)]
struct Stream {
    /// The sequence number of the next byte.
    next: u32,
    bytes: Vec<u8>,
}

impl Streams {
    /// A segment from its TCP header on; returns the messages that it completes. A message is a length and its bytes;
    /// of a long one only the beginning was captured, which is enough.
    fn take(&mut self, stream: (Place, Ends), segment: &[u8]) -> Vec<Vec<u8>> {
        let sequence = segment.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes);
        let header = usize::from(segment[12] >> 4) * 4;
        let data = &segment[header..];
        if self.open.len() >= limits::DNS_STREAMS && !self.open.contains_key(&stream) {
            return Vec::new();
        }
        let state = self.open.entry(stream).or_default();
        if state.bytes.is_empty() || state.next != sequence {
            *state = Stream { next: sequence, bytes: Vec::new() }; // begun before the window, or a gap
        }
        state.next = state.next.wrapping_add(data.len() as u32);
        state.bytes.extend_from_slice(data);
        let mut whole = Vec::new();
        while let [high, low, rest @ ..] = state.bytes.as_slice() {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if rest.len() < length && rest.len() < limits::DNS_CAPTURE {
                break;
            }
            whole.push(rest[..length.min(rest.len())].to_vec());
            state.bytes = rest.get(length..).unwrap_or_default().to_vec();
        }
        whole
    }
}

impl Exchanges {
    fn take(&mut self, seen: &Seen, (source, destination): Ends, tcp: bool, payload: &[u8]) {
        let Some(message) = dns::parse(payload) else { return };
        if message.is_response {
            let key = Key { client: destination, server: source, tcp, id: message.id };
            self.answer(seen, key, &message);
        } else {
            let key = Key { client: source, server: destination, tcp, id: message.id };
            self.question(seen, key, message);
        }
    }

    fn question(&mut self, seen: &Seen, key: Key, message: dns::Message) {
        let place = (seen.egress, seen.interface.0, seen.interface.1);
        let name = (message.id, message.name, message.kind);
        let is_same = |e: &Exchange| e.answered_ns.is_none() && (&e.name, e.kind) == (&name.1, name.2);
        let known = self.keys.get(&key).copied().filter(|i| is_same(&self.all[*i]));
        // Behind a translation of addresses the socket is the same, or (once it is routed) none.
        let translated = || {
            let earlier = self.names.get(&name).copied().filter(|i| is_same(&self.all[*i]))?;
            let e = &self.all[earlier];
            let recent = seen.at_ns - e.asked_ns < limits::DNS_TRANSLATION.as_nanos() as u64;
            (recent && key.server.port != MDNS && (seen.socket == 0 || seen.socket == e.socket)).then_some(earlier)
        };
        if let Some(index) = known.or_else(translated) {
            let exchange = &mut self.all[index];
            exchange.sent += u64::from(exchange.place == place);
            if exchange.process.pid == 0 && seen.process.pid != 0 {
                exchange.process = seen.process.clone();
            }
            self.keys.insert(key, index);
            return;
        }
        if key.server.port == MDNS {
            self.multicast.entry((name.1.clone(), name.2)).or_default().push(self.all.len());
        }
        let transport = if key.tcp { Transport::Tcp } else { Transport::Udp };
        self.keys.insert(key, self.all.len());
        self.names.insert(name.clone(), self.all.len());
        self.all.push(Exchange {
            process: seen.process.clone(),
            name: name.1,
            kind: name.2,
            server: key.server,
            transport,
            sent: 1,
            asked_ns: seen.at_ns,
            answered_ns: None,
            rcode: 0,
            socket: seen.socket,
            place,
        });
    }

    fn answer(&mut self, seen: &Seen, key: Key, message: &dns::Message) {
        let asked = |e: &Exchange| message.name == "." || e.name == message.name;
        if let Some(exchange) = self.keys.get(&key).map(|i| &mut self.all[*i]).filter(|e| asked(e)) {
            if exchange.answered_ns.is_none() {
                (exchange.answered_ns, exchange.rcode) = (Some(seen.at_ns), message.rcode);
            }
        } else if key.server.port == MDNS {
            self.multicast_answer(seen, message);
        }
    }

    /// Multicast DNS has no ids, and answers go to everybody: any answer with a record of that name will do.
    fn multicast_answer(&mut self, seen: &Seen, message: &dns::Message) {
        const ANY: u16 = 255;
        for (name, kind) in &message.answers {
            let asked = [*kind, ANY].into_iter().filter_map(|kind| self.multicast.remove(&(name.clone(), kind)));
            for index in asked.flatten().collect::<Vec<_>>() {
                let exchange = &mut self.all[index];
                if exchange.answered_ns.is_none() {
                    (exchange.answered_ns, exchange.rcode) = (Some(seen.at_ns), message.rcode);
                }
            }
        }
    }
}
