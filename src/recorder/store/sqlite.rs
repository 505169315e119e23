//! A recording in one file of SQLite, which `sqlite3` and DuckDB read as well.

use std::{
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, Transaction, params};
use rustix::fs::{FlockOperation, flock};

use super::{
    Entry, Facts, Figure, Gap, Hour, Incident, Kind, Minute, Part, Recording, Span, Trouble,
    error::{io_trouble, trouble},
    hours::{self, SummedHour},
    packing::{self, Packed, Packer},
};
use crate::{
    limits,
    recorder::time::{MINUTE, Micros, Period},
    sandbox::folder_of,
};

/// `PRAGMA user_version`: raised with every change that an older release would misread.
const SCHEMA: i64 = 1;
/// `PRAGMA application_id`: "nmrc", by which file(1) can tell it.
const APPLICATION: i64 = 0x6e6d_7263;

/// How much a recording may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of the file, with its journal.
    pub bytes: u64,
    pub age: Duration,
    /// Windows that are older are merged to a minute.
    pub whole: Duration,
}

/// The file.
pub struct Sqlite {
    pub(super) path: PathBuf,
    pub(super) db: Connection,
    pub(super) bounds: Bounds,
    pub(super) packer: Packer,
    pub(super) summing: Option<SummedHour>,
    /// The file was damaged and has another name now; there is no new one yet.
    pub(super) is_aside: bool,
    /// The writer's lock.
    lock: Option<File>,
}

