//! A measurement that is read again and again, until the reader has seen enough.

use std::time::Duration;

use rustix::fd::AsFd;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::{Failure, daemon::Daemon, exchange::read};
use crate::{
    limits,
    tools::{Answer, Json, Question},
    wire::{self, Request, Response},
};

/// Readings of one tool: each is what happened since the one before. Dropping them ends the measurement.
pub struct Readings {
    question: &'static Question,
    input: serde_json::Value,
    stream: BufReader<tokio::net::UnixStream>,
    /// What happened since the beginning.
    sum: Option<Box<RawValue>>,
}

impl Readings {
    /// Begins; the kernel counts when this returns. `input` was prepared by the question.
    pub async fn begin(
        daemon: &Daemon,
        question: &'static Question,
        input: serde_json::Value,
        every: Duration,
    ) -> Result<Readings, Failure> {
        let every_ms = u64::try_from(every.as_millis()).ok();
        let tool = question.name.into();
        let request = Request { version: wire::VERSION, tool, input, tell_opened: true, every_ms };
        let stream = tokio::net::UnixStream::from_std(daemon.dial()?).map_err(gone)?;
        let mut readings =
            Readings { question, input: request.input.clone(), stream: BufReader::new(stream), sum: None };
        let mut line = serde_json::to_vec(&request).unwrap_or_default();
        line.push(b'\n');
        // netmond refuses before it reads, so its error can be read although the write failed.
        let written = readings.stream.get_mut().write_all(&line).await;
        let Some(line) = readings.line().await? else {
            written.map_err(gone)?;
            return Err(Failure::Absent("netmond did not start the measurement".into()));
        };
        match serde_json::from_str(&line) {
            Ok(Response { opened: true, .. }) => Ok(readings),
            _ => Err(read(&line)
                .err()
                .unwrap_or_else(|| Failure::Absent("netmond did not start the measurement".into()))),
        }
    }

    /// The answer for the time since the last reading; none after the daemon's last reading.
    pub async fn next(&mut self) -> Result<Option<Answer>, Failure> {
        let Some(sample) = self.sample().await? else { return Ok(None) };
        let answer = (self.question.report)(self.input.clone(), sample.get())?;
        self.sum = Some(match self.sum.take() {
            Some(sum) => (self.question.merge)(sum.get(), sample.get())?,
            None => sample,
        });
        Ok(Some(answer))
    }

    /// The sample since the last reading, which the total does not hold; none after the daemon's last reading.
    pub async fn sample(&mut self) -> Result<Option<Json>, Failure> {
        let Some(line) = self.line().await? else { return Ok(None) };
        read(&line).map(Some)
    }

    /// Asks for the last reading now.
    pub fn enough(&self) {
        let _ = rustix::net::shutdown(self.stream.get_ref().as_fd(), rustix::net::Shutdown::Write); // or it has ended
    }

    /// The answer about all of it, if anything was read.
    pub fn sum(self) -> Result<Option<Answer>, Failure> {
        let Readings { question, input, sum, .. } = self;
        sum.map(|sum| (question.report)(input, sum.get())).transpose().map_err(Failure::from)
    }

    /// The next line, unless the daemon has hung up.
    async fn line(&mut self) -> Result<Option<String>, Failure> {
        let mut line = String::new();
        let longest = limits::ANSWER_BYTES as u64;
        (&mut self.stream).take(longest).read_line(&mut line).await.map_err(gone)?;
        Ok(Some(line).filter(|line| !line.is_empty()))
    }
}

/// The daemon does not go on, and why.
pub fn gone(reason: impl std::fmt::Display) -> Failure {
    Failure::Absent(format!(
        "netmond disconnected during the measurement ({reason}); try again, and check `systemctl status netmond` if \
            it fails again"
    ))
}
