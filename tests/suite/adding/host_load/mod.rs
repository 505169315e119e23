//! A tool that the suite adds: the load of the host.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use crate::daemon::{host::Host, kernel::Loader, session::*};
use crate::{tools::Tool, wire::Error};
mod report;
mod sample;
mod text;
pub struct HostLoad;
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {}
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub load_1_minute: f64,
}

impl Tool for HostLoad {
    const NAME: &'static str = "host_load";
    const TITLE: &'static str = "How busy the host is";
    const WHEN: &'static str = "how many threads want a CPU";
    const DESCRIPTION: &'static str = "Threads that want a CPU, on average.";
    type Input = Input;
    type Sample = u64;
    type Output = Output;
    fn load(_: &mut Loader) -> Result<Self, Error> {
        Ok(HostLoad)
    }
    fn open<'a>(&'a self, _: Input, _: &'a Host) -> Result<BoxSession<'a, u64>, Error> {
        Ok(Box::new(Snapshot(|| Ok(sample::sample()))))
    }
    fn duration(_: &Input) -> std::time::Duration {
        std::time::Duration::ZERO
    }
    fn merge(_: u64, later: u64) -> u64 {
        later
    }
    fn report(_: Input, sample: u64) -> Output {
        report::report(sample)
    }
    fn text(output: &Output) -> String {
        text::text(output)
    }
}
#[cfg(test)]
mod tests;
