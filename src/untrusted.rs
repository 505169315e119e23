//! Text that came from outside: process names, DNS names. A model or a terminal reads it, so nothing
//! in it may act as a command to either.

use serde_json::Value;

use crate::limits::NAME_CHARS;

/// `text` without what could act on its reader: control characters, escape sequences, changes of
/// writing direction, invisible characters; cut to [`NAME_CHARS`].
pub fn clean(text: &str) -> String {
    text.chars().map(harmless).take(NAME_CHARS).collect()
}

/// Text of several lines, of any length, without what could act on its reader but ending a line.
pub fn lines(text: &str) -> String {
    text.chars().map(|c| if c == '\n' { c } else { harmless(c) }).collect()
}

/// The same for every string of a value, names of fields included.
pub fn value(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(lines(&text)),
        Value::Array(items) => items.into_iter().map(self::value).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, field)| (lines(&name), self::value(field))).collect(),
        other => other,
    }
}

/// The character, or a replacement if it could act on its reader.
pub fn harmless(c: char) -> char {
    if is_harmless(c) { c } else { '\u{fffd}' }
}

/// A C string of the kernel: up to the first NUL, any bytes, cleaned.
pub fn name(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    clean(&String::from_utf8_lossy(&bytes[..end]))
}

fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}'        // soft hyphen, Arabic letter mark, Mongolian separator
            | '\u{200b}'..='\u{200f}'                // zero width, direction marks
            | '\u{2028}'..='\u{202e}'                // line separators, direction overrides
            | '\u{2060}'..='\u{206f}' | '\u{feff}'   // invisible operators, direction isolates
            | '\u{fe00}'..='\u{fe0f}'                // variation selectors
            | '\u{fff9}'..='\u{fffb}'                // interlinear annotation
            | '\u{e0000}'..='\u{e0fff}') // tags and more variation selectors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_pass() {
        for text in ["nginx: worker", "café-中文", "kworker/0:1-events", ""] {
            assert_eq!(clean(text), text);
        }
    }

    #[test]
    fn what_acts_on_its_reader_is_replaced() {
        for text in ["\n", "\x1b", "\u{7f}", "\u{9b}", "\u{202e}", "\u{200b}", "\u{feff}", "\u{e0041}"] {
            assert_eq!(clean(text), "\u{fffd}", "{text:?}");
        }
    }

    #[test]
    fn what_another_host_says_does_not_act_either() {
        let said = serde_json::json!({"a\u{1b}": ["b\u{9b}\nc", 1, null]});
        assert_eq!(value(said), serde_json::json!({"a\u{fffd}": ["b\u{fffd}\nc", 1, null]}));
    }

    #[test]
    fn a_name_ends_at_its_nul_and_survives_bad_utf8() {
        assert_eq!(name(b"evil\n\x1b[31m\xff%s\0junk"), "evil\u{fffd}\u{fffd}[31m\u{fffd}%s");
    }

    #[test]
    fn a_long_name_is_cut() {
        assert_eq!(clean(&"x".repeat(1000)).chars().count(), NAME_CHARS);
    }
}
