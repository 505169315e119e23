use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;

use super::*;
use crate::recorder::time::{HOUR, MINUTE, SECOND};

mod hours;
mod recordings;

use recordings::*;

fn file() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("recording.sqlite");
    (folder, path)
}

/// Both samples, concatenated.
fn join(windows: Vec<Vec<Part>>) -> Result<Vec<Part>, String> {
    let sample = windows.iter().flatten().map(|part| part.sample.as_str()).collect::<Vec<_>>().join("+");
    Ok(vec![Part { part: "dns".into(), tool: "trace_dns".into(), sample }])
}

#[test]
fn recording_is_readable_during_and_after_writing() {
    let (_folder, path) = file();
    assert_eq!(Sqlite::read(&path).err().unwrap().kind, Kind::Absent);
    let mut store = open(&path, bounds()).unwrap();
    let period = Period { begin_us: BEGIN - HOUR, end_us: BEGIN };
    let gap = Gap { period, reason: "netmond was unavailable".into() };
    store.append(&[Entry { gap: Some(gap.clone()), ..entry(0, "a") }, entry(1, "b")], &mut []).unwrap();
    for reader in [Sqlite::read(&path).unwrap(), {
        drop(store);
        Sqlite::read(&path).unwrap()
    }] {
        assert_eq!(samples(&reader), ["a", "b"]);
        assert_eq!(reader.gaps(all()).unwrap(), std::slice::from_ref(&gap));
        let minutes = reader.series(all()).unwrap();
        assert_eq!((minutes.len(), minutes[0].minute_us, minutes[0].figure.value), (1, BEGIN, 10.0));
        let facts = reader.facts().unwrap();
        assert_eq!(facts.period, Some(Period { begin_us: BEGIN, end_us: BEGIN + 20 * SECOND }));
        assert_eq!((facts.windows, facts.interval_ms, facts.lost_windows), (2, 10_000, 0));
        let second = Period { begin_us: BEGIN + 10 * SECOND, end_us: BEGIN + 11 * SECOND };
        assert_eq!(reader.spans(second).unwrap().len(), 1, "only the window that the period is in");
    }
}

#[test]
fn question_reads_one_moment_of_the_file() {
    let (_folder, path) = file();
    let mut store = open(&path, bounds()).unwrap();
    store.append(&[entry(0, "a")], &mut []).unwrap();
    let question = Sqlite::read(&path).unwrap();
    assert_eq!(samples(&question), ["a"]);
    store.append(&[entry(1, "b")], &mut []).unwrap();
    assert_eq!(samples(&question), ["a"]);
    assert_eq!(samples(&Sqlite::read(&path).unwrap()), ["a", "b"]);
}

