//! Clients that only call one tool, over a pipe or over HTTP, so that the measurement covers the servers.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    harness::until,
    http_harness::{LEGACY, MODERN, message},
};

/// The tool that they call.
pub const TOOL: &str = "snapshot_interfaces";

/// A client that only calls the tool.
pub trait Calls {
    fn call(&mut self);
}

/// Lines over standard input and output.
pub struct Pipes {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// The request, and a text in its answer.
    question: String,
    says: &'static str,
}

impl Pipes {
    /// An MCP server, after `initialize`.
    pub fn new(command: Command) -> Pipes {
        let mut pipes = Pipes::to(command, call(None), "\"structuredContent\":");
        pipes.exchange(&initialize());
        pipes.send(&initialized());
        pipes
    }

    /// A program that answers each line with one line.
    pub fn to(mut command: Command, question: String, says: &'static str) -> Pipes {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Pipes { child, stdin, stdout, question, says }
    }

    fn send(&mut self, line: &str) {
        self.stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn exchange(&mut self, line: &str) -> String {
        self.send(line);
        let mut answer = String::new();
        assert!(self.stdout.read_line(&mut answer).unwrap() > 0, "the server ended");
        answer
    }
}

impl Calls for Pipes {
    fn call(&mut self) {
        let answer = self.exchange(&self.question.clone());
        assert!(answer.contains(self.says), "{answer}");
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn initialize() -> String {
    let client = json!({"name": "bench", "version": "0"});
    message("initialize", json!({"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": client}))
}

fn initialized() -> String {
    json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string()
}

fn call(meta: Option<Value>) -> String {
    let mut params = json!({"name": TOOL, "arguments": {"duration_ms": 100}});
    if let Some(meta) = meta {
        params["_meta"] = meta;
    }
    message("tools/call", params)
}

/// Over one reused connection.
pub struct Http {
    address: SocketAddr,
    stream: BufReader<TcpStream>,
    headers: String,
    body: String,
}

impl Http {
    pub fn connect(address: SocketAddr) -> Http {
        let stream = until("the server listens", || TcpStream::connect(address).ok());
        stream.set_nodelay(true).unwrap();
        Http { address, stream: BufReader::new(stream), headers: String::new(), body: String::new() }
    }

    /// A client of 2025-11-25, with a session.
    pub fn legacy(address: SocketAddr) -> Http {
        let mut http = Http::connect(address);
        let session = http.begin().expect("a session");
        http.headers = format!("Mcp-Session-Id: {session}\r\nMCP-Protocol-Version: {LEGACY}\r\n");
        http.exchange(&initialized());
        http.body = call(None);
        http
    }

    /// A client of 2026-07-28, without one.
    pub fn modern(address: SocketAddr) -> Http {
        let mut http = Http::connect(address);
        http.headers = format!("MCP-Protocol-Version: {MODERN}\r\nMcp-Method: tools/call\r\nMcp-Name: {TOOL}\r\n");
        http.body = call(Some(json!({
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": {},
        })));
        http
    }

    /// Begins a session and returns its id; none if the server has no room for it.
    pub fn begin(&mut self) -> Option<String> {
        let (status, headers, _) = self.exchange(&initialize());
        assert!(status == 200 || status == 503, "{status}");
        let id = |line: &str| line.to_ascii_lowercase().strip_prefix("mcp-session-id: ").map(str::to_owned);
        headers.lines().find_map(id)
    }

    /// A request and its answer: status, head, body.
    fn exchange(&mut self, body: &str) -> (u16, String, String) {
        let request = format!(
            "POST /mcp HTTP/1.1\r\nHost: {}\r\n{}Accept: application/json, text/event-stream\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            self.headers,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes()).unwrap();
        let (mut head, mut line) = (String::new(), String::new());
        while line != "\r\n" {
            line.clear();
            assert!(self.stream.read_line(&mut line).unwrap() > 0, "the server hung up after: {head}");
            head += &line;
        }
        let lower = head.to_ascii_lowercase();
        let field = |name: &str| lower.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = match field("content-length") {
            Some(length) => self.take(length.parse().unwrap()),
            None if field("transfer-encoding") == Some("chunked") => self.chunks(),
            None => String::new(),
        };
        (status, head, body)
    }

    fn take(&mut self, length: usize) -> String {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    fn chunks(&mut self) -> String {
        let mut body = String::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).unwrap();
            let length = usize::from_str_radix(line.trim(), 16).unwrap();
            let chunk = self.take(length + 2);
            if length == 0 {
                return body;
            }
            body += &chunk[..length];
        }
    }
}

impl Calls for Http {
    fn call(&mut self) {
        let body = std::mem::take(&mut self.body);
        let (status, _, answer) = self.exchange(&body);
        assert!(status == 200 && answer.contains("\"structuredContent\":"), "{status}: {answer}");
        self.body = body;
    }
}
