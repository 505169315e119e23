//! From messages at interfaces to queries with their answers.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use super::{
    Seen,
    streams::{Ends, ObservationPoint, Streams},
};
use crate::{
    answer::{Endpoint, Protocol},
    dns, limits,
    owner::Process,
    packet,
};

/// A query, and what became of it.
#[derive(Debug, Clone)]
pub struct Exchange {
    pub process: Process,
    /// Names and types that it asks for: at least one.
    pub questions: Vec<(String, u16)>,
    pub server: Endpoint,
    pub transport: Protocol,
    pub sent: u64,
    pub asked_ns: i64,
    pub answered_ns: Option<i64>,
    /// Answers that were seen where the first one was.
    pub answers: u64,
    pub rcode: u8,
    /// As its client sent it.
    key: Key,
    socket: u64,
    /// When it was sent last.
    sent_ns: i64,
    /// Where it was seen, the first place first: seen there again, it was sent again.
    places: Vec<ObservationPoint>,
    /// Where its answer was seen.
    answer_places: Vec<ObservationPoint>,
    /// Its client is on this host, …
    is_of_here: bool,
    /// … and the answer came there.
    has_arrived: bool,
    /// It was seen with other addresses, behind a translation.
    is_translated: bool,
}

/// What query and answer have in common.
#[derive(PartialEq, Eq, Hash, Clone, Copy, Debug)]
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
    /// The latest exchanges of a key, oldest first: network namespaces may have the same addresses, a client may ask
    /// several names with one id, and a query has a second key where addresses are translated on the way.
    keys: HashMap<Key, Vec<usize>>,
    /// The latest queries of an id, a name and a type, to know them again behind a translation.
    names: HashMap<(u16, String, u16), Vec<usize>>,
    /// Multicast queries without an answer, by name and type.
    multicast: HashMap<(String, u16), Vec<usize>>,
}

/// What was made of the messages of a window.
pub struct Matched {
    pub exchanges: Vec<Exchange>,
    /// TCP streams with messages that were dropped half read, because too many were incomplete at the same time.
    pub streams_given_up: u64,
    /// Datagrams with a first fragment that ends before the header of their message does.
    pub cut: u64,
}

/// Matches messages, in the order of time.
pub fn exchanges<'a>(seen: impl IntoIterator<Item = &'a Seen>) -> Matched {
    let mut exchanges = Exchanges::default();
    let (mut streams, mut cut) = (Streams::default(), 0);
    let mut order: Vec<&Seen> = seen.into_iter().collect();
    order.sort_by_key(|seen| seen.at_ns);
    for seen in order {
        let Some((ends, tcp, payload)) = payload(seen) else { continue };
        if !tcp {
            cut += u64::from(payload.len() < dns::HEADER);
            exchanges.take(seen, ends, false, payload);
            continue;
        }
        for message in streams.take((seen.place(), ends), payload, seen.begins_message) {
            exchanges.take(seen, ends, true, &message);
        }
    }
    forget_what_did_not_arrive(&mut exchanges.all);
    Matched { exchanges: exchanges.all, streams_given_up: streams.given_up, cut }
}

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

impl Seen {
    fn place(&self) -> ObservationPoint {
        (self.egress, self.interface.0, self.interface.1)
    }

    /// Whether its client sends it here, so that it is as the client means it: no translation is before this place.
    fn is_origin(&self) -> bool {
        self.egress && self.socket != 0 && self.process.netns == self.interface.0
    }
}

impl Exchange {
    fn new(seen: &Seen, key: Key, questions: Vec<(String, u16)>) -> Exchange {
        Exchange {
            process: seen.process.clone(),
            questions,
            server: key.server,
            transport: if key.tcp { Protocol::Tcp } else { Protocol::Udp },
            sent: 1,
            asked_ns: seen.at_ns,
            answered_ns: None,
            answers: 0,
            rcode: 0,
            key,
            socket: seen.socket,
            sent_ns: seen.at_ns,
            places: vec![seen.place()],
            answer_places: Vec::new(),
            is_of_here: seen.is_origin(),
            has_arrived: false,
            is_translated: false,
        }
    }

