//! The recording on a disk that is full, and on one that is read-only.

use std::{fs, io::Write, process::Command};

use netmon_mcp::recorder::{
    store::{Bounds, Entry, Figure, Kind, Part, Recording, Sqlite, Store, Trouble, Window},
    time::{Micros, Period, SECOND},
};
use tempfile::TempDir;

#[allow(dead_code)] // a part of it is used
#[path = "../../src/recorder/store/tests/recordings.rs"]
mod recordings;

use recordings::*;

/// A separate file system, removed when dropped.
struct Mounted(TempDir);

impl Mounted {
    fn tmpfs(options: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder.path()).status().unwrap();
        assert!(status.success(), "this test needs root: it mounts a file system");
        Mounted(folder)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy"]).arg(self.0.path()).status();
    }
}

#[test]
fn full_disk_keeps_written_windows_and_recording_resumes() {
    let disk = Mounted::tmpfs("size=2m");
    let path = disk.0.path().join("recording.sqlite");
    let mut store = open(&path, bounds()).unwrap();
    let mut n = 0;
    let trouble = loop {
        match store.append(&[entry(n, &noise(n as u64, 50_000))], &mut []) {
            Ok(()) => n += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(trouble.kind, Kind::Full, "{trouble:?}");
    assert!(trouble.to_string().contains("no space left to write"), "{trouble}");
    assert!(n > 3 && samples(&store).len() == n as usize, "{n} windows were written");
    let mut filler = fs::File::create(disk.0.path().join("filler")).unwrap();
    let _ = filler.write_all(&[0; 4 << 20]); // until it is full
    assert!(store.append(&[entry(n, &noise(n as u64, 50_000))], &mut []).is_err());
    assert_eq!(samples(&Sqlite::read(&path).unwrap()).len(), n as usize);
    drop(filler);
    fs::remove_file(disk.0.path().join("filler")).unwrap();
    let status = Command::new("mount").args(["-o", "remount,size=8m"]).arg(disk.0.path()).status().unwrap();
    assert!(status.success());
    store.append(&[entry(n, "there is room")], &mut []).unwrap();
    assert_eq!(samples(&store).last().unwrap(), "there is room");
}

#[test]
fn read_only_disk_is_named_and_still_readable() {
    let disk = Mounted::tmpfs("size=8m");
    let path = disk.0.path().join("recording.sqlite");
    let mut store = open(&path, bounds()).unwrap();
    store.append(&[entry(0, "a")], &mut []).unwrap();
    drop(store);
    let remount = |options| Command::new("mount").args(["-o", options]).arg(disk.0.path()).status().unwrap();
    assert!(remount("remount,ro").success());
    let trouble = open(&path, bounds()).err().unwrap();
    assert!(trouble.kind == Kind::Denied && trouble.to_string().contains("cannot open"), "{trouble}");
    assert_eq!(samples(&Sqlite::read(&path).unwrap()), ["a"]);
    assert!(remount("remount,rw").success());
    open(&path, bounds()).unwrap().append(&[entry(1, "b")], &mut []).unwrap();
}
