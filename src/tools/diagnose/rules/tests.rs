//! Shorthands for evidence, for the tests of every rule, and tests of the handling of findings.

use std::{collections::HashMap, time::Duration};

use super::*;
use crate::{
    answer::{Endpoint, Owner},
    tools::diagnose::{
        evidence::*,
        fabric::tests::{address, bridged, link},
        finding::*,
        heard::Heard,
        network::{Change, What},
    },
};

pub fn endpoint(address: &str, port: u16) -> Endpoint {
    Endpoint { address: address.parse().unwrap(), port }
}

pub fn owner(process: &str, pid: u32) -> Owner {
    Owner { process: Some(process.into()), pid: Some(pid), ..Owner::default() }
}

/// A window of 10 s without events.
pub fn quiet() -> Evidence {
    Evidence { window: Duration::from_secs(10), ..Evidence::default() }
}

pub fn connection(remote: &str, port: u16, outcome: Outcome) -> Connection {
    Connection {
        owner: owner("client", 7),
        outbound: true,
        local: Some(endpoint("10.0.0.9", 40_000)),
        remote: Some(endpoint(remote, port)),
        outcome,
        ..Connection::default()
    }
}

pub fn drop_of(reason: &str, protocol: &str, destination: (&str, u16), count: u64) -> DroppedPackets {
    DroppedPackets {
        reason: reason.into(),
        protocol: protocol.into(),
        source: Some(endpoint("10.0.0.9", 40_000).into()),
        destination: Some(endpoint(destination.0, destination.1).into()),
        count,
        ..DroppedPackets::default()
    }
}

pub fn told(findings: &[Finding]) -> Vec<(Code, Severity)> {
    findings.iter().map(|finding| (finding.code, finding.severity)).collect()
}

fn finding(code: Code, severity: Severity, address: &str, port: u16) -> Finding {
    Finding::new(code, severity, "x").at(endpoint(address, port))
}

#[test]
fn every_code_has_a_rule() {
    let json = serde_json::to_value(schemars::schema_for!(Code)).unwrap();
    assert_eq!(json["enum"].as_array().unwrap().len(), RULES.len(), "{json}");
}

/// Answers of all tools except these.
fn heard_without(missing: &[&'static str], incomplete: &[&'static str]) -> Heard {
    let mut heard = Heard::default();
    for question in [CONNECTIONS, DNS, DROPS, INTERFACES, NETWORK, PROFILE, SOCKETS, TCP, TRAFFIC] {
        if !missing.contains(&question) {
            heard.insert(question, !incomplete.contains(&question));
        }
    }
    heard
}

#[test]
fn rules_use_only_asked_tools() {
    let asked: Vec<_> = crate::tools::diagnose::asked::ASKED.iter().map(|asked| asked.name).collect();
    let is_asked = |question| asked.contains(&question) || question == NETWORK;
    assert!(RULES.iter().flat_map(Rule::questions).all(is_asked));
    assert!(asked.iter().all(|question| decided_by(question).next().is_some()), "a question that decides nothing");
}

#[test]
fn empty_evidence_has_no_findings() {
    let (findings, checked) = judge(&Evidence::default(), &heard_without(&[], &[]));
    assert!(findings.is_empty(), "{findings:?}");
    assert_eq!(checked.len(), RULES.len());
}

#[test]
fn check_without_data_is_skipped() {
    let (_, checked) = judge(&Evidence::default(), &heard_without(&[DNS], &[]));
    assert!(!checked.contains(&Code::DnsSlow) && checked.contains(&Code::Retransmits));
    assert!(decided_by(DNS).any(|code| code == Code::DnsSlow));
    let (_, checked) = judge(&Evidence::default(), &heard_without(&[PROFILE], &[]));
    assert!(!checked.contains(&Code::Retransmits) && checked.contains(&Code::ReceiverLimited));
    assert!(judge(&Evidence::default(), &Heard::default()).1.is_empty());
}

#[test]
fn check_on_incomplete_data_is_not_counted() {
    let connections = (0..3).map(|_| connection("10.0.0.1", 80, Outcome::Refused)).collect();
    let evidence = Evidence { connections, ..quiet() };
    let (findings, checked) = judge(&evidence, &heard_without(&[], &[CONNECTIONS]));
    assert_eq!(told(&findings), [(Code::ConnectionRefused, Severity::Warning)]);
    assert!(!checked.contains(&Code::ConnectionRefused) && checked.contains(&Code::DnsSlow));
}

#[test]
fn waiting_connects_are_found_from_sockets_alone() {
    let waiting = Connection {
        waited: Duration::from_secs(3),
        retransmits: 2,
        ..connection("10.0.0.1", 80, Outcome::Unanswered)
    };
    let evidence = Evidence { connections: vec![waiting], ..quiet() };
    let (findings, checked) = judge(&evidence, &heard_without(&[CONNECTIONS], &[]));
    assert_eq!(told(&findings), [(Code::ConnectTimeout, Severity::Warning)]);
    assert!(!checked.contains(&Code::ConnectTimeout));
}

