//! Faults in a period of the past: every window is judged separately, as at that time, and the same finding in several
//! windows is one.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Code, Finding, Input, Output, Sample,
    identity::is_same,
    report::{self, Judged, judge_after},
    rules,
};
use crate::{
    answer::Measured,
    recorder::time,
    tools::{
        past::{Recorded, Samples},
        profile_tcp::Service,
    },
    wire::Error,
};

/// Windows that are shorter are judged together: a fault shows in ten seconds, and a window of one shows half of it.
const WINDOW: Duration = Duration::from_secs(10);
/// A rest at the end of a period that is shorter finds nothing by itself: of three replies, two may be slow.
const REST: Duration = Duration::from_secs(3);
/// Cause and symptom belong together where this many windows at the most are between them.
const NEAR: usize = 3;
/// Reasons why something was not seen, of all windows together: they repeat.
const BLIND_SPOTS: usize = 12;

/// A finding, and the windows that have it.
struct Seen {
    finding: Finding,
    first: usize,
    last: usize,
    count: usize,
    begin_us: i64,
    end_us: i64,
    /// The window that its figures are of.
    counted: (i64, i64),
}

/// All windows so far.
#[derive(Default)]
struct Past {
    windows: usize,
    length_ns: u64,
    /// By identity, in the order in which they came.
    seen: Vec<Seen>,
    places: BTreeMap<String, usize>,
    /// Of the last window.
    services: Vec<Service>,
    /// Of every window.
    checked: Option<Vec<Code>>,
    blind_spots: Vec<String>,
    lost_events: u64,
    tool_missing: bool,
}

/// The answer about the past.
pub fn recall(input: &Input, samples: &mut Samples<'_, Sample>, is_whole: bool) -> Result<Output, Error> {
    let mut past = Past::default();
    in_windows(samples, |window, rest| match rest {
        Some(rest) => past.add_last(input, window, rest),
        None => past.add(input, window),
    })?;
    if past.windows == 0 {
        return Err(Error::Gone("nothing was recorded in this period".into()));
    }
    Ok(past.output(input, is_whole))
}

/// Gives windows that are long enough to judge, the last one with the rest of the period, if one follows it.
fn in_windows(
    samples: &mut Samples<'_, Sample>,
    mut judge: impl FnMut(Recorded<Sample>, Option<Recorded<Sample>>),
) -> Result<(), Error> {
    let (mut long, mut short) = (None, None);
    for window in samples {
        let window = window?;
        let next = match short.take() {
            Some(earlier) => together(earlier, window),
            None => window,
        };
        // Attaching took the first milliseconds.
        if Duration::from_nanos(next.sample.window_ns) < WINDOW.mul_f64(0.9) {
            short = Some(next);
        } else {
            long.replace(next).into_iter().for_each(|window| judge(window, None));
        }
    }
    let follows = |long: &Recorded<Sample>, rest: &Recorded<Sample>| {
        rest.begin_us - long.end_us < WINDOW.as_micros() as i64 // otherwise there is a gap
    };
    match (long, short) {
        (Some(long), Some(rest)) if follows(&long, &rest) => judge(long, Some(rest)),
        (long, rest) => long.into_iter().chain(rest).for_each(|window| judge(window, None)),
    }
    Ok(())
}

/// What the question asks for, of a sample and of what is known of the window before.
fn judge(input: &Input, before: Vec<Service>, sample: Sample) -> Judged {
    let mut judged = judge_after(before, input.duration_ms.duration(), sample);
    judged.findings.retain(|finding| input.wants(finding));
    judged
}

/// The findings of a part that the whole lacks or judges more mildly.
fn alone(part: Vec<Finding>, whole: &[Finding]) -> Vec<Finding> {
    let is_known =
        |finding: &Finding| whole.iter().any(|other| other.severity <= finding.severity && finding.is_like(other));
    part.into_iter().filter(|finding| !is_known(finding)).collect()
}

fn together(earlier: Recorded<Sample>, later: Recorded<Sample>) -> Recorded<Sample> {
    let sample = report::merge(earlier.sample, later.sample);
    Recorded { begin_us: earlier.begin_us, end_us: later.end_us, sample }
}

