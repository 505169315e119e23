//! Text that came from outside: process names, DNS names. A model or a terminal reads it, so nothing
//! in it may act as a command to either, or look like something that it is not.
//!
//! Characters are judged by their Unicode properties, not by a list: what is invisible in the next version of Unicode is
//! not visible here.

use icu_properties::{
    CodePointMapData, CodePointSetData,
    props::{DefaultIgnorableCodePoint, GeneralCategory, Math, Script},
};
use serde_json::Value;

use crate::limits::NAME_CHARS;

/// `text` without what could act on its reader or deceive it: control characters, escape sequences, changes of
/// writing direction, invisible characters, letters that pass for ASCII; cut to [`NAME_CHARS`].
pub fn clean(text: &str) -> String {
    let kept = text.chars().take(NAME_CHARS);
    if text.is_ascii() {
        return kept.map(harmless).collect();
    }
    let mixes = mixes_scripts(text);
    let (mut marks, mut cleaned) = (0, String::new());
    for c in kept {
        marks = if is_mark(c) { marks + 1 } else { 0 };
        let deceives = passes_for_ascii(c) || marks > MARKS || mixes && !c.is_ascii() && script(c).is_some();
        cleaned.push(if deceives { REPLACEMENT } else { harmless(c) });
    }
    cleaned
}

/// The name of a process, unit or container, which could contain a shell or markdown command: [`clean`], without the
/// characters that begin one.
pub fn label(text: &str) -> String {
    let mut before = ' ';
    let mut defused = |c: char| {
        let active = match c {
            '`' | '$' | '<' | '>' | '|' | '&' | ';' | '"' | '\\' => true,
            '[' => before == '!',
            '(' => before == ']',
            _ => false,
        };
        before = c;
        if active { REPLACEMENT } else { c }
    };
    clean(text).chars().map(&mut defused).collect()
}

/// Whether a word means itself to every shell, and is not an option.
pub fn is_plain(word: &str) -> bool {
    !word.is_empty()
        && !word.starts_with('-')
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"/.,:_-+@%=".contains(&b))
}

/// The same, cut to `chars`, with a mark where it was.
pub fn short(text: &str, chars: usize) -> String {
    let mut kept: String = text.chars().take(chars).map(harmless).collect();
    if text.chars().nth(chars).is_some() {
        kept.push('…');
    }
    kept
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

/// The replacement for a hidden character.
const REPLACEMENT: char = '\u{fffd}';
/// The maximum of marks on one letter. Vietnamese and Hebrew have two or three; more marks hide the lines above and
/// below.
const MARKS: usize = 3;

/// The character, or a replacement if it could act on its reader.
pub fn harmless(c: char) -> char {
    if is_harmless(c) { c } else { REPLACEMENT }
}

/// A C string of the kernel: up to the first NUL, any bytes, cleaned.
pub fn name(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    clean(&String::from_utf8_lossy(&bytes[..end]))
}

/// Whether a character is visible and nothing else.
fn is_harmless(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_control();
    }
    use GeneralCategory as Category;
    let invisible = matches!(
        CodePointMapData::<GeneralCategory>::new().get(c),
        Category::Control
            | Category::Format
            | Category::Surrogate
            | Category::PrivateUse
            | Category::Unassigned
            | Category::SpaceSeparator
            | Category::LineSeparator
            | Category::ParagraphSeparator
            | Category::EnclosingMark
    );
    // Braille has a blank that is not a space.
    !invisible
        && !CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
        && script(c) != Some(Script::Braille)
}

fn is_mark(c: char) -> bool {
    CodePointMapData::<GeneralCategory>::new().get(c) == GeneralCategory::NonspacingMark
}

/// The script of a character that belongs to one.
fn script(c: char) -> Option<Script> {
    let script = CodePointMapData::<Script>::new().get(c);
    (![Script::Common, Script::Inherited, Script::Unknown].contains(&script)).then_some(script)
}

/// Whether the text mixes scripts in a suspicious way: `nginx` with a Cyrillic x. East Asian scripts are allowed
/// together, and with Latin (Unicode Technical Standard 39, "highly restrictive").
fn mixes_scripts(text: &str) -> bool {
    const EAST: [Script; 5] = [Script::Han, Script::Hiragana, Script::Katakana, Script::Hangul, Script::Bopomofo];
    let scripts = || text.chars().filter_map(script).filter(|script| !EAST.contains(script));
    let east = text.chars().filter_map(script).any(|script| EAST.contains(&script));
    let first = scripts().next();
    scripts().any(|script| Some(script) != first) || east && first.is_some_and(|first| first != Script::Latin)
}

