//! The tools, one module each: a question about the network, the sample that settles it, the answer.
//!
//! To add one: write `src/tools/NAME.rs` (and `bpf/NAME.bpf.c`, if it reads eBPF of its own), and name
//! it in the list below. The binaries, the wire and the build script need no change.

use std::{
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use crate::{
    bpf::{Loader, Program},
    limits, sandbox, untrusted,
    window::Window,
    wire::Error,
};

mod schema;

use schema::input_schema;
pub use schema::output_schema;
use trace_drops::Verdicts;

/// A question, how the kernel is asked, and how the answer reads.
///
/// `load` and `sample` run in the daemon; `report` and `text` run in the gateway, do no I/O, and are
/// tested with literal samples.
pub trait Tool: Sized + Send + Sync + 'static {
    /// What clients call it.
    const NAME: &'static str;
    /// What people call it.
    const TITLE: &'static str;
    /// When to use it; the first sentence decides.
    const DESCRIPTION: &'static str;
    /// The kernel that it needs, as the end of the sentence "it needs …".
    const NEEDS: &'static str = "Linux 5.10 or newer with BTF (CONFIG_DEBUG_INFO_BTF)";
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

    /// Does and undoes what a measurement attaches, so that the daemon can find out which
    /// capabilities this kernel wants for it.
    fn rehearse(&self) -> io::Result<()> {
        Ok(())
    }

    /// Fills in the interface that the gateway was set to (`NET_IFACE`), where the question leaves it open: whether it did.
    fn complete(_input: &mut Self::Input, _interface: &str) -> bool {
        false
    }

    /// Asks the kernel.
    fn sample(&self, input: &Self::Input, host: &Host, window: &Window) -> Result<Self::Sample, Error>;

    /// How long `sample` will watch.
    fn duration(input: &Self::Input) -> Duration;

    /// Answers the question.
    fn report(input: Self::Input, sample: Self::Sample) -> Self::Output;

    /// The answer for a person: a table or a few lines.
    fn text(output: &Self::Output) -> String;

    /// Leaves out the least of the rows that `limit` is about, and counts it in `rows_cut`; false where there is none.
    fn shorten(_output: &mut Self::Output) -> bool {
        false
    }

    /// The answer when no daemon could be asked, if the tool has one.
    fn without_daemon(_reason: &str) -> Option<Self::Output> {
        None
    }
}

macro_rules! tools {
    ($($module:ident),* $(,)?) => {
        $(pub mod $module;)*
        /// The gateway's half of each tool, in the order in which they are listed.
        pub static QUESTIONS: &[Question] = &[$(Question::of::<$module::T>()),*];
        /// The daemon's half of each tool.
        pub static SAMPLERS: &[Sampler] = &[$(Sampler::of::<$module::T>()),*];
    };
}

