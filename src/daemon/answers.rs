//! The memory of answers, from before they are made until they are taken.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use super::turns::Turns;
use crate::{
    budget::{Budget, Full, Held},
    limits,
    sync::lock,
    wire::Error,
};

/// The most that is reserved for an answer. The rest of a user's share is for short ones, which do not wait in line.
const EXPECTED_MAX: usize = limits::SAMPLES_BYTES_OF_A_USER - 8 * limits::SAMPLE_HELD_MIN;

/// What all users' answers hold, and who waits for memory.
pub struct Answers {
    memory: Arc<Budget<u32>>,
    /// The length of each tool's last answer: the best guess for the next one.
    last: Mutex<BTreeMap<String, usize>>,
    line: Line,
    long: Turns,
}

/// The memory of one answer, until this is dropped.
pub struct Claim<'a> {
    answers: &'a Answers,
    client: &'a UnixStream,
    uid: u32,
    tool: &'a str,
    held: Held<u32>,
    /// It waits until then and no longer.
    until: Instant,
}

impl Answers {
    /// With the limits of `netmond`.
    pub fn new() -> Self {
        let memory = Budget::new(limits::SAMPLES_BYTES, limits::SAMPLES_BYTES_OF_A_USER);
        Answers { memory, last: Mutex::default(), line: Line::default(), long: Turns::default() }
    }

    /// No memory yet, for an answer of this tool.
    pub fn claim<'a>(&'a self, uid: u32, client: &'a UnixStream, tool: &'a str) -> Claim<'a> {
        let (held, until) = (Held::nothing(&self.memory, uid), Instant::now() + limits::ANSWER_TIME);
        Claim { answers: self, client, uid, tool, held, until }
    }

    /// The expected length of an answer: that of the tool's last answer, or of its rows.
    fn expected(&self, tool: &str, input: &Value) -> usize {
        let last = lock(&self.last).get(tool).copied().unwrap_or_default();
        let rows = input.get("limit").and_then(Value::as_u64).unwrap_or_default().min(limits::ROWS_MAX as u64) as usize;
        let bytes = last.max(rows * limits::ROW_BYTES) * limits::ENCODING_COST;
        bytes.clamp(limits::SAMPLE_HELD_MIN, EXPECTED_MAX)
    }
}

impl Claim<'_> {
    /// Reserves what the answer will probably take. A user's long answers get memory in the order in which they were
    /// asked for. Short ones do not wait in this line. A client that has hung up stops waiting.
    pub fn reserve(&mut self, input: &Value) -> Result<(), Error> {
        let answers = self.answers;
        let expected = || answers.expected(self.tool, input);
        let place = (expected() > limits::SAMPLE_HELD_MIN).then(|| answers.line.join(self.uid));
        self.wait(expected, place.as_ref())?;
        if place.is_some() {
            drop(place);
            answers.long.wait(self.uid);
        }
        Ok(())
    }

    /// Holds what the answer takes, now that it is there. If that is more than was expected, it waits for memory before
    /// all answers that are not made yet.
    pub fn hold(&mut self, bytes: usize) -> Result<(), Error> {
        let answers = self.answers;
        answers.long.made(self.uid);
        {
            let mut last = lock(&answers.last);
            let last = last.entry(self.tool.into()).or_default();
            *last = bytes.max(*last / 2);
        }
        let Err(full) = self.held.resize(bytes) else { return Ok(()) };
        let place = answers.line.join_made(self.uid, bytes).ok_or_else(|| no_memory(self.uid, full))?;
        self.wait(|| bytes, Some(&place))
    }

    /// Holds so many bytes as soon as both limits allow it and it is this claim's turn.
    fn wait(&mut self, bytes: impl Fn() -> usize, place: Option<&Place>) -> Result<(), Error> {
        loop {
            let ahead = place.map_or(0, Place::ahead);
            let full = match ahead {
                0 => match self.held.resize(bytes()) {
                    Ok(()) => return Ok(()),
                    Err(full) => full,
                },
                _ => Full::Share,
            };
            if Instant::now() > self.until {
                return Err(no_memory(self.uid, full));
            }
            if hangs_up(self.client, (limits::MEMORY_LOOK * ahead.max(1)).min(limits::MEMORY_LOOK_MAX)) {
                return Err(Error::Cancelled);
            }
        }
    }
}

