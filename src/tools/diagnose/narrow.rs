//! A diagnosis of one process, unit, container, network namespace, remote or port: the findings that are about it.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::{Finding, Input};

/// What a finding is about, as its evidence says.
#[derive(Default)]
struct About<'a> {
    owners: Vec<&'a Map<String, Value>>,
    netns: Vec<u64>,
    addresses: Vec<IpAddr>,
    ports: Vec<u64>,
}

impl Input {
    /// Whether the answer is to have a finding. One that is about the whole host, or whose evidence does not tell, may be
    /// about anybody: it stays.
    pub(super) fn wants(&self, finding: &Finding) -> bool {
        let about = About::of(finding);
        let text = |owner: &Map<String, Value>, key: &str| owner.get(key).and_then(Value::as_str).map(str::to_owned);
        let any = |matches: &dyn Fn(&Map<String, Value>) -> bool| about.owners.iter().any(|owner| matches(owner));
        let is_of_host = about.owners.is_empty() && about.addresses.is_empty();
        let process = self.process.as_ref().is_none_or(|comm| {
            is_of_host || any(&|owner| text(owner, "process").is_some_and(|name| comm.is(name.as_bytes())))
        });
        let pid = self.pid.is_none_or(|pid| {
            is_of_host || any(&|owner| owner.get("pid").and_then(Value::as_u64) == Some(pid.get().into()))
        });
        let of = |key: &str, wanted: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| is_of_host || any(&|owner| text(owner, key).as_ref() == Some(wanted)))
        };
        let netns = self.netns.is_none_or(|netns| about.netns.is_empty() || about.netns.contains(&netns.into()));
        let remote = self.remote.is_none_or(|range| {
            about.addresses.is_empty() || about.addresses.iter().any(|address| range.includes(*address))
        });
        let port = self.port.is_none_or(|port| {
            let is_told = !about.ports.is_empty() || !about.addresses.is_empty();
            !is_told || about.ports.contains(&port.get().into())
        });
        process && pid && of("unit", &self.unit) && of("container", &self.container) && netns && remote && port
    }
}

impl<'a> About<'a> {
    fn of(finding: &'a Finding) -> Self {
        let mut about = About::default();
        about.netns.extend(finding.harms.iter().copied().map(u64::from));
        for place in &finding.places {
            about.addresses.push(place.address);
            about.ports.extend(place.port.map(u64::from));
        }
        finding.evidence.iter().for_each(|(key, value)| about.read(key, value));
        about
    }

    fn read(&mut self, key: &str, value: &'a Value) {
        match value {
            Value::Object(fields) => {
                if key.ends_with("owner") || fields.contains_key("process") {
                    self.owners.push(fields);
                }
                fields.iter().for_each(|(key, value)| self.read(key, value));
            }
            Value::Array(values) => values.iter().for_each(|value| self.read(key, value)),
            Value::Number(number) => match key {
                "netns" => self.netns.extend(number.as_u64()),
                _ if key == "port" || key.ends_with("_port") => self.ports.extend(number.as_u64()),
                _ => {}
            },
            Value::String(text) => self.addresses.extend(text.parse::<IpAddr>().ok()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        answer::{Endpoint, Owner},
        tools::diagnose::{Code, Severity},
    };

    fn refused() -> Finding {
        let owner = Owner {
            pid: Some(7),
            process: Some("curl".into()),
            unit: Some("job.service".into()),
            netns: Some(41),
            ..Owner::default()
        };
        let remote = Endpoint { address: "10.0.0.2".parse().unwrap(), port: 80 };
        Finding::new(Code::ConnectionRefused, Severity::Warning, "x").owner(&owner).with("remote", remote)
    }

    fn wants(input: Value, finding: &Finding) -> bool {
        serde_json::from_value::<Input>(input).unwrap().wants(finding)
    }

    #[test]
    fn each_filter_matches_the_evidence() {
        for (key, same, other) in [
            ("process", json!("curl"), json!("wget")),
            ("pid", json!(7), json!(8)),
            ("unit", json!("job.service"), json!("other.service")),
            ("netns", json!(41), json!(42)),
            ("remote", json!("10.0.0.0/24"), json!("10.0.1.0/24")),
            ("port", json!(80), json!(81)),
        ] {
            assert!(wants(json!({key: same}), &refused()), "{key}");
            assert!(!wants(json!({key: other}), &refused()), "{key}");
        }
        assert!(!wants(json!({"container": "abc"}), &refused()));
        assert!(!wants(json!({"process": "curl", "port": 81}), &refused()));
    }

    #[test]
    fn findings_about_the_host_stay() {
        let full = Finding::new(Code::ConntrackFull, Severity::Critical, "x").with("count", 9);
        assert!(wants(json!({"process": "curl", "port": 80, "netns": 41, "remote": "10.0.0.2"}), &full));
    }

    #[test]
    fn a_finding_of_an_unknown_owner_is_not_of_a_process() {
        let source = json!({"address": "10.0.0.9", "port": 9});
        let dropped = Finding::new(Code::FirewallDrop, Severity::Warning, "x").with("source", source);
        assert!(!wants(json!({"process": "curl"}), &dropped));
        assert!(wants(json!({"remote": "10.0.0.9"}), &dropped));
    }
}
