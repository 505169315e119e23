//! Whether two findings are about the same fault.

use serde_json::{Deserializer, Value};

use super::finding::{Finding, HostPort};

impl Finding {
    /// The identity of a finding across windows, without its figures: its code, its owner without the process number,
    /// and its places.
    pub fn identity(&self) -> String {
        /// The identifying keys of the evidence. A client's own port is not one of them: the next connection has
        /// another.
        const NAMES: [&str; 6] = ["netns", "interface", "name", "server", "gateway", "reason"];
        let owner = self.program();
        let mut places: Vec<_> = self.places.iter().map(HostPort::to_string).collect();
        places.sort_unstable();
        places.dedup();
        let named = NAMES.iter().filter_map(|name| self.evidence.get(*name)).map(Value::to_string);
        format!("{} {owner} {} {}", self.code, places.join(" "), named.collect::<Vec<_>>().join(" "))
    }

    /// Its owner without the process number.
    fn program(&self) -> Value {
        let mut owner = self.evidence.get("owner").cloned().unwrap_or_default();
        if let Some(owner) = owner.as_object_mut() {
            owner.shift_remove("pid");
        }
        owner
    }

    /// Whether its program is known.
    pub fn has_program(&self) -> bool {
        is_named(&self.program())
    }

    /// The network namespace where it happens, or else that of its owner.
    pub fn netns(&self) -> Option<u64> {
        let owner = || self.evidence.get("owner").and_then(|owner| owner["netns"].as_u64());
        self.evidence.get("netns").and_then(Value::as_u64).or_else(owner)
    }

    /// Whether both may be about the same fault, perhaps under two codes. They are if they name the same service or the same
    /// interface. If one of them names no service, the same program is enough, or the same code in one network namespace.
    pub fn is_like(&self, other: &Finding) -> bool {
        let here = self.netns() == other.netns();
        // An address of one of these kinds is another one in each network namespace.
        let is_local = |at: &HostPort| at.address.is_loopback() || at.address.is_unspecified();
        let same = |at: &HostPort, place: &HostPort| at.covers(place) && (here || !is_local(at));
        let same_service = self.places.iter().any(|at| other.places.iter().any(|place| same(at, place)));
        let known =
            |finding: &Finding| (finding.evidence.get("interface").cloned(), Some(finding.program()).filter(is_named));
        let ((interface, program), (others_interface, others_program)) = (known(self), known(other));
        let equal = |one: &Option<Value>, other: &Option<Value>| one.is_some() && one == other;
        let differ = |one: &Option<Value>, other: &Option<Value>| one.is_some() && other.is_some() && one != other;
        let same_interface = here && equal(&interface, &others_interface);
        let same_program = equal(&program, &others_program);
        let same_kind = here
            && self.code == other.code
            && !differ(&interface, &others_interface)
            && !differ(&program, &others_program);
        let no_service = self.places.is_empty() || other.places.is_empty();
        same_service || same_interface || (no_service && (same_program || same_kind))
    }
}

/// Whether an owner in a finding's evidence is a known program.
pub fn is_named(owner: &Value) -> bool {
    ["process", "unit", "container"].iter().any(|name| owner[name].is_string())
}

/// Whether two identities are of one finding. They are equal, or they differ only in the program, and one of them has none:
/// its socket was closed when the window ended.
pub fn is_same(one: &str, other: &str) -> bool {
    one == other
        || parts(one).zip(parts(other)).is_some_and(|(one, other)| {
            let netns = [&one.owner, &other.owner].map(|owner| owner["netns"].as_u64());
            let unknown = !is_named(&one.owner) || !is_named(&other.owner);
            unknown && netns[0] == netns[1] && one.has_place() && (one.code, one.places) == (other.code, other.places)
        })
}

/// Whether this identity names a program.
pub fn has_program(identity: &str) -> bool {
    parts(identity).is_some_and(|parts| is_named(&parts.owner))
}

/// What [`Finding::identity`] is made of.
struct Parts<'a> {
    code: &'a str,
    owner: Value,
    /// With a space before each.
    places: &'a str,
}

impl Parts<'_> {
    fn has_place(&self) -> bool {
        !self.places.starts_with("  ")
    }
}

