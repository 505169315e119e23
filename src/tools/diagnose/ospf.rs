//! The Hello packet of OSPF version 2 (RFC 2328, A.3.2).

use std::net::Ipv4Addr;

use super::control::Control;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub router: Ipv4Addr,
    pub area: Ipv4Addr,
    pub mask: Ipv4Addr,
    /// In seconds.
    pub interval: u16,
    pub dead: u32,
    /// Routers whose Hello it has got.
    pub neighbors: Vec<Ipv4Addr>,
}

const OSPF: u8 = 89;
const VERSION: u8 = 2;
const HELLO: u8 = 1;
/// Where the list of neighbors begins.
const HEADER: usize = 44;

impl Hello {
    pub fn of(packet: &Control) -> Option<Hello> {
        let data = &packet.data.0;
        if packet.protocol != OSPF || data.get(..2)? != [VERSION, HELLO] {
            return None;
        }
        let length = u16::from_be_bytes(data.get(2..4)?.try_into().ok()?);
        let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(data.get(at..at + 4)?).ok()?));
        let listed = data.get(HEADER..data.len().min(length.into())).unwrap_or_default().chunks_exact(4);
        Some(Hello {
            router: address(4)?,
            area: address(8)?,
            mask: address(24)?,
            interval: u16::from_be_bytes(data.get(28..30)?.try_into().ok()?),
            dead: u32::from_be_bytes(data.get(32..36)?.try_into().ok()?),
            neighbors: listed.filter_map(|bytes| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))).collect(),
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::packet::Bytes;

    /// A router's Hello, from the host of its number.
    pub fn hello(router: u8, area: [u8; 4], neighbors: &[u8]) -> Control {
        let mut data = vec![0; HEADER];
        (data[0], data[1], data[7], data[29], data[35]) = (VERSION, HELLO, router, 10, 40);
        data[8..12].copy_from_slice(&area);
        data[24..28].copy_from_slice(&[255, 255, 255, 0]);
        neighbors.iter().for_each(|neighbor| data.extend([0, 0, 0, *neighbor]));
        let length = data.len() as u16;
        data[2..4].copy_from_slice(&length.to_be_bytes());
        Control {
            at: (1, 2),
            leaves: false,
            protocol: OSPF,
            source: [10, 0, 0, router].into(),
            destination: [224, 0, 0, 5].into(),
            first_ms: 0,
            last_ms: 0,
            count: 1,
            data: Bytes(data),
        }
    }

    #[test]
    fn hello_names_its_neighbors_as_far_as_it_goes() {
        let read = Hello::of(&hello(1, [0, 0, 0, 5], &[2, 3])).unwrap();
        assert_eq!(
            (read.router, read.area, read.interval, read.dead),
            ([0, 0, 0, 1].into(), [0, 0, 0, 5].into(), 10, 40)
        );
        assert_eq!(read.neighbors, [Ipv4Addr::from([0, 0, 0, 2]), [0, 0, 0, 3].into()]);
        let mut cut = hello(1, [0; 4], &[2]);
        cut.data.0.truncate(46);
        assert!(Hello::of(&cut).unwrap().neighbors.is_empty());
        cut.data.0.truncate(30);
        assert_eq!(Hello::of(&cut), None);
        let mut other = hello(1, [0; 4], &[]);
        other.data.0[1] = 4;
        assert_eq!(Hello::of(&other), None);
    }
}