fn no_memory(uid: u32, full: Full) -> Error {
    let (whose, limit) = match full {
        Full::Share => (format!("the answers to uid {uid}"), limits::SAMPLES_BYTES_OF_A_USER),
        Full::Total => ("all answers".into(), limits::SAMPLES_BYTES),
    };
    Error::Busy(format!(
        "{whose} exceed netmond's memory limit of {} MB: read the pending answers, request fewer rows (limit), and try \
         again",
        limit >> 20
    ))
}

/// Whether a client hangs up within this time.
fn hangs_up(client: &UnixStream, time: Duration) -> bool {
    let mut fds = [PollFd::new(client, PollFlags::empty())];
    let timeout = Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
    poll(&mut fds, Some(&timeout)).is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// The answers that wait for memory, by user, in order. Without it, a later request that looks more often would take the
/// memory.
#[derive(Default)]
struct Line(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    next: u64,
    /// By whether they are still to be made, and by when they came.
    of: BTreeMap<u32, BTreeSet<(bool, u64)>>,
    /// The bytes of answers that are made: they are in memory while they wait.
    made: usize,
}

impl Waiting {
    fn add(&mut self, uid: u32, is_expected: bool) -> (bool, u64) {
        let number = (is_expected, self.next);
        self.next += 1;
        self.of.entry(uid).or_default().insert(number);
        number
    }
}

impl Line {
    /// A place behind all others of this user.
    fn join(&self, uid: u32) -> Place<'_> {
        Place { line: self, uid, made: 0, number: lock(&self.0).add(uid, true) }
    }

    /// A place for an answer that is made, before those that are not. None if such answers would take more than one user's
    /// share together.
    fn join_made(&self, uid: u32, bytes: usize) -> Option<Place<'_>> {
        let mut waiting = lock(&self.0);
        let made = waiting.made.checked_add(bytes).filter(|made| *made <= limits::SAMPLES_BYTES_OF_A_USER)?;
        waiting.made = made;
        Some(Place { line: self, uid, made: bytes, number: waiting.add(uid, false) })
    }
}

/// A place in the line, until this is dropped.
struct Place<'a> {
    line: &'a Line,
    uid: u32,
    made: usize,
    number: (bool, u64),
}

