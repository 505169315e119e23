//! Text in a place of a fixed width.

use ratatui::text::Span;

/// Columns of a terminal that a text takes.
pub fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// The text, cut to a width; an ellipsis says that there was more.
pub fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut kept = String::new();
    for character in text.chars() {
        kept.push(character);
        if width(&kept) >= columns {
            kept.pop();
            break;
        }
    }
    if columns > 0 { kept + "…" } else { kept }
}

/// The text in lines of a width, broken between words where that is possible.
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            if !line.is_empty() && width(&line) + 1 + width(word) > columns {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
            while width(&line) > columns.max(1) {
                let rest = split(&mut line, columns.max(1));
                lines.push(std::mem::replace(&mut line, rest));
            }
        }
        lines.push(line);
    }
    lines
}

/// Leaves the begin of a line that is too long, and gives the rest.
fn split(line: &mut String, columns: usize) -> String {
    let mut taken = 0;
    let fits = |(_, character): &(usize, char)| {
        taken += width(character.encode_utf8(&mut [0; 4]));
        taken > columns
    };
    let at = line.char_indices().find(fits).map_or(line.len(), |(at, _)| at);
    line.split_off(at.max(line.chars().next().map_or(0, char::len_utf8)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_text_ends_with_an_ellipsis() {
        assert_eq!(
            [cut("curl[7]", 7), cut("curl[71]", 7), cut("ab", 1), cut("ab", 0)],
            ["curl[7]", "curl[7…", "…", ""]
        );
        assert_eq!(cut("日本語", 5), "日本…", "a wide character takes two columns");
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("abcdefgh ij", 5), ["abcde", "fgh", "ij"]);
        assert_eq!(wrap("a\nb", 5), ["a", "b"]);
    }
}