/// Whether a character is a letter or digit of ASCII in another dress: for mathematics, or as wide as an ideograph.
fn passes_for_ascii(c: char) -> bool {
    let math = CodePointSetData::new::<Math>().contains(c) && c.is_alphanumeric();
    math || matches!(c, '\u{ff01}'..='\u{ff5e}') // the block is named for it: Fullwidth Forms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_unchanged() {
        for text in ["nginx: worker", "café-中文", "kworker/0:1-events", ""] {
            assert_eq!(clean(text), text);
        }
    }

    /// One character of each kind: controls, direction, spaces, fillers, selectors, tags, private use, unassigned.
    #[test]
    fn control_and_invisible_characters_are_replaced() {
        for c in "\n\u{1b}\u{7f}\u{9b}\u{ad}\u{34f}\u{61c}\u{115f}\u{17b4}\u{180b}\u{180e}\u{200b}\u{200d}\u{2028}\u{202e}\u{2060}\u{2066}\u{3164}\u{ffa0}\
                  \u{2800}\u{a0}\u{2003}\u{3000}\u{fe0f}\u{feff}\u{fff9}\u{1d173}\u{e0041}\u{e0100}\u{e000}\u{10fffd}\u{378}\u{20dd}"
            .chars()
        {
            assert_eq!(clean(&c.to_string()), "\u{fffd}", "{c:?}");
            assert_eq!(lines(&format!("é{c}")), if c == '\n' { "é\n" } else { "é\u{fffd}" }, "{c:?}");
        }
    }

    #[test]
    fn lookalike_letters_are_replaced() {
        for (text, shown) in [
            ("ngin\u{445}", "ngin\u{fffd}"),                                     // Cyrillic
            ("\u{391}pache", "\u{fffd}pache"),                                   // Greek
            ("\u{1d5cc}sh", "\u{fffd}sh"),                                       // mathematical
            ("\u{ff53}shd", "\u{fffd}shd"),                                      // fullwidth
            ("e\u{301}\u{301}\u{301}\u{301}", "e\u{301}\u{301}\u{301}\u{fffd}"), // stacked marks
        ] {
            assert_eq!(clean(text), shown);
        }
        for text in ["сервер", "διακομιστής", "サーバー服务器", "nginx-服务", "máy-chủ", "größe"]
        {
            assert_eq!(clean(text), text);
        }
    }

    #[test]
    fn shell_and_markup_characters_in_labels_are_replaced() {
        for (text, shown) in [
            ("$(id)", "\u{fffd}(id)"),
            ("`id`", "\u{fffd}id\u{fffd}"),
            ("![x](//evil.io)", "!\u{fffd}x]\u{fffd}//evil.io)"),
            ("<img src=x>", "\u{fffd}img src=x\u{fffd}"),
            ("a\";reboot", "a\u{fffd}\u{fffd}reboot"),
        ] {
            assert_eq!(label(text), shown);
        }
        for text in ["(sd-pam)", "nginx: worker", "[kworker/0:1]", "user@1000.service", "a=b#c!"] {
            assert_eq!(label(text), text);
        }
    }

    #[test]
    fn plain_words_need_no_shell_quoting() {
        for word in ["10.0.0.1", "fe80::1%eth0", "443", "a_b-c", "10.0.0.0/8"] {
            assert!(is_plain(word), "{word}");
        }
        for word in
            ["", "-x", "a b", "$(id)", "`id`", "a;b", "a'b", "a\nb", "é", "a*", "~", "a|b", "a&b", "a>b", "a\\b"]
        {
            assert!(!is_plain(word), "{word}");
        }
    }

    #[test]
    fn json_of_other_hosts_is_cleaned() {
        let said = serde_json::json!({"a\u{1b}": ["b\u{9b}\nc", 1, null]});
        assert_eq!(value(said), serde_json::json!({"a\u{fffd}": ["b\u{fffd}\nc", 1, null]}));
    }

    #[test]
    fn name_ends_at_nul_and_replaces_invalid_utf8() {
        assert_eq!(name(b"evil\n\x1b[31m\xff%s\0junk"), "evil\u{fffd}\u{fffd}[31m\u{fffd}%s");
    }

    #[test]
    fn long_name_is_cut() {
        assert_eq!(clean(&"x".repeat(1000)).chars().count(), NAME_CHARS);
    }
}