fn parts(identity: &str) -> Option<Parts<'_>> {
    let (code, rest) = identity.split_once(' ')?;
    let mut values = Deserializer::from_str(rest).into_iter();
    let owner = values.next()?.ok()?;
    Some(Parts { code, owner, places: rest.get(values.byte_offset()..)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        answer::Owner,
        tools::diagnose::finding::{Code, Severity},
    };

    #[test]
    fn same_fault_in_two_namespaces_is_two() {
        let place = HostPort { address: "198.51.100.7".parse().unwrap(), port: Some(443) };
        let of = |netns: u32| Finding::new(Code::BlackholeRoute, Severity::Warning, "x").with("netns", netns).at(place);
        assert_eq!(of(1).identity(), of(1).identity());
        assert_ne!(of(1).identity(), of(2).identity());
    }

    #[test]
    fn findings_about_the_same_fault_are_alike() {
        let place = |address: &str| HostPort { address: address.parse().unwrap(), port: Some(443) };
        let of = |code, netns: u32| Finding::new(code, Severity::Warning, "x").with("netns", netns);
        let removed = of(Code::InterfaceRemoved, 1).with("interface", "eth1");
        assert!(removed.is_like(&of(Code::InterfaceRemoved, 1)), "another name");
        assert!(removed.is_like(&of(Code::LinkFlap, 1).with("interface", "eth1")));
        assert!(!removed.is_like(&of(Code::LinkFlap, 1).with("interface", "eth2")));
        assert!(!removed.is_like(&of(Code::LinkFlap, 2).with("interface", "eth1")));
        let timeout = |netns, address| of(Code::ConnectTimeout, netns).at(place(address));
        assert!(timeout(1, "198.51.100.7").is_like(&of(Code::FirewallDrop, 2).at(place("198.51.100.7"))));
        assert!(!timeout(1, "198.51.100.7").is_like(&timeout(1, "198.51.100.8")));
        assert!(timeout(1, "0.0.0.0").is_like(&timeout(1, "0.0.0.0")));
        assert!(!timeout(1, "0.0.0.0").is_like(&timeout(2, "0.0.0.0")), "containers have the same port");
        let owned = |process: Option<&str>, pid| {
            let process = process.map(str::to_owned);
            let owner = Owner { process, pid: Some(pid), netns: Some(1), ..Owner::default() };
            of(Code::ConnectionChurn, 1).owner(&owner)
        };
        assert!(owned(Some("api"), 7).is_like(&owned(Some("api"), 8).at(place("198.51.100.7"))));
        let other = Finding { code: Code::HighRtt, ..owned(None, 8) };
        let at = |port| HostPort { port: Some(port), ..place("0.0.0.0") };
        let served = |port| owned(Some("api"), 7).at(at(port));
        assert!(!served(80).is_like(&served(443)), "two services of a program");
        assert!(!owned(Some("api"), 7).is_like(&owned(Some("web"), 7)), "two programs of a namespace");
        assert!(!owned(None, 7).is_like(&other), "two unknown owners are not the same program");
    }

    #[test]
    fn program_may_be_unknown_in_some_windows() {
        let place = HostPort { address: "198.51.100.7".parse().unwrap(), port: Some(53) };
        let of = |process: Option<&str>, netns, place: Option<HostPort>| {
            let owner = Owner { process: process.map(str::to_owned), netns: Some(netns), ..Owner::default() };
            let finding = Finding::new(Code::FirewallDrop, Severity::Warning, "x").owner(&owner).with("reason", "X");
            place.into_iter().fold(finding, Finding::at).identity()
        };
        let known = of(Some("x {\"netns\":9} "), 1, Some(place));
        assert!(is_same(&known, &known) && has_program(&known) && !has_program(&of(None, 1, None)));
        assert!(is_same(&known, &of(None, 1, Some(place))) && is_same(&of(None, 1, Some(place)), &known));
        assert!(!is_same(&known, &of(None, 2, Some(place))), "another namespace");
        assert!(!is_same(&known, &of(Some("y"), 1, Some(place))), "another program");
        assert!(!is_same(&known, &of(None, 1, Some(HostPort { port: Some(80), ..place }))), "another service");
        assert!(!is_same(&of(Some("y"), 1, None), &of(None, 1, None)), "no place is named");
    }
}
