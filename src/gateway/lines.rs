//! JSON-RPC over lines. rmcp's own transport ignores a line that is not JSON or is too long; this one answers it.

use std::{io, mem, sync::Arc};

use futures::{SinkExt, future::BoxFuture};
use rmcp::{
    ErrorData, RoleServer,
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::{
        Transport,
        async_rw::{JsonRpcMessageCodec, JsonRpcMessageCodecError, TransportWriter},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    sync::Mutex,
};
use tokio_util::{
    bytes::BytesMut,
    codec::{Decoder, FramedWrite},
};

use super::unread;
use crate::limits;

/// As much as is read at once.
const READ_BYTES: usize = 8_192;

/// The lines of a client, and those for it.
pub struct LineTransport<R, W> {
    lines: Splitter<R>,
    codec: JsonRpcMessageCodec<RxJsonRpcMessage<RoleServer>>,
    output: Arc<Mutex<Option<TransportWriter<RoleServer, W>>>>,
    /// An error that is being sent. The next line waits for it, so a client that reads nothing cannot collect errors here.
    reply: Option<BoxFuture<'static, io::Result<()>>>,
}

impl<R: AsyncRead + Send + Unpin, W: AsyncWrite + Send + Unpin + 'static> LineTransport<R, W> {
    pub fn new(input: R, output: W) -> Self {
        LineTransport {
            lines: Splitter { input, buffer: BytesMut::new(), searched: 0, is_skipping: false },
            codec: JsonRpcMessageCodec::default(),
            output: Arc::new(Mutex::new(Some(FramedWrite::new(output, JsonRpcMessageCodec::default())))),
            reply: None,
        }
    }

    /// Its id is unknown, so the response has none: no schema of MCP allows null.
    fn refuse(&mut self, error: ErrorData) {
        self.reply = Some(Box::pin(self.send(TxJsonRpcMessage::<RoleServer>::error(error, None))));
    }
}

impl<R: AsyncRead + Send + Unpin, W: AsyncWrite + Send + Unpin + 'static> Transport<RoleServer>
    for LineTransport<R, W>
{
    type Error = io::Error;

    fn send(&mut self, message: TxJsonRpcMessage<RoleServer>) -> impl Future<Output = io::Result<()>> + Send + 'static {
        let output = Arc::clone(&self.output);
        async move {
            match &mut *output.lock().await {
                Some(output) => output.send(message).await.map_err(io::Error::from),
                None => Err(io::ErrorKind::NotConnected.into()),
            }
        }
    }

    /// rmcp drops this future and asks again, so everything that it has begun is in `self`.
    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        loop {
            if let Some(reply) = &mut self.reply {
                let sent = reply.await;
                self.reply = None;
                sent.ok()?;
            }
            match self.lines.next().await? {
                Line::TooLong => self.refuse(unread::too_long()),
                Line::Whole(line) if line.trim_ascii().is_empty() => {}
                Line::Whole(mut line) => match self.codec.decode(&mut line) {
                    Ok(Some(message)) => return Some(message),
                    Ok(None) => {} // a notification of another protocol
                    Err(JsonRpcMessageCodecError::Serde(e)) => self.refuse(unread::not_a_message(&e)),
                    Err(_) => return None,
                },
            }
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        *self.output.lock().await = None;
        Ok(())
    }
}

/// A line, with its end.
enum Line {
    Whole(BytesMut),
    TooLong,
}

/// Splits bytes into lines of a bounded length.
struct Splitter<R> {
    input: R,
    buffer: BytesMut,
    /// The first bytes of the buffer, which have no end of a line.
    searched: usize,
    /// The rest of a line that was too long is skipped.
    is_skipping: bool,
}

impl<R: AsyncRead + Unpin> Splitter<R> {
    /// The next line; nothing at the end of the input.
    async fn next(&mut self) -> Option<Line> {
        loop {
            if let Some(line) = self.buffered() {
                return Some(line);
            }
            self.buffer.reserve(READ_BYTES);
            match self.input.read_buf(&mut self.buffer).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return None,
            }
        }
    }

    fn buffered(&mut self) -> Option<Line> {
        loop {
            let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
            let length = self.searched + end.map_or(self.buffer.len() - self.searched, |end| end + 1);
            let is_too_long = length > limits::LINE_BYTES;
            if end.is_none() && !is_too_long && !self.is_skipping {
                self.searched = length;
                return None;
            }
            let line = self.buffer.split_to(length);
            self.searched = 0;
            let was_skipping = mem::replace(&mut self.is_skipping, end.is_none());
            match (was_skipping, end) {
                (true, None) => return None,
                (true, Some(_)) => {}
                (false, _) if is_too_long => return Some(Line::TooLong),
                (false, _) => return Some(Line::Whole(line)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines in input that comes in pieces: their text, or `-` for one that is too long.
    fn split(pieces: &[&[u8]]) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut input = in_pieces(pieces);
            let mut lines = Splitter { input: &mut input, buffer: BytesMut::new(), searched: 0, is_skipping: false };
            let mut found = Vec::new();
            while let Some(line) = lines.next().await {
                found.push(match line {
                    Line::Whole(line) => String::from_utf8_lossy(&line).into_owned(),
                    Line::TooLong => "-".into(),
                });
            }
            found
        })
    }

    /// Gives each piece to one read.
    fn in_pieces<'a>(pieces: &'a [&'a [u8]]) -> Box<dyn AsyncRead + Unpin + 'a> {
        let empty: Box<dyn AsyncRead + Unpin + 'a> = Box::new(tokio::io::empty());
        pieces.iter().rev().fold(empty, |rest, piece| Box::new(piece.chain(rest)))
    }

    #[test]
    fn input_is_split_into_lines() {
        assert_eq!(split(&[b"a\nb\n\nc", b"d", b"\n", b"unfinished"]), ["a\n", "b\n", "\n", "cd\n"]);
        assert!(split(&[]).is_empty());
    }

    #[test]
    fn long_line_is_reported_once_and_skipped() {
        let most = vec![b'x'; limits::LINE_BYTES];
        assert_eq!(split(&[&most, b"y", &most, b"y\n", b"z\n"]), ["-", "z\n"]);
        assert_eq!(split(&[&most, b"\nz\n"]), ["-", "z\n"]);
        assert_eq!(split(&[&most[1..], b"\nz\n"]).len(), 2);
        assert_eq!(split(&[&[&most[..], b"\nz\n"].concat()]), ["-", "z\n"]);
    }
}