#[test]
fn copied_file_is_readable_in_a_read_only_folder() {
    let (_folder, path) = file();
    let mut store = open(&path, bounds()).unwrap();
    store.append(&[entry(0, "a")], &mut []).unwrap();
    drop(store);
    let copy = TempDir::new().unwrap();
    let copied = copy.path().join("copy #1?.sqlite");
    fs::copy(&path, &copied).unwrap();
    fs::set_permissions(copy.path(), std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
    assert_eq!(samples(&Sqlite::read(&copied).unwrap()), ["a"]);
    assert_eq!(fs::read_dir(copy.path()).unwrap().count(), 1, "nothing was written beside it");
}

/// A power failure can leave any earlier state of the disk: a copy of all files after each write is consistent and
/// complete.
#[test]
fn copy_after_any_write_is_consistent() {
    let (_folder, path) = file();
    let mut store = open(&path, bounds()).unwrap();
    let target = TempDir::new().unwrap();
    for n in 0..40 {
        let begun = incident(&n.to_string());
        store.append(&[entry(n, &noise(n as u64, 20_000))], &mut [begun]).unwrap();
        let copy = target.path().join("copy.sqlite");
        for (from, to) in connections_of(&path).iter().zip(connections_of(&copy)) {
            fs::copy(from, to).unwrap();
        }
        fs::remove_file(&connections_of(&copy)[2]).unwrap(); // the index is in memory, and does not survive
        let again = open(&copy, bounds()).unwrap();
        assert_eq!(samples(&again).len(), n as usize + 1);
        assert_eq!(again.incidents(all()).unwrap().len(), n as usize + 1, "a window has its incidents");
    }
}

/// A truncated write leaves the committed data before it.
#[test]
fn truncated_journal_loses_only_the_last_window() {
    let (_folder, path) = file();
    let mut store = open(&path, bounds()).unwrap();
    store.append(&[entry(0, "a")], &mut []).unwrap();
    let before = fs::metadata(&connections_of(&path)[1]).unwrap().len();
    store.append(&[entry(1, &noise(1, 30_000))], &mut []).unwrap();
    let journal = fs::read(&connections_of(&path)[1]).unwrap();
    let target = TempDir::new().unwrap();
    for cut in (before as usize..journal.len()).step_by(3_001) {
        let copy = target.path().join(format!("{cut}.sqlite"));
        fs::copy(&path, &copy).unwrap();
        fs::write(&connections_of(&copy)[1], &journal[..cut]).unwrap();
        assert_eq!(samples(&open(&copy, bounds()).unwrap()), ["a"], "cut at {cut}");
    }
}

#[test]
fn oldest_windows_are_deleted_at_the_size_limit() {
    let (_folder, path) = file();
    let small = Bounds { bytes: 8 << 20, ..bounds() };
    let mut store = open(&path, small).unwrap();
    for n in 0..300 {
        store.append(&[entry(n, &noise(n as u64, 60_000))], &mut []).unwrap();
        store.keep_bounds(BEGIN, &join).unwrap();
    }
    let facts = store.facts().unwrap();
    assert!(facts.bytes <= small.bytes, "{} bytes", facts.bytes);
    assert!((50..200).contains(&facts.windows), "{} windows", facts.windows);
    let newest = store.spans(all()).unwrap().last().unwrap().period.end_us;
    assert_eq!(newest, BEGIN + 300 * 10 * SECOND);
    let first = facts.period.unwrap().begin_us;
    assert!(store.series(all()).unwrap()[0].minute_us >= first - MINUTE, "figures go with their windows");
}

#[test]
fn windows_beyond_the_age_limit_are_deleted() {
    let (_folder, path) = file();
    let mut store = open(&path, Bounds { age: std::time::Duration::from_secs(60), ..bounds() }).unwrap();
    store.append(&[entry(0, "old"), entry(9, "new")], &mut []).unwrap();
    store.keep_bounds(BEGIN + 120 * SECOND, &join).unwrap();
    assert_eq!(samples(&store), ["new"]);
}

#[test]
fn day_old_windows_merge_per_minute_except_over_gaps() {
    let (_folder, path) = file();
    let mut store = open(&path, bounds()).unwrap();
    let windows = [0, 1, 2, 4, 5, 6].map(|n| entry(n, &n.to_string()));
    store.append(&windows, &mut []).unwrap();
    for _ in 0..4 {
        store.keep_bounds(BEGIN + 25 * HOUR, &join).unwrap();
    }
    assert_eq!(samples(&store), ["0+1+2", "4+5", "6"]);
    let spans = store.spans(all()).unwrap();
    assert_eq!(spans[0].period, Period { begin_us: BEGIN, end_us: BEGIN + 30 * SECOND });
    assert_eq!(spans[0].length_us, 30 * SECOND);
    let merge: Merge = &|_| Err("no".into());
    store.append(&[entry(7, "7"), entry(8, "8")], &mut []).unwrap();
    store.keep_bounds(BEGIN + 25 * HOUR, merge).unwrap();
    assert_eq!(samples(&store)[3..], ["7", "8"], "what cannot be merged stays");
}

/// As the recorder does it: after each window.
#[test]
fn windows_that_grow_old_one_by_one_merge_per_minute() {
    let (_folder, path) = file();
    let mut store = open(&path, bounds()).unwrap();
    for n in 0..24 {
        let entry = entry(n, &n.to_string());
        let end_us = entry.window.end_us;
        store.append(&[entry], &mut []).unwrap();
        store.keep_bounds(end_us + 24 * HOUR - 60 * SECOND, &join).unwrap();
    }
    let expected = ["0+1+2+3+4+5", "6+7+8+9+10+11", "12+13+14+15+16+17", "18", "19", "20", "21", "22", "23"];
    assert_eq!(samples(&store), expected);
}

#[test]
fn unreadable_window_stops_neither_merging_nor_deleting() {
    let (_folder, path) = file();
    let mut store = open(&path, bounds()).unwrap();
    store.append(&(0..18).map(|n| entry(n, &n.to_string())).collect::<Vec<_>>(), &mut []).unwrap();
    store.db.execute("UPDATE samples SET sample = x'00' WHERE window = 2", []).unwrap();
    (0..3).for_each(|_| store.keep_bounds(BEGIN + 25 * HOUR, &join).unwrap());
    store.db.execute("DELETE FROM samples WHERE window = 2", []).unwrap();
    assert_eq!(samples(&store), ["0", "2", "3", "4", "5", "6+7+8+9+10+11", "12+13+14+15+16+17"]);
}

/// What a tool sees of a host where little changes.
fn idle(n: i64) -> String {
    let counters = "\"rx_errors\":0,\"rx_dropped\":0,\"tx_errors\":0,\"tx_dropped\":0,\"collisions\":0";
    format!(
        "{{\"interfaces\":[{{\"name\":\"eth0\",\"rx_bytes\":{},{counters}}}],\"window_ns\":{}}}",
        n * 7_919,
        n * 104_729
    )
}

fn count(store: &Sqlite, table: &str) -> i64 {
    store.db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

#[test]
fn samples_that_resemble_each_other_take_little_room() {
    let (_folder, path) = file();
    let mut store = open(&path, bounds()).unwrap();
    let written: Vec<_> = (0..100).map(idle).collect();
    store
        .append(&written.iter().enumerate().map(|(n, sample)| entry(n as i64, sample)).collect::<Vec<_>>(), &mut [])
        .unwrap();
    assert_eq!(samples(&store), written);
    let longest: i64 = store.db.query_row("SELECT max(length(sample)) FROM samples", [], |row| row.get(0)).unwrap();
    assert!(longest <= 48, "{longest} bytes of {}", written[99].len());
    store.append(&[entry(100, &idle(100).repeat(3))], &mut []).unwrap();
    assert_eq!(count(&store, "dictionaries"), 2, "a much larger sample has other fields");
}

#[test]
fn dictionaries_last_as_long_as_their_windows() {
    let (_folder, path) = file();
    let mut store = open(&path, Bounds { whole: std::time::Duration::from_secs(4_000), ..bounds() }).unwrap();
    let written: Vec<_> = (0..900).map(idle).collect();
    store
        .append(&written.iter().enumerate().map(|(n, sample)| entry(n as i64, sample)).collect::<Vec<_>>(), &mut [])
        .unwrap();
    assert_eq!(count(&store, "dictionaries"), 3);
    let last: Merge = &|windows| Ok(windows.into_iter().next_back().unwrap());
    let never: Merge = &|_| Err("no".into());
    for minute in 0..150 {
        store.keep_bounds(BEGIN + 9_000 * SECOND, if minute % 2 == 0 { last } else { never }).unwrap();
    }
    let expected: Vec<_> = (0..900).filter(|n| *n >= 500 || n / 6 % 2 == 1 || n % 6 == 5).collect();
    assert_eq!(samples(&store), expected.iter().map(|n| written[*n].clone()).collect::<Vec<_>>());
    assert_eq!(count(&store, "dictionaries"), 2, "merged windows need none");
    store.keep_bounds(BEGIN + 365 * 24 * HOUR, last).unwrap();
    store.append(&[entry(0, "after a year")], &mut []).unwrap();
    assert_eq!(samples(&store), ["after a year"]);
}

#[test]
fn window_that_could_not_be_written_leaves_no_dictionary_to_refer_to() {
    let (_folder, path) = file();
    let mut store = open(&path, bounds()).unwrap();
    let limit = |store: &Sqlite, pages: i64| store.db.pragma_update(None, "max_page_count", pages).unwrap();
    limit(&store, 30);
    let full = store.append(&[entry(0, "a"), entry(1, &noise(1, 200_000))], &mut [incident("i")]).unwrap_err();
    assert_eq!((full.kind, store.incidents(all()).unwrap()), (Kind::Full, vec![]));
    limit(&store, 1_000);
    store.append(&[entry(0, "a"), entry(1, "b")], &mut []).unwrap();
    assert_eq!(samples(&store), ["a", "b"]);
}

fn incident(identity: &str) -> Incident {
    Incident {
        id: None,
        identity: identity.into(),
        code: "dns_slow".into(),
        severity: "warning".into(),
        begin_us: BEGIN,
        end_us: BEGIN + SECOND,
        closed: false,
        windows: 1,
        host: "h".into(),
        finding: "{}".into(),
    }
}

#[test]
fn incident_is_inserted_once_and_updated() {
    let (_folder, path) = file();
    let mut store = open(&path, bounds()).unwrap();
    let mut both = [incident("i"), incident("j")];
    store.append(&[], &mut both).unwrap();
    both[0].closed = true;
    both[0].end_us += SECOND;
    both[1].identity = "with its program".into();
    store.append(&[], &mut both).unwrap();
    assert_eq!(store.open_incidents().unwrap(), [both[1].clone()]);
    assert_eq!(store.incidents(all()).unwrap(), both);
}

#[test]
fn file_of_a_newer_release_is_left_unchanged() {
    let (_folder, path) = file();
    drop(open(&path, bounds()).unwrap());
    let db = rusqlite::Connection::open(&path).unwrap();
    db.pragma_update(None, "user_version", 2).unwrap();
    drop(db);
    for trouble in [open(&path, bounds()).err().unwrap(), Sqlite::read(&path).err().unwrap()] {
        assert_eq!(trouble.kind, Kind::Newer);
        assert!(trouble.to_string().contains("its schema version is 2, expected at most 1"), "{trouble}");
    }
}

#[test]
fn damaged_file_is_set_aside_and_recording_restarts() {
    let (folder, path) = file();
    let damage: [&dyn Fn(&Path); 5] = [
        &|path| fs::write(path, "this is no database, whatever its name says, and long enough").unwrap(),
        &|path| {
            // In the middle of a page of samples.
            let file = fs::File::options().write(true).open(path).unwrap();
            file.write_all_at(&[0xff; 4_096], 20 * 4_096).unwrap();
        },
        &|path| fs::File::options().write(true).open(path).unwrap().set_len(10 * 4_096).unwrap(),
        &|path| {
            fs::remove_file(path).unwrap();
            let db = rusqlite::Connection::open(path).unwrap();
            db.execute_batch("CREATE TABLE of_somebody_else (x)").unwrap();
        },
        &|path| rusqlite::Connection::open(path).unwrap().execute_batch("DROP TABLE dictionaries").unwrap(),
    ];
    for damage in damage {
        let mut store = open(&path, bounds()).unwrap();
        store.append(&(0..20).map(|n| entry(n, &noise(n as u64, 9_000))).collect::<Vec<_>>(), &mut []).unwrap();
        drop(store);
        fs::remove_file(&connections_of(&path)[1]).unwrap();
        damage(&path);
        let mut store = open(&path, bounds()).unwrap();
        assert_eq!(samples(&store).len(), 0, "it begins anew");
        assert!(folder.path().join("recording.sqlite.corrupt").exists());
        store.append(&[entry(0, "a")], &mut []).unwrap();
        drop(store);
        for file in connections_of(&path) {
            let _ = fs::remove_file(file);
        }
    }
}

/// The disk may be full at that moment.
#[test]
fn what_was_set_aside_stays_when_a_new_file_cannot_begin_at_once() {
    let (folder, path) = file();
    let mut store = open(&path, bounds()).unwrap();
    store.append(&[entry(0, "before")], &mut []).unwrap();
    let again = |store: &mut Sqlite| store.begin_again(Duration::from_secs(10), BEGIN);
    let keep = |suffix: &str| folder.path().join(format!("recording.sqlite.corrupt{suffix}"));
    fs::create_dir(keep("")).unwrap(); // so that renaming fails
    again(&mut store).unwrap_err();
    fs::remove_dir(keep("")).unwrap();
    store.append(&[entry(1, "still the old one")], &mut []).unwrap();
    // A directory of its name stands for a disk on which it cannot be made.
    for (from, to) in connections_of(&path).iter().zip(connections_of(&keep(""))) {
        fs::rename(from, to).unwrap();
    }
    store.is_aside = true;
    fs::create_dir(&path).unwrap();
    for _ in 0..2 {
        again(&mut store).unwrap_err();
        assert_eq!(store.append(&[entry(2, "lost")], &mut []).unwrap_err().kind, Kind::Corrupt);
    }
    fs::remove_dir(&path).unwrap();
    again(&mut store).unwrap();
    store.append(&[entry(2, "new")], &mut []).unwrap();
    assert_eq!(samples(&store), ["new"]);
    assert_eq!(samples(&Sqlite::read(&keep("")).unwrap()), ["before", "still the old one"]);
    assert_eq!(open(&path, bounds()).err().unwrap().kind, Kind::InUse, "its lock is kept");
}

#[test]
fn second_recorder_is_refused() {
    let (_folder, path) = file();
    let _first = open(&path, bounds()).unwrap();
    assert_eq!(open(&path, bounds()).err().unwrap().kind, Kind::InUse);
}

#[test]
fn missing_folder_is_named_in_the_error() {
    let (folder, _) = file();
    let trouble = open(&folder.path().join("absent/recording.sqlite"), bounds()).err().unwrap();
    assert!(trouble.kind == Kind::Denied && trouble.to_string().contains("does not exist"), "{trouble}");
}

#[test]
fn clock_step_back_keeps_all_windows() {
    let (_folder, path) = file();
    let mut store = open(&path, bounds()).unwrap();
    let mut again = entry(0, "after");
    again.window.begin_us -= HOUR;
    again.window.end_us -= HOUR;
    store.append(&[entry(0, "before"), again], &mut []).unwrap();
    store.keep_bounds(BEGIN, &join).unwrap();
    assert_eq!(samples(&store), ["before", "after"], "in the order of writing");
}
