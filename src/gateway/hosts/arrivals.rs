//! Messages from another host, counted against the memory for answers while they arrive: the other host is not trusted.

use std::{io, sync::Arc, time::Instant};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{
    budget::{Budget, Held},
    gateway::{http::identity::Identity, memory},
    limits,
};

/// The messages of one host.
#[derive(Clone)]
pub struct Arrivals {
    budget: Arc<Budget<Identity>>,
    host: Identity,
    /// One long message at a time: two halves could each wait for the other's memory.
    long: Arc<Semaphore>,
}

impl Arrivals {
    pub fn of(host: &str, budget: Arc<Budget<Identity>>) -> Self {
        Arrivals { budget, host: Identity::Host(host.into()), long: Arc::new(Semaphore::new(1)) }
    }

    /// A message without data so far.
    pub fn message(&self) -> Message {
        let held = Held::nothing(&self.budget, self.host.clone());
        Message { long: Arc::clone(&self.long), begun: None, held, bytes: 0, alone: None }
    }

    /// Passes lines on until the host says no more, or more than there is memory for, or stops in the middle of a line.
    pub async fn relay(&self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
        let (mut part, mut message) = (vec![0; limits::ANSWER_PART], self.message());
        loop {
            let read = message.in_time(from.read(&mut part)).await?;
            let new = &part[..read];
            if new.is_empty() {
                return Ok(());
            }
            message.grow(read).await?;
            to.write_all(new).await?;
            if let Some(end) = new.iter().rposition(|byte| *byte == b'\n') {
                message = self.message();
                match read - end - 1 {
                    0 => {}
                    rest => message.grow(rest).await?,
                }
            }
        }
    }
}

/// One message. Its memory is given back when this is dropped.
pub struct Message {
    long: Arc<Semaphore>,
    begun: Option<Instant>,
    held: Held<Identity>,
    bytes: usize,
    alone: Option<OwnedSemaphorePermit>,
}

impl Message {
    /// Counts `more` bytes that have come. Waits for memory, and not for long.
    pub async fn grow(&mut self, more: usize) -> io::Result<()> {
        self.begun.get_or_insert_with(Instant::now);
        self.bytes += more;
        let bytes = self.bytes * limits::SAMPLE_COST;
        let room = async {
            if self.bytes > limits::SAMPLE_KEPT && self.alone.is_none() {
                self.alone = Arc::clone(&self.long).acquire_owned().await.ok();
            }
            while bytes <= limits::ANSWERS_BYTES_OF_A_CALLER && self.held.resize(bytes).is_err() {
                tokio::time::sleep(limits::MEMORY_LOOK).await;
            }
        };
        let waited = tokio::time::timeout(limits::CALL_WAIT, room).await;
        if waited.is_ok() && self.held.bytes() == bytes {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::OutOfMemory, memory::too_long_an_answer()))
    }

    /// Waits for the next part. A message that has begun is whole in time, or breaks off.
    pub async fn in_time<T>(&self, next: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let Some(begun) = self.begun else { return next.await };
        let left = limits::ANSWER_GRACE.saturating_sub(begun.elapsed());
        tokio::time::timeout(left, next).await.unwrap_or_else(|_| {
            let seconds = limits::ANSWER_GRACE.as_secs();
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("an incomplete message after {seconds} s")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals() -> (Arrivals, Arc<Budget<Identity>>) {
        let budget = Budget::new(limits::ANSWERS_BYTES, limits::ANSWERS_BYTES_OF_A_CALLER);
        (Arrivals::of("web1", Arc::clone(&budget)), budget)
    }

    /// Whether one more client would get this amount.
    fn is_left(budget: &Arc<Budget<Identity>>, bytes: usize) -> bool {
        let shares = [Identity::Uid(1), Identity::Uid(2)].map(|who| {
            let mut held = Held::nothing(budget, who);
            held.resize(bytes / 2).map(|()| held)
        });
        shares.iter().all(Result::is_ok)
    }

    #[tokio::test]
    async fn partial_message_bytes_are_counted() {
        let ((arrivals, budget), half) = (arrivals(), vec![b' '; 100_000]);
        let ((mut host, from), (to, mut reader)) = (tokio::io::duplex(1 << 20), tokio::io::duplex(1 << 20));
        let relay = tokio::spawn(async move { arrivals.relay(from, to).await });
        host.write_all(&half).await.unwrap();
        reader.read_exact(&mut half.clone()).await.unwrap();
        assert!(!is_left(&budget, limits::ANSWERS_BYTES), "half a message is counted");
        host.write_all(b"\n").await.unwrap();
        reader.read_u8().await.unwrap();
        tokio::task::yield_now().await;
        assert!(is_left(&budget, limits::ANSWERS_BYTES), "a whole one is its caller's");
        drop(host);
        relay.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn endless_message_is_cut_off() {
        let ((arrivals, budget), part) = (arrivals(), vec![b' '; 100_000]);
        let ((mut host, from), (to, mut reader)) = (tokio::io::duplex(1 << 16), tokio::io::duplex(1 << 16));
        let relay = tokio::spawn(async move { arrivals.relay(from, to).await });
        let read = tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
        while host.write_all(&part).await.is_ok() {}
        assert_eq!(relay.await.unwrap().unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        assert!(read.await.unwrap().unwrap() as usize <= limits::ANSWERS_BYTES_OF_A_CALLER / limits::SAMPLE_COST);
        assert!(is_left(&budget, limits::ANSWERS_BYTES));
    }

    #[tokio::test]
    async fn stalled_message_is_cut_off() {
        let mut message = arrivals().0.message();
        message.grow(1).await.unwrap();
        message.begun = Instant::now().checked_sub(limits::ANSWER_GRACE);
        let reason = message.in_time(std::future::pending::<io::Result<()>>()).await.unwrap_err().to_string();
        assert!(reason.contains("incomplete"), "{reason}");
    }
}
