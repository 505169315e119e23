//! The writer's upkeep of a recording: adds windows, merges old ones, and deletes the oldest.

use rusqlite::{Row, Transaction, params};

use super::{
    ADJACENT, Entry, Incident, Kind, Merge, Part, Recording, Sqlite, Store, Summing, Trouble, packing, sqlite::insert,
};
use crate::{
    limits,
    recorder::time::{MINUTE, Micros, micros},
};

/// The columns of an incident, in the order of [`incident`].
pub const INCIDENT: &str = "id, identity, code, severity, begin_us, end_us, closed, windows, host, finding";

pub fn incident(row: &Row) -> rusqlite::Result<Incident> {
    Ok(Incident {
        id: row.get(0)?,
        identity: row.get(1)?,
        code: row.get(2)?,
        severity: row.get(3)?,
        begin_us: row.get(4)?,
        end_us: row.get(5)?,
        closed: row.get(6)?,
        windows: row.get(7)?,
        host: row.get(8)?,
        finding: row.get(9)?,
    })
}

impl Store for Sqlite {
    fn append(&mut self, entries: &[Entry], incidents: &mut [Incident]) -> Result<(), Trouble> {
        if self.is_aside {
            return Err(Trouble { kind: Kind::Corrupt, path: self.path.clone(), reason: "it was set aside".into() });
        }
        let mut packer = std::mem::take(&mut self.packer);
        let ids = self.run(|tx| {
            entries.iter().try_for_each(|entry| insert(tx, &mut packer, entry))?;
            incidents.iter().map(|incident| write(tx, incident)).collect::<rusqlite::Result<Vec<_>>>()
        })?;
        self.packer = packer;
        for (incident, id) in incidents.iter_mut().zip(ids) {
            incident.id = Some(id);
        }
        Ok(())
    }

    fn open_incidents(&mut self) -> Result<Vec<Incident>, Trouble> {
        let mut rows = self.of(self.db.prepare(&format!("SELECT {INCIDENT} FROM findings WHERE closed = 0")))?;
        let found = self.of(rows.query_map([], incident))?;
        self.of(found.collect())
    }

    fn lost(&mut self, windows: u64) -> Result<(), Trouble> {
        self.run(|tx| tx.execute("UPDATE meta SET lost_windows = lost_windows + ?1", [windows as i64]).map(drop))
    }

    fn keep_bounds(&mut self, now: Micros, merge: Merge<'_>) -> Result<(), Trouble> {
        // Whole minutes: otherwise each window would be merged with itself as soon as it is old enough.
        let whole = now.saturating_sub(micros(self.bounds.whole)).div_euclid(MINUTE) * MINUTE;
        self.merge_a_minute(whole, merge)?;
        let oldest = now.saturating_sub(micros(self.bounds.age));
        self.run(|tx| {
            remove(tx, "end_us < ?1", oldest)?;
            packing::remove_unused(tx)
        })?;
        for _ in 0..limits::RECORDING_REMOVALS {
            if self.used()? <= self.bounds.bytes {
                break;
            }
            let batch = limits::RECORDING_BATCH;
            let until = "SELECT max(end_us) FROM (SELECT end_us FROM windows ORDER BY end_us LIMIT ?1)";
            let until: Option<Micros> = self.of(self.db.query_row(until, [batch], |row| row.get(0)))?;
            let Some(until) = until else { break };
            self.run(|tx| remove(tx, "end_us <= ?1", until))?;
        }
        Ok(())
    }

    fn sum_up(&mut self, summing: &Summing<'_>) -> Result<(), Trouble> {
        self.sum_next(summing)
    }
}

fn write(tx: &Transaction, incident: &Incident) -> rusqlite::Result<i64> {
    let Incident { id, identity, code, severity, begin_us, end_us, closed, windows, host, finding } = incident;
    tx.execute(
        &format!(
            "INSERT INTO findings ({INCIDENT}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT (id) DO UPDATE SET \
             identity = ?2, severity = ?4, end_us = ?6, closed = ?7, windows = ?8, finding = ?10"
        ),
        params![id, identity, code, severity, begin_us, end_us, closed, windows, host, finding],
    )?;
    Ok(id.unwrap_or_else(|| tx.last_insert_rowid()))
}

