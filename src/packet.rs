//! Reading the headers of a packet, from bytes that anyone may have sent. Runs in the gateway.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bytes of a packet as the kernel copied them; on the wire to the gateway, hexadecimal digits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self}"))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |c: &u8| (*c as char).to_digit(16).map(|d| d as u8);
        let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        });
        pairs.collect::<Option<_>>().map(Bytes).ok_or_else(|| de::Error::custom("not pairs of hexadecimal digits"))
    }
}

/// What the headers say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packet {
    /// `tcp`, `udp`, `icmp`, `arp` … or a number where it has no common name.
    pub protocol: String,
    pub source: Option<IpAddr>,
    pub destination: Option<IpAddr>,
    /// Source and destination port.
    pub ports: Option<(u16, u16)>,
    /// IPv4's TTL, IPv6's hop limit.
    pub hops: Option<u8>,
    /// The parsed headers.
    pub kind: Option<String>,
    /// Where the transport header begins.
    pub transport: usize,
}

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

/// Reads a packet from its network header on. `None` where there is nothing of one.
pub fn parse(ethertype: u16, bytes: &[u8]) -> Option<Packet> {
    match (ethertype, bytes.first().map(|byte| byte >> 4)) {
        (IPV4, Some(4)) => ipv4(bytes),
        (IPV6, Some(6)) => ipv6(bytes),
        (ARP, Some(_)) => Some(Packet {
            protocol: "arp".into(),
            source: v4(bytes, 14),
            destination: v4(bytes, 24),
            ..Packet::default()
        }),
        (0, _) => None,
        _ => Some(Packet { protocol: ethertype_name(ethertype), ..Packet::default() }),
    }
}

fn v4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets).into())
}

fn v6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(Ipv6Addr::from(octets).into())
}

/// A number of two bytes in network order.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn ipv4(bytes: &[u8]) -> Option<Packet> {
    let number = *bytes.get(9)?;
    let later_fragment = u16_at(bytes, 6)? & 0x1fff != 0;
    let header = usize::from(bytes[0] & 15) * 4;
    if header < 20 {
        return None; // RFC 791, 3.1: the minimum; the kernel drops it as well
    }
    let packet =
        Packet { source: v4(bytes, 12), destination: v4(bytes, 16), hops: Some(bytes[8]), ..Packet::default() };
    Some(transport(packet, number, bytes, header, later_fragment))
}

fn ipv6(bytes: &[u8]) -> Option<Packet> {
    let packet =
        Packet { source: v6(bytes, 8), destination: v6(bytes, 24), hops: bytes.get(7).copied(), ..Packet::default() };
    let (mut next, mut offset, mut later_fragment) = (*bytes.get(6)?, 40, false);
    // Hop-by-hop, routing, fragment, authentication, destination options, mobility. Each moves on, so the loop ends with
    // the bytes.
    while let (0 | 43 | 44 | 51 | 60 | 135, Some((&then, &length))) =
        (next, bytes.get(offset).zip(bytes.get(offset + 1)))
    {
        later_fragment |= next == 44 && u16_at(bytes, offset + 2).is_some_and(|field| field & !7 != 0);
        offset += match next {
            44 => 8,
            51 => (usize::from(length) + 2) * 4, // RFC 4302, 2.2
            _ => (usize::from(length) + 1) * 8,
        };
        next = then;
    }
    Some(transport(packet, next, bytes, offset, later_fragment))
}

fn transport(packet: Packet, number: u8, bytes: &[u8], offset: usize, later_fragment: bool) -> Packet {
    let mut packet = Packet { protocol: protocol_name(number), transport: offset, ..packet };
    let Some(header) = bytes.get(offset..).filter(|header| !later_fragment && !header.is_empty()) else {
        return packet;
    };
    if matches!(number, 6 | 17 | 33 | 132 | 136) {
        packet.ports = u16_at(header, 0).zip(u16_at(header, 2));
    }
    packet.kind = match number {
        6 => header.get(13).map(|flags| tcp_flags(*flags)),
        1 => icmp(header[0], header.get(1).copied()),
        58 => icmpv6(header[0]).map(str::to_owned),
        _ => None,
    };
    packet
}

fn protocol_name(number: u8) -> String {
    let name = match number {
        1 => "icmp",
        2 => "igmp",
        4 => "ipip",
        6 => "tcp",
        17 => "udp",
        33 => "dccp",
        41 => "ipv6-in-ip",
        47 => "gre",
        50 => "esp",
        51 => "ah",
        58 => "icmpv6",
        89 => "ospf",
        112 => "vrrp",
        132 => "sctp",
        136 => "udplite",
        _ => return format!("ip protocol {number}"),
    };
    name.into()
}

fn ethertype_name(ethertype: u16) -> String {
    let name = match ethertype {
        IPV4 => "ipv4",
        IPV6 => "ipv6",
        0x0004 => "802.2",
        0x8100 | 0x88a8 => "vlan",
        0x8809 => "lacp",
        0x8863 | 0x8864 => "pppoe",
        0x888e => "eapol",
        0x88cc => "lldp",
        0x88f7 => "ptp",
        _ => return format!("ethertype 0x{ethertype:04x}"),
    };
    name.into()
}