    /// Nobody is known to have its answer: what left a server on this host may get lost before it comes to its client.
    fn is_open(&self) -> bool {
        self.answered_ns.is_none() || (self.is_of_here && !self.has_arrived)
    }

    /// Whether an answer that is seen here has come to the client: it enters the network namespace that the query came
    /// from, or of the device below, which it left by before it entered another one.
    fn is_home(&self, seen: &Seen) -> bool {
        let left_by = self.places.iter().take_while(|(egress, ..)| *egress);
        self.is_of_here && !seen.egress && left_by.into_iter().any(|(_, netns, _)| *netns == seen.interface.0)
    }

    fn may_be_of(&self, socket: u64) -> bool {
        socket == 0 || self.socket == 0 || self.socket == socket
    }

    fn is_recent(&self, seen: &Seen) -> bool {
        seen.at_ns - self.sent_ns < limits::DNS_TRANSLATION.as_nanos() as i64
    }

    fn was_in(&self, netns: u32) -> bool {
        self.places.iter().any(|place| place.1 == netns)
    }

    /// Whether `seen`, of a key that this query has, is this query. Where its client sends it, it must be of the same
    /// socket, and go to the same server.
    fn is_seen_again(&self, seen: &Seen, key: &Key) -> bool {
        let is_open = self.is_open();
        if seen.is_origin() {
            let is_same_netns = self.socket == 0 || self.process.netns == seen.process.netns;
            return is_open && self.key == *key && self.may_be_of(seen.socket) && is_same_netns;
        }
        let is_known_here = self.places.contains(&seen.place());
        self.may_be_of(seen.socket) && if is_known_here { is_open } else { self.is_recent(seen) }
    }

    /// Whether `seen`, of a key that no query has, is this one with other addresses, as it leaves after a translation.
    fn is_translated_to(&self, seen: &Seen, key: &Key) -> bool {
        let is_on_its_way = self.is_recent(seen) && !self.places.contains(&seen.place());
        let may_be = seen.egress && !seen.is_origin() && self.key.tcp == key.tcp && self.may_be_of(seen.socket);
        self.answered_ns.is_none() && is_on_its_way && may_be && self.key.server.port != MDNS && key.server.port != MDNS
    }

    fn see_again(&mut self, seen: &Seen) {
        let place = seen.place();
        if self.places[0] == place {
            self.sent += 1;
            self.sent_ns = seen.at_ns;
            // Its client asks again: what was seen of an answer did not come there.
            self.answered_ns = None;
            self.answer_places.clear();
        }
        if !self.places.contains(&place) {
            self.places.push(place);
        }
        if self.process.pid == 0 && seen.process.pid != 0 {
            self.process = seen.process.clone();
        }
    }

    fn answer(&mut self, seen: &Seen, rcode: u8) {
        let is_home = self.is_home(seen);
        if self.answered_ns.is_none() || (is_home && !self.has_arrived) {
            (self.answered_ns, self.rcode, self.answers) = (Some(seen.at_ns), rcode, 1);
            self.has_arrived = is_home;
        }
    }
}

/// An answer that did not come to its client is none, where others came by the interface that the query left by. Where
/// none did, a program may have redirected them past the place where we look.
fn forget_what_did_not_arrive(exchanges: &mut [Exchange]) {
    let interface = |exchange: &Exchange| exchange.places.first().map(|(_, netns, ifindex)| (*netns, *ifindex));
    let arrived: HashSet<_> = exchanges.iter().filter(|e| e.has_arrived).filter_map(interface).collect();
    for exchange in exchanges.iter_mut().filter(|e| e.is_of_here && !e.has_arrived) {
        if interface(exchange).is_some_and(|at| arrived.contains(&at)) {
            exchange.answered_ns = None;
        }
    }
}

/// Adds the latest exchange of a key; the oldest leaves.
fn remember(latest: &mut Vec<usize>, index: usize) {
    if latest.len() == limits::DNS_SAME_KEY {
        latest.remove(0);
    }
    latest.push(index);
}

