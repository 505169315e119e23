//! The way back to a source that the reverse-path filter drops: from the routes that a process shows of its network
//! namespace. Only the main table: other tables are readable only inside the namespace.

use std::{fs, net::Ipv4Addr};

/// The route to `source` in the network namespace of process `pid`, as `ip route` has it. `None` if it is not known.
pub fn back(source: Ipv4Addr, pid: Option<u32>) -> Option<String> {
    let whose = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    route(&fs::read_to_string(format!("/proc/{whose}/net/route")).ok()?, source)
}

struct Route<'a> {
    device: &'a str,
    network: u32,
    gateway: u32,
    mask: u32,
    metric: u32,
    flags: u32,
}

/// `/proc/net/route`: a line of names, then a route a line. Addresses are as they are in memory.
fn route(table: &str, to: Ipv4Addr) -> Option<String> {
    const UP: u32 = 1;
    const GATEWAY: u32 = 2;
    const REJECT: u32 = 0x200;
    let to = u32::from(to);
    let routes = table.lines().skip(1).filter_map(parse);
    let fits = routes.filter(|route| route.flags & UP != 0 && to & route.mask == route.network);
    let best = fits.max_by_key(|route| (route.mask, std::cmp::Reverse(route.metric)));
    Some(match best {
        None => "none".into(),
        Some(route) if route.flags & REJECT != 0 => "unreachable".into(),
        Some(route) if route.flags & GATEWAY != 0 => {
            format!("via {} dev {}", Ipv4Addr::from(route.gateway), route.device)
        }
        Some(route) => format!("dev {}", route.device),
    })
}

fn parse(line: &str) -> Option<Route<'_>> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let hexadecimal = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
    let address = |at: usize| Some(u32::from_be(hexadecimal(at)?));
    Some(Route {
        device: fields.first()?,
        network: address(1)?,
        gateway: address(2)?,
        flags: hexadecimal(3)?,
        metric: fields.get(6)?.parse().ok()?,
        mask: address(7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
        eth1\t0000000A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
        eth2\t0000000A\t00000000\t0001\t0\t0\t50\t0000FFFF\t0\t0\t0\n\
        *\t0002A8C0\t00000000\t0201\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";

    #[test]
    fn route_uses_longest_prefix_then_lowest_metric() {
        let to = |address: &str| route(TABLE, address.parse().unwrap());
        assert_eq!(to("192.0.2.1").as_deref(), Some("via 10.0.0.1 dev eth0"));
        assert_eq!(to("10.0.3.4").as_deref(), Some("dev eth1"));
        assert_eq!(to("192.168.2.9").as_deref(), Some("unreachable"));
        assert_eq!(route("Iface\n", Ipv4Addr::LOCALHOST).as_deref(), Some("none"));
        assert_eq!(route("Iface\nnonsense\n", Ipv4Addr::LOCALHOST).as_deref(), Some("none"));
    }
}
