//! Which findings are one, whatever their figures are.

use serde::Serialize;
use serde_json::Value;

use crate::tools::diagnose::identity::is_named;

/// A finding's code, its owner but for the process number, and what its evidence names.
#[derive(Serialize, Debug, PartialEq)]
pub struct Fingerprint {
    code: Value,
    owner: Value,
    netns: Value,
    reason: Value,
    places: Vec<Value>,
}

impl Fingerprint {
    /// That of a finding of `diagnose` in an answer.
    pub fn of(finding: &Value) -> Self {
        const PLACES: [&str; 10] = [
            "interface",
            "name",
            "server",
            "gateway",
            "service",
            "destination",
            "remote",
            "remote_address",
            "remote_port",
            "local",
        ];
        let evidence = &finding["evidence"];
        let mut owner = evidence["owner"].clone();
        if let Some(owner) = owner.as_object_mut() {
            owner.retain(|name, value| name != "pid" && !value.is_null());
        }
        Fingerprint {
            code: finding["code"].clone(),
            owner,
            netns: evidence["netns"].clone(),
            reason: evidence["reason"].clone(),
            places: PLACES.map(|name| evidence[name].clone()).to_vec(),
        }
    }

    /// Whether its program is known.
    pub fn has_program(&self) -> bool {
        is_named(&self.owner)
    }

    /// Whether both are one finding. They are equal, or they differ only in the program, and one of them has none.
    pub fn is_same(&self, other: &Fingerprint) -> bool {
        let here = (&self.code, &self.netns, &self.reason, &self.places)
            == (&other.code, &other.netns, &other.reason, &other.places);
        let has_place = self.places.iter().any(|place| !place.is_null());
        let unknown = !self.has_program() || !other.has_program();
        here && (self.owner == other.owner || (has_place && unknown && self.owner["netns"] == other.owner["netns"]))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn program_may_be_unknown_in_one_of_both() {
        let of = |process: Option<&str>, netns: u32, service: Value| {
            let owner = json!({"pid": 7, "process": process, "netns": netns});
            Fingerprint::of(&json!({"code": "firewall_drop", "evidence": {"owner": owner, "service": service}}))
        };
        let at = |process, netns| of(process, netns, json!({"address": "198.51.100.7", "port": 53}));
        assert!(at(Some("named"), 1).is_same(&at(None, 1)) && at(None, 1).is_same(&at(Some("named"), 1)));
        assert!(!at(Some("named"), 1).is_same(&at(Some("dig"), 1)), "another program");
        assert!(!at(Some("named"), 1).is_same(&at(None, 2)), "another namespace");
        assert!(!at(Some("named"), 1).is_same(&of(None, 1, json!({"address": "198.51.100.7", "port": 80}))));
        assert!(!of(Some("named"), 1, Value::Null).is_same(&of(None, 1, Value::Null)), "no place");
    }

    #[test]
    fn faults_at_two_listeners_of_a_program_are_two() {
        let at = |port: u16, pid: u32| {
            let owner = json!({"pid": pid, "process": "api"});
            let evidence = json!({"owner": owner, "local": {"address": "127.0.0.1", "port": port}});
            Fingerprint::of(&json!({"code": "listen_queue_overflow", "evidence": evidence}))
        };
        assert_eq!(at(80, 1), at(80, 2), "it restarted");
        assert_ne!(at(80, 1), at(81, 1));
    }
}