/// Removes everything that ended by then; an incident that is open stays.
fn remove(tx: &Transaction, ended: &str, until: Micros) -> rusqlite::Result<()> {
    for table in ["windows", "hours", "gaps"] {
        tx.execute(&format!("DELETE FROM {table} WHERE {ended}"), [until])?;
    }
    tx.execute(&format!("DELETE FROM findings WHERE closed = 1 AND {ended}"), [until])?;
    tx.execute("DELETE FROM series WHERE minute_us + ?2 <= ?1", params![until, MINUTE]).map(drop)
}

impl Sqlite {
    /// What is in use of the file; pages of what was removed are free, and are used again.
    fn used(&self) -> Result<u64, Trouble> {
        let pragma = |name| self.of(self.db.pragma_query_value(None, name, |row| row.get::<_, i64>(0)));
        let pages = pragma("page_count")? - pragma("freelist_count")?;
        Ok((pages * pragma("page_size")?).unsigned_abs() + JOURNAL)
    }

    /// Merges the readings of the oldest minute that is not merged, if they are older than this.
    fn merge_a_minute(&mut self, before: Micros, merge: Merge<'_>) -> Result<(), Trouble> {
        let windows = self.minute_before(before)?;
        let Some(((first, ..), (_, end_us, _))) = windows.first().zip(windows.last()) else { return Ok(()) };
        let (first, end_us) = (*first, *end_us);
        let length_us: Micros = windows.iter().map(|(_, _, length)| length).sum();
        let ids: Vec<i64> = windows.iter().map(|(id, ..)| *id).collect();
        if windows.len() > 1 {
            let parts: Result<_, _> = ids.iter().map(|id| self.parts(*id, None)).collect();
            match parts.map_err(|e: Trouble| e.reason).and_then(merge) {
                Ok(parts) => return self.run(|tx| put_merged(tx, &ids, &parts, (first, end_us, length_us))),
                Err(reason) => tracing::warn!("merging a minute of the recording failed: {reason}"),
            }
        }
        for id in &ids {
            let parts = self.parts(*id, None);
            self.run(|tx| {
                // One that cannot be read stays as it is: those after it are merged all the same.
                parts.map_or(Ok(()), |parts| put_alone(tx, *id, &parts))?;
                tx.execute("UPDATE windows SET merged = 1 WHERE id = ?1", [id]).map(drop)
            })?;
        }
        Ok(())
    }

    /// The windows of one minute, of one boot and one release, without a gap between them: id, end and length.
    fn minute_before(&self, before: Micros) -> Result<Vec<(i64, Micros, Micros)>, Trouble> {
        let mut rows = self.of(self.db.prepare_cached(
            "SELECT id, begin_us, end_us, length_us, boot || version FROM windows WHERE merged = 0 AND end_us <= ?1 ORDER BY id LIMIT ?2",
        ))?;
        let row = |row: &Row| {
            let (id, begin, end, length, of): (i64, Micros, Micros, Micros, String) =
                (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
            Ok((id, begin, end, length, of))
        };
        let found = self.of(rows.query_map(params![before, limits::RECORDING_MINUTE], row))?;
        let mut minute = Vec::<(i64, Micros, Micros)>::new();
        let mut origin: Option<(Micros, String)> = None;
        for row in found {
            let (id, begin, end, length, of) = self.of(row)?;
            let (number, known) = origin.get_or_insert_with(|| ((end - 1).div_euclid(MINUTE), of.clone()));
            let adjacent = minute.last().is_none_or(|(_, last, _)| (begin - last).abs() <= ADJACENT);
            if *number != (end - 1).div_euclid(MINUTE) || *known != of || !adjacent {
                break;
            }
            minute.push((id, end, length));
        }
        Ok(minute)
    }
}

/// What the journal may take beside the file.
const JOURNAL: u64 = 4 << 20;

fn put_merged(
    tx: &Transaction,
    ids: &[i64],
    parts: &[Part],
    (first, end_us, length_us): (i64, Micros, Micros),
) -> rusqlite::Result<()> {
    for id in ids.iter().filter(|id| **id != first) {
        tx.execute("DELETE FROM windows WHERE id = ?1", [id])?;
    }
    tx.execute(
        "UPDATE windows SET end_us = ?2, length_us = ?3, merged = 1 WHERE id = ?1",
        params![first, end_us, length_us],
    )?;
    put_alone(tx, first, parts)
}

/// Replaces the samples of a window by some without dictionaries.
fn put_alone(tx: &Transaction, window: i64, parts: &[Part]) -> rusqlite::Result<()> {
    tx.execute("DELETE FROM samples WHERE window = ?1", [window])?;
    packing::insert_alone(tx, window, parts)
}
