//! What the rules found in windows of the past: the same finding in several windows is one.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Code, Finding, Input, Output,
    finding::HostPort,
    identity::is_same,
    report::{self, Judged},
    rules,
};
use crate::{answer::Measured, limits, recorder::time};

/// Cause and symptom belong together where this many windows at the most are between them.
const NEAR: usize = 3;
/// Reasons why something was not seen, of all windows together: they repeat.
const BLIND_SPOTS: usize = 12;

/// What was found in adjacent windows. Judgements of periods that follow each other add up to that of all.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct Judgement {
    windows: usize,
    length_ns: u64,
    /// In the order in which they came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    seen: Vec<Seen>,
    /// Places in `seen`, by identity.
    #[serde(skip)]
    places: BTreeMap<String, usize>,
    /// In every window.
    checked: Vec<Code>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    blind_spots: Vec<String>,
    lost_events: u64,
    /// In any window, a tool gave no answer.
    tool_missing: bool,
    /// At least so many findings were beyond the bound.
    #[serde(default)]
    left_out: u64,
}

/// A finding, and the windows that have it.
#[derive(Serialize, Deserialize, Clone, Debug)]
struct Seen {
    #[serde(with = "whole")]
    finding: Finding,
    first: usize,
    last: usize,
    count: usize,
    begin_us: i64,
    end_us: i64,
    /// The window that its figures are of.
    counted: (i64, i64),
}

/// A finding with its places, which an answer does not have.
mod whole {
    use std::borrow::Cow;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Finding, HostPort};

    #[derive(Serialize, Deserialize)]
    struct Whole<'a> {
        finding: Cow<'a, Finding>,
        #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
        places: Cow<'a, [HostPort]>,
        #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
        harms: Cow<'a, [u32]>,
    }

    pub fn serialize<S: Serializer>(finding: &Finding, serializer: S) -> Result<S::Ok, S::Error> {
        let (places, harms) = ((&finding.places).into(), (&finding.harms).into());
        Whole { finding: Cow::Borrowed(finding), places, harms }.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Finding, D::Error> {
        let Whole { finding, places, harms } = Whole::deserialize(deserializer)?;
        Ok(Finding { places: places.into(), harms: harms.into(), ..finding.into_owned() })
    }
}

impl Judgement {
    /// What was found in one window.
    pub fn new(time: (i64, i64), window_ns: u64, judged: Judged) -> Self {
        let Judged { findings, checked, mut blind_spots, lost_events, tool_missing, services: _ } = judged;
        blind_spots.truncate(BLIND_SPOTS);
        let mut judgement = Judgement {
            windows: 1,
            length_ns: window_ns,
            checked,
            blind_spots,
            lost_events,
            tool_missing,
            ..Self::default()
        };
        findings.into_iter().for_each(|finding| judgement.add_finding(finding, time));
        judgement
    }

    /// Adds a finding of the last window.
    pub fn add_finding(&mut self, finding: Finding, (begin_us, end_us): (i64, i64)) {
        let (at, counted) = (self.windows.saturating_sub(1), (begin_us, end_us));
        self.see(Seen { finding, first: at, last: at, count: 1, begin_us, end_us, counted });
    }

    /// Adds the windows that follow.
    pub fn add(&mut self, later: Judgement) {
        let before = self.windows;
        for mut seen in later.seen {
            seen.first += before;
            seen.last += before;
            self.see(seen);
        }
        match before {
            0 => self.checked = later.checked,
            _ => self.checked.retain(|code| later.checked.contains(code)),
        }
        for spot in later.blind_spots {
            if self.blind_spots.len() < BLIND_SPOTS && !self.blind_spots.contains(&spot) {
                self.blind_spots.push(spot);
            }
        }
        self.windows += later.windows;
        self.length_ns += later.length_ns;
        self.lost_events += later.lost_events;
        self.tool_missing |= later.tool_missing;
        self.left_out = self.left_out.max(later.left_out);
        if self.seen.len() > limits::SUM_ROWS {
            self.seen.sort_by_key(|seen| (seen.finding.severity, Reverse(seen.count)));
            self.left_out = self.left_out.max(self.seen.split_off(limits::SUM_ROWS / 2).len() as u64);
            self.places.clear();
        }
    }

    pub fn is_empty(&self) -> bool {
        self.windows == 0
    }

    /// Forgets the other findings.
    pub fn retain(&mut self, mut is_wanted: impl FnMut(&Finding) -> bool) {
        self.seen.retain(|seen| is_wanted(&seen.finding));
        self.places.clear();
    }

