//! Faults in a period of the past: every window is judged separately, as at that time, and the same finding in several
//! windows is one.

use std::time::Duration;

use super::{
    Finding, Input, Output, Sample,
    judgement::Judgement,
    report::{self, Judged, judge_after},
};
use crate::{
    tools::{
        past::{Recorded, Samples},
        profile_tcp::Service,
    },
    wire::Error,
};

/// Windows that are shorter are judged together: a fault shows in ten seconds, and a window of one shows half of it.
pub const WINDOW: Duration = Duration::from_secs(10);
/// A rest at the end of a period that is shorter finds nothing by itself: of three replies, two may be slow.
const REST: Duration = Duration::from_secs(3);

/// Whether a window is long enough to be judged by itself. Attaching took the first milliseconds.
pub fn is_long(length: Duration) -> bool {
    length >= WINDOW.mul_f64(0.9)
}

/// All windows so far.
#[derive(Default)]
struct Past {
    judgement: Judgement,
    /// Of the last window.
    services: Vec<Service>,
}

/// The answer about the past.
pub fn recall(input: &Input, samples: &mut Samples<'_, Sample>, is_whole: bool) -> Result<Output, Error> {
    let mut past = Past::default();
    in_windows(samples, |window, rest| match rest {
        Some(rest) => past.add_last(input, window, rest),
        None => past.add(input, window),
    })?;
    if past.judgement.is_empty() {
        return Err(Error::Gone("nothing was recorded in this period".into()));
    }
    Ok(past.judgement.output(input, is_whole))
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
        if is_long(Duration::from_nanos(next.sample.window_ns)) {
            long.replace(next).into_iter().for_each(|window| judge(window, None));
        } else {
            short = Some(next);
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
    fn add(&mut self, input: &Input, mut window: Recorded<Sample>) {
        let before = std::mem::take(&mut self.services);
        let judgement = match window.sample.judged.take() {
            Some(mut known) => {
                known.retain(|finding| input.wants(finding));
                *known
            }
            None => {
                let (time, window_ns) = ((window.begin_us, window.end_us), window.sample.window_ns);
                let judged = judge(input, before, window.sample);
                self.services = judged.services.clone();
                Judgement::new(time, window_ns, judged)
            }
        };
        self.judgement.add(judgement);
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
        let window_ns = both.sample.window_ns;
        let judged = judge(input, before, both.sample);
        let alone = [first.findings, second].map(|part| alone(part, &judged.findings));
        let mut judgement = Judgement::new((both.begin_us, both.end_us), window_ns, judged);
        for (findings, time) in alone.into_iter().zip(times) {
            findings.into_iter().for_each(|finding| judgement.add_finding(finding, time));
        }
        self.judgement.add(judgement);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        recorder::time,
        tools::diagnose::{Code, HostPort, Severity},
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
}
