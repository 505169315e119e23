//! Counts as sentences say them.

use crate::limits;

/// `1 row`, `2 rows`.
pub fn count(n: u64, one: &str, more: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { more })
}

/// The visible part of a truncated list, and how to see the rest: `20 of 320 rows; limit=320 shows all`. `None` for a
/// complete list.
pub fn cut(shown: usize, cut: u64) -> Option<String> {
    let all = shown as u64 + cut;
    let most = limits::ROWS_MAX as u64;
    let limit = if all <= most { format!("limit={all} shows all") } else { format!("limit={most} shows more") };
    (cut > 0).then(|| format!("{shown} of {all} rows; {limit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_picks_singular_or_plural() {
        assert_eq!([0, 1, 2].map(|n| count(n, "row", "rows")), ["0 rows", "1 row", "2 rows"]);
    }

    #[test]
    fn cut_list_names_the_limit_that_shows_more() {
        assert_eq!(cut(20, 300).unwrap(), "20 of 320 rows; limit=320 shows all");
        assert_eq!(cut(20, 50_000).unwrap(), "20 of 50020 rows; limit=10000 shows more");
        assert_eq!(cut(20, 0), None);
    }
}