impl Exchanges {
    fn take(&mut self, seen: &Seen, (source, destination): Ends, tcp: bool, payload: &[u8]) {
        let Some(message) = dns::parse(payload) else { return };
        if message.is_response {
            let key = Key { client: destination, server: source, tcp, id: message.id };
            self.answer(seen, key, &message);
            return;
        }
        let key = Key { client: source, server: destination, tcp, id: message.id };
        if key.server.port == MDNS {
            // Each question has its own answers, from every host that knows one.
            message.questions.into_iter().for_each(|question| self.question(seen, key, vec![question]));
        } else {
            self.question(seen, key, message.questions);
        }
    }

    fn question(&mut self, seen: &Seen, key: Key, questions: Vec<(String, u16)>) {
        let name = (key.id, questions[0].0.clone(), questions[0].1);
        let all = &self.all;
        let of = |indexes: Option<&Vec<usize>>| indexes.cloned().unwrap_or_default().into_iter();
        let known = of(self.keys.get(&key))
            .filter(|i| all[*i].questions == questions && all[*i].is_seen_again(seen, &key))
            .max_by_key(|i| (all[*i].key == key, all[*i].was_in(seen.interface.0), *i));
        // Several may be on their way at once: of each the translation is seen once, in the order in which they came.
        let translated = || {
            of(self.names.get(&name))
                .filter(|i| all[*i].questions == questions && all[*i].is_translated_to(seen, &key))
                .max_by_key(|i| {
                    let e = &all[*i];
                    (e.key.server == key.server, e.key.client == key.client, !e.is_translated, Reverse(*i))
                })
        };
        if let Some(index) = known {
            self.all[index].see_again(seen);
        } else if let Some(index) = translated() {
            self.all[index].see_again(seen);
            self.all[index].is_translated = true;
            remember(self.keys.entry(key).or_default(), index);
        } else {
            let index = self.all.len();
            if key.server.port == MDNS {
                self.multicast.entry(questions[0].clone()).or_default().push(index);
            }
            remember(self.keys.entry(key).or_default(), index);
            remember(self.names.entry(name).or_default(), index);
            self.all.push(Exchange::new(seen, key, questions));
        }
    }

    /// An answer is of the latest query of its key of which it was not seen here yet: one that was sent to this very
    /// server before one that a translation led here, and one that was seen in this network namespace before others.
    fn answer(&mut self, seen: &Seen, key: Key, message: &dns::Message) {
        let (place, all) = (seen.place(), &self.all);
        // Some servers leave the question out of an error, and fragments may end before it.
        let has_none = message.questions.is_empty() && key.server.port != MDNS;
        let is_asked = |e: &Exchange| has_none || message.questions.iter().any(|q| e.questions.contains(q));
        let indexes = self.keys.get(&key).map_or(&[][..], Vec::as_slice);
        let asked: Vec<_> = indexes.iter().copied().filter(|i| is_asked(&all[*i])).collect();
        let unseen = asked.iter().copied().filter(|i| !all[*i].answer_places.contains(&place));
        let found = unseen.max_by_key(|i| (all[*i].key == key, all[*i].was_in(seen.interface.0), *i));
        if let Some(index) = found {
            self.all[index].answer_places.push(place);
            self.all[index].answer(seen, message.rcode);
        } else if asked.is_empty() && key.server.port == MDNS {
            self.multicast_answer(seen, message);
        } else if let Some(index) =
            asked.into_iter().max().filter(|i| self.all[*i].answer_places.last() == Some(&place))
        {
            self.all[index].answers += 1; // to the query as it was sent again
        }
    }

    /// Multicast DNS has no ids, and answers go to every host: any answer with a record of that name matches.
    fn multicast_answer(&mut self, seen: &Seen, message: &dns::Message) {
        const ANY: u16 = 255;
        for (name, kind) in &message.answers {
            let asked = [*kind, ANY].into_iter().filter_map(|kind| self.multicast.remove(&(name.clone(), kind)));
            for index in asked.flatten().collect::<Vec<_>>() {
                self.all[index].answer(seen, message.rcode);
            }
        }
    }
}