tools! {
    diagnose,
    network_monitor,
    snapshot_interfaces,
    snapshot_sockets,
    top_traffic,
    trace_connections,
    profile_tcp,
    trace_drops,
    trace_dns,
    status,
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
    fn bytes(&self) -> usize {
        let mut json = Counted(0);
        let _ = serde_json::to_writer(&mut json, &self.structured); // which writes always, and values have no odd keys
        json.0 + self.text.len()
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

/// A tool as the gateway sees it.
pub struct Question {
    pub name: &'static str,
    pub title: &'static str,
    pub description: &'static str,
    pub open_world: bool,
    pub continues: bool,
    pub input_schema: fn() -> Value,
    pub output_schema: fn() -> Value,
    /// Checks an input, completes it with the gateway's interface, and says how long the tool will watch.
    pub prepare: fn(&mut Value, Option<&str>) -> Result<Duration, Error>,
    /// Turns a sample into the answer.
    pub report: fn(Value, &str) -> Result<Answer, Error>,
    pub without_daemon: fn(&str) -> Option<Answer>,
}

impl Question {
    const fn of<T: Tool>() -> Self {
        Question {
            name: T::NAME,
            title: T::TITLE,
            description: T::DESCRIPTION,
            open_world: T::OPEN_WORLD,
            continues: T::CONTINUES,
            input_schema: input_schema::<T::Input>,
            output_schema: output_schema::<T::Output>,
            prepare: |value, interface| {
                leave_out_nulls::<T::Input>(value);
                let mut input = decode::<T::Input>(value)?;
                if interface.is_some_and(|interface| T::complete(&mut input, interface)) {
                    *value = serde_json::to_value(&input).unwrap_or_default();
                }
                Ok(T::duration(&input))
            },
            report: |value, sample| {
                let input = decode::<T::Input>(&value)?;
                let sample = serde_json::from_str(sample)
                    .map_err(|e| Error::Kernel(format!("netmond's sample does not read: {e}")))?;
                let mut output = T::report(input, sample);
                let (mut answer, limited) = (answer_of::<T>(&output), value.get("limit").is_some_and(|l| !l.is_null()));
                while !limited && answer.bytes() > limits::ANSWER_UNASKED && T::shorten(&mut output) {
                    answer = answer_of::<T>(&output);
                }
                Ok(answer)
            },
            without_daemon: |reason| T::without_daemon(reason).as_ref().map(answer_of::<T>),
        }
    }

    /// The tool with this name.
    pub fn named(name: &str) -> Option<&'static Question> {
        QUESTIONS.iter().find(|question| question.name == name)
    }
}

fn answer_of<T: Tool>(output: &T::Output) -> Answer {
    Answer { structured: serde_json::to_value(output).unwrap_or_default(), text: T::text(output) }
}

/// Models give null for what they have nothing to say about.
fn leave_out_nulls<T: JsonSchema>(value: &mut Value) {
    if let Some(fields) = value.as_object_mut().filter(|fields| fields.values().any(Value::is_null)) {
        let known = input_schema::<T>();
        fields.retain(|name, field| !field.is_null() || known["properties"].get(name).is_none());
    }
}

/// An input, or what is wrong with it and where.
fn decode<T: DeserializeOwned + JsonSchema>(value: &Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        if let Some(name) =
            e.inner().to_string().strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'))
        {
            let allowed = &input_schema::<T>()["properties"][name]["enum"];
            return Error::InvalidInput(format!("{name} is missing; it is one of {allowed}"));
        }
        let [path, reason] = [e.path().to_string(), e.inner().to_string()].map(|text| untrusted::clean(&text));
        Error::InvalidInput(if path == "." { reason } else { format!("{path}: {reason}") })
    })
}

type Sample = Box<dyn Fn(&Value, &Host, &Window) -> Result<Box<RawValue>, Error> + Send + Sync>;
type Rehearsal = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// A tool as the daemon sees it.
pub struct Sampler {
    pub name: &'static str,
    needs: &'static str,
    load: fn(&mut Loader) -> Result<(Sample, Rehearsal), Error>,
}

impl Sampler {
    const fn of<T: Tool>() -> Self {
        Sampler {
            name: T::NAME,
            needs: T::NEEDS,
            load: |loader| {
                let tool = Arc::new(T::load(loader)?);
                let rehearsed = Arc::clone(&tool);
                let sample: Sample = Box::new(move |input, host, window| {
                    let sample = tool.sample(&decode::<T::Input>(input)?, host, window)?;
                    serde_json::value::to_raw_value(&sample).map_err(|e| Error::Kernel(e.to_string()))
                });
                Ok((sample, Box::new(move || rehearsed.rehearse())))
            },
        }
    }
}

/// A tool that the daemon has tried to load.
pub struct Loaded {
    /// Its programs.
    pub programs: Vec<Program>,
    /// The capabilities that this kernel wants for it while serving.
    pub keeps: caps::CapsHashSet,
    /// How many windows are open now.
    pub windows: AtomicUsize,
    /// How to ask, or why that is not possible.
    sample: Result<Sample, String>,
}

/// Everything that the daemon has loaded.
pub struct Host {
    tools: BTreeMap<&'static str, Loaded>,
    /// When it began to serve.
    pub started: Instant,
}

impl Host {
    /// Loads every tool but those in `without`. One that the kernel refuses does not stop the others.
    pub fn load(without: &[String], verdicts: Option<Verdicts>) -> Host {
        let verdicts = verdicts.map(Arc::new);
        let load = |sampler| Loaded::new(sampler, without, Loader { verdicts: verdicts.clone(), ..Loader::default() });
        let tools = SAMPLERS.iter().map(|sampler| (sampler.name, load(sampler))).collect();
        Host { tools, started: Instant::now() }
    }

    /// The capabilities that serving needs on this kernel.
    pub fn keeps(&self) -> caps::CapsHashSet {
        self.tools.values().flat_map(|tool| tool.keeps.iter().copied()).collect()
    }