#[test]
fn symptom_is_folded_into_its_cause() {
    let found = causes(vec![
        finding(Code::FirewallDrop, Severity::Warning, "10.0.0.1", 80),
        finding(Code::ConnectTimeout, Severity::Warning, "10.0.0.1", 80),
        finding(Code::ConnectTimeout, Severity::Warning, "10.0.0.2", 80),
    ]);
    let told: Vec<_> = found.iter().map(|f| (f.code, f.places[0].address.to_string())).collect();
    assert_eq!(told, [(Code::FirewallDrop, "10.0.0.1".into()), (Code::ConnectTimeout, "10.0.0.2".into())]);
    assert_eq!(found[0].evidence["explains"], serde_json::json!(["connect_timeout"]));
}

#[test]
fn info_cause_keeps_its_symptom() {
    let found = causes(vec![
        finding(Code::FirewallDrop, Severity::Info, "10.0.0.1", 80),
        finding(Code::ConnectTimeout, Severity::Warning, "10.0.0.1", 80),
    ]);
    assert_eq!(found.len(), 2);
}

#[test]
fn cause_lists_affected_owners() {
    let cause = finding(Code::FirewallDrop, Severity::Warning, "10.0.0.1", 80);
    let symptom = finding(Code::ConnectTimeout, Severity::Warning, "10.0.0.1", 80).owner(&owner("client", 7));
    assert_eq!(causes(vec![cause, symptom])[0].evidence["affects"][0]["process"], "client");
}

#[test]
fn next_steps_enter_the_namespace() {
    let netns_files: HashMap<_, _> = [(3, "/run/netns/blue".into()), (4, "/run/netns/$(reboot)".into())].into();
    let step = |netns, pid, line: &str| {
        let owner = Owner { netns: Some(netns), pid, ..Owner::default() };
        let finding = Finding::new(Code::NoRoute, Severity::Info, "x").owner(&owner).step(line);
        entered(&finding, &Evidence { netns: Some(1), netns_files: netns_files.clone(), ..quiet() })
    };
    assert_eq!(step(1, Some(7), "ip neigh"), "ip neigh");
    assert_eq!(step(2, Some(7), "ip neigh"), "nsenter -t 7 -n ip neigh");
    assert_eq!(step(3, Some(7), "ip neigh"), "nsenter --net=/run/netns/blue ip neigh");
    assert_eq!(step(4, Some(7), "ip neigh"), "nsenter -t 7 -n ip neigh");
    assert_eq!(step(2, None, "ip neigh"), "ip neigh  # in network namespace 2");
    assert_eq!(step(2, Some(7), "netmon-mcp call trace_drops"), "netmon-mcp call trace_drops");
}

#[test]
fn explanations_have_no_cycles() {
    let explains = |cause: Code, symptom: Code| {
        EXPLAINS.iter().any(|(code, symptoms)| *code == cause && symptoms.contains(&symptom))
    };
    for (cause, symptoms) in EXPLAINS {
        for symptom in *symptoms {
            assert!(!explains(*symptom, *cause), "{cause} and {symptom}");
        }
    }
}

#[test]
fn first_finding_of_a_cycle_is_its_cause() {
    let broken = |mut explained: Vec<Option<usize>>| {
        break_cycles(&mut explained);
        explained
    };
    assert_eq!(broken(vec![Some(2), Some(0), Some(1), None]), [None, Some(0), Some(1), None]);
    assert_eq!(broken(vec![Some(2), None, Some(3), Some(2)]), [Some(2), None, None, Some(2)]);
    assert_eq!(broken(vec![None, Some(0), Some(1)]), [None, Some(0), Some(1)]);
}

#[test]
fn removed_interface_explains_no_failures_on_another_wire() {
    let gone = [What::LinkGone(link(7, 2, "eth0")), What::AddressGone(address((7, 2), "10.0.0.2/24"))];
    let mut network = bridged();
    network.changes = gone.map(|what| Change { after_ms: 900, what }).into();
    let refused = connection("10.0.0.2", 81, Outcome::Refused);
    let refused = Connection { owner: Owner { netns: Some(1), ..owner("client", 8) }, ..refused };
    let server = Socket {
        owner: Owner { netns: Some(7), ..owner("server", 9) },
        local: Some(endpoint("10.0.0.2", 80)),
        remote: Some(endpoint("10.0.0.1", 40_000)),
        ..Socket::default()
    };
    let evidence = Evidence { network, connections: vec![refused; 3], sockets: vec![server], ..quiet() };
    let (findings, _) = judge(&evidence, &heard_without(&[], &[]));
    let codes: Vec<_> = findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, [Code::InterfaceRemoved, Code::ConnectionRefused], "{findings:?}");
}
