//! Reads DNS messages from untrusted bytes. Runs in the gateway.
//!
//! It reads only what a measurement needs: the header, the question, and the owner names of the answer's records, which
//! match multicast DNS. RFC 1035; `parse` accepts any bytes, so a fuzzer can call it.

use std::fmt::Write;

/// What a message says.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub id: u16,
    pub is_response: bool,
    pub truncated: bool,
    pub rcode: u8,
    /// The requested names and types, as far as they are readable: a response may have none.
    pub questions: Vec<(String, u16)>,
    /// Names and types of the records in the answer section.
    pub answers: Vec<(String, u16)>,
}

/// A compressed name points back at most this often; real ones do once.
const POINTERS: usize = 16;
/// Records of an answer that are looked at.
const RECORDS: usize = 32;
/// Questions of a message that are looked at. Multicast DNS has a few, everything else has one.
const QUESTIONS: usize = 16;
/// RFC 1035, 4.1.1: id, flags and four counts.
pub const HEADER: usize = 12;
/// RFC 1035: the longest name, in bytes on the wire.
pub const NAME_BYTES: usize = 255;

/// Parses a message as far as it is complete: a capture or a fragment may end anywhere after its header. `None` if it
/// is not a query or response about names, or a query without a readable question.
pub fn parse(bytes: &[u8]) -> Option<Message> {
    let flags = u16_at(bytes, 2)?;
    let opcode = flags >> 11 & 15;
    if opcode != 0 || bytes.len() < HEADER {
        return None;
    }
    let (count, records) = (usize::from(u16_at(bytes, 4)?), u16_at(bytes, 6)?);
    let mut message = Message {
        id: u16_at(bytes, 0)?,
        is_response: flags & 0x8000 != 0,
        truncated: flags & 0x0200 != 0,
        rcode: (flags & 15) as u8,
        questions: Vec::new(),
        answers: Vec::new(),
    };
    let mut at = HEADER;
    while let Some((question, end)) = question(bytes, at).filter(|_| message.questions.len() < count.min(QUESTIONS)) {
        message.questions.push(question);
        at = end;
    }
    if message.questions.is_empty() && !message.is_response {
        return None;
    }
    if message.questions.len() == count {
        message.answers = answers(bytes, at, usize::from(records).min(RECORDS));
    }
    Some(message)
}

/// A name and a type, and where what follows its class begins.
fn question(bytes: &[u8], at: usize) -> Option<((String, u16), usize)> {
    let (name, end) = name(bytes, at)?;
    Some(((name, u16_at(bytes, end)?), end + 4))
}

fn answers(bytes: &[u8], mut at: usize, count: usize) -> Vec<(String, u16)> {
    let mut found = Vec::new();
    for _ in 0..count {
        let Some((owner, end)) = name(bytes, at) else { break };
        let (Some(kind), Some(length)) = (u16_at(bytes, end), u16_at(bytes, end + 8)) else { break };
        found.push((owner, kind));
        at = end + 10 + usize::from(length);
    }
    found
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at.checked_add(1)?)?]))
}

/// Whether a name is one of a host: letters, digits, `-`, `_`, and `/` in reverse zones. Others have bytes that are
/// written `\DDD`.
pub fn is_hostname(name: &str) -> bool {
    !name.contains('\\')
}

/// A name, and where what follows it begins. What is not a letter, digit or sign of a hostname is written `\DDD`.
fn name(bytes: &[u8], start: usize) -> Option<(String, usize)> {
    let (mut text, mut at, mut end, mut pointers, mut length) = (String::new(), start, None, 0, 0);
    loop {
        let size = usize::from(*bytes.get(at)?);
        match size >> 6 {
            0 if size == 0 => break,
            0 => {
                length += size + 1;
                if length > NAME_BYTES {
                    return None;
                }
                label(&mut text, bytes.get(at + 1..at + 1 + size)?);
                at += size + 1;
            }
            3 => {
                let to = (size & 0x3f) << 8 | usize::from(*bytes.get(at + 1)?);
                end.get_or_insert(at + 2);
                pointers += 1;
                if to >= at || pointers > POINTERS {
                    return None; // it only ever points back
                }
                at = to;
            }
            _ => return None,
        }
    }
    if text.is_empty() {
        text.push('.');
    }
    Some((text, end.unwrap_or(at + 1)))
}

