//! Tables that are printed again and again: which rows are new since the last reading, and where the others stay.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// A row stays where it was while its rank changes by at most so many places: neighbours of one size would change places in
/// every reading.
const STAYS: usize = 2;

/// The tables that are followed; none unless the command line watches.
static FOLLOWED: Mutex<Option<Followed>> = Mutex::new(None);

/// The keys of the rows of each table, by its header.
type Rows = HashMap<String, Vec<String>>;

/// What was printed.
#[derive(Default)]
struct Followed {
    /// The reading before; none at the beginning.
    before: Option<Rows>,
    now: Rows,
}

/// A row, and whether the last reading did not have it.
pub struct Marked<R> {
    pub row: R,
    pub is_new: bool,
}

/// Begins to follow, or ends.
pub fn follow(is_wanted: bool) {
    *FOLLOWED.lock().unwrap_or_else(PoisonError::into_inner) = is_wanted.then(Followed::default);
}

/// Says that a reading was printed. Tables from now on are of the next one.
pub fn next_reading() {
    if let Some(followed) = &mut *FOLLOWED.lock().unwrap_or_else(PoisonError::into_inner) {
        followed.before = Some(std::mem::take(&mut followed.now));
    }
}

/// The rows of a table in their places, with marks; as they are if nobody follows.
pub fn placed<R>(table: &str, rows: Vec<R>, key: impl Fn(&R) -> String) -> Result<Vec<Marked<R>>, Vec<R>> {
    match &mut *FOLLOWED.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(followed) => Ok(followed.place(table, rows, key)),
        None => Err(rows),
    }
}

impl Followed {
    fn place<R>(&mut self, table: &str, rows: Vec<R>, key: impl Fn(&R) -> String) -> Vec<Marked<R>> {
        let mut counts = HashMap::<String, usize>::new();
        let distinct = |row: R| {
            let key = key(&row);
            let count = counts.entry(key.clone()).or_default();
            *count += 1;
            (format!("{key}\0{count}"), row)
        };
        let rows: Vec<(String, R)> = rows.into_iter().map(distinct).collect();
        let before = self.before.as_ref().map(|before| before.get(table).map_or(&[][..], Vec::as_slice));
        let placed = arrange(before, rows);
        self.now.insert(table.to_owned(), placed.iter().map(|(key, _)| key.clone()).collect());
        placed.into_iter().map(|(_, marked)| marked).collect()
    }
}

fn arrange<R>(before: Option<&[String]>, rows: Vec<(String, R)>) -> Vec<(String, Marked<R>)> {
    let is_known = |key: &String| before.is_some_and(|before| before.contains(key));
    // Ranks among the rows of both readings: what came or went does not move the others.
    let both = |keys: Vec<&String>| -> HashMap<String, usize> {
        keys.into_iter().enumerate().map(|(rank, key)| (key.clone(), rank)).collect()
    };
    let now = both(rows.iter().map(|(key, _)| key).filter(|key| is_known(key)).collect());
    let earlier = both(before.unwrap_or_default().iter().filter(|key| now.contains_key(*key)).collect());
    let mut last = 0;
    let mut placed: Vec<_> = rows
        .into_iter()
        .map(|(key, row)| {
            let is_new = before.is_some() && !is_known(&key);
            let rank = match (now.get(&key), earlier.get(&key)) {
                (Some(now), Some(earlier)) if now.abs_diff(*earlier) <= STAYS => *earlier,
                (Some(now), _) => *now,
                (None, _) => last, // beside the row that it follows
            };
            last = rank;
            (rank, (key, Marked { row, is_new }))
        })
        .collect();
    placed.sort_by_key(|(rank, _)| *rank);
    placed.into_iter().map(|(_, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows as they are printed: `+` is before a new one.
    fn reading(followed: &mut Followed, rows: &str) -> String {
        let placed = followed.place("t", rows.split(' ').collect(), |row| (*row).to_owned());
        let shown: Vec<String> =
            placed.iter().map(|marked| format!("{}{}", if marked.is_new { "+" } else { "" }, marked.row)).collect();
        followed.before = Some(std::mem::take(&mut followed.now));
        shown.join(" ")
    }

    #[test]
    fn new_rows_are_marked_once() {
        let mut followed = Followed::default();
        assert_eq!(reading(&mut followed, "a b"), "a b", "there is no reading before the first one");
        assert_eq!(reading(&mut followed, "a c b"), "a +c b");
        assert_eq!(reading(&mut followed, "a c b"), "a c b");
        assert_eq!(reading(&mut followed, "a a b"), "a +a b", "equal rows are counted");
    }

    #[test]
    fn rows_stay_until_their_rank_changes_much() {
        let mut followed = Followed::default();
        reading(&mut followed, "a b c d e");
        assert_eq!(reading(&mut followed, "b a d c e"), "a b c d e", "neighbours do not change places");
        assert_eq!(reading(&mut followed, "e a b c d"), "e a b c d", "a row that rose far moves up");
        assert_eq!(reading(&mut followed, "n a e b c"), "+n e a b c", "a new row is where it ranks");
    }

    #[test]
    fn shorter_table_of_the_same_reading_has_no_new_rows() {
        let mut followed = Followed::default();
        let place = |followed: &mut Followed, rows: &[&str]| {
            let placed = followed.place("t", rows.to_vec(), |row| (*row).to_owned());
            placed.iter().filter(|marked| marked.is_new).count()
        };
        place(&mut followed, &["a", "b"]);
        place(&mut followed, &["a"]);
        followed.before = Some(std::mem::take(&mut followed.now));
        assert_eq!(place(&mut followed, &["a", "b"]), 1, "what was printed counts");
    }
}