    /// Every tool, with the reason where it is not available.
    pub fn tools(&self) -> impl Iterator<Item = (&'static str, &Loaded, Option<&str>)> {
        self.tools.iter().map(|(name, tool)| (*name, tool, tool.sample.as_ref().err().map(String::as_str)))
    }

    /// Asks a tool. A panic in it becomes an error.
    pub fn sample<'a>(&'a self, tool: &str, input: &Value, window: &Window<'a>) -> Result<Box<RawValue>, Error> {
        let loaded = self.tools.get(tool).ok_or_else(|| Error::UnknownTool(untrusted::clean(tool)))?;
        let sample = loaded
            .sample
            .as_ref()
            .map_err(|reason| Error::Unavailable { tool: tool.into(), reason: reason.clone() })?;
        let window = window.of(&loaded.windows);
        catch_unwind(AssertUnwindSafe(|| sample(input, self, &window)))
            .unwrap_or_else(|_| Err(Error::Panicked(tool.into())))
    }
}

impl Loaded {
    fn new(sampler: &Sampler, without: &[String], mut loader: Loader) -> Loaded {
        let unavailable = |reason| Loaded {
            programs: Vec::new(),
            keeps: caps::CapsHashSet::new(),
            windows: AtomicUsize::new(0),
            sample: Err(reason),
        };
        if without.iter().any(|name| name == sampler.name) {
            return unavailable("it was left out with --without".into());
        }
        let loaded =
            (sampler.load)(&mut loader).and_then(|(sample, rehearsal)| Ok((sample, sandbox::needed(rehearsal)?)));
        match loaded {
            Ok((sample, keeps)) => {
                Loaded { programs: loader.programs, keeps, windows: AtomicUsize::new(0), sample: Ok(sample) }
            }
            Err(e) => {
                tracing::warn!(tool = sampler.name, "not available: {e}");
                unavailable(format!("{e}; it needs {}", sampler.needs))
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use std::os::unix::net::UnixStream;

    use serde_json::json;

    use super::*;
    use crate::window::Kept;

    /// However long its rows are, an answer is short where nobody asked for more, and says how many rows it has not.
    pub fn is_short_unless_asked<T: Tool>(sample: &T::Sample, lists: &[&str]) {
        let (question, sample) = (Question::named(T::NAME).unwrap(), serde_json::to_string(sample).unwrap());
        let ask = |input| (question.report)(input, &sample).unwrap();
        let rows =
            |answer: &Answer| lists.iter().map(|list| answer.structured[list].as_array().unwrap().len()).sum::<usize>();
        let cut = |answer: &Answer| answer.structured["measured"]["rows_cut"].as_u64().unwrap() as usize;
        let (all, short) = (ask(json!({"limit": 10_000})), ask(json!({})));
        assert!(all.bytes() > limits::ANSWER_UNASKED && short.bytes() <= limits::ANSWER_UNASKED, "{}", short.bytes());
        assert!(rows(&short) >= 4 && short.bytes() > limits::ANSWER_UNASKED * 3 / 4, "{} rows", rows(&short));
        assert_eq!(rows(&short) + cut(&short), rows(&all) + cut(&all), "{}", short.text);
        assert!(short.text.contains(&format!("{} more rows", cut(&short))), "{}", short.text);
    }

    #[test]
    fn a_tool_that_panics_answers_and_its_window_is_closed() {
        let panics: Sample = Box::new(|_, _, window| {
            window.opened();
            panic!("on purpose")
        });
        let none = caps::CapsHashSet::new();
        let loaded = Loaded { programs: vec![], keeps: none, windows: AtomicUsize::new(0), sample: Ok(panics) };
        let host = Host { tools: BTreeMap::from([("broken", loaded)]), started: Instant::now() };
        let (client, _peer) = UnixStream::pair().unwrap();
        let (stop, _stopping) = rustix::pipe::pipe().unwrap();
        let kept = Kept::default();
        let window = Window::new(&client, &stop, Instant::now(), &kept);
        for _ in 0..2 {
            let error = host.sample("broken", &Value::Null, &window).unwrap_err();
            assert_eq!(error, Error::Panicked("broken".into()));
        }
        assert_eq!(host.tools["broken"].windows.load(std::sync::atomic::Ordering::Relaxed), 0);
        assert_eq!(host.sample("absent", &Value::Null, &window).unwrap_err(), Error::UnknownTool("absent".into()));
    }
}
