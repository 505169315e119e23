//! How samples are stored: compressed, each with an earlier sample of its part as the dictionary. Consecutive samples
//! mostly repeat each other, and a small one is little else than the names of its fields.

use std::{collections::HashMap, io};

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::Part;
use crate::limits;

/// Higher levels take several times as long for a tenth less.
const LEVEL: i32 = 3;

/// The dictionaries that this writer has stored, by part: those of an earlier writer are only read.
#[derive(Default)]
pub struct Packer(HashMap<i64, Dictionary>);

struct Dictionary {
    id: i64,
    /// The first window that uses it.
    window: i64,
    /// The beginning of a sample.
    text: String,
    /// The length of the whole sample.
    length: usize,
}

impl Dictionary {
    /// Whether it serves a sample: a much larger one has fields that it lacks.
    fn serves(&self, window: i64, length: usize) -> bool {
        (self.window..self.window + limits::RECORDING_DICTIONARY_WINDOWS).contains(&window)
            && (length <= 2 * self.length || self.text.len() < self.length)
    }
}

impl Packer {
    /// Stores the samples of a window. If the transaction fails, begin again with a new packer.
    pub fn insert(&mut self, tx: &Transaction, window: i64, parts: &[Part]) -> rusqlite::Result<()> {
        for part in parts {
            let id = part_id(tx, part)?;
            let served = self.0.get(&id).is_some_and(|known| known.serves(window, part.sample.len()));
            if !served {
                self.0.insert(id, new_dictionary(tx, window, &part.sample)?);
            }
            let dictionary = &self.0[&id];
            add(tx, (window, id), Some(dictionary.id), &dictionary.text, &part.sample)?;
        }
        Ok(())
    }
}

/// Stores the samples of a window without dictionaries, which do not last as long as merged windows.
pub fn insert_alone(tx: &Transaction, window: i64, parts: &[Part]) -> rusqlite::Result<()> {
    parts.iter().try_for_each(|part| add(tx, (window, part_id(tx, part)?), None, "", &part.sample))
}

/// Stores the sums of an hour.
pub fn insert_sums(tx: &Transaction, hour: i64, parts: &[Part]) -> rusqlite::Result<()> {
    parts.iter().try_for_each(|part| {
        let packed = pack("", &part.sample)?;
        let sum = params![hour, part_id(tx, part)?, part.sample.len() as i64, packed];
        tx.execute("INSERT INTO sums VALUES (?1, ?2, ?3, ?4)", sum).map(drop)
    })
}

/// Compresses a sample.
fn pack(dictionary: &str, sample: &str) -> rusqlite::Result<Vec<u8>> {
    zstd::bulk::Compressor::with_dictionary(LEVEL, dictionary.as_bytes())
        .and_then(|mut compressor| compressor.compress(sample.as_bytes()))
        .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

fn add(
    tx: &Transaction,
    (window, part): (i64, i64),
    id: Option<i64>,
    dictionary: &str,
    sample: &str,
) -> rusqlite::Result<()> {
    let packed = pack(dictionary, sample)?;
    let mut add = tx.prepare_cached("INSERT INTO samples VALUES (?1, ?2, ?3, ?4, ?5)")?;
    add.execute(params![window, part, id, sample.len() as i64, packed]).map(drop)
}

fn part_id(tx: &Transaction, part: &Part) -> rusqlite::Result<i64> {
    let mut find = tx.prepare_cached("SELECT id FROM parts WHERE part = ?1 AND tool = ?2")?;
    if let Some(id) = find.query_row([&part.part, &part.tool], |row| row.get(0)).optional()? {
        return Ok(id);
    }
    tx.execute("INSERT INTO parts (part, tool) VALUES (?1, ?2)", [&part.part, &part.tool])?;
    Ok(tx.last_insert_rowid())
}

fn new_dictionary(tx: &Transaction, window: i64, sample: &str) -> rusqlite::Result<Dictionary> {
    let end = (0..=limits::RECORDING_DICTIONARY_BYTES.min(sample.len())).rev().find(|at| sample.is_char_boundary(*at));
    let text = sample[..end.unwrap_or(0)].to_owned();
    tx.execute("INSERT INTO dictionaries (window, text) VALUES (?1, ?2)", params![window, text])?;
    Ok(Dictionary { id: tx.last_insert_rowid(), window, text, length: sample.len() })
}

/// Removes the dictionaries that no window uses any more.
pub fn remove_unused(tx: &Transaction) -> rusqlite::Result<()> {
    tx.execute(
        "DELETE FROM dictionaries WHERE window + ?1 <= (SELECT min(id) FROM windows WHERE merged = 0)",
        [limits::RECORDING_DICTIONARY_WINDOWS],
    )
    .map(drop)
}

/// The samples of a window (`?1`): of one part (`?2`), or of all.
pub const SAMPLES: &str = "SELECT part, tool, bytes, sample, text FROM samples JOIN parts ON parts.id = samples.part_id \
    LEFT JOIN dictionaries ON dictionaries.id = samples.dictionary WHERE samples.window = ?1 AND part = coalesce(?2, part)";

/// The sum of a part (`?2`) in an hour (`?1`).
pub const SUMS: &str =
    "SELECT part, tool, bytes, sample, NULL FROM sums JOIN parts ON parts.id = part_id WHERE hour = ?1 AND part = ?2";

/// A row of [`SAMPLES`] or [`SUMS`].
pub struct Packed {
    part: String,
    tool: String,
    bytes: i64,
    sample: Vec<u8>,
    dictionary: Option<String>,
}

impl Packed {
    pub fn of(row: &Row) -> rusqlite::Result<Packed> {
        Ok(Packed {
            part: row.get(0)?,
            tool: row.get(1)?,
            bytes: row.get(2)?,
            sample: row.get(3)?,
            dictionary: row.get(4)?,
        })
    }

    /// The sample as it was; why it cannot be read otherwise.
    pub fn unpack(self) -> Result<Part, String> {
        let length = usize::try_from(self.bytes).ok().filter(|length| *length <= limits::ANSWER_BYTES);
        let length = length.ok_or_else(|| format!("a sample of {} bytes", self.bytes))?;
        let dictionary = self.dictionary.unwrap_or_default();
        let unpacked: io::Result<Vec<u8>> = zstd::bulk::Decompressor::with_dictionary(dictionary.as_bytes())
            .and_then(|mut decompressor| decompressor.decompress(&self.sample, length));
        let sample = unpacked.map_err(|e| e.to_string())?;
        Ok(Part { part: self.part, tool: self.tool, sample: String::from_utf8(sample).map_err(|e| e.to_string())? })
    }
}
