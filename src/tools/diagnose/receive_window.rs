//! The window that a sender is given, and whether the program behind it reads at once.

use crate::{tcp::LimitedBy, tools::snapshot_sockets::Socket};

/// Of a sender that waits for its receiver.
#[derive(Default, Clone, Copy, Debug, PartialEq)]
pub struct ReceiveWindow {
    /// The largest that it was given.
    pub bytes: u64,
    /// The smoothed round trip, where it is known.
    pub rtt_us: Option<u64>,
    /// All that waits for it has been read, as far as both ends show.
    pub is_read_at_once: bool,
}

/// Readings in which the window must be as large as ever, or nothing waits to be read. A reader that is slow closes it.
const SHARE: f64 = 0.8;
/// Of fewer readings one says too much.
const READINGS: usize = 5;

/// What the readings of a sender, and those of the other end, if that is on this host, say.
pub fn of(sender: &[Socket], receiver: Option<&[Socket]>) -> ReceiveWindow {
    let window = |socket: &Socket| socket.tcp.as_ref().map_or(0, |tcp| tcp.send_window_bytes);
    let largest = sender.iter().map(window).max().unwrap_or_default();
    let waits: Vec<_> = sender.iter().filter(|socket| socket.limited_by == Some(LimitedBy::Receiver)).collect();
    let share = |count: usize, of: usize| count as f64 >= SHARE * of as f64;
    // A window that stays half open, or more, is one that its reader empties again and again.
    let is_open = waits.len() >= READINGS
        && share(waits.iter().filter(|socket| 2 * window(socket) >= largest).count(), waits.len());
    let is_empty = receiver.filter(|readings| readings.len() >= READINGS).map(|readings| {
        share(readings.iter().filter(|socket| 4 * socket.receive_queue_bytes <= largest).count(), readings.len())
    });
    ReceiveWindow {
        bytes: largest.into(),
        rtt_us: sender.iter().rev().find_map(|socket| socket.rtt_us).map(u64::from),
        is_read_at_once: largest > 0 && is_open && is_empty.unwrap_or(true),
    }
}
