//! The line of pages.

use super::pages::PAGES;

/// The label of each page, and where it begins.
pub fn labels(width: u16) -> Vec<(u16, String)> {
    let of = |is_short: bool| -> Vec<(u16, String)> {
        let mut begin = 0;
        let label = |page: &super::pages::Page| {
            let text = format!("{} {}", page.key, if is_short { page.short } else { page.title });
            let at = begin;
            begin += text.len() as u16 + 1;
            (at, text)
        };
        PAGES.iter().map(label).collect()
    };
    let long = of(false);
    let end = long.last().map_or(0, |(begin, text)| begin + text.len() as u16);
    if end <= width { long } else { of(true) }
}

/// The page whose label is at a column.
pub fn at(width: u16, column: u16) -> Option<usize> {
    labels(width).iter().position(|(begin, text)| (*begin..begin + text.len() as u16).contains(&column))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_names_the_page() {
        assert_eq!(at(80, 0), Some(0));
        assert_eq!(at(80, 6), None, "between two labels");
        assert_eq!((at(80, 7), at(200, 11)), (Some(1), Some(1)));
        assert_eq!(at(200, 199), None);
    }
}