impl Place<'_> {
    /// How many of this user's are before it.
    fn ahead(&self) -> u32 {
        let waiting = lock(&self.line.0);
        waiting.of.get(&self.uid).map_or(0, |own| own.range(..self.number).count() as u32)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = lock(&self.line.0);
        waiting.made -= self.made;
        let Some(own) = waiting.of.get_mut(&self.uid) else { return };
        own.remove(&self.number);
        if own.is_empty() {
            waiting.of.remove(&self.uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use serde_json::json;

    use super::*;

    const TOOL: &str = "snapshot_sockets";

    fn all() -> Value {
        json!({"limit": 10_000})
    }

    fn reserved<'a>(answers: &'a Answers, uid: u32, client: &'a UnixStream) -> Claim<'a> {
        let mut claim = answers.claim(uid, client, TOOL);
        claim.reserve(&all()).unwrap();
        claim
    }

    /// As many long answers of uid 1000 as its share allows.
    fn fill<'a>(answers: &'a Answers, client: &'a UnixStream) -> Vec<Claim<'a>> {
        let count = limits::SAMPLES_BYTES_OF_A_USER / answers.expected(TOOL, &all());
        assert!(count >= 2);
        (0..count).map(|_| reserved(answers, 1000, client)).collect()
    }

    fn waiting(answers: &Answers) -> usize {
        lock(&answers.line.0).of.get(&1000).map_or(0, BTreeSet::len)
    }

    /// Waits until so many of uid 1000 are in the line.
    fn until_waiting(answers: &Answers, count: usize) {
        let begun = Instant::now();
        while waiting(answers) < count {
            assert!(begun.elapsed() < limits::ANSWER_TIME, "{} of {count} wait", waiting(answers));
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// A client that reads no answers waits for its own memory; other users do not wait.
    #[test]
    fn unread_answers_block_only_their_own_user() {
        let (answers, (client, theirs)) = (Answers::new(), UnixStream::pair().unwrap());
        let mut kept = fill(&answers, &client);
        let mut more = answers.claim(1000, &client, TOOL);
        more.until = Instant::now();
        let refused = more.reserve(&all()).unwrap_err().to_string();
        assert!(refused.contains("uid 1000") && refused.contains("limit"), "{refused}");
        assert_eq!(waiting(&answers), 0, "its place is free again");
        let (other, _others) = UnixStream::pair().unwrap();
        drop(reserved(&answers, 1001, &other));
        drop(theirs);
        let begun = Instant::now();
        assert!(matches!(answers.claim(1000, &client, TOOL).reserve(&all()), Err(Error::Cancelled)));
        assert!(begun.elapsed() < limits::ANSWER_TIME / 2, "a client that has hung up does not wait");
        kept[0].hold(100).unwrap();
        drop(reserved(&answers, 1000, &other)); // it was shorter
    }

    #[test]
    fn memory_goes_to_the_request_that_waits_longest() {
        let (answers, (client, _theirs)) = (Answers::new(), UnixStream::pair().unwrap());
        let mut kept = fill(&answers, &client);
        thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let mut joined = Vec::new();
            for number in 0..8 {
                let (tell, answers, client) = (tell.clone(), &answers, &client);
                joined.push(scope.spawn(move || {
                    let claim = reserved(answers, 1000, client);
                    tell.send(number).unwrap();
                    claim
                }));
                until_waiting(answers, number + 1);
            }
            answers.claim(1000, &client, "status").reserve(&json!({})).unwrap(); // a short answer passes them
            for (number, joined) in joined.into_iter().enumerate() {
                answers.long.made(1000);
                drop(kept.remove(0));
                assert_eq!(told.recv(), Ok(number));
                kept.push(joined.join().unwrap());
            }
        });
    }

    /// An answer that is longer than expected is not lost, and goes before those that are not made yet.
    #[test]
    fn longer_answer_than_expected_waits_for_memory() {
        let (answers, (client, _theirs)) = (Answers::new(), UnixStream::pair().unwrap());
        let mut long = answers.claim(1000, &client, "diagnose");
        long.reserve(&json!({})).unwrap();
        let mut kept = fill(&answers, &client);
        thread::scope(|scope| {
            let expected = scope.spawn(|| reserved(&answers, 1000, &client).until);
            until_waiting(&answers, 1);
            let made = scope.spawn(move || {
                long.hold(9 << 20).unwrap();
                long
            });
            until_waiting(&answers, 2);
            answers.long.made(1000);
            drop(kept.pop());
            let long = made.join().unwrap();
            assert_eq!(waiting(&answers), 1, "there is no room for both");
            drop((long, kept));
            expected.join().unwrap();
        });
        assert!(answers.expected("diagnose", &json!({})) >= 9 << 20, "the next one is expected to be as long");
    }

    /// They are in memory while they wait.
    #[test]
    fn waiting_made_answers_are_limited() {
        let (answers, (client, _theirs)) = (Answers::new(), UnixStream::pair().unwrap());
        let _kept = fill(&answers, &client);
        let _place = answers.line.join_made(1000, limits::SAMPLES_BYTES_OF_A_USER - (8 << 20));
        let begun = Instant::now();
        assert!(matches!(answers.claim(1000, &client, TOOL).hold(9 << 20), Err(Error::Busy(_))));
        assert!(begun.elapsed() < limits::ANSWER_TIME / 2);
    }

    #[test]
    fn long_answers_are_serialized_per_user() {
        let (answers, (client, _theirs)) = (Answers::new(), UnixStream::pair().unwrap());
        let ask = |uid, limit: u64| {
            let (begun, mut claim) = (Instant::now(), answers.claim(uid, &client, TOOL));
            claim.reserve(&json!({"limit": limit})).unwrap();
            (claim, begun.elapsed())
        };
        let (mut first, waited) = ask(1000, 10_000);
        assert!(waited < limits::LONG_ANSWER_WAIT);
        assert!(ask(1001, 10_000).1 < limits::LONG_ANSWER_WAIT, "another user does not wait");
        assert!(ask(1000, 1).1 < limits::LONG_ANSWER_WAIT, "nor does a short answer");
        thread::scope(|scope| {
            let second = scope.spawn(|| ask(1000, 10_000).1);
            thread::sleep(limits::LONG_ANSWER_WAIT / 10);
            assert!(!second.is_finished());
            first.hold(100).unwrap();
            assert!(second.join().unwrap() < limits::LONG_ANSWER_WAIT, "the first one is made");
        });
        assert!(ask(1000, 10_000).1 >= limits::LONG_ANSWER_WAIT, "the one before could be a window");
    }
}
