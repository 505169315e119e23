//! Links, addresses, default routes and queueing disciplines of our network namespace, by rtnetlink.

use std::{collections::BTreeMap, fs, io, net::IpAddr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, State, Stats64},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
    tc::{TcAttribute, TcMessage, TcStats2},
};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

use crate::interface::{Counters, Interface, Wire};

/// A default route: the interface that it uses.
#[derive(Clone, Copy, Debug, PartialEq)]
struct DefaultRoute {
    ipv6: bool,
    metric: u32,
    index: u32,
}

/// Every interface, by index.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let mut found = BTreeMap::new();
    for message in dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        if let RouteNetlinkMessage::NewLink(link) = message {
            found.insert(link.header.index, interface(&link));
        }
    }
    for message in dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        if let RouteNetlinkMessage::NewAddress(address) = message
            && let Some(interface) = found.get_mut(&address.header.index)
        {
            interface.addresses.extend(own_address(&address).map(|ip| (ip, address.header.prefix_len)));
        }
    }
    for message in dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))? {
        if let RouteNetlinkMessage::NewQueueDiscipline(tc) = message
            && let Some(interface) = found.get_mut(&(tc.header.index as u32))
        {
            add_qdisc(interface, &tc);
        }
    }
    Ok(found.into_values().collect())
}

/// The interface with this name. The error lists those that exist.
pub fn interface_named(name: &str) -> Result<Interface, crate::wire::Error> {
    let all = interfaces()?;
    let names: Vec<_> = all.iter().map(|i| i.name.clone()).collect();
    all.into_iter().find(|i| i.name == name).ok_or_else(|| {
        let name = crate::untrusted::clean(name);
        crate::wire::Error::InvalidInput(format!("unknown interface \"{name}\"; interfaces: {}", names.join(", ")))
    })
}

/// The interfaces that default routes use, the preferred first: IPv4 before IPv6, then by metric.
pub fn default_routes() -> io::Result<Vec<u32>> {
    let mut routes: Vec<_> = dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))?
        .into_iter()
        .filter_map(
            |message| if let RouteNetlinkMessage::NewRoute(route) = message { default_route(&route) } else { None },
        )
        .collect();
    routes.sort_by_key(|route| (route.ipv6, route.metric));
    Ok(routes.into_iter().map(|route| route.index).collect())
}

/// The default interface: the one with the default route, else the busiest that is up (loopback only if there is no
/// other).
pub fn primary(interfaces: &[Interface], default_routes: &[u32]) -> Option<u32> {
    let routed = default_routes.iter().copied().find(|index| interfaces.iter().any(|i| i.index == *index && i.up));
    let busiest = || {
        let busy = |i: &&Interface| (i.kind != "loopback", i.counters.rx_bytes + i.counters.tx_bytes);
        interfaces.iter().filter(|i| i.up).max_by_key(busy).map(|i| i.index)
    };
    routed.or_else(busiest)
}

/// The name of the interface with this index, if there is one.
pub fn name(index: u32) -> Option<String> {
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};
    // Any socket will do; a Unix socket is what the sandbox leaves us.
    let socket = socket(AddressFamily::UNIX, SocketType::DGRAM, None).ok()?;
    netdevice::index_to_name(socket, index).ok()
}

fn interface(link: &LinkMessage) -> Interface {
    let mut new = Interface {
        index: link.header.index,
        up: link.header.flags.contains(LinkFlags::Up),
        ethernet: matches!(link.header.link_layer_type, LinkLayerType::Ether | LinkLayerType::Loopback),
        kind: match link.header.link_layer_type {
            LinkLayerType::Ether => "ethernet".into(),
            LinkLayerType::Loopback => "loopback".into(),
            other => format!("{other:?}").to_lowercase(),
        },
        state: "unknown".into(),
        ..Interface::default()
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => new.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => new.mtu = *mtu,
            LinkAttribute::OperState(state) => new.state = state_name(*state).into(),
            LinkAttribute::Stats64(stats) => new.counters = counters(stats),
            LinkAttribute::Xdp(xdp) => new.xdp_program = xdp.iter().find_map(program),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        new.kind = kind_name(kind);
                    }
                }
            }
            _ => {}
        }
    }
    // Not in rtnetlink. A device that knows no speed answers -1 or EINVAL.
    let known = |what: &str| fs::read_to_string(format!("/sys/class/net/{}/{what}", new.name)).ok();
    (new.speed_mbps, new.half_duplex) = (
        known("speed").and_then(|text| text.trim().parse().ok()),
        known("duplex").is_some_and(|text| text.trim() == "half"),
    );
    new
}

/// Of several, in the driver and before the stack, any one.
fn program(xdp: &LinkXdp) -> Option<u32> {
    match xdp {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => Some(*id),
        _ => None,
    }
}

fn kind_name(kind: &InfoKind) -> String {
    kind.to_string()
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Up => "up",
        State::Down => "down",
        State::LowerLayerDown => "lower_layer_down",
        State::Dormant => "dormant",
        State::NotPresent => "not_present",
        State::Testing => "testing",
        _ => "unknown",
    }
}

