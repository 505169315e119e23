//! The ways to another host's gateway.

use std::{
    io,
    path::Path,
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use rmcp::{
    RoleClient,
    transport::{
        StreamableHttpClientTransport, async_rw::AsyncRwTransport,
        streamable_http_client::StreamableHttpClientTransportConfig,
    },
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader, DuplexStream, ReadBuf},
    process::{ChildStderr, ChildStdin, Command},
    task::{JoinHandle, JoinSet},
};

use super::{Target, arrivals::Arrivals, client::Client, ssh};
use crate::{limits, sync::lock};

/// The error output of ssh, or of the other side through it.
pub struct Complaints {
    last: Arc<Mutex<Option<String>>>,
    reading: JoinHandle<()>,
}

impl Complaints {
    fn of(stderr: ChildStderr) -> Self {
        let last: Arc<Mutex<Option<String>>> = Arc::default();
        let kept = Arc::clone(&last);
        let reading = tokio::spawn(async move {
            let mut lines = BufReader::new(stderr.take(limits::COMPLAINT_BYTES)).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                *lock(&kept) =
                    Some(line.trim().to_owned()).filter(|line| !line.is_empty()).or_else(|| lock(&kept).take());
            }
        });
        Complaints { last, reading }
    }

    /// The last line, once there is no more to come.
    pub async fn last(self) -> Option<String> {
        let _ = tokio::time::timeout(limits::COMPLAINT_TIME, self.reading).await;
        lock(&self.last).take()
    }
}

/// `netmon-mcp` at the other end of ssh.
pub fn over_ssh(
    destination: &str,
    config: Option<&Path>,
    arrivals: Arrivals,
) -> Result<(AsyncRwTransport<RoleClient, Lines, ChildStdin>, Complaints), String> {
    let mut command = Command::from(ssh::command(config));
    let connect = format!("ConnectTimeout={}", limits::HOST_CONNECT.as_secs());
    command.args(["-o", &connect, "-o", "ServerAliveInterval=15", "--", &ssh::destination(destination), "netmon-mcp"]);
    let failed = |e: std::io::Error| format!("starting ssh failed: {e}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let (Some(input), Some(output), Some(errors)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err("ssh has no standard input and output".into());
    };
    let (ours, lines) = tokio::io::duplex(limits::ANSWER_PART);
    let mut relay = JoinSet::new();
    relay.spawn(async move {
        if let Err(e) = arrivals.relay(output, ours).await {
            tracing::warn!("connection to another host closed: {e}");
        }
        drop(child); // ssh ends with its connection
    });
    let lines = Lines { from: lines, _relay: relay };
    let transport = AsyncRwTransport::new_client(lines, input).with_max_line_length(limits::ANSWERS_BYTES_OF_A_CALLER);
    Ok((transport, Complaints::of(errors)))
}

fn config(url: &str, token: Option<String>) -> StreamableHttpClientTransportConfig {
    let config = StreamableHttpClientTransportConfig::with_uri(url);
    match token {
        Some(token) => config.auth_header(token),
        None => config,
    }
}

/// A client for a URL, or for the Unix socket that leads to it. It follows no redirect: the next server would get the
/// token of this one.
pub fn client(target: &Target) -> Option<reqwest::Client> {
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    let client = match target {
        Target::Ssh(_) => return None,
        Target::Http(_) => client,
        Target::Unix(path) => client.no_proxy().unix_socket(path.as_path()),
    };
    client.build().inspect_err(|e| tracing::error!("creating the HTTP client for other hosts failed: {e}")).ok()
}

/// A gateway that serves HTTP.
pub fn http(client: Client, url: &str, token: Option<String>) -> StreamableHttpClientTransport<Client> {
    StreamableHttpClientTransport::with_client(client, config(url, token))
}

/// What ssh's relay passes on. With it the relay ends, and ssh.
pub struct Lines {
    from: DuplexStream,
    _relay: JoinSet<()>,
}

impl AsyncRead for Lines {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        Pin::new(&mut self.from).poll_read(context, buffer)
    }
}