/// The files of a recording: itself, its journal, and the journal's index.
pub fn connections_of(path: &Path) -> [PathBuf; 3] {
    ["", "-wal", "-shm"].map(|suffix| with_suffix(path, suffix))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

impl Sqlite {
    /// Opens the file to write, or makes it. A damaged one is set aside, under the name with `.corrupt` behind it.
    pub fn write(path: &Path, bounds: Bounds, interval: Duration, now: Micros) -> Result<Self, Trouble> {
        let lock = lock(path)?;
        Sqlite::write_locked(path, bounds, interval, now, lock)
    }

    fn write_locked(path: &Path, bounds: Bounds, interval: Duration, now: Micros, lock: File) -> Result<Self, Trouble> {
        let mut sqlite = match Sqlite::open_to_write(path, bounds) {
            Err(e) if e.kind == Kind::Corrupt => {
                set_aside(path)?;
                tracing::warn!("{e}. It was renamed to {}, and a new recording begins", aside(path).display());
                Sqlite::open_to_write(path, bounds)?
            }
            opened => opened?,
        };
        let interval_ms = interval.as_millis() as i64;
        sqlite.run(|tx| {
            tx.execute(
                "INSERT INTO meta SELECT ?1, ?2, ?2, ?3, 0 WHERE NOT EXISTS (SELECT 1 FROM meta)",
                params![SCHEMA, now, interval_ms],
            )?;
            tx.execute("UPDATE meta SET interval_ms = ?1", [interval_ms]).map(drop)
        })?;
        sqlite.lock = Some(lock);
        Ok(sqlite)
    }

    /// Sets a file aside that turned out to be damaged, and begins a new one. Until that has worked nothing can be
    /// written; another try leaves what was set aside alone.
    pub fn begin_again(&mut self, interval: Duration, now: Micros) -> Result<(), Trouble> {
        if !self.is_aside {
            set_aside(&self.path)?;
            self.is_aside = true;
            tracing::warn!(
                "{} is damaged. It was renamed to {}, and a new recording begins",
                self.path.display(),
                aside(&self.path).display()
            );
        }
        let lock = match &self.lock {
            Some(lock) => lock.try_clone().map_err(|e| io_trouble(&self.path, &e))?,
            None => lock(&self.path)?,
        };
        *self = Sqlite::write_locked(&self.path, self.bounds, interval, now, lock)?;
        Ok(())
    }

    fn open_to_write(path: &Path, bounds: Bounds) -> Result<Self, Trouble> {
        let of = |e: rusqlite::Error| trouble(path, &e);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags).map_err(of)?;
        let sqlite = Sqlite::over(path, db, bounds);
        sqlite.check_schema()?;
        sqlite.keep_journal();
        sqlite.db.pragma_update(None, "journal_mode", "WAL").map_err(of)?;
        // FULL: what was written is there after the power has failed.
        for (name, value) in [("synchronous", "FULL"), ("foreign_keys", "ON"), ("temp_store", "MEMORY")] {
            sqlite.db.pragma_update(None, name, value).map_err(of)?;
        }
        for (name, value) in [
            ("cache_size", -1_024), // KiB
            ("wal_autocheckpoint", 256),
            ("journal_size_limit", 2 << 20),
            ("application_id", APPLICATION),
        ] {
            sqlite.db.pragma_update(None, name, value).map_err(of)?;
        }
        sqlite.db.busy_timeout(limits::RECORDING_WAIT).map_err(of)?;
        if sqlite.version()? == 0 {
            let make = format!("BEGIN; {} PRAGMA user_version = {SCHEMA}; COMMIT;", include_str!("schema.sql"));
            sqlite.db.execute_batch(&make).map_err(of)?;
        }
        sqlite.db.execute_batch(hours::TABLES).map_err(of)?;
        sqlite.check_content()?;
        Ok(sqlite)
    }

    fn over(path: &Path, db: Connection, bounds: Bounds) -> Self {
        Sqlite { path: path.into(), db, bounds, packer: Packer::default(), summing: None, is_aside: false, lock: None }
    }

    /// Opens the file to read, beside its writer: all that it reads is of one moment.
    pub fn read(path: &Path) -> Result<Self, Trouble> {
        Sqlite::open_to_read(path).map_err(|trouble| match trouble.kind {
            Kind::Denied => Trouble { kind: Kind::Unreadable, ..trouble },
            _ => trouble,
        })
    }

    fn open_to_read(path: &Path) -> Result<Self, Trouble> {
        let of = |e: rusqlite::Error| trouble(path, &e);
        std::fs::metadata(path).map_err(|e| io_trouble(path, &e))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        // A copy of the file alone has no journal, and a read-only directory cannot have one: then there is no writer.
        let alone = !with_suffix(path, "-wal").exists();
        let uri = format!("file:{}?{}", escaped(path), if alone { "immutable=1" } else { "mode=ro" });
        let db = Connection::open_with_flags(uri, flags).map_err(of)?;
        db.busy_timeout(limits::RECORDING_WAIT).map_err(of)?;
        db.pragma_update(None, "cache_size", -1_024).map_err(of)?;
        let sqlite = Sqlite::over(path, db, Bounds { bytes: u64::MAX, age: Duration::MAX, whole: Duration::MAX });
        sqlite.check_schema()?;
        if sqlite.version()? == 0 {
            return Err(Trouble { kind: Kind::Corrupt, path: path.into(), reason: "it is empty".into() });
        }
        sqlite.of(sqlite.db.execute_batch("BEGIN"))?;
        Ok(sqlite)
    }

    fn version(&self) -> Result<i64, Trouble> {
        self.of(self.db.pragma_query_value(None, "user_version", |row| row.get(0)))
    }

    fn check_schema(&self) -> Result<(), Trouble> {
        let version = self.version()?;
        let tables: i64 = self.of(self.db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)))?;
        let wrong = |kind, reason| Err(Trouble { kind, path: self.path.clone(), reason });
        match version {
            0 if tables > 0 => wrong(Kind::Corrupt, "it is another database".into()),
            0..=SCHEMA => Ok(()),
            newer => wrong(Kind::Newer, format!("its schema version is {newer}, expected at most {SCHEMA}")),
        }
    }

    /// Looks for damage: of a small file everywhere, of a large one, where that takes seconds, in the newest rows.
    fn check_content(&self) -> Result<(), Trouble> {
        const SMALL: u64 = 64 << 20;
        if self.bytes() < SMALL {
            let said: String = self.of(self.db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)))?;
            if said != "ok" {
                return Err(Trouble { kind: Kind::Corrupt, path: self.path.clone(), reason: said });
            }
        }
        let newest = "SELECT length(sample) + length(part) FROM samples JOIN parts ON parts.id = samples.part_id \
            LEFT JOIN dictionaries ON dictionaries.id = dictionary WHERE samples.window = (SELECT max(id) FROM windows)";
        let mut rows = self.of(self.db.prepare(newest))?;
        let lengths = self.of(rows.query_map([], |row| row.get::<_, i64>(0)))?;
        self.of(lengths.collect::<Result<Vec<_>, _>>()).map(drop)
    }

    /// Keeps the journal when the last connection ends: a reader without write access to the directory could not create
    /// it, and could not read.
    fn keep_journal(&self) {
        let mut on: std::ffi::c_int = 1;
        // SAFETY: the connection is open, the name of the schema ends with 0, and the call reads and writes one int.
        unsafe {
            rusqlite::ffi::sqlite3_file_control(
                self.db.handle(),
                c"main".as_ptr(),
                rusqlite::ffi::SQLITE_FCNTL_PERSIST_WAL,
                (&raw mut on).cast(),
            );
        }
    }

    pub(super) fn of<T>(&self, result: rusqlite::Result<T>) -> Result<T, Trouble> {
        result.map_err(|e| trouble(&self.path, &e))
    }

    /// Does all of it or nothing.
    pub(super) fn run<T>(&mut self, work: impl FnOnce(&Transaction) -> rusqlite::Result<T>) -> Result<T, Trouble> {
        let done = self.db.transaction().and_then(|tx| {
            let value = work(&tx)?;
            tx.commit()?;
            Ok(value)
        });
        done.map_err(|e| trouble(&self.path, &e))
    }

    /// What the files take on disk.
    pub(super) fn bytes(&self) -> u64 {
        let lengths = connections_of(&self.path).map(|path| std::fs::metadata(path).map_or(0, |file| file.len()));
        lengths.iter().sum()
    }
}

