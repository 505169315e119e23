//! Packets by which a network is set up: DHCP (RFC 2131, 2132), read in the gateway from bytes that anyone may have sent.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::packet::Bytes;

/// Packets that are alike, at one device. Times are from the window's begin.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// The network namespace and the device's index there.
    pub at: (u32, u32),
    /// They leave there; otherwise they arrive.
    pub leaves: bool,
    /// UDP is DHCP.
    pub protocol: u8,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub first_ms: u64,
    pub last_ms: u64,
    pub count: u64,
    /// Of the last one, behind the header of UDP or IP.
    pub data: Bytes,
}

/// The same of two adjacent periods, of which the first was so long.
pub fn then(mut earlier: Vec<Control>, later: Vec<Control>, length_ms: u64) -> Vec<Control> {
    for now in later {
        let now = Control { first_ms: now.first_ms + length_ms, last_ms: now.last_ms + length_ms, ..now };
        let same = |one: &&mut Control| {
            (one.at, one.leaves, one.source, &one.data) == (now.at, now.leaves, now.source, &now.data)
        };
        match earlier.iter_mut().find(same) {
            Some(known) => (known.last_ms, known.count) = (now.last_ms, now.count.max(known.count)),
            None => earlier.push(now),
        }
    }
    earlier
}

/// The message types of DHCP that matter here.
pub const DISCOVER: u8 = 1;
pub const OFFER: u8 = 2;
pub const REQUEST: u8 = 3;
pub const ACK: u8 = 5;
pub const NAK: u8 = 6;

/// A message of DHCP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dhcp {
    pub kind: u8,
    /// From a server.
    pub reply: bool,
    pub client: Option<[u8; 6]>,
    /// The client's address to be.
    pub yours: Option<Ipv4Addr>,
    /// The agent that passes it on.
    pub relay: Option<Ipv4Addr>,
    pub mask: Option<Ipv4Addr>,
    pub routers: Vec<Ipv4Addr>,
    pub resolvers: Vec<Ipv4Addr>,
    pub server: Option<Ipv4Addr>,
}

const UDP: u8 = 17;
const COOKIE: [u8; 4] = [99, 130, 83, 99];

impl Control {
    pub fn dhcp(&self) -> Option<Dhcp> {
        let data = &self.data.0;
        let (op, hardware) = (*data.first()?, data.get(28..34)?);
        if self.protocol != UDP || data.get(236..240)? != COOKIE || !(1..=2).contains(&op) {
            return None;
        }
        let mut message = Dhcp {
            reply: op == 2,
            client: hardware.try_into().ok(),
            yours: address(data.get(16..20)?),
            relay: address(data.get(24..28)?),
            ..Dhcp::default()
        };
        message.options(data.get(240..)?);
        Some(message)
    }
}

impl Dhcp {
    fn options(&mut self, mut rest: &[u8]) {
        while let [code, more @ ..] = rest {
            // Padding has no length, and nothing follows the end.
            match code {
                0 => rest = more,
                255 => return,
                _ => {
                    let Some((value, after)) =
                        more.split_first().and_then(|(length, value)| value.split_at_checked((*length).into()))
                    else {
                        return;
                    };
                    self.option(*code, value);
                    rest = after;
                }
            }
        }
    }

    fn option(&mut self, code: u8, value: &[u8]) {
        let addresses = || value.chunks_exact(4).filter_map(address).collect();
        match code {
            1 => self.mask = address(value),
            3 => self.routers = addresses(),
            6 => self.resolvers = addresses(),
            53 => self.kind = value.first().copied().unwrap_or_default(),
            54 => self.server = address(value),
            _ => {}
        }
    }

    /// The length of the prefix that the mask says.
    pub fn prefix(&self) -> Option<u8> {
        let bits = self.mask?.to_bits();
        (bits.leading_ones() == bits.count_ones()).then(|| bits.count_ones() as u8)
    }
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    let address = Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?);
    (!address.is_unspecified()).then_some(address)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A message of a client, with these options.
    pub fn message(op: u8, client: u8, yours: [u8; 4], options: &[u8]) -> Bytes {
        let mut data = vec![0; 240];
        (data[0], data[33]) = (op, client);
        data[16..20].copy_from_slice(&yours);
        data[236..240].copy_from_slice(&COOKIE);
        data.extend(options);
        Bytes(data)
    }

    pub fn control(netns: u32, leaves: bool, first_ms: u64, data: Bytes) -> Control {
        let (source, destination) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        Control {
            at: (netns, 2),
            leaves,
            protocol: UDP,
            source,
            destination,
            first_ms,
            last_ms: first_ms,
            count: 2,
            data,
        }
    }

    #[test]
    fn options_are_read_and_what_is_cut_ends_them() {
        let options =
            [53, 1, 5, 0, 1, 4, 255, 255, 255, 0, 3, 4, 10, 0, 0, 1, 6, 8, 10, 0, 0, 2, 10, 0, 0, 3, 54, 4, 10];
        let read = control(1, false, 0, message(2, 7, [10, 0, 0, 9], &options)).dhcp().unwrap();
        assert_eq!((read.kind, read.reply, read.prefix(), read.server), (ACK, true, Some(24), None));
        assert_eq!((read.routers.len(), read.resolvers.len(), read.yours), (1, 2, Some([10, 0, 0, 9].into())));
        let bootp = control(1, false, 0, message(1, 7, [0; 4], &[]));
        assert_eq!(bootp.dhcp().unwrap().kind, 0);
        assert_eq!(Control { data: Bytes(vec![1; 239]), ..bootp.clone() }.dhcp(), None);
        assert_eq!(Control { protocol: 89, ..bootp }.dhcp(), None);
    }

    #[test]
    fn periods_are_joined_by_packet() {
        let one = control(1, false, 100, message(1, 7, [0; 4], &[53, 1, 1]));
        let joined = then(vec![one.clone()], vec![one.clone()], 1_000);
        assert_eq!((joined.len(), joined[0].first_ms, joined[0].last_ms), (1, 100, 1_100));
        assert_eq!(then(vec![one.clone()], vec![Control { leaves: true, ..one }], 1_000).len(), 2);
    }
}
