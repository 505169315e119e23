//! `diagnose`: every known fault is created for real, in variants, and healthy hosts are tested as well.
//!
//! The scenarios run in parallel, each with its own network namespaces and addresses, and each with its own diagnosis.
//! The daemon sees them all, so a scenario ignores findings at places of others.

// A test that cannot continue fails.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
    thread,
};

use harness::*;

#[allow(dead_code)] // only a part of the suite's harness is used
#[path = "../suite/harness/mod.rs"]
mod harness;

mod both;
mod connect;
mod degraded;
mod dhcp;
mod dns;
mod drops;
mod dscp;
mod full;
mod gone;
mod held;
mod link;
mod listen;
mod load;
mod nat;
mod network;
mod past;
mod quiet;
mod routing;
mod score;
mod slow;
mod stage;
mod tcp;
mod traffic;
mod wire;

use score::{report, score};
use stage::{Family, Stage, V4, V6};

/// Five times the total duration on two cores; twice that of the past.
const TIME_LIMIT: std::time::Duration = std::time::Duration::from_secs(25 * 60);

type Play = Box<dyn Fn(&mut Stage) + Send + Sync>;

struct Scenario {
    name: String,
    play: Play,
    /// It changes the whole host, or needs all CPUs.
    alone: bool,
}

/// A scenario in IPv4 only.
fn one(name: &str, play: fn(&mut Stage)) -> Vec<Scenario> {
    vec![Scenario { name: name.into(), play: Box::new(play), alone: false }]
}

/// The same in both families.
fn each(name: &str, play: fn(&mut Stage, Family)) -> Vec<Scenario> {
    let in_family = |family| Scenario {
        name: format!("{name}, {}", if family == V4 { "IPv4" } else { "IPv6" }),
        play: Box::new(move |stage: &mut Stage| play(stage, family)),
        alone: false,
    };
    [V4, V6].map(in_family).into()
}

fn alone(scenarios: Vec<Scenario>) -> Vec<Scenario> {
    scenarios.into_iter().map(|scenario| Scenario { alone: true, ..scenario }).collect()
}