impl Past {
    fn add(&mut self, input: &Input, window: Recorded<Sample>) {
        self.length_ns += window.sample.window_ns;
        let before = std::mem::take(&mut self.services);
        self.note((window.begin_us, window.end_us), judge(input, before, window.sample));
    }

    /// The last window with a rest that is too short to be judged by itself: it shows a part of a fault, and could report
    /// it under another code. A fault that only one of the two shows is added, such as a server that became slow at the
    /// end.
    fn add_last(&mut self, input: &Input, window: Recorded<Sample>, rest: Recorded<Sample>) {
        let before = std::mem::take(&mut self.services);
        let times = [&window, &rest].map(|part| (part.begin_us, part.end_us));
        let first = judge(input, before.clone(), window.sample.clone());
        let second = match Duration::from_nanos(rest.sample.window_ns) < REST {
            true => Vec::new(),
            false => judge(input, first.services, rest.sample.clone()).findings,
        };
        let both = together(window, rest);
        self.length_ns += both.sample.window_ns;
        let judged = judge(input, before, both.sample);
        let alone = [first.findings, second].map(|part| alone(part, &judged.findings));
        self.note((both.begin_us, both.end_us), judged);
        for (findings, time) in alone.into_iter().zip(times) {
            findings.into_iter().for_each(|finding| self.see(finding, self.windows - 1, time));
        }
    }

    /// What was judged of a window.
    fn note(&mut self, time: (i64, i64), judged: Judged) {
        let at = self.windows;
        self.windows += 1;
        self.services = judged.services;
        judged.findings.into_iter().for_each(|finding| self.see(finding, at, time));
        match &mut self.checked {
            Some(checked) => checked.retain(|code| judged.checked.contains(code)),
            None => self.checked = Some(judged.checked),
        }
        for spot in judged.blind_spots {
            if self.blind_spots.len() < BLIND_SPOTS && !self.blind_spots.contains(&spot) {
                self.blind_spots.push(spot);
            }
        }
        self.lost_events += judged.lost_events;
        self.tool_missing |= judged.tool_missing;
    }

    /// A finding in a window.
    fn see(&mut self, finding: Finding, at: usize, (begin_us, end_us): (i64, i64)) {
        let (identity, counted) = (finding.identity(), (begin_us, end_us));
        let known = self.places.get(&identity).copied().or_else(|| {
            let same = |(_, seen): &(usize, &Seen)| is_same(&seen.finding.identity(), &identity);
            Some(self.seen.iter().enumerate().filter(same).max_by_key(|(_, seen)| seen.last)?.0)
        });
        let place = known.unwrap_or(self.seen.len());
        self.places.entry(identity).or_insert(place);
        match self.seen.get_mut(place) {
            None => self.seen.push(Seen { finding, first: at, last: at, count: 1, begin_us, end_us, counted }),
            Some(seen) => {
                seen.count += usize::from(seen.last != at);
                (seen.last, seen.end_us) = (at, end_us.max(seen.end_us));
                let as_good = finding.has_program() || !seen.finding.has_program();
                if finding.severity < seen.finding.severity || (finding.severity == seen.finding.severity && as_good) {
                    (seen.finding, seen.counted) = (finding, counted);
                }
            }
        }
    }

    fn output(self, input: &Input, is_whole: bool) -> Output {
        let Past { windows, seen, checked, blind_spots, lost_events, tool_missing, length_ns, .. } = self;
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
        let checked = checked.unwrap_or_default();
        let judged = Judged { findings, checked, blind_spots, lost_events, tool_missing, services: Vec::new() };
        let length = Duration::from_nanos(length_ns);
        let mut output = report::output(input, judged, Measured::window(length));
        // With a gap in the period, "nothing was wrong" cannot be said.
        output.healthy = output.healthy(length).filter(|healthy| !healthy || is_whole);
        output
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        answer::Owner,
        tools::diagnose::{HostPort, Severity},
    };