    /// Adds a finding. No known one begins later.
    fn see(&mut self, seen: Seen) {
        self.index();
        let identity = seen.finding.identity();
        let known = self.places.get(&identity).copied().or_else(|| {
            let same = |(_, known): &(usize, &Seen)| {
                let (one, other) = (&known.finding, &seen.finding);
                let within = |a: &Finding, b: &Finding| a.places.iter().all(|at| b.places.contains(at));
                let same_places = !one.places.is_empty() && within(one, other) && within(other, one);
                one.code == other.code && same_places && is_same(&one.identity(), &identity)
            };
            Some(self.seen.iter().enumerate().filter(same).max_by_key(|(_, known)| known.last)?.0)
        });
        let place = known.unwrap_or(self.seen.len());
        self.places.entry(identity).or_insert(place);
        match self.seen.get_mut(place) {
            None => self.seen.push(seen),
            Some(known) => {
                known.count += seen.count - usize::from(known.last == seen.first);
                (known.last, known.end_us) = (known.last.max(seen.last), known.end_us.max(seen.end_us));
                known.count = known.count.min(known.last - known.first + 1);
                let (now, before) = (&seen.finding, &known.finding);
                let as_good = now.has_program() || !before.has_program();
                if now.severity < before.severity || (now.severity == before.severity && as_good) {
                    (known.finding, known.counted) = (seen.finding, seen.counted);
                }
            }
        }
    }

    /// Finds the places of what was read or reduced.
    fn index(&mut self) {
        if self.places.is_empty() {
            self.places = self.seen.iter().enumerate().map(|(at, seen)| (seen.finding.identity(), at)).collect();
        }
    }

