use serde_json::value::RawValue;

use super::{asked::ASKED, frames::Frames, *};
use crate::recorder::time::SECOND;

/// A sample of a real host: connects that failed, connections, drops, queries.
pub fn sample() -> Box<RawValue> {
    let seed = include_str!("../../../fuzz/seeds/reports/10-diagnose");
    let line = seed.lines().nth(2).unwrap();
    RawValue::from_string(line.to_owned()).unwrap()
}

#[test]
fn one_sample_answers_every_question() {
    let screen = Frames::default().add(&sample(), 1_800_000_000 * SECOND);
    assert_eq!((screen.state, screen.number, screen.at_ms), (State::Live, 1, 1_800_000_000_000), "{:?}", screen.reason);
    for asked in ASKED {
        let answered = screen.answer(asked.name)["measured"]["window_ms"].is_number();
        assert!(answered || screen.errors.contains_key(asked.name), "{}: {:#}", asked.name, screen.answer(asked.name));
    }
    assert!(screen.rows("processes", "rows").iter().any(|row| row["owner"]["process"] == "python3"));
    assert!(screen.findings.iter().any(|episode| episode.code == "connection_refused" && episode.active));
    let point = screen.point.as_ref().unwrap();
    assert!(point.failures > 0 && point.rx_bits_per_second > 0.0, "{point:?}");
    assert!(screen.json().len() < 100_000, "{}", screen.json().len());
}

#[test]
fn events_are_about_the_last_seconds_and_rates_about_one_reading() {
    let mut frames = Frames::default();
    let first = frames.add(&sample(), SECOND);
    let refused = |screen: &Screen| screen.answer("connections")["outcomes"]["refused"].as_u64().unwrap();
    let mut last = first.clone();
    for at in 2..4 {
        frames.due = None; // these samples come faster than those of a host
        last = frames.add(&sample(), at * SECOND);
    }
    assert_eq!(last.window_ms, first.window_ms);
    assert!((last.recent_ms - 3.0 * first.recent_ms).abs() < 1.0, "{} {}", last.recent_ms, first.recent_ms);
    assert!(refused(&last) >= refused(&first));
    assert_eq!(last.history.iter().map(|point| point.at_ms).collect::<Vec<_>>(), [1_000, 2_000, 3_000]);
}

#[test]
fn lost_daemon_keeps_the_last_screen() {
    let mut frames = Frames::default();
    let before = frames.add(&sample(), SECOND);
    let lost = frames.without(State::Lost, "netmond is not running".into());
    assert_eq!((lost.state, lost.number), (State::Lost, before.number + 1));
    assert_eq!((lost.at_ms, &lost.answers), (before.at_ms, &before.answers));
    assert_eq!(lost.reason.as_deref(), Some("netmond is not running"));
    // A sample that cannot be read is no reason to end.
    let broken = RawValue::from_string("{}".into()).unwrap();
    assert_eq!(frames.add(&broken, 2 * SECOND).state, State::Lost);
    assert_eq!(frames.add(&sample(), 3 * SECOND).state, State::Live);
}
