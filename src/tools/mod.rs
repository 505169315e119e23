//! The tools, one module each: a question about the network, the sample that settles it, the answer.
//!
//! To add one: write `src/tools/NAME/` (and `bpf/NAME.bpf.c`, if it reads eBPF of its own), and name
//! it in the list below. The binaries, the wire and the build script need no change.

use std::{
    io,
    time::{Duration, Instant},
};

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use crate::{
    daemon::{
        host::{Host, Measures, Opened, Sampler},
        kernel::{
            Loader, Optional,
            feature::{Feature, Release},
        },
        session::{BoxSession, Session},
        window::Window,
    },
    limits,
    wire::Error,
};

mod input;
pub mod past;
mod recollect;
mod schema;
mod structured;

use input::decode;
pub use input::{meant, unknown_argument};
use past::{Extent, Recollection, Samples};
pub use recollect::Recollects;
use schema::input_schema;
pub use schema::{output_schema, resolve};
use structured::structured;

/// A question, how the kernel is asked, and how the answer reads.
///
/// `load` and `open` run in the daemon; `merge`, `report` and `text` run in the gateway, do no I/O, and are tested with
/// literal samples.
pub trait Tool: Sized + Send + Sync + 'static {
    /// What clients call it.
    const NAME: &'static str;
    /// What people call it.
    const TITLE: &'static str;
    /// A user's question for this tool: its line in the server's instructions.
    const WHEN: &'static str;
    /// When to use it; the first sentence decides.
    const DESCRIPTION: &'static str;
    /// The oldest Linux that loads all of its required programs.
    const SINCE: Release = Release(5, 10);
    /// The kernel features that its programs need; empty without programs.
    const FEATURES: &'static [Feature] = &[];
    /// The programs without which it still answers.
    const OPTIONAL: &'static [Optional] = &[];
    /// Whether its answer has text that strangers can influence (process names, DNS names).
    const OPEN_WORLD: bool = true;
    /// Whether an answer has a `next` that the following question may take up as `after`.
    const CONTINUES: bool = false;

    /// The question. Refuses unknown fields; its types hold every bound.
    type Input: DeserializeOwned + Serialize + JsonSchema;
    /// What the kernel said.
    type Sample: Serialize + DeserializeOwned;
    /// The answer, in the terms of `contract` names.
    type Output: Serialize + DeserializeOwned + JsonSchema;

    /// Loads the BPF object. The daemon calls this once, while it has its capabilities.
    fn load(loader: &mut Loader) -> Result<Self, Error>;

    /// The other tools that `sample` asks.
    fn asks() -> Vec<&'static str> {
        Vec::new()
    }

    /// Fills in the interface that the gateway was set to (`NET_IFACE`), where the question leaves it open: whether it did.
    fn complete(_input: &mut Self::Input, _interface: &str) -> bool {
        false
    }

    /// Begins to measure: everything is attached, and the first reading taken, when this returns.
    fn open<'a>(&'a self, input: Self::Input, host: &'a Host) -> Result<BoxSession<'a, Self::Sample>, Error>;

    /// How long to watch before the answer.
    fn duration(input: &Self::Input) -> Duration;

    /// The combined sample of two adjacent periods. Without cut rows, it equals one reading of both.
    fn merge(earlier: Self::Sample, later: Self::Sample) -> Self::Sample;

    /// What a recording keeps of a sample: where many rows say the same, a few stand for all.
    fn condense(sample: Self::Sample) -> Self::Sample {
        sample
    }

    /// What a recording keeps of the sum of many windows. Of what a busy host has very many, it has a bound.
    fn reduce(sum: Self::Sample) -> Self::Sample {
        Self::condense(sum)
    }

    /// Reduces a recorded sample of everything to the question: the same that `open` would have sampled.
    fn narrow(_input: &Self::Input, sample: Self::Sample) -> Self::Sample {
        sample
    }

    /// Answers a question about windows of the past.
    fn recall(input: Self::Input, past: &mut Samples<'_, Self::Sample>, extent: Extent) -> Result<Self::Output, Error> {
        let merge = |earlier, later| {
            let sum = Self::merge(earlier, later);
            if extent.has_sums { Self::reduce(sum) } else { sum }
        };
        let sum = past::fold(past, merge)?.ok_or_else(|| Error::Gone("nothing was recorded in this period".into()))?;
        let sample = Self::narrow(&input, sum);
        Ok(Self::report(input, sample))
    }

    /// Answers the question.
    fn report(input: Self::Input, sample: Self::Sample) -> Self::Output;

    /// The answer for a person: a table or a few lines.
    fn text(output: &Self::Output) -> String;

    /// Leaves out the least of the rows that `limit` is about, and counts it in `rows_cut`; false where there is none.
    fn shorten(_output: &mut Self::Output) -> bool {
        false
    }

    /// The sample of one record of its ring buffer, whatever its bytes are; nothing if it has no ring buffer.
    fn of_record(_input: &Self::Input, _record: &[u8]) -> Option<Self::Sample> {
        None
    }

    /// The answer when no daemon could be asked, if the tool has one.
    fn without_daemon(_reason: &str) -> Option<Self::Output> {
        None
    }
}