fn tcp_flags(flags: u8) -> String {
    let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set: Vec<_> =
        names.iter().enumerate().filter(|(bit, _)| flags & 1 << bit != 0).map(|(_, name)| *name).collect();
    if set.is_empty() { "no flags".into() } else { set.join(" ") }
}

fn icmp(kind: u8, code: Option<u8>) -> Option<String> {
    let name = match (kind, code) {
        (0, _) => "echo reply",
        (3, Some(3)) => "port unreachable",
        (3, Some(4)) => "fragmentation needed",
        (3, _) => "destination unreachable",
        (5, _) => "redirect",
        (8, _) => "echo request",
        (11, _) => "time exceeded",
        _ => return None,
    };
    Some(name.into())
}

fn icmpv6(kind: u8) -> Option<&'static str> {
    match kind {
        1 => Some("destination unreachable"),
        2 => Some("packet too big"),
        3 => Some("time exceeded"),
        128 => Some("echo request"),
        129 => Some("echo reply"),
        130..=132 | 143 => Some("multicast listener"),
        133 => Some("router solicitation"),
        134 => Some("router advertisement"),
        135 => Some("neighbor solicitation"),
        136 => Some("neighbor advertisement"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        serde_json::from_str::<Bytes>(&format!("\"{}\"", hex.replace(' ', ""))).unwrap().0
    }

    const SYN: &str = "4500003c00004000 4006 0000 0a4d0001 0a4d0002 9c40 0050 00000001 00000000 a002 ffff";

    #[test]
    fn syn_is_parsed() {
        let packet = parse(IPV4, &bytes(SYN)).unwrap();
        assert_eq!((packet.protocol.as_str(), packet.kind.as_deref()), ("tcp", Some("SYN")));
        assert_eq!(packet.source, Some("10.77.0.1".parse().unwrap()));
        assert_eq!((packet.ports, packet.hops), (Some((40000, 80)), Some(64)));
    }

    #[test]
    fn ipv6_extension_headers_are_skipped() {
        let addresses = "fd770000000000000000000000000001fd770000000000000000000000000002";
        let udp = parse(IPV6, &bytes(&format!("60000000 0010 3c 40 {addresses} 1100 000000000000 0035 1388"))).unwrap();
        assert_eq!((udp.protocol.as_str(), udp.ports, udp.transport), ("udp", Some((53, 5000)), 48));
        let signed = format!("60000000 0028 33 40 {addresses} 2c04 {} 1100 0001 00000001 0035 1388", "00".repeat(22));
        let behind = parse(IPV6, &bytes(&signed)).unwrap();
        assert_eq!((behind.ports, behind.transport), (Some((53, 5000)), 72), "authentication, then a first fragment");
        let fragment = parse(IPV6, &bytes(&format!("60000000 0010 2c 40 {addresses} 1100 0008 00000001 0035 1388")));
        assert_eq!(fragment.unwrap().ports, None, "a later fragment has no ports");
    }

    #[test]
    fn ports_need_the_first_fragment_and_enough_bytes() {
        let mut later = bytes(SYN);
        later[7] = 1;
        assert_eq!(parse(IPV4, &later).unwrap().ports, None);
        let options = parse(IPV4, &bytes(&SYN.replacen("45", "4f", 1))).unwrap();
        assert_eq!((options.ports, options.transport), (None, 60));
    }

    #[test]
    fn random_packets_parse_without_panic() {
        let mut state = 1u64;
        for round in 0..20_000 {
            let length = round % 70;
            let mut noise: Vec<u8> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (state >> 56) as u8
                })
                .collect();
            let ethertype = [IPV4, IPV6, ARP, 0, 0x88cc][round % 5];
            if let Some(first) = noise.first_mut().filter(|_| round % 2 == 0) {
                *first = if ethertype == IPV6 { 0x60 } else { 0x40 } | *first & 15;
            }
            parse(ethertype, &noise);
        }
    }

    #[test]
    fn other_protocols_are_named() {
        assert_eq!(parse(0x88cc, &[]).unwrap().protocol, "lldp");
        assert_eq!(parse(IPV4, &[0]).unwrap().protocol, "ipv4", "no header that says so");
        assert_eq!(parse(0, &[1, 2]), None);
        let arp = parse(ARP, &bytes("0001080006040001 020000000001 0a4d0001 000000000000 0a4d0009")).unwrap();
        assert_eq!(arp.destination, Some("10.77.0.9".parse().unwrap()));
    }

    #[test]
    fn bytes_round_trip_as_hex() {
        let text = serde_json::to_string(&Bytes(vec![0, 15, 255])).unwrap();
        assert_eq!(text, "\"000fff\"");
        assert_eq!(serde_json::from_str::<Bytes>(&text).unwrap(), Bytes(vec![0, 15, 255]));
        assert!(serde_json::from_str::<Bytes>("\"0g\"").is_err() && serde_json::from_str::<Bytes>("\"0\"").is_err());
    }

    #[test]
    fn ipv4_header_shorter_than_20_bytes_is_rejected() {
        let mut bytes = vec![0; 40];
        (bytes[0], bytes[9]) = (0x45, 17);
        assert!(parse(0x0800, &bytes).is_some());
        for length in 0..5 {
            bytes[0] = 0x40 | length;
            assert!(parse(0x0800, &bytes).is_none(), "{length}");
        }
    }
}