fn label(text: &mut String, label: &[u8]) {
    if !text.is_empty() {
        text.push('.');
    }
    for byte in label {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'/' => {
                text.push(byte.to_ascii_lowercase() as char)
            } // resolvers mix case against spoofing
            _ => {
                let _ = write!(text, "\\{byte:03}");
            }
        }
    }
}

/// The name of a record type.
pub fn type_name(kind: u16) -> String {
    let name = match kind {
        1 => "A",
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        12 => "PTR",
        15 => "MX",
        16 => "TXT",
        28 => "AAAA",
        33 => "SRV",
        35 => "NAPTR",
        43 => "DS",
        46 => "RRSIG",
        48 => "DNSKEY",
        52 => "TLSA",
        64 => "SVCB",
        65 => "HTTPS",
        252 => "AXFR",
        255 => "ANY",
        257 => "CAA",
        _ => return format!("TYPE{kind}"),
    };
    name.into()
}

/// The rcode of a name that does not exist (RFC 1035, 4.1.1).
pub const NXDOMAIN: u8 = 3;

/// The name of a response code.
pub fn rcode_name(rcode: u8) -> String {
    let name = match rcode {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        NXDOMAIN => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        9 => "NOTAUTH",
        _ => return format!("RCODE{rcode}"),
    };
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A query for `labels`, type A.
    fn query(labels: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in labels {
            bytes.push(label.len() as u8);
            bytes.extend(*label);
        }
        bytes.extend([0, 0, 1, 0, 1]);
        bytes
    }

    #[test]
    fn query_and_response_are_parsed() {
        let mut bytes = query(&[b"wWw", b"example", b"org"]);
        let message = parse(&bytes).unwrap();
        assert_eq!((message.id, message.is_response), (0x1234, false));
        assert_eq!(message.questions, [("www.example.org".to_owned(), 1)]);
        (bytes[2], bytes[3], bytes[7]) = (0x81, 0x83, 1);
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 0, 1]);
        let response = parse(&bytes).unwrap();
        assert!(response.is_response && rcode_name(response.rcode) == "NXDOMAIN");
        assert_eq!(response.answers, [("www.example.org".to_owned(), 1)]);
    }

    #[test]
    fn unusual_name_bytes_are_escaped() {
        let name = |labels: &[&[u8]]| parse(&query(labels)).unwrap().questions[0].0.clone();
        assert_eq!(name(&[]), ".");
        assert_eq!(name(&[b"a.b", b"c\\d"]), "a\\046b.c\\092d");
        assert_eq!(name(&[b"$(id)", b"com"]), "\\036\\040id\\041.com");
        assert_eq!(name(&[b"_http", b"_tcp", b"0/25"]), "_http._tcp.0/25");
        assert!(is_hostname(&name(&[b"_http", b"x-y"])) && !is_hostname(&name(&[b"![x]"])));
        assert_eq!(name(&[b"\x1b[31m\n\0\xff"]), "\\027\\09131m\\010\\000\\255");
    }

    #[test]
    fn pointer_loops_and_overruns_are_rejected() {
        let with = |tail: &[u8]| [&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], tail].concat();
        for tail in [
            &b"\xc0\x0c\0\x01\0\x01"[..],
            b"\xc0\xff\0\x01\0\x01",
            b"\x3fabc",
            b"\x80",
            b"\x40x",
            b"\x01a\xc0\x0c",
            b"\x01",
            b"",
        ] {
            assert_eq!(parse(&with(tail)), None, "{tail:?}");
        }
        assert_eq!(parse(&query(&[&[b'a'; 63][..]; 5])), None, "longer than a name may be");
        let cut = &query(&[b"a"])[..16];
        assert_eq!(parse(cut), None);
    }

    #[test]
    fn cut_response_keeps_the_parsed_answers() {
        let mut bytes = query(&[b"a"]);
        (bytes[2], bytes[6], bytes[7]) = (0x81, 0xff, 0xff);
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0xff, 0xff, 1]);
        assert_eq!(parse(&bytes).unwrap().answers, [("a".to_owned(), 1)]);
    }

    #[test]
    fn all_questions_are_read_with_compressed_names() {
        let mut bytes = query(&[b"host", b"example", b"org"]);
        bytes[5] = 3;
        bytes.extend(b"\x05Other\xc0\x11\0\x1c\0\x01"); // other.example.org AAAA
        bytes.extend(b"\xc0\x0c\0\x10\0\x01"); // the first name again, TXT
        let names = ["host.example.org", "other.example.org", "host.example.org"].map(str::to_owned);
        let questions: Vec<_> = names.into_iter().zip([1, 28, 16]).collect();
        assert_eq!(parse(&bytes).unwrap().questions, questions);
        (bytes[2], bytes[7]) = (0x81, 1);
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 0, 1]);
        let response = parse(&bytes).unwrap();
        assert_eq!((response.questions, response.answers), (questions, vec![("host.example.org".to_owned(), 1)]));
    }

    #[test]
    fn edns_tc_and_class_bits_keep_the_question() {
        let mut bytes = query(&[b"a", b"example"]);
        bytes[11] = 1;
        bytes.extend([0, 0, 41, 0x04, 0xd0, 0, 0, 0x80, 0, 0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]); // with a cookie
        let asked = parse(&bytes).unwrap();
        assert_eq!((asked.questions.as_slice(), asked.truncated), (&[("a.example".to_owned(), 1)][..], false));
        (bytes[2], bytes[3]) = (0x83, 0x80);
        let answer = parse(&bytes).unwrap();
        assert!(answer.truncated && answer.is_response && answer.rcode == 0 && answer.questions == asked.questions);
        let class = bytes.len() - 25;
        bytes[class] = 0x80; // multicast DNS: a unicast answer is requested
        assert_eq!(parse(&bytes).unwrap().questions, asked.questions);
    }

    #[test]
    fn response_cut_after_the_header_is_recognized() {
        let mut bytes = query(&[b"a-name-of-some-length", b"example"]);
        bytes[2] = 0x81;
        for end in HEADER..bytes.len() {
            let response = parse(&bytes[..end]).unwrap();
            assert_eq!((response.id, response.is_response), (0x1234, true), "{end}");
            assert_eq!(response.questions.is_empty(), end < bytes.len() - 2, "{end}: the class may be missing");
        }
        let only_a_header = [0x12, 0x34, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]; // the form of a FORMERR
        assert_eq!(parse(&only_a_header).unwrap().rcode, 1);
        assert_eq!(parse(&bytes[..HEADER - 1]), None);
    }

    #[test]
    fn random_bytes_parse_without_panic() {
        let mut state = 7u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        for round in 0..50_000usize {
            let mut bytes: Vec<u8> = (0..round % 64).map(|_| random()).collect();
            if bytes.len() > 12 {
                (bytes[2], bytes[4], bytes[5], bytes[6]) = (random() & 0x80, 0, 1, 0);
                let at = 12 + usize::from(random()) % (bytes.len() - 12);
                bytes[at] = [0, 1, 0xc0, 0xc1][usize::from(random() & 3)];
            }
            if let Some(message) = parse(&bytes) {
                let is_short = |(name, _): &(String, u16)| name.is_ascii() && name.len() <= 4 * NAME_BYTES;
                assert!(message.questions.iter().chain(&message.answers).all(is_short));
            }
        }
    }
}
