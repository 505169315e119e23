//! Tools that the recording answers, and no daemon.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Answer, Question, input, schema, structured::structured};
use crate::{
    recorder::{
        store::{Recording, Trouble},
        time::{Micros, now},
    },
    wire::Error,
};

/// A question about what was recorded. `sample` reads the recording, in the gateway; `report` and `text` are pure.
pub trait Recollects: Sized + Send + Sync + 'static {
    /// What clients and people call it, when to use it: as of a [`Tool`](super::Tool).
    const NAME: &'static str;
    const TITLE: &'static str;
    const WHEN: &'static str;
    const DESCRIPTION: &'static str;

    /// The question. Refuses unknown fields.
    type Input: DeserializeOwned + Serialize + JsonSchema;
    /// What was recorded.
    type Sample;
    /// The answer.
    type Output: Serialize + DeserializeOwned + JsonSchema;

    /// The fault in a question, before anything is read.
    fn check(input: &Self::Input, now: Micros) -> Result<(), String>;

    /// Reads what the question is about.
    fn sample(input: &Self::Input, recording: &dyn Recording, now: Micros) -> Result<Self::Sample, Unread>;

    /// Answers the question; without a recording, a reason replaces the sample.
    fn report(input: &Self::Input, sample: Result<Self::Sample, String>) -> Self::Output;

    /// The answer for a person.
    fn text(output: &Self::Output) -> String;

    /// Leaves out the least of the rows; false where there is none.
    fn shorten(output: &mut Self::Output) -> bool;
}

/// Why a recording was not read.
#[derive(Debug)]
pub enum Unread {
    /// The caller's question cannot be meant.
    Question(String),
    Recording(Trouble),
    /// It has no window of the period.
    Nothing,
}

/// The reason of an answer without data.
pub const NOTHING: &str = "nothing was recorded in this period";

impl From<Trouble> for Unread {
    fn from(trouble: Trouble) -> Self {
        Unread::Recording(trouble)
    }
}

/// Answers from a recording, or from the trouble with it.
pub type Recollect = fn(&Value, Result<&dyn Recording, Trouble>, Micros) -> Result<Answer, Error>;

/// A period of an answer, in RFC 3339.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[schemars(inline)]
pub struct FromTo {
    pub from: String,
    pub to: String,
}

/// The gateway's half of such a tool.
pub const fn question<R: Recollects>() -> Question {
    const MEASURED: fn() -> Error = || Error::InvalidInput("this tool reads the recording and measures nothing".into());
    Question {
        name: R::NAME,
        title: R::TITLE,
        when: R::WHEN,
        description: R::DESCRIPTION,
        open_world: true,
        continues: false,
        input_schema: schema::input_schema::<R::Input>,
        output_schema: schema::output_schema::<R::Output>,
        whole_schema: schema::whole_schema::<R::Output>,
        prepare: |value, _| {
            let input = input::understand::<R::Input>(value)?;
            R::check(&input, now()).map_err(Error::InvalidInput).map(|()| Duration::ZERO)
        },
        report: |_, _| Err(MEASURED()),
        merge: |_, _| Err(MEASURED()),
        fold: |_| Err(MEASURED()),
        condense: |_| Err(MEASURED()),
        sum: |_| Err(MEASURED()),
        recall: |_, _| Err(MEASURED()),
        of_record: |_, _| None,
        without_daemon: |_| None,
        recollect: Some(recollect::<R>),
    }
}

fn recollect<R: Recollects>(
    value: &Value,
    recording: Result<&dyn Recording, Trouble>,
    now: Micros,
) -> Result<Answer, Error> {
    let input = input::decode::<R::Input>(value)?;
    let read = recording.map_err(Unread::from).and_then(|recording| R::sample(&input, recording, now));
    let sample = match read {
        Ok(sample) => Ok(sample),
        Err(Unread::Question(reason)) => return Err(Error::InvalidInput(reason)),
        Err(Unread::Recording(trouble)) => Err(trouble.to_string()),
        Err(Unread::Nothing) => Err(NOTHING.to_owned()),
    };
    let mut output = R::report(&input, sample);
    let of = |output: &R::Output| Answer { structured: structured(output), text: R::text(output) };
    let limited = value.get("limit").is_some_and(|limit| !limit.is_null());
    let mut answer = of(&output);
    while !limited && !answer.is_short() && R::shorten(&mut output) {
        answer = of(&output);
    }
    Ok(answer)
}
