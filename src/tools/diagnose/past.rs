//! Faults in a period of the past: every window is judged separately, as at that time, and the same finding in several
//! windows is one.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Code, Finding, Input, Output, Sample,
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
    let (mut past, mut short) = (Past::default(), None::<Recorded<Sample>>);
    for window in samples {
        let window = window?;
        let next = match short.take() {
            Some(earlier) => Recorded {
                begin_us: earlier.begin_us,
                end_us: window.end_us,
                sample: report::merge(earlier.sample, window.sample),
            },
            None => window,
        };
        // Attaching took the first milliseconds.
        if Duration::from_nanos(next.sample.window_ns) < WINDOW.mul_f64(0.9) {
            short = Some(next);
        } else {
            past.add(input, next);
        }
    }
    if let Some(window) = short {
        past.add(input, window);
    }
    if past.windows == 0 {
        return Err(Error::Gone("nothing was recorded in this period".into()));
    }
    Ok(past.output(input, is_whole))
}

impl Past {
    fn add(&mut self, input: &Input, window: Recorded<Sample>) {
        let Recorded { begin_us, end_us, sample } = window;
        self.length_ns += sample.window_ns;
        let before = std::mem::take(&mut self.services);
        let judged = judge_after(before, input.duration_ms.duration(), sample);
        self.services = judged.services;
        let at = self.windows;
        self.windows += 1;
        for finding in judged.findings.into_iter().filter(|finding| input.wants(finding)) {
            self.see(finding, at, (begin_us, end_us));
        }
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
        let (fresh, counted) = (self.seen.len(), (begin_us, end_us));
        let place = *self.places.entry(finding.identity()).or_insert(fresh);
        match self.seen.get_mut(place) {
            None => self.seen.push(Seen { finding, first: at, last: at, count: 1, begin_us, end_us, counted }),
            Some(seen) => {
                seen.count += usize::from(seen.last != at);
                (seen.last, seen.end_us) = (at, end_us);
                if finding.severity <= seen.finding.severity {
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
            if seen.count == 1 {
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
    use super::*;
    use crate::tools::diagnose::Severity;

    #[test]
    fn figures_of_a_recorded_finding_say_which_window_they_are_of() {
        let mut past = Past { windows: 3, ..Past::default() };
        let with = |severity, count: u64| Finding::new(Code::Resets, severity, "x").with("resets", count);
        let second = |n: i64| (n * time::SECOND, (n + 1) * time::SECOND);
        past.see(with(Severity::Warning, 17), 0, second(0));
        past.see(with(Severity::Critical, 9), 1, second(1));
        past.see(with(Severity::Warning, 3), 2, second(2));
        let input = serde_json::from_value(serde_json::json!({})).unwrap();
        let evidence = &past.output(&input, true).findings[0].evidence;
        let times = ["first_seen", "last_seen", "figures_of"].map(|key| evidence[key].as_str().unwrap());
        let shown = [0, 1, 2, 3].map(|n| time::shown(n * time::SECOND));
        assert_eq!(times, [shown[0].as_str(), shown[3].as_str(), &format!("{} to {}", shown[1], shown[2])]);
        assert_eq!((evidence["resets"].as_u64(), evidence["windows"].as_str()), (Some(9), Some("3 of 3")));
    }
}
