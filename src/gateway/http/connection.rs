//! Connections: how many, how long they may dawdle, and how they end.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::{Router, body::Body};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::{
    identity::{Identity, Source},
    listen::{Accepting, Peer, Stream},
    tls::{self, Tls},
};
use crate::{limits, logging::Throttle, sync::lock};

/// A connection, as its requests see it.
pub struct Connection {
    pub peer: Peer,
    source: Source,
    /// Whose it is, once a request on it had good credentials. A proxy's connection stays with its first client.
    owner: OnceLock<Identity>,
    /// Complete requests of a known client that still wait for their answer, including event streams.
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
    _room: OwnedSemaphorePermit,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    pub fn source(&self) -> Source {
        self.source
    }

    /// Notes the owner of the connection: known clients keep theirs longer than strangers.
    pub fn belongs_to(&self, identity: &Identity) {
        self.owner.get_or_init(|| identity.clone());
    }

    /// Counts a request until the guard is dropped: its client's `room` and its `place` among all. `owed` are answers
    /// that a shutdown waits for.
    pub fn begin(self: &Arc<Self>, owed: bool, room: OwnedSemaphorePermit, place: OwnedSemaphorePermit) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        if owed {
            self.owed.fetch_add(1, Ordering::Relaxed);
        }
        Busy { connection: Arc::clone(self), owed, _room: room, _place: place }
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
    /// Places for requests: fewer than connections, so that there is always one that may give way.
    requests: Arc<Semaphore>,
    complaints: Throttle,
}

impl Connections {
    pub fn new(max: usize) -> Self {
        let max = max.max(limits::CONNECTIONS_MIN);
        Connections {
            max,
            open: Mutex::default(),
            next: AtomicU64::new(0),
            owed: Arc::default(),
            requests: Arc::new(Semaphore::new(max - limits::CONNECTIONS_KEPT)),
            complaints: Throttle::new(limits::REFUSALS_PER_SECOND),
        }
    }

    /// The maximum of pending requests per client: half of all.
    pub fn share(&self) -> usize {
        (self.max / 2).max(1)
    }

    /// A place among the requests that are worked on.
    pub fn place(&self) -> Result<OwnedSemaphorePermit, String> {
        Arc::clone(&self.requests).try_acquire_owned().map_err(|_| {
            let limit = self.max - limits::CONNECTIONS_KEPT;
            format!("limit of {limit} pending requests reached (max_connections)")
        })
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
        listener: Accepting,
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
                        if let Some(skipped) = self.complaints.admit() {
                            tracing::warn!(skipped, "accepting a connection failed: {e}");
                        }
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

    /// Serves one connection that was not taken from a listener.
    pub async fn converse(&self, stream: impl Stream + 'static, peer: Peer, router: Router, ending: CancellationToken) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(connection) = self.admit(id, peer) {
            talk(Box::pin(stream), connection, router, ending).await;
            lock(&self.open).remove(&id);
        }
    }

    /// A place for a connection. When all are taken, some that ask nothing make room.
    fn admit(&self, id: u64, peer: Peer) -> Option<Arc<Connection>> {
        let mut open = lock(&self.open);
        if open.len() >= self.max {
            let leaving = give_way(&open);
            for connection in leaving.iter().filter_map(|id| open.remove(id)) {
                connection.close.cancel();
            }
            if leaving.is_empty() {
                if let Some(skipped) = self.complaints.admit() {
                    tracing::warn!(%peer, skipped, "limit of {} connections reached; the new one was closed", self.max);
                }
                return None;
            }
        }
        let connection = Arc::new(Connection {
            source: peer.source(),
            peer,
            owner: OnceLock::new(),
            busy: AtomicUsize::new(0),
            owed: Arc::clone(&self.owed),
            close: CancellationToken::new(),
        });
        open.insert(id, Arc::clone(&connection));
        Some(connection)
    }
}

/// The connections to close for new ones: strangers' before known clients', then those of the client with most, oldest
/// first. They are half open, slow or idle, and a client can connect again. Several are chosen at the same time,
/// because the search takes a while.
fn give_way(open: &BTreeMap<u64, Arc<Connection>>) -> Vec<u64> {
    #[derive(PartialEq, Eq, Hash)]
    enum Whose<'a> {
        Known(&'a Identity),
        Stranger(Source),
    }
    let mut idle: HashMap<Whose, Vec<u64>> = HashMap::new();
    for (id, connection) in open.iter().filter(|(_, connection)| connection.busy.load(Ordering::Relaxed) == 0) {
        let whose = connection.owner.get().map_or(Whose::Stranger(connection.source), Whose::Known);
        idle.entry(whose).or_default().push(*id);
    }
    let most = idle.into_iter().max_by_key(|(whose, ids)| (matches!(whose, Whose::Stranger(_)), ids.len()));
    let mut leaving = most.map(|(_, ids)| ids).unwrap_or_default();
    leaving.truncate((leaving.len() / 2 + 1).min(limits::CONNECTIONS_GIVE_WAY));
    leaving
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
            secured.inspect_err(|e| tracing::debug!("TLS handshake failed: {e}")).ok()
        }
    }
}

/// HTTP/1.1 with one client, until it disconnects, times out, or the server stops.
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
        tracing::debug!("connection closed: {e}");
    }
}

/// A stream with a write timeout ([`limits::WRITE_TIME`]): a client that does not read would keep its answers in our
/// memory for ever.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(source: Source, owner: Option<Identity>, busy: usize) -> Arc<Connection> {
        let connection = Connection {
            peer: Peer::Unix { uid: 0 },
            source,
            owner: OnceLock::new(),
            busy: AtomicUsize::new(busy),
            owed: Arc::default(),
            close: CancellationToken::new(),
        };
        owner.iter().for_each(|owner| connection.belongs_to(owner));
        Arc::new(connection)
    }

    #[test]
    fn unauthenticated_connections_are_dropped_first() {
        let (alice, bob) = (Some(Identity::Token("alice".into())), Some(Identity::Token("bob".into())));
        let mut open = BTreeMap::from([
            (1, connection(Source::Loopback, alice.clone(), 0)),
            (2, connection(Source::Loopback, bob.clone(), 0)),
            (3, connection(Source::Loopback, bob.clone(), 0)),
            (4, connection(Source::Loopback, bob, 1)),
            (5, connection(Source::Uid(1), None, 0)),
            (6, connection(Source::Loopback, None, 0)),
            (7, connection(Source::Loopback, None, 0)),
        ]);
        for expected in [&[6, 7][..], &[5], &[2, 3], &[1], &[]] {
            let leaving = give_way(&open);
            assert_eq!(leaving, expected);
            open.retain(|id, _| !leaving.contains(id));
        }
        assert_eq!(open.into_keys().collect::<Vec<_>>(), [4], "what is at work stays");
    }
}
