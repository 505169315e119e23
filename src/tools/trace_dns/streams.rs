//! Messages of DNS from segments of TCP: a length, and so many bytes.

use std::collections::HashMap;

use crate::{answer::Endpoint, limits};

/// Where a message was seen: direction, network namespace, interface.
pub type ObservationPoint = (bool, u32, u32);

/// Source and destination of a packet.
pub type Ends = (Endpoint, Endpoint);

/// TCP streams with incomplete messages. A stream with complete messages needs no memory.
#[derive(Default)]
pub struct Streams {
    open: HashMap<(ObservationPoint, Ends), Stream>,
    begun: u64,
    pub given_up: u64,
}

struct Stream {
    /// What waits for more: of a message, or bytes that came before those in front of them.
    pieces: Vec<Piece>,
    /// Counts the streams: the oldest goes first.
    number: u64,
}

/// Bytes without a gap.
struct Piece {
    sequence: u32,
    bytes: Vec<u8>,
    /// They begin with the length of a message.
    begins: bool,
}

impl Piece {
    fn end(&self) -> u32 {
        self.sequence.wrapping_add(self.bytes.len() as u32)
    }

    /// Takes the messages that are whole. Of a long one only the beginning was captured, which is enough.
    fn drain(&mut self) -> Vec<Vec<u8>> {
        let mut whole = Vec::new();
        self.begins |= looks_like_message(&self.bytes);
        while let (true, [high, low, rest @ ..]) = (self.begins, self.bytes.as_slice()) {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if rest.len() < length && rest.len() < limits::DNS_CAPTURE {
                break;
            }
            whole.push(rest[..length.min(rest.len())].to_vec());
            self.bytes = rest.get(length..).unwrap_or_default().to_vec();
            self.sequence = self.sequence.wrapping_add(2 + length as u32);
        }
        whole
    }
}

/// Whether a message may begin so, of bytes of which that is not known: with its length, and the header of a query or
/// a response.
fn looks_like_message(bytes: &[u8]) -> bool {
    let [high, low, _, _, flags, _, questions, ..] = bytes else { return false };
    let is_long_enough = u16::from_be_bytes([*high, *low]) >= 12;
    is_long_enough && flags >> 3 & 15 == 0 && *questions == 0
}

impl Streams {
    /// A segment from its TCP header on, or a part of one as if it had been sent alone; returns the messages that it
    /// completes. Segments come in any order, and may come again.
    pub fn take(&mut self, stream: (ObservationPoint, Ends), segment: &[u8], begins: bool) -> Vec<Vec<u8>> {
        let sequence = segment.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes);
        let header = usize::from(segment[12] >> 4) * 4;
        let mut piece = Piece { sequence, bytes: segment[header..].to_vec(), begins };
        self.begun += 1;
        let mut state = self.open.remove(&stream).unwrap_or(Stream { pieces: Vec::new(), number: self.begun });
        let waiting = &mut state.pieces;
        waiting.retain(|other| (other.sequence, other.bytes.len()) != (piece.sequence, piece.bytes.len()));
        if let Some(i) = waiting.iter().position(|other| !begins && other.end() == piece.sequence) {
            let mut front = waiting.remove(i);
            front.bytes.append(&mut piece.bytes);
            piece = front;
        }
        let mut whole = piece.drain();
        while let Some(i) = waiting.iter().position(|other| !other.begins && other.sequence == piece.end()) {
            piece.bytes.append(&mut waiting.remove(i).bytes);
            whole.extend(piece.drain());
        }
        if !piece.bytes.is_empty() {
            waiting.push(piece);
        }
        if waiting.len() > limits::DNS_PIECES {
            waiting.remove(0);
        }
        if !waiting.is_empty() {
            self.keep(stream, state);
        }
        whole
    }

    /// Keeps what is not whole, in the place of the oldest if there are too many.
    fn keep(&mut self, stream: (ObservationPoint, Ends), state: Stream) {
        if self.open.len() >= limits::DNS_STREAMS {
            let oldest = self.open.iter().min_by_key(|(_, state)| state.number).map(|(stream, _)| *stream);
            self.given_up += u64::from(oldest.is_some_and(|oldest| self.open.remove(&oldest).is_some()));
        }
        self.open.insert(stream, state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of this length, with the length before it.
    fn framed(id: u16, length: u16) -> Vec<u8> {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(id.to_be_bytes());
        bytes.extend([0x81, 0x80, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.resize(2 + usize::from(length), 7);
        bytes
    }

    /// The ids of the messages found in parts of one stream.
    fn ids(parts: &[(u32, &[u8], bool)]) -> Vec<u16> {
        let end = |port| Endpoint { address: [10, 0, 0, 1].into(), port };
        let mut streams = Streams::default();
        let mut take = |(sequence, data, begins): &(u32, &[u8], bool)| {
            let header = [&[0; 4], &sequence.to_be_bytes()[..], &[0, 0, 0, 0, 5 << 4, 0, 0, 0, 0, 0, 0, 0]].concat();
            streams.take(((true, 1, 1), (end(53), end(4_000))), &[&header, *data].concat(), *begins)
        };
        parts.iter().flat_map(&mut take).map(|message| u16::from_be_bytes([message[0], message[1]])).collect()
    }

    #[test]
    fn messages_split_and_shared_segments_are_parsed() {
        let all = [framed(1, 40), framed(2, 12), framed(3, 300), framed(4, 17)].concat();
        for cut in 0..all.len() {
            let (front, back) = all.split_at(cut);
            let parts = [(u32::MAX - 9, front, true), ((u32::MAX - 9).wrapping_add(cut as u32), back, false)];
            assert_eq!(ids(&parts), [1, 2, 3, 4], "{cut}");
        }
        let bytes: Vec<_> = all.iter().enumerate().map(|(at, byte)| (at as u32, std::slice::from_ref(byte))).collect();
        let parts: Vec<_> = bytes.iter().map(|(at, byte)| (*at, *byte, false)).collect();
        assert_eq!(ids(&parts), [1, 2, 3, 4], "byte by byte");
    }

    #[test]
    fn reordered_and_repeated_segments_are_parsed() {
        let all = [framed(1, 100), framed(2, 100), framed(3, 100)].concat();
        let part = |at: usize, end: usize| (at as u32, &all[at..end], false);
        let [a, b, c, d] = [part(0, 60), part(60, 150), part(150, 250), part(250, 306)];
        assert_eq!(ids(&[a, c, b, d]), [1, 2, 3]);
        assert_eq!(ids(&[a, d, c, b]), [1, 2, 3]);
        assert_eq!(ids(&[a, c, c, a, b, d]), [1, 2, 3], "twice before what is missing came");
    }

    #[test]
    fn long_message_needs_only_its_captured_beginning() {
        let long = framed(1, 9_000);
        let parts = [(0, &long[..limits::DNS_CAPTURE + 2], true), (9_002, &framed(2, 40)[..], true)];
        assert_eq!(ids(&parts), [1, 2]);
    }

    #[test]
    fn gap_loses_only_its_own_message() {
        let all = [framed(1, 100), framed(2, 100)].concat();
        assert_eq!(ids(&[(0, &all[..50], true), (80, &all[80..102], false), (102, &all[102..], true)]), [2]);
    }
}
