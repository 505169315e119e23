//! Sums of hours: a question about a day need not read all of its windows.

use rusqlite::{OptionalExtension, Row, params};

use super::{
    ADJACENT, Hour, Kind, Part, Recording, Sqlite, SumOf, Summing, Trouble,
    packing::{self, Packed},
};
use crate::{
    limits,
    recorder::time::{HOUR, Micros, Period},
};

/// Also in a file that an earlier release began.
pub const TABLES: &str = include_str!("hours.sql");

/// A window, without what was in it.
struct Place {
    id: i64,
    begin_us: Micros,
    end_us: Micros,
    length_us: Micros,
    /// Boot and release.
    of: (String, String),
}

impl Place {
    fn read(row: &Row) -> rusqlite::Result<Place> {
        let of = (row.get(4)?, row.get(5)?);
        Ok(Place { id: row.get(0)?, begin_us: row.get(1)?, end_us: row.get(2)?, length_us: row.get(3)?, of })
    }

    fn hour(&self) -> i64 {
        (self.end_us - 1).div_euclid(HOUR)
    }
}

/// An hour that is being summed up.
pub struct SummedHour {
    windows: Vec<Place>,
    sums: Vec<Part>,
    /// How many parts are done.
    done: usize,
}

impl Sqlite {
    /// Sums up the oldest windows that follow each other within one hour, and are not summed up, if that hour is over: one
    /// part at a time, since a reading may wait meanwhile.
    pub(super) fn sum_next(&mut self, summing: &Summing<'_>) -> Result<(), Trouble> {
        let mut hour = match self.summing.take() {
            Some(hour) => hour,
            None => SummedHour { windows: self.next_hour()?, sums: Vec::new(), done: 0 },
        };
        let Some((first, last)) = hour.windows.first().zip(hour.windows.last()) else { return Ok(()) };
        if let Some(part) = summing.parts.get(hour.done).filter(|_| hour.windows.len() > 1) {
            let sum = self.sum_part(&hour.windows, part, summing.sum);
            hour.sums.extend(sum);
            hour.done += 1;
            self.summing = Some(hour);
            return Ok(());
        }
        let length_us: Micros = hour.windows.iter().map(|window| window.length_us).sum();
        let row = params![first.id, last.id, first.begin_us, last.end_us, length_us, first.of.1];
        self.run(|tx| {
            tx.execute(
                "INSERT INTO hours (first, last, begin_us, end_us, length_us, version) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                row,
            )?;
            packing::insert_sums(tx, tx.last_insert_rowid(), &hour.sums)
        })
    }

    /// The sum of a part; none if a window lacks it.
    fn sum_part(&self, windows: &[Place], part: &str, sum: SumOf<'_>) -> Option<Part> {
        let (mut tool, mut read) = (None, 0);
        let mut samples = windows.iter().map_while(|window| {
            let parts = self.parts(window.id, Some(part)).map_err(|e| e.reason);
            let sample = parts.map(|parts| parts.into_iter().next()).transpose()?;
            read += 1;
            Some(sample.map(|part| {
                tool = Some(part.tool);
                part.sample
            }))
        });
        let first = samples.next()?;
        match sum(part, &mut std::iter::once(first).chain(samples)) {
            Ok(sample) if read == windows.len() && sample.len() <= limits::ANSWER_BYTES => {
                tool.map(|tool| Part { part: part.into(), tool, sample })
            }
            Ok(_) => None,
            Err(reason) => {
                tracing::warn!("summing up {part} of an hour of the recording failed: {reason}");
                None
            }
        }
    }

    /// The windows after the last sum, as long as they follow each other, if there is one of a later hour.
    fn next_hour(&self) -> Result<Vec<Place>, Trouble> {
        const COLUMNS: &str = "SELECT id, begin_us, end_us, length_us, boot, version FROM windows";
        let summed: i64 =
            self.of(self.db.query_row("SELECT coalesce(max(last), 0) FROM hours", [], |row| row.get(0)))?;
        let one = |order: &str| {
            let sql = format!("{COLUMNS} WHERE id > ?1 ORDER BY id {order} LIMIT 1");
            self.of(self.db.prepare_cached(&sql).and_then(|mut rows| rows.query_row([summed], Place::read).optional()))
        };
        let Some((first, newest)) = one("ASC")?.zip(one("DESC")?) else { return Ok(Vec::new()) };
        if (first.hour(), &first.of) == (newest.hour(), &newest.of) {
            return Ok(Vec::new());
        }
        let mut rows = self.of(self.db.prepare_cached(&format!("{COLUMNS} WHERE id > ?1 ORDER BY id LIMIT ?2")))?;
        let found = self.of(rows.query_map(params![summed, limits::RECORDING_HOUR], Place::read))?;
        let mut windows = Vec::<Place>::new();
        for window in found {
            let window = self.of(window)?;
            let follows = |last: &Place| (window.begin_us - last.end_us).abs() <= ADJACENT;
            if window.hour() != first.hour() || window.of != first.of || !windows.last().is_none_or(follows) {
                break;
            }
            windows.push(window);
        }
        Ok(windows)
    }

    /// The hours with a sum of a part that overlap a period, oldest first.
    pub(super) fn hours_of(&self, part: &str, period: Period) -> Result<Vec<Hour>, Trouble> {
        let known = "SELECT count(*) FROM sqlite_schema WHERE name = 'hours'";
        if self.of(self.db.query_row(known, [], |row| row.get::<_, i64>(0)))? == 0 {
            return Ok(Vec::new()); // an earlier release wrote it
        }
        let mut rows = self.of(self.db.prepare_cached(
            "SELECT hours.id, first, last, begin_us, end_us, length_us, version FROM hours JOIN sums ON hour = hours.id \
             JOIN parts ON parts.id = part_id WHERE part = ?1 AND end_us > ?2 AND begin_us < ?3 ORDER BY first",
        ))?;
        let hour = |row: &Row| {
            let period = Period { begin_us: row.get(3)?, end_us: row.get(4)? };
            let (length_us, version) = (row.get(5)?, row.get(6)?);
            Ok(Hour { id: row.get(0)?, first: row.get(1)?, last: row.get(2)?, period, length_us, version })
        };
        let found = self.of(rows.query_map(params![part, period.begin_us, period.end_us], hour))?;
        self.of(found.collect())
    }

    /// The sum of a part.
    pub(super) fn sum_of(&self, hour: i64, part: &str) -> Result<Option<String>, Trouble> {
        let mut rows = self.of(self.db.prepare_cached(packing::SUMS))?;
        let found = self.of(rows.query_row(params![hour, part], Packed::of).optional())?;
        let corrupt = |reason| Trouble { kind: Kind::Corrupt, path: self.path.clone(), reason };
        found.map(|packed| Ok(packed.unpack().map_err(corrupt)?.sample)).transpose()
    }
}