    /// The answer about all of it. `is_whole` if nothing is missing of the period that was asked for.
    pub fn output(self, input: &Input, is_whole: bool) -> Output {
        let Judgement { windows, seen, checked, blind_spots, lost_events, tool_missing, length_ns, .. } = self;
        let left_out = self.left_out;
        let near = |cause: usize, symptom: usize| {
            let (Some(a), Some(b)) = (seen.get(cause), seen.get(symptom)) else { return false };
            a.first <= b.last + NEAR && b.first <= a.last + NEAR
        };
        let told = |seen: &Seen| {
            let when = (time::shown(seen.begin_us), time::shown(seen.end_us));
            let finding = seen.finding.clone().with("first_seen", when.0).with("last_seen", when.1);
            let finding = finding.with("windows", format!("{} of {windows}", seen.count));
            if seen.counted == (seen.begin_us, seen.end_us) {
                return finding;
            }
            finding.with("figures_of", format!("{} to {}", time::shown(seen.counted.0), time::shown(seen.counted.1)))
        };
        let mut findings = rules::causes_when(seen.iter().map(told).collect(), near);
        findings.sort_by_key(|finding| (finding.severity, finding.code));
        let judged = Judged { findings, checked, blind_spots, lost_events, tool_missing, services: Vec::new() };
        let length = Duration::from_nanos(length_ns);
        let mut output = report::output(input, judged, Measured::window(length));
        output.measured.rows_cut += left_out;
        // With a gap in the period, "nothing was wrong" cannot be said.
        output.healthy = output.healthy(length).filter(|healthy| !healthy || is_whole);
        output
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{answer::Owner, tools::diagnose::Severity};

    fn second(n: i64) -> (i64, i64) {
        (n * time::SECOND, (n + 1) * time::SECOND)
    }

    /// A judgement of one window.
    fn window(n: i64, findings: Vec<Finding>, blind_spots: &[&str]) -> Judgement {
        let blind_spots = blind_spots.iter().map(|spot| (*spot).to_owned()).collect();
        let checked = if n == 1 { vec![Code::Resets] } else { vec![Code::Resets, Code::HighRtt] };
        let judged =
            Judged { findings, checked, blind_spots, lost_events: 2, tool_missing: n == 1, services: Vec::new() };
        Judgement::new(second(n), 1_000, judged)
    }

    fn place(port: u16) -> HostPort {
        HostPort { address: "198.51.100.7".parse().unwrap(), port: Some(port) }
    }

    fn drops(process: Option<&str>) -> Finding {
        let owner = Owner { process: process.map(str::to_owned), netns: Some(1), ..Owner::default() };
        Finding {
            harms: vec![1],
            ..Finding::new(Code::FirewallDrop, Severity::Warning, "x").owner(&owner).at(place(53))
        }
    }

    fn sum(windows: impl IntoIterator<Item = Judgement>) -> Judgement {
        windows.into_iter().fold(Judgement::default(), |mut sum, window| {
            sum.add(window);
            sum
        })
    }

    /// Two programs at one place, where a window knows none: they stay two.
    #[test]
    fn finding_without_its_program_belongs_to_one_program() {
        let processes = [None, Some("dig"), Some("named"), None].into_iter().zip(0..);
        let sum = sum(processes.map(|(process, n)| window(n, vec![drops(process)], &[])));
        let programs: Vec<_> = sum.seen.iter().map(|seen| seen.finding.evidence["owner"]["process"].clone()).collect();
        assert_eq!(programs, ["dig", "named"]);
    }

    #[test]
    fn figures_of_a_recorded_finding_say_which_window_they_are_of() {
        let with = |severity, count: u64| Finding::new(Code::Resets, severity, "x").with("resets", count);
        let findings = [with(Severity::Warning, 17), with(Severity::Critical, 9), with(Severity::Warning, 3)];
        let past = sum(findings.into_iter().zip(0..).map(|(finding, n)| window(n, vec![finding], &[])));
        let input = serde_json::from_value(json!({})).unwrap();
        let evidence = &past.output(&input, true).findings[0].evidence;
        let times = ["first_seen", "last_seen", "figures_of"].map(|key| evidence[key].as_str().unwrap());
        let shown = [0, 1, 2, 3].map(|n| time::shown(n * time::SECOND));
        assert_eq!(times, [shown[0].as_str(), shown[3].as_str(), &format!("{} to {}", shown[1], shown[2])]);
        assert_eq!((evidence["resets"].as_u64(), evidence["windows"].as_str()), (Some(9), Some("3 of 3")));
    }

    /// Whether windows are added one by one, or as sums that were written and read: the answer is the same.
    #[test]
    fn sums_of_windows_add_up() {
        let high_rtt = |severity, port| Finding::new(Code::HighRtt, severity, "y").at(place(port));
        let windows = || {
            [
                window(0, vec![drops(Some("dig")), high_rtt(Severity::Info, 80)], &["a"]),
                window(1, vec![], &["b"]),
                window(2, vec![drops(None), high_rtt(Severity::Warning, 80)], &["a", "c"]),
                window(3, vec![drops(Some("dig")), high_rtt(Severity::Info, 81)], &[]),
            ]
        };
        let read = |sum: Judgement| serde_json::from_str(&serde_json::to_string(&sum).unwrap()).unwrap();
        let input = serde_json::from_value(json!({})).unwrap();
        let answer = |sum: Judgement| serde_json::to_value(sum.output(&input, true)).unwrap();
        let whole = answer(sum(windows()));
        for at in 1..3 {
            let mut windows = windows().map(read).to_vec();
            let later = read(sum(windows.split_off(at)));
            assert_eq!(answer(sum([read(sum(windows)), later])), whole, "split at {at}");
        }
        assert_eq!(whole["findings"].as_array().unwrap().len(), 3, "{whole:#}");
        assert_eq!(
            (&whole["findings"][0]["evidence"]["windows"], &whole["measured"]["lost_events"]),
            (&json!("3 of 4"), &json!(8))
        );
        assert_eq!((&whole["checked"], &whole["blind_spots"]), (&json!(["resets"]), &json!(["a", "b", "c"])));
    }

    #[test]
    fn findings_that_are_not_wanted_are_forgotten() {
        let mut sum = sum([window(0, vec![drops(Some("dig")), drops(Some("named"))], &[])]);
        sum.retain(|finding| finding.evidence["owner"]["process"] == "named");
        sum.add(window(1, vec![drops(Some("named"))], &[]));
        assert_eq!(sum.seen.iter().map(|seen| seen.count).collect::<Vec<_>>(), [2]);
    }
    #[test]
    fn findings_beyond_the_bound_are_counted() {
        let at = |port| Finding::new(Code::HighRtt, Severity::Info, "y").at(place(port));
        let worst = Finding::new(Code::HighRtt, Severity::Warning, "z").at(place(60_000));
        let mut windows: Vec<_> =
            (0..3).map(|n| window(n, (0..500).map(|port| at(500 * n as u16 + port)).collect(), &[])).collect();
        windows.push(window(3, vec![worst], &[]));
        let input = serde_json::from_value(json!({"limit": 10_000})).unwrap();
        let output = sum(windows).output(&input, true);
        assert_eq!(
            (output.findings.len() as u64 + output.measured.rows_cut, output.findings[0].severity),
            (1_501, Severity::Warning)
        );
    }
}
