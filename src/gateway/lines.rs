//! JSON-RPC over lines. rmcp's own transport ignores a line that is not JSON or is too long; this one answers it.

use std::{io, sync::Arc};

use futures::{SinkExt, StreamExt, future::BoxFuture};
use rmcp::{
    ErrorData, RoleServer,
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::{
        Transport,
        async_rw::{JsonRpcMessageCodec, JsonRpcMessageCodecError, TransportWriter},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Mutex,
};
use tokio_util::{
    bytes::BytesMut,
    codec::{Decoder, FramedRead, FramedWrite, LinesCodec, LinesCodecError},
};

use super::unread;
use crate::limits;

/// The lines of a client, and those for it.
pub struct LineTransport<R, W> {
    lines: FramedRead<R, Lines>,
    codec: JsonRpcMessageCodec<RxJsonRpcMessage<RoleServer>>,
    output: Arc<Mutex<Option<TransportWriter<RoleServer, W>>>>,
    /// An error that is being sent. The next line waits for it, so a client that reads nothing cannot collect errors here.
    reply: Option<BoxFuture<'static, io::Result<()>>>,
}

impl<R: AsyncRead + Send + Unpin, W: AsyncWrite + Send + Unpin + 'static> LineTransport<R, W> {
    pub fn new(input: R, output: W) -> Self {
        LineTransport {
            lines: FramedRead::new(input, Lines(LinesCodec::new_with_max_length(limits::LINE_BYTES))),
            codec: JsonRpcMessageCodec::default(),
            output: Arc::new(Mutex::new(Some(FramedWrite::new(output, JsonRpcMessageCodec::default())))),
            reply: None,
        }
    }

    /// Answers a line without a known id. The response has none: no schema of MCP allows null.
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
            match self.lines.next().await?.ok()? {
                Err(LinesCodecError::MaxLineLengthExceeded) => self.refuse(unread::too_long()),
                Err(LinesCodecError::Io(e)) => self.refuse(unread::not_text(&e)),
                Ok(line) if line.trim_ascii().is_empty() => {}
                Ok(line) => match self.codec.decode_eof(&mut BytesMut::from(line.as_str())) {
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

/// Lines, or why one is unreadable: the lines after it follow.
struct Lines(LinesCodec);

impl Lines {
    fn item(line: Result<Option<String>, LinesCodecError>) -> io::Result<Option<<Lines as Decoder>::Item>> {
        Ok(line.transpose())
    }
}

impl Decoder for Lines {
    type Item = Result<String, LinesCodecError>;
    type Error = io::Error;

    fn decode(&mut self, input: &mut BytesMut) -> io::Result<Option<Self::Item>> {
        Lines::item(self.0.decode(input))
    }

    fn decode_eof(&mut self, input: &mut BytesMut) -> io::Result<Option<Self::Item>> {
        Lines::item(self.0.decode_eof(input))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines in these bytes: their text, or why they have none.
    fn split(bytes: &[u8]) -> Vec<String> {
        let mut lines = Lines(LinesCodec::new_with_max_length(8));
        let mut input = BytesMut::from(bytes);
        let next = || lines.decode_eof(&mut input).unwrap();
        std::iter::from_fn(next).map(|line| line.unwrap_or_else(|e| e.to_string())).collect()
    }

    #[test]
    fn lines_after_an_unreadable_one_are_read() {
        assert_eq!(split(b"a\n\nbc\nend"), ["a", "", "bc", "end"]);
        assert_eq!(split(b"123456789012345678901234567890\nb\n"), ["max line length exceeded", "b"]);
        assert_eq!(split(b"\xff\nb\n"), ["Unable to decode input as UTF8", "b"]);
    }
}
