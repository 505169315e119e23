//! A gateway that serves HTTP, and a client that can misbehave.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::harness::{GATEWAY, until};

pub const MODERN: &str = "2026-07-28";
pub const LEGACY: &str = "2025-11-25";

/// `netmon-mcp http` on its own port.
pub struct Server {
    pub child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
    /// Sent with every request of [`Server::post`].
    pub token: Option<String>,
}

impl Server {
    /// A server for the daemon at `socket`, without credentials.
    pub fn start(socket: &Path, arguments: &[&str]) -> Server {
        Server::start_with_credentials(socket, &[&["--insecure-no-auth"], arguments].concat())
    }

    /// A server whose clients need the credentials of the arguments.
    pub fn start_with_credentials(socket: &Path, arguments: &[&str]) -> Server {
        let mut command = Command::new(GATEWAY);
        command.args(["http", "--listen", "127.0.0.1:0", "--socket"]).arg(socket).args(arguments);
        Server::spawn(command)
    }

    pub fn spawn(mut command: Command) -> Server {
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let lines = Arc::clone(&log);
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                *lines.lock().unwrap() += &(line + "\n");
            }
        });
        let unset = "0.0.0.0:0".parse().unwrap();
        let mut server = Server { child, address: unset, log, token: None };
        let log = until("the gateway serves", || {
            let log = server.log();
            assert!(server.child.try_wait().unwrap().is_none(), "the gateway ended: {log}");
            ["serving http://", "serving https://", "serving unix:"]
                .iter()
                .any(|text| log.contains(text))
                .then_some(log)
        });
        let place = log.lines().find_map(|line| line.split_once("serving http")?.1.split_once("://"));
        if let Some(rest) = place {
            server.address = rest.1.split("/mcp").next().unwrap().parse().unwrap();
        }
        server
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a line of the log that contains every one of `words`.
    pub fn until_logged(&self, words: &[&str]) -> String {
        until(&format!("a line with {words:?}"), || {
            let log = self.log();
            log.lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        })
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    pub fn get(&self, path: &str, headers: &str) -> Reply {
        exchange(
            self.connect(),
            &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n"),
        )
    }

    /// An MCP request with these additional headers.
    pub fn post(&self, headers: &str, body: &str) -> Reply {
        exchange(self.connect(), &self.request(headers, body))
    }

    pub fn request(&self, headers: &str, body: &str) -> String {
        let token = self.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let host = if headers.contains("Host:") { "" } else { "Host: localhost\r\n" };
        format!(
            "POST /mcp HTTP/1.1\r\n{host}{token}{headers}Accept: application/json, text/event-stream\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    }

    /// A tool call of MCP 2026-07-28: without a session.
    pub fn call(&self, tool: &str, arguments: Value) -> Reply {
        let (headers, body) = modern_call(tool, arguments);
        self.post(&headers, &body)
    }

    /// Begins a session of MCP 2025-11-25.
    pub fn initialize(&self) -> Reply {
        self.post(
            "",
            &message(
                "initialize",
                json!({"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}}),
            ),
        )
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn resident_mb(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("the gateway's log:\n{}", self.log());
        }
    }
}

pub fn message(method: &str, params: Value) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string()
}

/// The headers and the body of a tool call of MCP 2026-07-28. The argument `progress` becomes the progress token.
pub fn modern_call(tool: &str, mut arguments: Value) -> (String, String) {
    let headers = format!("MCP-Protocol-Version: {MODERN}\r\nMcp-Method: tools/call\r\nMcp-Name: {tool}\r\n");
    let mut meta = json!({
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    if let Some(token) = arguments.as_object_mut().unwrap().remove("progress") {
        meta["progressToken"] = token;
    }
    (headers, message("tools/call", json!({"name": tool, "arguments": arguments, "_meta": meta})))
}

/// The received reply.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: String,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let find = |line: &'_ str| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).is_some();
        self.headers.lines().find(|line| find(line)).and_then(|line| line.split_once(": ")).map(|(_, value)| value)
    }

    /// The last message, of a plain body or of an event stream.
    pub fn json(&self) -> Value {
        let last = self.messages().pop();
        last.unwrap_or_else(|| panic!("no message in {self:?}"))
    }

    pub fn messages(&self) -> Vec<Value> {
        if self.header("content-type") != Some("text/event-stream") {
            return serde_json::from_str(&self.body).into_iter().collect();
        }
        let data = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter_map(|data| serde_json::from_str(data).ok()).collect()
    }
}

/// Sends a request and reads the answer to its end.
pub fn exchange<S: Read + Write>(mut stream: S, request: &str) -> Reply {
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes); // a server that refuses may reset the connection over unread data
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("not an answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    Reply { status, headers: head.into(), body: if chunked { unchunk(body) } else { body.into() } }
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap();
        let Some(chunk) = rest.get(..length).filter(|_| length > 0) else { break };
        whole += chunk;
        body = rest[length..].trim_start_matches("\r\n");
    }
    whole
}

pub fn unix(path: &Path) -> UnixStream {
    UnixStream::connect(path).unwrap()
}