fn lock(path: &Path) -> Result<File, Trouble> {
    let name = with_suffix(path, "-lock");
    let file = File::options().create(true).truncate(false).write(true).open(&name).map_err(|e| {
        let absent = e.kind() == std::io::ErrorKind::NotFound;
        let folder = folder_of(path).display();
        let reason = if absent { format!("directory {folder} does not exist") } else { e.to_string() };
        let kind = if absent { Kind::Denied } else { io_trouble(path, &e).kind };
        Trouble { kind, path: path.into(), reason }
    })?;
    flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive).map_err(|e| Trouble {
        kind: Kind::InUse,
        path: path.into(),
        reason: e.to_string(),
    })?;
    Ok(file)
}

fn aside(path: &Path) -> PathBuf {
    with_suffix(path, ".corrupt")
}

/// One damaged recording is kept: the last.
fn set_aside(path: &Path) -> Result<(), Trouble> {
    for (from, suffix) in connections_of(path).iter().zip(["", "-wal", "-shm"]) {
        match std::fs::rename(from, with_suffix(&aside(path), suffix)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io_trouble(path, &e)),
            _ => {}
        }
    }
    Ok(())
}

/// A path in a URI: what has a meaning there is escaped.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23")
}

/// Adds one window.
pub(super) fn insert(tx: &Transaction, packer: &mut Packer, entry: &Entry) -> rusqlite::Result<()> {
    let Entry { gap, window, figures } = entry;
    if let Some(Gap { period, reason }) = gap {
        tx.execute("INSERT INTO gaps VALUES (?1, ?2, ?3)", params![period.begin_us, period.end_us, reason])?;
    }
    tx.execute(
        "INSERT INTO windows (begin_us, end_us, length_us, boot, host, version, merged) VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0)",
        params![window.begin_us, window.end_us, window.length_us, window.boot, window.host, window.version],
    )?;
    packer.insert(tx, tx.last_insert_rowid(), &window.parts)?;
    let mut add = tx.prepare_cached(
        "INSERT INTO series VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET value = value + ?4, count = count + ?5",
    )?;
    let minute_us = (window.end_us - 1).div_euclid(MINUTE) * MINUTE;
    for Figure { subject, name, value, count } in figures {
        add.execute(params![minute_us, subject, name, value, count])?;
    }
    tx.execute("UPDATE meta SET written_us = ?1", [window.end_us]).map(drop)
}

