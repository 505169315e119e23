//! An open measurement. It is read once or repeatedly; dropping it detaches.

use std::time::Instant;

use crate::{daemon::window::Window, wire::Error};

/// What a tool opens: programs are attached, and the first reading is taken.
pub trait Session<S>: Send {
    /// Waits until `end`; false if the client ends the window early. A session that waits for an event may end earlier.
    fn watch(&mut self, window: &Window, end: Instant) -> Result<bool, Error> {
        window.sleep_until(end)
    }

    /// The changes since the previous reading, or since the session was opened, without a gap and without an overlap.
    /// Undecided events, such as a young query, are left for the next reading, unless this is the last.
    fn read(&mut self, is_last: bool) -> Result<S, Error>;
}

/// A session of any tool, with its sample.
pub type BoxSession<'a, S> = Box<dyn Session<S> + 'a>;

/// A session of a tool that has no window: every reading is of its moment.
pub struct Snapshot<F>(pub F);

impl<S, F: FnMut() -> Result<S, Error> + Send> Session<S> for Snapshot<F> {
    fn read(&mut self, _: bool) -> Result<S, Error> {
        (self.0)()
    }
}
