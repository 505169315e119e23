//! The ways to another host's gateway.

use std::{
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
};

use rmcp::transport::{
    StreamableHttpClientTransport, TokioChildProcess, UnixSocketHttpClient,
    streamable_http_client::StreamableHttpClientTransportConfig,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{ChildStderr, Command},
    task::JoinHandle,
};

use crate::{bpf::lock, limits};

/// What ssh, or the other side through it, has to say for itself.
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

/// `netmon-mcp` at the other end of ssh. Nobody is there to be asked for a password.
pub fn ssh(destination: &str, config: Option<&Path>) -> Result<(TokioChildProcess, Complaints), String> {
    let mut command = Command::new("ssh");
    if let Some(config) = config {
        command.arg("-F").arg(config);
    }
    let destination = if destination.starts_with("//") { format!("ssh:{destination}") } else { destination.into() };
    let connect = format!("ConnectTimeout={}", limits::HOST_CONNECT.as_secs());
    command.args(["-T", "-o", "BatchMode=yes", "-o", &connect, "-o", "ServerAliveInterval=15", "--", &destination]);
    command.arg("netmon-mcp");
    let failed = |e: std::io::Error| format!("ssh could not be started: {e}");
    let (child, stderr) = TokioChildProcess::builder(command).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let stderr = stderr.ok_or("ssh has no standard error")?;
    Ok((child, Complaints::of(stderr)))
}

fn config(url: &str, token: Option<String>) -> StreamableHttpClientTransportConfig {
    let config = StreamableHttpClientTransportConfig::with_uri(url);
    match token {
        Some(token) => config.auth_header(token),
        None => config,
    }
}

/// A gateway that serves HTTP.
pub fn http(url: &str, token: Option<String>) -> StreamableHttpClientTransport<reqwest::Client> {
    StreamableHttpClientTransport::with_client(reqwest::Client::new(), config(url, token))
}

/// A Unix socket that leads to one.
pub fn unix(path: &Path, token: Option<String>) -> StreamableHttpClientTransport<UnixSocketHttpClient> {
    let config = config("http://localhost/mcp", token);
    StreamableHttpClientTransport::from_unix_socket_with_config(&path.to_string_lossy(), config)
}