impl Recording for Sqlite {
    fn facts(&self) -> Result<Facts, Trouble> {
        let windows =
            self.of(self.db.query_row("SELECT min(begin_us), max(end_us), count(*) FROM windows", [], |row| {
                Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?, row.get(2)?))
            }))?;
        let meta = self.of(self.db.query_row("SELECT written_us, interval_ms, lost_windows FROM meta", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        }))?;
        let period = windows.0.zip(windows.1).map(|(begin_us, end_us)| Period { begin_us, end_us });
        let (written_us, interval_ms, lost_windows) = meta;
        Ok(Facts { period, written_us, interval_ms, windows: windows.2, bytes: self.bytes(), lost_windows })
    }

    fn spans(&self, period: Period) -> Result<Vec<Span>, Trouble> {
        let span = |row: &rusqlite::Row| {
            let (period, length_us) = (Period { begin_us: row.get(1)?, end_us: row.get(2)? }, row.get(3)?);
            Ok(Span { id: row.get(0)?, period, length_us, boot: row.get(4)?, host: row.get(5)?, version: row.get(6)? })
        };
        self.rows(
            "SELECT id, begin_us, end_us, length_us, boot, host, version FROM windows WHERE end_us > ?1 AND begin_us < ?2 ORDER BY id",
            period,
            span,
        )
    }

    fn parts(&self, window: i64, part: Option<&str>) -> Result<Vec<Part>, Trouble> {
        let mut rows = self.of(self.db.prepare_cached(packing::SAMPLES))?;
        let found = self.of(rows.query_map(params![window, part], Packed::of))?;
        let unpack = |row: rusqlite::Result<Packed>| {
            let corrupt = |reason| Trouble { kind: Kind::Corrupt, path: self.path.clone(), reason };
            self.of(row)?.unpack().map_err(corrupt)
        };
        found.map(unpack).collect()
    }

    fn hours(&self, part: &str, period: Period) -> Result<Vec<Hour>, Trouble> {
        self.hours_of(part, period)
    }

    fn sum(&self, hour: i64, part: &str) -> Result<Option<String>, Trouble> {
        self.sum_of(hour, part)
    }

    fn gaps(&self, period: Period) -> Result<Vec<Gap>, Trouble> {
        let gap = |row: &rusqlite::Row| {
            Ok(Gap { period: Period { begin_us: row.get(0)?, end_us: row.get(1)? }, reason: row.get(2)? })
        };
        self.rows(
            "SELECT begin_us, end_us, reason FROM gaps WHERE end_us > ?1 AND begin_us < ?2 ORDER BY 1",
            period,
            gap,
        )
    }

    fn incidents(&self, period: Period) -> Result<Vec<Incident>, Trouble> {
        let columns = super::upkeep::INCIDENT;
        let sql = format!("SELECT {columns} FROM findings WHERE end_us > ?1 AND begin_us < ?2 ORDER BY end_us DESC");
        self.rows(&sql, period, super::upkeep::incident)
    }

    fn revision(&self) -> Result<(i64, i64), Trouble> {
        let newest = "SELECT coalesce(max(id), 0), coalesce(sum(closed), 0) FROM findings";
        self.of(self.db.query_row(newest, [], |row| Ok((row.get(0)?, row.get(1)?))))
    }

    fn series(&self, period: Period) -> Result<Vec<Minute>, Trouble> {
        self.rows(
            "SELECT minute_us, subject, name, value, count FROM series WHERE minute_us + 60000000 > ?1 AND minute_us < ?2",
            period,
            minute,
        )
    }

    fn buckets(&self, period: Period, step_us: Micros) -> Result<Vec<Minute>, Trouble> {
        let step = step_us.max(MINUTE);
        let sql = format!(
            "SELECT minute_us / {step} * {step} AS at, subject, \
             CASE WHEN subject IN ('drops', 'failures') THEN '' ELSE name END AS what, sum(value), sum(count) FROM series \
             WHERE minute_us + 60000000 > ?1 AND minute_us < ?2 AND (subject IN ('drops', 'failures', 'rtt') \
             OR subject = 'traffic' AND name GLOB 'process:*') GROUP BY at, subject, what"
        );
        self.rows(&sql, period, minute)
    }
}

fn minute(row: &rusqlite::Row) -> rusqlite::Result<Minute> {
    let figure = Figure { subject: row.get(1)?, name: row.get(2)?, value: row.get(3)?, count: row.get(4)? };
    Ok(Minute { minute_us: row.get(0)?, figure })
}

impl Sqlite {
    fn rows<T>(
        &self,
        sql: &str,
        period: Period,
        row: impl FnMut(&rusqlite::Row) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Trouble> {
        let mut rows = self.of(self.db.prepare_cached(sql))?;
        let found = self.of(rows.query_map(params![period.begin_us, period.end_us], row))?;
        self.of(found.collect())
    }
}