    /// Recorded windows by their begin and end in seconds, and what is judged of them.
    fn judged(windows: &[(i64, i64)]) -> Vec<Vec<(i64, i64)>> {
        let recorded = |(begin, end): &(i64, i64)| {
            let window_ns = (end - begin) * 1_000_000_000;
            let sample = json!({"heard": {}, "conntrack": null, "netns": 1, "window_ns": window_ns});
            let sample = serde_json::from_value(sample).unwrap();
            Ok(Recorded { begin_us: begin * time::SECOND, end_us: end * time::SECOND, sample })
        };
        let mut judged = Vec::new();
        in_windows(&mut windows.iter().map(recorded), |window, rest| {
            let parts = [window].into_iter().chain(rest);
            judged.push(parts.map(|part| (part.begin_us / time::SECOND, part.end_us / time::SECOND)).collect());
        })
        .unwrap();
        judged
    }

    #[test]
    fn rest_belongs_to_the_window_before_it() {
        let [short, long] = [2, 8].map(|rest| judged(&[(0, 4), (4, 8), (8, 12), (12, 22), (22, 22 + rest)]));
        assert_eq!(short, [vec![(0, 12)], vec![(12, 22), (22, 24)]]);
        assert_eq!(long, [vec![(0, 12)], vec![(12, 22), (22, 30)]]);
        assert_eq!(judged(&[(0, 10), (100, 102)]), [[(0, 10)], [(100, 102)]], "a gap");
        assert_eq!(judged(&[(0, 2)]), [[(0, 2)]]);
        assert!(judged(&[]).is_empty());
    }

    #[test]
    fn part_adds_what_the_whole_does_not_show() {
        let of = |code, severity, port: Option<u16>| {
            let place = port.map(|port| HostPort { address: "198.51.100.7".parse().unwrap(), port: Some(port) });
            place.into_iter().fold(Finding::new(code, severity, "x").with("netns", 1), Finding::at)
        };
        let whole =
            [of(Code::SlowApplication, Severity::Warning, Some(80)), of(Code::ConnectionChurn, Severity::Info, None)];
        let part = vec![
            of(Code::SlowApplication, Severity::Warning, Some(80)),
            of(Code::SlowApplication, Severity::Warning, Some(443)),
            of(Code::HighRtt, Severity::Info, Some(80)),
            of(Code::ConnectionChurn, Severity::Warning, None),
        ];
        let added: Vec<_> =
            alone(part, &whole).into_iter().map(|finding| (finding.code, finding.places.len())).collect();
        assert_eq!(added, [(Code::SlowApplication, 1), (Code::ConnectionChurn, 0)], "another server, and a worse one");
    }

    /// Two programs at one place, where a window knows none: they stay two.
    #[test]
    fn finding_without_its_program_belongs_to_one_program() {
        let place = HostPort { address: "198.51.100.7".parse().unwrap(), port: Some(53) };
        let mut past = Past::default();
        for (at, process) in [None, Some("dig"), Some("named"), None].into_iter().enumerate() {
            let owner = Owner { process: process.map(str::to_owned), netns: Some(1), ..Owner::default() };
            past.see(Finding::new(Code::FirewallDrop, Severity::Warning, "x").owner(&owner).at(place), at, (0, 1));
        }
        let programs: Vec<_> = past.seen.iter().map(|seen| seen.finding.evidence["owner"]["process"].clone()).collect();
        assert_eq!(programs, ["dig", "named"]);
    }

    #[test]
    fn figures_of_a_recorded_finding_say_which_window_they_are_of() {
        let mut past = Past { windows: 3, ..Past::default() };
        let with = |severity, count: u64| Finding::new(Code::Resets, severity, "x").with("resets", count);
        let second = |n: i64| (n * time::SECOND, (n + 1) * time::SECOND);
        past.see(with(Severity::Warning, 17), 0, second(0));
        past.see(with(Severity::Critical, 9), 1, second(1));
        past.see(with(Severity::Warning, 3), 2, second(2));
        let input = serde_json::from_value(json!({})).unwrap();
        let evidence = &past.output(&input, true).findings[0].evidence;
        let times = ["first_seen", "last_seen", "figures_of"].map(|key| evidence[key].as_str().unwrap());
        let shown = [0, 1, 2, 3].map(|n| time::shown(n * time::SECOND));
        assert_eq!(times, [shown[0].as_str(), shown[3].as_str(), &format!("{} to {}", shown[1], shown[2])]);
        assert_eq!((evidence["resets"].as_u64(), evidence["windows"].as_str()), (Some(9), Some("3 of 3")));
    }
}
