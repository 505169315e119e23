//! Which findings an answer shows, and how many there are.

use std::collections::BTreeMap;

use serde_json::Value;

use super::finding::{Code, Finding, Severity};

/// In a finding's evidence: how many of its code are not shown.
const MORE: &str = "more_findings_of_this_code";

/// Findings by severity.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Severities {
    pub critical: usize,
    pub warning: usize,
    pub info: usize,
}

impl Severities {
    pub fn of(findings: &[Finding]) -> Self {
        let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        Severities {
            critical: count(Severity::Critical),
            warning: count(Severity::Warning),
            info: count(Severity::Info),
        }
    }

    pub fn above_info(&self) -> usize {
        self.critical + self.warning
    }

    pub fn all(&self) -> usize {
        self.above_info() + self.info
    }
}

/// The first `limit` findings. Where there are more, one code takes at most half of the places as long as others need
/// them, so that one kind of trouble does not hide the others.
pub fn first(findings: Vec<Finding>, limit: usize) -> Vec<Finding> {
    let half = limit.div_ceil(2);
    let mut of_code = BTreeMap::<Code, usize>::new();
    let rank = |(place, finding): (usize, Finding)| {
        let count = of_code.entry(finding.code).or_default();
        *count += 1;
        (*count > half, place, finding)
    };
    let mut ranked: Vec<_> = findings.into_iter().enumerate().map(rank).collect();
    ranked.sort_by_key(|(waits, place, _)| (*waits, *place));
    let hidden = ranked.split_off(limit.min(ranked.len()));
    ranked.sort_by_key(|(_, place, _)| *place);
    let mut shown: Vec<_> = ranked.into_iter().map(|(_, _, finding)| finding).collect();
    hidden.iter().for_each(|(_, _, finding)| note(&mut shown, finding.code, 1));
    shown
}

/// Takes the last finding of the code that has most away, unless it is the only one: whether it did. So every code stays
/// as long as possible.
pub fn shorten(findings: &mut Vec<Finding>) -> bool {
    let count = |code| findings.iter().filter(|finding| finding.code == code).count();
    let most = findings.iter().enumerate().max_by_key(|(_, finding)| count(finding.code)).map(|(place, _)| place);
    let Some(place) = most.filter(|_| findings.len() >= 2) else { return false };
    let last = findings.remove(place);
    let more = last.evidence.get(MORE).and_then(Value::as_u64).unwrap_or_default();
    note(findings, last.code, 1 + more);
    true
}

/// Notes in the last finding of a code that so many more are not shown.
fn note(shown: &mut [Finding], code: Code, count: u64) {
    if let Some(last) = shown.iter_mut().rev().find(|finding| finding.code == code) {
        let more = last.evidence.get(MORE).and_then(Value::as_u64).unwrap_or_default();
        last.evidence.insert(MORE.into(), (more + count).into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(codes: &[(Code, usize)]) -> Vec<Finding> {
        let of = |(code, count): &(Code, usize)| vec![Finding::new(*code, Severity::Warning, "x"); *count];
        codes.iter().flat_map(of).collect()
    }

    fn codes(findings: &[Finding]) -> Vec<Code> {
        findings.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn all_findings_are_shown_within_the_limit() {
        let found = findings(&[(Code::NoRoute, 5), (Code::Resets, 1)]);
        let shown = first(found.clone(), 6);
        assert_eq!(codes(&shown), codes(&found));
        assert!(shown.iter().all(|finding| finding.evidence.is_empty()));
    }

    #[test]
    fn one_code_takes_at_most_half_of_the_rows() {
        let shown = first(findings(&[(Code::NoRoute, 9), (Code::Resets, 2)]), 4);
        assert_eq!(codes(&shown), [Code::NoRoute, Code::NoRoute, Code::Resets, Code::Resets]);
        assert_eq!((&shown[1].evidence[MORE], shown[3].evidence.get(MORE)), (&7.into(), None));
    }

    #[test]
    fn one_code_takes_unused_rows() {
        let shown = first(findings(&[(Code::NoRoute, 9), (Code::Resets, 1)]), 6);
        assert_eq!(codes(&shown), [vec![Code::NoRoute; 5], vec![Code::Resets]].concat());
        assert_eq!(shown[4].evidence[MORE], 4);
    }

    #[test]
    fn removed_finding_is_counted_with_its_code() {
        let mut shown = first(findings(&[(Code::NoRoute, 9)]), 3);
        assert!(shorten(&mut shown) && shorten(&mut shown) && !shorten(&mut shown));
        assert_eq!((shown.len(), &shown[0].evidence[MORE]), (1, &8.into()));
    }

    #[test]
    fn every_code_stays_as_long_as_possible() {
        let mut shown = findings(&[(Code::NoRoute, 3), (Code::Resets, 1)]);
        assert!(shorten(&mut shown) && shorten(&mut shown));
        assert_eq!(codes(&shown), [Code::NoRoute, Code::Resets]);
        assert_eq!(shown[0].evidence[MORE], 2);
    }

    #[test]
    fn severities_count_every_finding() {
        let mut found = findings(&[(Code::NoRoute, 2), (Code::Resets, 1)]);
        found[0].severity = Severity::Critical;
        found[2].severity = Severity::Info;
        let severities = Severities::of(&found);
        assert_eq!(severities, Severities { critical: 1, warning: 1, info: 1 });
        assert_eq!((severities.above_info(), severities.all()), (2, 3));
    }
}
