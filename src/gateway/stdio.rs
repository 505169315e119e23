//! MCP on standard input and output.

use std::{
    io::{self, IsTerminal},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use rmcp::ServiceExt;
use tokio::{
    io::{AsyncRead, ReadBuf},
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use super::{Gateway, lines::LineTransport, server::Server, standard};

/// Serves until the end of input, SIGTERM or SIGINT.
pub async fn serve(gateway: Gateway) -> anyhow::Result<()> {
    if io::stdin().is_terminal() {
        eprintln!(
            "netmon-mcp is an MCP server: a client starts it. In a shell, try:\n  netmon-mcp diagnose\n  netmon-mcp \
             tools\n  netmon-mcp --help"
        );
    }
    let ended = CancellationToken::new();
    let input = UntilEnd { input: standard::input(), ended: ended.clone() };
    let server = Server::new(Arc::new(gateway), ended.clone());
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let session = async {
        match server.serve(LineTransport::new(input, standard::output())).await {
            Ok(running) => running.waiting().await.map(|_| ()).map_err(anyhow::Error::from),
            Err(e) if ended.is_cancelled() => {
                tracing::debug!("input ended before the MCP handshake: {e}");
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    };
    tokio::select! {
        result = session => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Input that reports its end. rmcp waits for open calls before it reports a disconnected client, so a window would
/// keep the process alive for seconds.
struct UntilEnd<R> {
    input: R,
    ended: CancellationToken,
}

impl<R: AsyncRead + Unpin> AsyncRead for UntilEnd<R> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.input).poll_read(context, buffer);
        if matches!(&result, Poll::Ready(Ok(())) if buffer.filled().len() == before)
            || matches!(&result, Poll::Ready(Err(_)))
        {
            self.ended.cancel();
        }
        result
    }
}