#[expect(clippy::too_many_lines, reason = "a list, with a line for each scenario")]
fn scenarios() -> Vec<Scenario> {
    [
        each("refused", connect::refused),
        one("refused on loopback", connect::refused_on_loopback),
        each("refused UDP", connect::refused_udp),
        one("refused in a container", connect::refused_in_container),
        each("no answer", connect::timeout),
        one("no answer since before", connect::timeout_since_before),
        each("no neighbour", connect::neighbor),
        each("no gateway", connect::gateway),
        each("no neighbour for UDP", connect::neighbor_udp),
        one("no neighbour, given up", connect::neighbor_given_up),
        each("no route", connect::no_route),
        one("blackhole route", |stage| connect::route_says_no(stage, "blackhole")),
        one("unreachable route", |stage| connect::route_says_no(stage, "unreachable")),
        one("prohibiting route", |stage| connect::route_says_no(stage, "prohibit")),
        one("no route where forwarded", drops::forward_no_route),
        one("no route at the client's router", drops::no_route_at_router),
        one("IPv6 broken", connect::ipv6_broken),
        one("IPv6 firewalled", connect::ipv6_firewalled),
        one("IPv6 never in time", connect::ipv6_never_in_time),
        each("local ports used up", connect::ports_exhausted),
        each("connection churn", connect::churn),
        each("firewall, input", drops::firewall_input),
        each("firewall, output", drops::firewall_output),
        one("firewall, replies", drops::firewall_replies),
        one("firewall, forward", drops::firewall_forward),
        each("firewall, UDP", drops::firewall_udp),
        one("firewall on loopback", drops::firewall_on_loopback),
        one("firewall loses a few", drops::firewall_loss),
        one("firewall resets", tcp::firewall_resets),
        one("firewall prohibits", drops::firewall_prohibits),
        each("accept queue full", listen::overflow),
        one("accept queue full behind bridge", listen::overflow_behind_bridge),
        one("accept queue full since before", listen::overflow_since_before),
        each("no route back", listen::no_route_back),
        each("SYN flood, cookies", |stage, family| listen::syn_flood(stage, family, true, 32)),
        one("SYN flood, no cookies", |stage| listen::syn_flood(stage, V4, false, 32)),
        one("SYN flood, short queue", |stage| listen::syn_flood(stage, V4, true, 5)),
        each("UDP socket not read", drops::udp_buffer),
        each("MTU black hole", drops::mtu_black_hole),
        each("MTU black hole elsewhere", drops::mtu_swallowed),
        each("DNS fails", dns::servfail),
        one("DNS knows no name", dns::nxdomain),
        one("DNS knows no name that is needed", dns::needed),
        each("DNS slow", dns::slow),
        each("DNS silent", dns::unanswered),
        one("DNS half silent", dns::half_unanswered),
        one("DNS server gone", dns::nobody),
        one("DNS firewalled", dns::firewalled),
        one("DNS later than asked for", dns::late),
        one("DNS slow behind a stub", dns::slow_behind_stub),
        each("loss", tcp::retransmits),
        one("loss, short connections", tcp::retransmits_of_short),
        each("far away", tcp::high_rtt),
        one("far away, short connections", tcp::high_rtt_of_short),
        one("queue on the way", tcp::queue),
        one("NAT forgets", gone::nat_forgets),
        one("NAT forgets, full segments", gone::nat_forgets_full_segments),
        one("client gone", gone::client_gone),
        each("slow receiver", tcp::slow_receiver),
        each("small send buffer", tcp::small_send_buffer),
        one("small send buffer on loopback", tcp::small_send_buffer_on_loopback),
        each("server resets", tcp::server_resets),
        each("shaped link, TCP", link::saturated_tcp),
        one("shaped link, UDP", link::saturated_udp),
        one("shaped link, both ends", link::saturated_both_ends),
        each("bandwidth hog", link::hog),
        one("XDP drops", link::xdp_drop),
        each("tc drops", link::tc_drop),
        one("ring full", link::full_ring),
        alone(each("conntrack full", drops::conntrack_full)),
        one("refused and firewalled", both::refused_and_firewalled),
        one("overflow and resets", both::overflow_and_resets),
        one("refused for a while", both::refused_for_a_while),
        one("firewalled for a while", both::firewalled_for_a_while),
        one("link down, server", network::server_down),
        one("link down, client", network::client_down),
        one("link down, port of a bridge", network::port_down),
        one("link down, gateway", network::gateway_down),
        one("link flaps", network::flaps),
        one("link flaps, port of a bridge", network::port_flaps),
        one("interface removed", network::removed),
        one("interface removed before", network::removed_before),
        one("address missing, server", network::server_without_address),
        one("address missing, client", network::client_loses_address),
        one("address missing, client, before", network::client_without_address),
        one("wrong netmask, too long", network::netmask_too_long),
        one("wrong netmask, too short", network::netmask_too_short),
        one("blackhole route of the server", network::blackhole_back),
        each("blackhole route of a router", network::blackhole_forwarded),
        each("route withdrawn", network::route_withdrawn),
        one("duplicate address", network::duplicate_address),
        one("duplicate MAC", network::duplicate_mac),
        one("ARP poisoned, static entry", network::poisoned_entry),
        one("ARP poisoned, forged replies", network::poisoned_by_replies),
        one("quiet: planned link down", network::planned_down),
        one("quiet: link flaps unused", network::flaps_unused),
        one("quiet: address renewed", network::renewed),
        one("quiet: ARP refreshed", network::arp_refreshed),
        one("quiet: routes that refuse others", network::refuses_others),
        one("quiet: interfaces come and go", network::come_and_go),
        one("quiet: idle", quiet::idle),
        alone(each("quiet: busy", quiet::busy)),
        alone(one("quiet: busy loopback", quiet::busy_loopback)),
        one("quiet: busy UDP", quiet::busy_udp),
        one("quiet: health checks", quiet::health_checks),
        one("quiet: happy eyeballs", quiet::happy_eyeballs),
        one("quiet: IPv4 only", quiet::ipv4_only),
        one("quiet: clients reset", quiet::clients_reset),
        one("quiet: checks that reset", quiet::checks_that_reset),
        one("quiet: strangers kept out", quiet::strangers_kept_out),
        one("quiet: port scan", quiet::port_scan),
        one("quiet: download", quiet::download),
        one("quiet: keep-alive", quiet::keep_alive),
        one("quiet: restart", quiet::restart),
        one("quiet: MTU discovered", drops::mtu_discovered),
        one("quiet: DNS search list", dns::search_list),
        one("quiet: DNS block lists", dns::mail_server),
        dns::scenarios(),
        held::scenarios(),
        full::scenarios(),
        slow::scenarios(),
        nat::scenarios(),
        dhcp::scenarios(),
        routing::scenarios(),
        degraded::scenarios(),
        dscp::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Scenarios that run at once: they mostly wait, and two CPUs carry their traffic.
const AT_ONCE: usize = 12;
/// Scenarios in a round. Each dropped flow takes a slot, and slots are freed only when no window is open.
const ROUND: usize = 64;

/// The next one of a round that nobody has taken.
fn next<T>(waiting: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    waiting.lock().unwrap().next()
}

#[test]
fn every_fault_yields_exactly_its_findings() {
    require_root();
    let wanted = std::env::var("SCENARIO").unwrap_or_default();
    let all: Vec<_> = scenarios()
        .into_iter()
        .enumerate()
        .filter(|(_, s)| wanted.split('|').any(|part| s.name.contains(part)))
        .collect();
    let daemon = Daemon::start();
    let _load = load::Load::begin();
    let past = past::Past::begin(&daemon);
    let scores = Mutex::new(Vec::new());
    let play = |(number, scenario): &(usize, Scenario)| {
        let mut stage = Stage::new(&daemon, past.as_ref(), *number, scenario.alone);
        // A scenario that cannot run is a failure, and the others continue.
        let played = catch_unwind(AssertUnwindSafe(|| (scenario.play)(&mut stage)));
        let mut score = score(&scenario.name, &stage);
        if played.is_err() {
            score.fail("it could not be played");
        }
        scores.lock().unwrap().push((*number, score, stage));
    };
    let (alone, together): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, scenario)| scenario.alone);
    let mut rounds: Vec<_> = together.chunks(ROUND).collect();
    rounds.extend(alone.chunks(1));
    for round in &rounds {
        let waiting = Mutex::new(round.iter());
        let work = || {
            while let Some(scenario) = next(&waiting) {
                play(scenario)
            }
        };
        thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(work))));
        past.as_ref().inspect(|past| past.after_round(&daemon));
    }
    let mut played = scores.into_inner().unwrap();
    played.sort_by_key(|(number, ..)| *number);
    if let Some(past) = &past {
        past.settle();
        assert!(!past::Past::restarts() || past.gaps().len() >= rounds.len(), "{:?}", past.gaps());
        // What could not be played is a failure already.
        for (_, score, stage) in
            played.iter_mut().filter(|(_, _, stage)| !stage.answer.is_null() && !stage.is_live_only)
        {
            stage.answer = past.diagnose(&daemon, stage.period);
            *score = score::score(&score.name.clone(), stage);
        }
    }
    let scores: Vec<_> = played.into_iter().map(|(_, score, _)| score).collect();
    report(&scores);
    let failed: String =
        scores.iter().filter(|s| s.wrong + s.missed + s.extra > 0).map(|s| s.details.as_str()).collect();
    assert!(failed.is_empty(), "{failed}");
}
