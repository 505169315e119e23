//! Windows and sessions that a test ends by an event: it asks the daemon itself, and reports like the gateway.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Shutdown, UdpSocket},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use netmon_mcp::tools::{Answer, Question};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

use super::{Daemon, patience};

impl Daemon {
    /// Opens a window, of a minute by default, that [`Watching::end`] ends; returns when the kernel counts.
    pub fn watch(&self, tool: &str, mut arguments: Value) -> Watching {
        let question = Question::named(tool).unwrap_or_else(|| panic!("no tool {tool}"));
        if arguments.get("duration_ms").or(arguments.get("duration")).is_none() {
            arguments["duration_ms"] = 60_000.into();
        }
        (question.prepare)(&mut arguments, None).unwrap();
        let request = json!({"version": 2, "tool": tool, "input": &arguments, "tell_opened": true});
        self.ask_for(question, arguments, &request)
    }

    /// Opens a session with repeated readings; returns when the kernel counts.
    pub fn read_every(&self, tool: &str, every: Duration, mut arguments: Value) -> Readings {
        let question = Question::named(tool).unwrap_or_else(|| panic!("no tool {tool}"));
        (question.prepare)(&mut arguments, None).unwrap();
        let every_ms = every.as_millis() as u64;
        let request =
            json!({"version": 2, "tool": tool, "input": &arguments, "tell_opened": true, "every_ms": every_ms});
        let Watching { question, arguments, stream } = self.ask_for(question, arguments, &request);
        let ours = stream.get_ref().try_clone().unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let counts = move |_: &String| _ = counted.fetch_add(1, Ordering::Relaxed);
        let lines = thread::spawn(move || stream.lines().map_while(Result::ok).inspect(counts).collect());
        Readings { question, arguments, stream: ours, count, lines: Some(lines) }
    }

    /// Sends the request, and waits until the kernel counts.
    fn ask_for(&self, question: &'static Question, arguments: Value, request: &Value) -> Watching {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(patience(Duration::from_secs(100)))).unwrap();
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut watching = Watching { question, arguments, stream: BufReader::new(stream) };
        let line = watching.line();
        assert_eq!(line["opened"], true, "{line}");
        watching
    }
}

/// Waits until this host has handled its queued packets. A CPU handles them in order, so a packet sent on each CPU
/// comes after them. Forwarded packets are queued again.
fn settle() {
    const LINES: usize = 3;
    let all = sched_getaffinity(None).unwrap();
    for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)) {
        let pass = move || {
            let mut one = CpuSet::new();
            one.set(cpu);
            sched_setaffinity(None, &one).unwrap();
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(socket.local_addr().unwrap()).unwrap();
            socket.set_read_timeout(Some(patience(Duration::from_secs(1)))).unwrap(); // no loopback, no packet
            (0..LINES).for_each(|_| drop(socket.send(b"x").and_then(|_| socket.recv(&mut [0]))));
        };
        thread::spawn(pass).join().unwrap();
    }
}

/// An open window.
pub struct Watching {
    question: &'static Question,
    arguments: Value,
    stream: BufReader<UnixStream>,
}

impl Watching {
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    /// Ends the window, and returns the answer for the time until now.
    pub fn end(self) -> Value {
        self.end_with_text().structured
    }

    /// The same with the text form.
    pub fn end_with_text(self) -> Answer {
        settle();
        self.stream.get_ref().shutdown(Shutdown::Write).unwrap();
        self.whole_answer()
    }

    /// Ends the window, and returns the daemon's sample.
    pub fn sample(mut self) -> Value {
        settle();
        self.stream.get_ref().shutdown(Shutdown::Write).unwrap();
        self.line()["sample"].take()
    }

    /// The answer, at the end of the window.
    pub fn answer(self) -> Value {
        self.whole_answer().structured
    }

    fn whole_answer(mut self) -> Answer {
        let response = self.line();
        let sample = response.get("sample").unwrap_or_else(|| panic!("{response}"));
        (self.question.report)(self.arguments, &sample.to_string()).unwrap()
    }
}

/// A session with repeated readings.
pub struct Readings {
    question: &'static Question,
    arguments: Value,
    stream: UnixStream,
    count: Arc<AtomicUsize>,
    lines: Option<JoinHandle<Vec<String>>>,
}

impl Readings {
    /// The number of readings so far.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Ends the session, and returns the samples of its readings.
    pub fn end(mut self) -> Samples {
        self.stream.shutdown(Shutdown::Write).unwrap();
        let lines = self.lines.take().unwrap().join().unwrap();
        let samples = lines.into_iter().map(|line| {
            let response: Value = serde_json::from_str(&line).unwrap();
            response.get("sample").unwrap_or_else(|| panic!("{line}")).to_string()
        });
        Samples { samples: samples.collect(), question: self.question, arguments: self.arguments.take() }
    }
}

impl Drop for Readings {
    /// The client disconnects.
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// The samples of a session.
pub struct Samples {
    pub samples: Vec<String>,
    question: &'static Question,
    arguments: Value,
}

impl Samples {
    /// The answer of one reading.
    pub fn answer(&self, sample: &str) -> Value {
        (self.question.report)(self.arguments.clone(), sample).unwrap().structured
    }

    /// The answer of all readings together.
    pub fn merged(&self) -> Value {
        let merged = self.samples.iter().cloned().reduce(|a, b| (self.question.merge)(&a, &b).unwrap().to_string());
        self.answer(&merged.unwrap())
    }
}