/// The generated code of a BPF object, as the module `skel`. It is not ours to lint.
macro_rules! skeleton {
    ($object:literal) => {
        #[allow(clippy::all, clippy::pedantic, clippy::restriction, dead_code, non_camel_case_types, non_snake_case)]
        mod skel {
            include!(concat!(env!("OUT_DIR"), "/", $object, ".rs"));
        }
    };
}

pub mod changes;
pub mod diagnose;
pub mod incidents;
pub mod network_monitor;
pub mod profile_tcp;
pub mod snapshot_interfaces;
pub mod snapshot_sockets;
pub mod status;
pub mod top_traffic;
pub mod trace_connections;
pub mod trace_dns;
pub mod trace_drops;
pub mod trace_latency;

macro_rules! tools {
    ($($tool:path),* $(,)?; $($recollects:path),* $(,)?) => {
        /// The gateway's half of each tool, in the order in which they are listed.
        pub static QUESTIONS: &[Question] = &[$(Question::of::<$tool>(),)* $(Question::of_recording::<$recollects>()),*];
        /// The daemon's half of each tool.
        pub static SAMPLERS: &[Sampler] = &[$(Sampler::of::<$tool>()),*];
    };
}

tools! {
    diagnose::Diagnose,
    network_monitor::NetworkMonitor,
    snapshot_interfaces::SnapshotInterfaces,
    snapshot_sockets::SnapshotSockets,
    top_traffic::TopTraffic,
    trace_connections::TraceConnections,
    profile_tcp::ProfileTcp,
    trace_latency::TraceLatency,
    trace_drops::TraceDrops,
    trace_dns::TraceDns,
    status::Status;
    changes::Changes,
    incidents::Incidents,
}

/// An answer in both of its forms.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The `Output`, as JSON.
    pub structured: Value,
    /// The same for a person.
    pub text: String,
}

impl Answer {
    /// Whether both forms are within the budget of a caller without `limit`.
    pub fn is_short(&self) -> bool {
        self.structured_bytes() <= limits::ANSWER_UNASKED && self.text.len() <= limits::TEXT_UNASKED
    }

    /// The length of both forms.
    pub fn bytes(&self) -> usize {
        self.structured_bytes() + self.text.len()
    }

    fn structured_bytes(&self) -> usize {
        let mut json = Counted(0);
        let _ = serde_json::to_writer(&mut json, &self.structured); // which writes always, and values have no odd keys
        json.0
    }
}

/// Counts what is written.
struct Counted(usize);

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A sample, as it is.
pub type Json = Box<RawValue>;

/// A tool as the gateway sees it.
pub struct Question {
    pub name: &'static str,
    pub title: &'static str,
    pub when: &'static str,
    pub description: &'static str,
    pub open_world: bool,
    pub continues: bool,
    pub input_schema: fn() -> Value,
    pub output_schema: fn() -> Value,
    /// The same without anything left out.
    pub whole_schema: fn() -> Value,
    /// Checks an input, completes it with the gateway's interface, and says how long the tool will watch.
    pub prepare: fn(&mut Value, Option<&str>) -> Result<Duration, Error>,
    /// Turns a sample into the answer.
    pub report: fn(Value, &str) -> Result<Answer, Error>,
    /// The sample of two adjacent periods together.
    pub merge: fn(&str, &str) -> Result<Box<RawValue>, Error>,
    /// The same of any number, oldest first.
    pub fold: fn(Vec<Json>) -> Result<Json, Error>,
    /// What a recording keeps of a sample.
    pub condense: fn(&str) -> Result<Json, Error>,
    /// What a recording keeps of the sum of many windows, from their samples, oldest first.
    pub sum: fn(&mut past::Encoded<'_>) -> Result<Json, Error>,
    /// Answers about windows of the past.
    pub recall: fn(Value, Recollection) -> Result<Answer, Error>,
    /// The sample of one record of its ring buffer, whatever its bytes are.
    pub of_record: fn(&Value, &[u8]) -> Option<Box<RawValue>>,
    pub without_daemon: fn(&str) -> Option<Answer>,
    /// Answers from the recording itself; none for a tool that measures.
    pub recollect: Option<recollect::Recollect>,
}

impl Question {
    const fn of<T: Tool>() -> Self {
        Question {
            name: T::NAME,
            title: T::TITLE,
            when: T::WHEN,
            description: T::DESCRIPTION,
            open_world: T::OPEN_WORLD,
            continues: T::CONTINUES,
            input_schema: input_schema::<T::Input>,
            output_schema: output_schema::<T::Output>,
            whole_schema: schema::whole_schema::<T::Output>,
            prepare: |value, interface| {
                let mut input = input::understand::<T::Input>(value)?;
                if interface.is_some_and(|interface| T::complete(&mut input, interface)) {
                    *value = serde_json::to_value(&input).unwrap_or_default();
                }
                Ok(T::duration(&input))
            },
            report: |value, sample| {
                let input = decode::<T::Input>(&value)?;
                Ok(whole_or_short::<T>(&value, T::report(input, read::<T::Sample>(sample)?)))
            },
            merge: |earlier, later| encode(&T::merge(read(earlier)?, read(later)?)),
            fold: past::fold_json::<T>,
            condense: |sample| encode(&T::condense(read(sample)?)),
            sum: past::sum_json::<T>,
            recall: past::recall::<T>,
            of_record: |input, record| encode(&T::of_record(&decode(input).ok()?, record)?).ok(),
            without_daemon: |reason| T::without_daemon(reason).as_ref().map(answer_of::<T>),
            recollect: None,
        }
    }

