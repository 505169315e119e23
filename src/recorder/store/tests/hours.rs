//! Sums of hours.

use super::*;

fn concatenate(_: &str, samples: &mut Stored<'_>) -> Result<String, String> {
    samples.collect::<Result<Vec<_>, _>>().map(|samples| samples.join("+"))
}

const SUMMING: Summing = Summing { parts: &["dns", "traffic"], sum: &concatenate };

/// The n-th window of 10 minutes.
fn window(n: i64) -> Entry {
    let mut entry = entry(n, &n.to_string());
    (entry.window.begin_us, entry.window.end_us) = (BEGIN + n * 10 * MINUTE, BEGIN + (n + 1) * 10 * MINUTE);
    entry.window.length_us = 10 * MINUTE;
    entry
}

fn sums(store: &Sqlite, part: &str) -> Vec<String> {
    let hours = store.hours(part, all()).unwrap();
    hours.iter().map(|hour| store.sum(hour.id, part).unwrap().unwrap()).collect()
}

fn sum_up(store: &mut Sqlite, times: usize) {
    // Two parts, and the writing.
    (0..3 * times).for_each(|_| store.sum_up(&SUMMING).unwrap());
}

#[test]
fn hours_are_summed_up_when_they_are_over() {
    let (_folder, path) = file();
    let mut store = open(&path, bounds()).unwrap();
    assert_eq!(BEGIN % HOUR, 0);
    for n in 0..6 {
        store.append(&[window(n)], &mut []).unwrap();
        sum_up(&mut store, 2);
    }
    assert_eq!(sums(&store, "dns"), [""; 0], "the hour is not over for certain");
    store.append(&[window(6)], &mut []).unwrap();
    sum_up(&mut store, 2);
    assert_eq!(sums(&store, "dns"), ["0+1+2+3+4+5"]);
    assert_eq!(sums(&store, "traffic"), [""; 0], "no window has it");
    let hour = store.hours("dns", all()).unwrap().pop().unwrap();
    assert_eq!((hour.first, hour.last, hour.length_us), (1, 6, HOUR));
    assert_eq!(hour.period, Period { begin_us: BEGIN, end_us: BEGIN + HOUR });
    store.append(&(7..20).map(window).collect::<Vec<_>>(), &mut []).unwrap();
    sum_up(&mut store, 5);
    let second = Period { begin_us: BEGIN + 90 * MINUTE, end_us: BEGIN + 91 * MINUTE };
    assert_eq!(store.hours("dns", second).unwrap().len(), 1);
    assert_eq!(sums(&store, "dns"), ["0+1+2+3+4+5", "6+7+8+9+10+11", "12+13+14+15+16+17"]);
    store.keep_bounds(BEGIN + 30 * 24 * HOUR + 2 * HOUR, &join).unwrap();
    assert_eq!(sums(&store, "dns").len(), 2, "they go with their windows");
    drop(store);
    let mut again = open(&path, bounds()).unwrap();
    again.append(&[window(24)], &mut []).unwrap();
    sum_up(&mut again, 2);
    assert_eq!(sums(&again, "dns")[2..], ["18+19"]);
}

#[test]
fn gap_another_boot_or_an_unreadable_window_ends_a_sum() {
    let (_folder, path) = file();
    let mut store = open(&path, bounds()).unwrap();
    let mut windows: Vec<_> = [0, 1, 3, 4, 5, 6, 7, 12, 13, 14, 18].map(window).into();
    windows[4].window.boot = "c".into();
    windows[6].window.parts.clear();
    store.append(&windows, &mut []).unwrap();
    store.db.execute("UPDATE samples SET sample = x'00' WHERE window = 9", []).unwrap();
    sum_up(&mut store, 9);
    assert_eq!(sums(&store, "dns"), ["0+1", "3+4"]);
    assert_eq!(count(&store, "hours"), 5);
}

#[test]
fn recording_of_an_earlier_release_gets_its_sums() {
    let (_folder, path) = file();
    let mut store = open(&path, bounds()).unwrap();
    store.append(&(0..7).map(window).collect::<Vec<_>>(), &mut []).unwrap();
    store.db.execute_batch("DROP TABLE sums; DROP TABLE hours;").unwrap();
    drop(store);
    assert_eq!(Sqlite::read(&path).unwrap().hours("dns", all()).unwrap(), []);
    let mut store = open(&path, bounds()).unwrap();
    sum_up(&mut store, 1);
    assert_eq!(sums(&Sqlite::read(&path).unwrap(), "dns"), ["0+1+2+3+4+5"]);
}
