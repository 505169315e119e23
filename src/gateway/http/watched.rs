//! Files that may change while we serve.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::sync::lock;

/// A file that we read again when it changes.
pub struct Watched {
    pub path: PathBuf,
    seen: Mutex<Seen>,
}

/// The file's state at the last check.
#[derive(PartialEq, Clone, Copy)]
enum Seen {
    /// Nobody has looked, or somebody asked for another look.
    Nothing,
    /// No file, or a directory that cannot be searched.
    Absent,
    /// A write changes the times or the size, a rename the inode, a change of its mode the second time.
    File { inode: u64, size: u64, times: [i64; 4] },
}

/// The kernel stamps writes with its tick: two writes closer than this may have one time.
const STAMP_GRAIN: Duration = Duration::from_millis(20);

impl Watched {
    pub fn new(path: PathBuf) -> Self {
        Watched { path, seen: Mutex::new(Seen::Nothing) }
    }

    /// Whether the file differs from the one at the last call, or may differ. A file that has disappeared
    /// has changed.
    pub fn changed(&self) -> bool {
        let meta = fs::metadata(&self.path).ok();
        let now = meta.as_ref().map_or(Seen::Absent, |meta| Seen::File {
            inode: meta.ino(),
            size: meta.size(),
            times: [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()],
        });
        let before = std::mem::replace(&mut *lock(&self.seen), now);
        before != now || meta.is_some_and(|meta| is_recent(&meta))
    }

    /// Makes the next [`Watched::changed`] true.
    pub fn forget(&self) {
        *lock(&self.seen) = Seen::Nothing;
    }
}

fn is_recent(meta: &Metadata) -> bool {
    let nanoseconds = u32::try_from(meta.ctime_nsec()).unwrap_or_default();
    let changed = UNIX_EPOCH + Duration::new(meta.ctime().try_into().unwrap_or_default(), nanoseconds);
    SystemTime::now().duration_since(changed).is_ok_and(|age| age < STAMP_GRAIN)
}

/// The text of a small file, with its permission bits: both are of the same file, whatever is renamed meanwhile.
pub fn read(path: &Path, bytes: u64) -> io::Result<(String, u32)> {
    let wrong = |e: io::Error| io::Error::other(format!("{}: {e}", path.display()));
    let file = File::open(path).map_err(wrong)?;
    let mode = file.metadata().map_err(wrong)?.mode();
    let mut text = String::new();
    let read = file.take(bytes + 1).read_to_string(&mut text).map_err(wrong)?;
    if read as u64 > bytes {
        return Err(io::Error::other(format!("{}: file too long: at most {bytes} bytes", path.display())));
    }
    Ok((text, mode & 0o7777))
}

/// Refuses a secret that every user of this host may read or change.
pub fn keeps_a_secret(path: &Path, mode: u32) -> io::Result<()> {
    if mode & 0o007 == 0 {
        return Ok(());
    }
    let path = path.display();
    Err(io::Error::other(format!(
        "{path}: every user can read or change this secret (mode {mode:04o}); run `chmod o= {path}`"
    )))
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    #[test]
    fn write_rename_and_removal_are_detected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = Watched::new(path.clone());
        assert!(file.changed() && !file.changed(), "absent, and still absent");
        for act in [&|| fs::write(&path, "a").unwrap() as _, &|| fs::write(&path, "b").unwrap() as _, &|| {
            fs::remove_file(&path).unwrap() as _
        }] as [&dyn Fn(); 3]
        {
            act();
            assert!(file.changed());
            sleep(STAMP_GRAIN * 2);
            file.changed();
            assert!(!file.changed(), "it is as it was");
        }
        file.forget();
        assert!(file.changed());
    }

    #[test]
    fn secret_file_mode_excludes_other_users() {
        let path = Path::new("/etc/x");
        assert!(keeps_a_secret(path, 0o640).is_ok());
        for mode in [0o644, 0o602, 0o601] {
            assert!(keeps_a_secret(path, mode).unwrap_err().to_string().contains("chmod o= /etc/x"));
        }
    }
}
