use serde_json::{Value, json};

use super::*;

const AREA: Rect = Rect { x: 0, y: 0, width: 80, height: 24 };

fn screen(at_ms: i64, rows: &[(&str, u64)]) -> Screen {
    let row = |(process, bytes): &(&str, u64)| -> Value {
        json!({"owner": {"process": process, "pid": 7}, "rx_bytes": bytes, "tx_bytes": 0})
    };
    let mut screen = Screen { at_ms, state: State::Live, window_ms: 1_000.0, ..Screen::default() };
    screen.answers.insert("processes", json!({"rows": rows.iter().map(row).collect::<Vec<_>>()}));
    screen
}

/// The page of traffic.
fn view(rows: &[(&str, u64)]) -> View {
    let mut view = View::new(Clock::local());
    view.apply(Action::Page(1));
    view.update(Arc::new(screen(1_000, rows)));
    view.settle(AREA);
    view
}

fn selected(view: &View) -> String {
    let listing = view.listing(0, &view.screen);
    listing.rows[view.place(0).at].value["owner"]["process"].as_str().unwrap().to_owned()
}

#[test]
fn selection_follows_its_row() {
    let mut view = view(&[("a", 9), ("b", 5), ("c", 1)]);
    assert_eq!(selected(&view), "a");
    view.apply(Action::Move(1));
    assert_eq!(selected(&view), "b");
    view.update(Arc::new(screen(2_000, &[("b", 50), ("a", 9), ("c", 1)])));
    view.settle(AREA);
    assert_eq!((selected(&view), view.place(0).at), ("b".into(), 0));
    view.update(Arc::new(screen(3_000, &[("a", 9)])));
    view.settle(AREA);
    assert_eq!(selected(&view), "a", "its row is gone");
    view.apply(Action::Edge(1));
    view.apply(Action::Edge(-1));
    assert_eq!(selected(&view), "a");
}

#[test]
fn paused_view_keeps_its_screen() {
    let mut view = view(&[("a", 9)]);
    view.apply(Action::Pause);
    assert!(!view.update(Arc::new(screen(2_000, &[("b", 5)]))));
    assert_eq!(view.screen.at_ms, 1_000);
    view.apply(Action::Pause);
    assert_eq!(view.screen.at_ms, 2_000, "it goes on with the newest screen");
}

#[test]
fn details_keep_a_row_that_is_gone() {
    let mut view = view(&[("a", 9), ("b", 5)]);
    view.apply(Action::Open);
    view.update(Arc::new(screen(2_000, &[("b", 5), ("a", 90)])));
    let bytes = |view: &View| view.details.as_ref().map(|details| (details.row["rx_bytes"].clone(), details.gone));
    assert_eq!(bytes(&view), Some((json!(90), false)), "they follow the row");
    view.update(Arc::new(screen(3_000, &[("b", 5)])));
    assert_eq!(bytes(&view), Some((json!(90), true)));
}

#[test]
fn escape_goes_back_one_step_at_a_time() {
    let mut view = view(&[("a", 9), ("b", 5)]);
    view.apply(Action::Filter);
    view.apply(Action::Type('b'));
    view.apply(Action::Accept);
    view.settle(AREA);
    view.apply(Action::Open);
    assert_eq!(view.details.as_ref().map(|details| details.row["owner"]["process"].clone()), Some(json!("b")));
    view.apply(Action::Back);
    assert!(view.details.is_none() && view.filter == "b");
    view.apply(Action::Back);
    assert_eq!(view.filter, "");
}

#[test]
fn right_of_the_newest_window_is_now() {
    let mut view = view(&[("a", 9)]);
    assert_eq!(view.apply(Action::Scroll(1)), Effect::None, "now is the end");
    let back = Wanted::Step { from: 1_000_000, windows: -1 };
    assert_eq!(view.apply(Action::Scroll(-1)), Effect::Then(back));
    view.recall(back, screen(500, &[("z", 1)]));
    assert!(view.is_past && !view.update(Arc::new(screen(2_000, &[("a", 9)]))));
    let forward = Wanted::Step { from: 500_000, windows: 1 };
    assert_eq!(view.apply(Action::Scroll(1)), Effect::Then(forward));
    view.recall(forward, screen(500, &[("z", 1)]));
    assert!(!view.is_past && view.screen.at_ms == 2_000);
}

#[test]
fn time_that_cannot_be_read_is_explained() {
    let mut view = view(&[]);
    view.apply(Action::Time);
    view.apply(Action::Type('x'));
    assert_eq!(view.apply(Action::Accept), Effect::None);
    assert!(view.notice.as_ref().unwrap().contains("expected 03:12"), "{:?}", view.notice);
    view.apply(Action::Units);
    assert_eq!(view.notice, None);
}
