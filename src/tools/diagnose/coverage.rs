//! The completeness of the evidence: the answers, and their gaps.

use std::collections::BTreeSet;

use super::{finding::Code, questions::Asked, rules};
use crate::answer::{self, Measured};

/// The gaps of an answer that a check needs.
pub fn incomplete(measured: &Measured) -> Vec<String> {
    let lost = (measured.lost_events, "event was lost", "events were lost");
    let cut = (measured.rows_cut, "row was cut", "rows were cut");
    let counted = [lost, cut].into_iter().filter(|(count, ..)| *count > 0);
    let blind = measured.limits.iter().filter(|limit| limit.code.blinds());
    let blind = blind.map(|limit| limit.text.trim_end_matches('.').to_owned());
    counted.map(|(n, one, more)| answer::count(n, one, more)).chain(blind).collect()
}

/// Between the reason and the names of the skipped checks.
pub const SKIPPED: &str = "; skipped checks: ";

/// A gap in few words: no more than three of its skipped checks by name.
pub fn brief(spot: &str) -> String {
    const NAMED: usize = 3;
    let Some((reason, codes)) = spot.split_once(SKIPPED) else { return spot.into() };
    let codes: Vec<_> = codes.split(", ").collect();
    match codes.len().saturating_sub(NAMED) {
        0 => spot.into(),
        more => format!("{reason}{SKIPPED}{} and {more} more", codes[..NAMED].join(", ")),
    }
}

/// Makes every gap brief: whether that changed any.
pub fn shorten(spots: &mut [String]) -> bool {
    let before: usize = spots.iter().map(String::len).sum();
    spots.iter_mut().for_each(|spot| *spot = brief(spot));
    spots.iter().map(String::len).sum::<usize>() < before
}

/// A line for each tool and reason, with the skipped checks.
pub fn not_judged(missing: Vec<(&Asked, String)>) -> Vec<String> {
    let mut lines = Vec::<(&str, String, BTreeSet<Code>)>::new();
    for (asked, reason) in missing {
        let codes = rules::decided_by(asked.name);
        match lines.iter_mut().find(|(tool, same, _)| *tool == asked.tool && *same == reason) {
            Some((_, _, known)) => known.extend(codes),
            None => lines.push((asked.tool, reason, codes.collect())),
        }
    }
    let line = |(tool, reason, codes): (&str, String, BTreeSet<Code>)| {
        let codes: Vec<_> = codes.iter().map(Code::to_string).collect();
        format!("{tool}: {reason}{SKIPPED}{}", codes.join(", "))
    };
    lines.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        answer::{self as limitation, Limitation},
        tools::diagnose::asked::ASKED,
    };

    fn asked(name: &str) -> &'static Asked {
        ASKED.iter().find(|asked| asked.name == name).unwrap()
    }

    #[test]
    fn blinding_limit_makes_an_answer_incomplete() {
        let with = |code| {
            incomplete(&Measured { limits: vec![Limitation::new(code, "Half is missing.")], ..Measured::default() })
        };
        assert_eq!(with(limitation::Code::OtherNamespacesNotSeen), ["Half is missing"]);
        assert!(with(limitation::Code::DeniedConnectsNotSeen).is_empty());
    }

    #[test]
    fn lost_events_and_cut_rows_make_an_answer_incomplete() {
        let said = |lost_events, rows_cut| incomplete(&Measured { lost_events, rows_cut, ..Measured::default() });
        assert!(said(0, 0).is_empty());
        assert_eq!(said(1, 20), ["1 event was lost", "20 rows were cut"]);
    }

    #[test]
    fn brief_gap_names_three_checks() {
        let of = |codes: &str| brief(&format!("trace_dns: lost{SKIPPED}{codes}"));
        assert_eq!(of("a, b, c"), format!("trace_dns: lost{SKIPPED}a, b, c"));
        assert_eq!(of("a, b, c, d, e"), format!("trace_dns: lost{SKIPPED}a, b, c and 2 more"));
        assert_eq!(brief("trace_dns: a, b, c, d"), "trace_dns: a, b, c, d");
    }

    #[test]
    fn skipped_checks_are_grouped_by_tool_and_reason() {
        let why = || "it was left out".to_owned();
        let lines = not_judged(vec![
            (asked("sockets"), why()),
            (asked("tcp"), why()),
            (asked("dns"), "1 event was lost".into()),
        ]);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("snapshot_sockets: it was left out; skipped checks: "), "{lines:?}");
        assert!(lines[0].contains("listen_queue_overflow") && lines[0].contains("sender_limited"), "{lines:?}");
        let (begin, end) = ("trace_dns: 1 event was lost; skipped checks: ", ", dns_unanswered, dns_failure, dns_slow");
        assert!(lines[1].starts_with(begin) && lines[1].ends_with(end), "{lines:?}");
    }
}