    /// A tool that the recording answers.
    const fn of_recording<R: Recollects>() -> Self {
        recollect::question::<R>()
    }

    /// The tool with this name.
    pub fn named(name: &str) -> Option<&'static Question> {
        QUESTIONS.iter().find(|question| question.name == name)
    }
}

fn answer_of<T: Tool>(output: &T::Output) -> Answer {
    Answer { structured: structured(output), text: T::text(output) }
}

/// The answer: a short one where the caller set no `limit`.
fn whole_or_short<T: Tool>(input: &Value, mut output: T::Output) -> Answer {
    let (mut answer, limited) = (answer_of::<T>(&output), input.get("limit").is_some_and(|l| !l.is_null()));
    while !limited && !answer.is_short() && T::shorten(&mut output) {
        answer = answer_of::<T>(&output);
    }
    answer
}

fn read<S: DeserializeOwned>(sample: &str) -> Result<S, Error> {
    serde_json::from_str(sample).map_err(|e| Error::Kernel(format!("invalid sample from netmond: {e}")))
}

fn encode(sample: &impl Serialize) -> Result<Box<RawValue>, Error> {
    serde_json::value::to_raw_value(sample).map_err(|e| Error::Kernel(e.to_string()))
}

impl Sampler {
    /// The daemon's half of a tool.
    const fn of<T: Tool>() -> Self {
        Sampler {
            name: T::NAME,
            since: T::SINCE,
            features: T::FEATURES,
            optional: T::OPTIONAL,
            asks: T::asks,
            load: |loader| Ok(Box::new(Measuring(T::load(loader)?))),
        }
    }
}

/// A tool, of which the daemon sees the JSON.
struct Measuring<T>(T);

impl<T: Tool> Measures for Measuring<T> {
    fn open<'a>(&'a self, input: &Value, host: &'a Host) -> Result<Opened<'a>, Error> {
        let input = decode::<T::Input>(input)?;
        let duration = T::duration(&input);
        Ok(Opened { duration, session: Box::new(Encoded(self.0.open(input, host)?)) })
    }
}

struct Encoded<'a, S>(BoxSession<'a, S>);

impl<S: Serialize> Session<Box<RawValue>> for Encoded<'_, S> {
    fn watch(&mut self, window: &Window, end: Instant) -> Result<bool, Error> {
        self.0.watch(window, end)
    }

    fn read(&mut self, is_last: bool) -> Result<Box<RawValue>, Error> {
        encode(&self.0.read(is_last)?)
    }
}

#[cfg(test)]
pub mod tests {
    use serde_json::json;

    use super::*;

    /// An answer is short by default, however long its rows are, and shows how many rows it omits.
    pub fn is_short_unless_asked<T: Tool>(sample: &T::Sample, lists: &[&str]) {
        let (question, sample) = (Question::named(T::NAME).unwrap(), serde_json::to_string(sample).unwrap());
        let ask = |input| (question.report)(input, &sample).unwrap();
        let rows =
            |answer: &Answer| lists.iter().map(|list| answer.structured[list].as_array().unwrap().len()).sum::<usize>();
        let cut = |answer: &Answer| answer.structured["measured"]["rows_cut"].as_u64().unwrap() as usize;
        let (all, short) = (ask(json!({"limit": 10_000})), ask(json!({})));
        assert!(!all.is_short() && short.is_short(), "{}, {}", short.bytes(), short.text);
        assert!(rows(&short) >= 2, "{} rows", rows(&short));
        assert_eq!(rows(&short) + cut(&short), rows(&all) + cut(&all), "{}", short.text);
        let told = format!("{} of {} rows", rows(&short), rows(&short) + cut(&short));
        assert!(short.text.contains(&told), "{told} in {}", short.text);
    }
}
