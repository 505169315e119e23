//! Connections: how many, how long they may dawdle, and how they end.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::{Router, body::Body};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::{
    listen::{Listener, Peer, Stream},
    tls::{self, Tls},
};
use crate::{bpf::lock, limits};

/// A connection, as its requests see it.
pub struct Connection {
    pub peer: Peer,
    /// Requests whose answers are not out yet, event streams included.
    busy: AtomicUsize,
    /// Those of them that a client waits for: calls, not streams that only listen.
    owed: Arc<AtomicUsize>,
    /// Closes it.
    close: CancellationToken,
}

/// Held while a request is answered.
pub struct Busy {
    connection: Arc<Connection>,
    owed: bool,
}

impl Connection {
    /// Counts a request until the guard is dropped. `owed` are answers that a shutdown waits for.
    pub fn begin(self: &Arc<Self>, owed: bool) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        if owed {
            self.owed.fetch_add(1, Ordering::Relaxed);
        }
        Busy { connection: Arc::clone(self), owed }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.connection.busy.fetch_sub(1, Ordering::Relaxed);
        if self.owed {
            self.connection.owed.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The open connections, oldest first.
pub struct Connections {
    max: usize,
    open: Mutex<BTreeMap<u64, Arc<Connection>>>,
    next: AtomicU64,
    owed: Arc<AtomicUsize>,
}

impl Connections {
    pub fn new(max: usize) -> Self {
        Connections { max: max.max(1), open: Mutex::default(), next: AtomicU64::new(0), owed: Arc::default() }
    }

    pub fn count(&self) -> usize {
        lock(&self.open).len()
    }

    /// Answers that are not out yet.
    pub fn owed(&self) -> usize {
        self.owed.load(Ordering::Relaxed)
    }

    /// Takes connections until `ending` is cancelled.
    pub async fn serve(
        self: Arc<Self>,
        listener: Listener,
        tls: Option<Arc<Tls>>,
        router: Router,
        ending: CancellationToken,
    ) {
        loop {
            let (stream, peer) = tokio::select! {
                () = ending.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(e) => {
                        // Too many open files and the like pass; a loop that spins on them would not help.
                        tracing::warn!("a connection was not taken: {e}");
                        tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(connection) = self.admit(id, peer) else { continue };
            let all = Arc::clone(&self);
            let secured = secured(stream, tls.as_deref().map(Tls::acceptor), connection.close.clone());
            let (router, ending) = (router.clone(), ending.clone());
            let work = async move {
                if let Some(stream) = secured.await {
                    talk(stream, connection, router, ending).await;
                }
            };
            tokio::spawn(async move {
                work.await;
                lock(&all.open).remove(&id);
            });
        }
    }

    /// A place for a connection. When all are taken, the oldest that asks nothing makes room: it is half
    /// open or idle, and a client that still wants it connects again.
    fn admit(&self, id: u64, peer: Peer) -> Option<Arc<Connection>> {
        let mut open = lock(&self.open);
        if open.len() >= self.max {
            let idle = open.iter().find(|(_, c)| c.busy.load(Ordering::Relaxed) == 0).map(|(id, _)| *id);
            let Some(idle) = idle else {
                tracing::warn!(%peer, "all {} connections are at work; this one was closed", self.max);
                return None;
            };
            if let Some(connection) = open.remove(&idle) {
                connection.close.cancel();
            }
        }
        let connection = Arc::new(Connection {
            peer,
            busy: AtomicUsize::new(0),
            owed: Arc::clone(&self.owed),
            close: CancellationToken::new(),
        });
        open.insert(id, Arc::clone(&connection));
        Some(connection)
    }
}

/// The stream, encrypted where that is wanted and the client is quick enough about it.
async fn secured(
    stream: Pin<Box<dyn Stream>>,
    acceptor: Option<TlsAcceptor>,
    close: CancellationToken,
) -> Option<Pin<Box<dyn Stream>>> {
    let Some(acceptor) = acceptor else { return Some(stream) };
    tokio::select! {
        () = close.cancelled() => None,
        () = tokio::time::sleep(limits::HANDSHAKE_TIME) => None,
        secured = tls::secure(acceptor, stream) => {
            secured.inspect_err(|e| tracing::debug!("no TLS with a client: {e}")).ok()
        }
    }
}

/// HTTP/1.1 with one client, until it leaves, dawdles, or is told to end.
async fn talk(stream: Pin<Box<dyn Stream>>, connection: Arc<Connection>, router: Router, ending: CancellationToken) {
    let close = connection.close.clone();
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Arc::clone(&connection));
        router.clone().call(request)
    });
    let mut http = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits::HEADER_TIME)
            .max_buf_size(limits::HEADER_BYTES)
            .serve_connection(TokioIo::new(Impatient::new(stream)), service)
    );
    let ended = tokio::select! {
        ended = http.as_mut() => ended,
        () = close.cancelled() => return,
        () = ending.cancelled() => {
            http.as_mut().graceful_shutdown();
            http.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!("a connection ended: {e}");
    }
}

/// A stream whose writes fail when the other side takes nothing for [`limits::WRITE_TIME`]: a client that
/// does not read would hold its answers in our memory for ever.
struct Impatient {
    stream: Pin<Box<dyn Stream>>,
    patience: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn new(stream: Pin<Box<dyn Stream>>) -> Self {
        Impatient { stream, patience: None }
    }

    /// Passes on what a write came to; looks at the clock while it does not come to anything.
    fn judge<T>(&mut self, poll: Poll<io::Result<T>>, context: &mut Context) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.patience = None;
            return poll;
        }
        let deadline = || Box::pin(tokio::time::sleep(limits::WRITE_TIME));
        ready!(self.patience.get_or_insert_with(deadline).as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(context, buffer)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = self.stream.as_mut().poll_write(context, bytes);
        self.judge(poll, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        slices: &[io::IoSlice],
    ) -> Poll<io::Result<usize>> {
        let poll = self.stream.as_mut().poll_write_vectored(context, slices);
        self.judge(poll, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        let poll = self.stream.as_mut().poll_flush(context);
        self.judge(poll, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        let poll = self.stream.as_mut().poll_shutdown(context);
        self.judge(poll, context)
    }
}