fn counters(s: &Stats64) -> Counters {
    Counters {
        rx_packets: s.rx_packets,
        rx_bytes: s.rx_bytes,
        rx_errors: s.rx_errors,
        rx_dropped: s.rx_dropped + s.rx_missed_errors,
        tx_packets: s.tx_packets,
        tx_bytes: s.tx_bytes,
        tx_errors: s.tx_errors,
        tx_dropped: s.tx_dropped,
        wire: Wire {
            rx_crc_errors: s.rx_crc_errors,
            rx_frame_errors: s.rx_frame_errors,
            rx_length_errors: s.rx_length_errors,
            rx_ring_errors: s.rx_fifo_errors + s.rx_over_errors,
            tx_carrier_errors: s.tx_carrier_errors,
            tx_aborted_errors: s.tx_aborted_errors,
            tx_window_errors: s.tx_window_errors,
            collisions: s.collisions,
        },
    }
}

/// Of a point-to-point link, our end (IFA_LOCAL); else the address itself.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) if local => Some(*ip),
            AddressAttribute::Address(ip) if !local => Some(*ip),
            _ => None,
        })
    };
    find(true).or_else(|| find(false))
}

/// Adds up an interface's qdiscs: those of a multi-queue device are children of `mq`.
fn add_qdisc(interface: &mut Interface, message: &TcMessage) {
    /// `TC_H_ROOT` and the reserved parent of ingress and clsact, `linux/pkt_sched.h`.
    const ROOT: u32 = 0xffff_ffff;
    const INGRESS: u32 = 0xffff_fff1;
    let parent = u32::from(message.header.parent);
    if parent == INGRESS {
        return;
    }
    let qdisc = interface.qdisc.get_or_insert_default();
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) if parent == ROOT => qdisc.kind.clone_from(kind),
            TcAttribute::Stats2(stats) if parent == ROOT => {
                for stat in stats {
                    if let TcStats2::Queue(queue) = stat {
                        qdisc.backlog_bytes = queue.backlog.into();
                        qdisc.dropped = queue.drops.into();
                    }
                }
            }
            _ => {}
        }
    }
}

fn default_route(route: &RouteMessage) -> Option<DefaultRoute> {
    let ipv6 = match route.header.address_family {
        AddressFamily::Inet => false,
        AddressFamily::Inet6 => true,
        _ => return None,
    };
    let main = route.header.table == RouteHeader::RT_TABLE_MAIN;
    if !main || route.header.destination_prefix_length != 0 || route.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut metric, mut index) = (0, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::MultiPath(hops) => index = index.or(hops.first().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    index.map(|index| DefaultRoute { ipv6, metric, index })
}

/// Attempts to read a list that changes meanwhile.
const ATTEMPTS: usize = 5;

/// Reads all objects of a kind, again if they changed meanwhile: some may be missing or duplicate.
fn dump(question: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    whole(|| dump_once(question.clone()))
}

/// The first list that did not change during the read. A partial list is not an answer.
fn whole<T>(mut ask: impl FnMut() -> io::Result<(T, bool)>) -> io::Result<T> {
    for _ in 0..ATTEMPTS {
        if let (found, true) = ask()? {
            return Ok(found);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::Interrupted,
        format!("the kernel's list of links, addresses or routes changed during each of {ATTEMPTS} reads; try again"),
    ))
}

/// And whether nothing changed meanwhile. A message that this release cannot read is left out, and said.
fn dump_once(question: RouteNetlinkMessage) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    socket.send(&buffer, 0)?;
    let (mut found, mut whole) = (Vec::new(), true);
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while rest.len() >= 16 {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if length < 16 || length > rest.len() {
                break;
            }
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&rest[..length]);
            whole &= !message.as_ref().is_ok_and(|message| message.header.flags & NLM_F_DUMP_INTR != 0);
            match message.map(|message| message.payload) {
                Ok(NetlinkPayload::Done(_)) => return Ok((found, whole)),
                Ok(NetlinkPayload::Error(e)) if e.code.is_some() => return Err(e.to_io()),
                Ok(NetlinkPayload::InnerMessage(message)) => found.push(message),
                Ok(_) => {}
                Err(e) => tracing::warn!("invalid netlink message: {e}"),
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, kind: &str, up: bool, rx_bytes: u64) -> Interface {
        Interface {
            index,
            kind: kind.into(),
            up,
            counters: Counters { rx_bytes, ..Counters::default() },
            ..Interface::default()
        }
    }

    #[test]
    fn dump_that_keeps_changing_is_an_error() {
        let mut answers = [(1, false), (2, true), (3, true)].into_iter();
        assert_eq!(whole(|| Ok(answers.next().unwrap())).unwrap(), 2);
        let error = whole(|| Ok((1, false))).unwrap_err();
        assert!(error.to_string().contains("during each of 5 reads"), "{error}");
    }

    #[test]
    fn primary_interface_has_default_route_or_most_traffic() {
        let all = [
            interface(1, "loopback", true, 900),
            interface(2, "ethernet", true, 10),
            interface(3, "veth", true, 20),
            interface(4, "veth", false, 99),
        ];
        assert_eq!(primary(&all, &[2]), Some(2));
        assert_eq!(primary(&all, &[4]), Some(3), "a route over an interface that is down does not count");
        assert_eq!(primary(&all, &[]), Some(3));
        assert_eq!(primary(&all[..1], &[]), Some(1));
        assert_eq!(primary(&[], &[]), None);
    }
}
