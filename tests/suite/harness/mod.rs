//! The base of the tests: a daemon, an MCP client, network namespaces with traffic.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

mod deadline;
pub mod delayed;
mod few;
pub mod installed;
mod network;
pub mod slow;
mod watching;
pub mod windows;
#[allow(unused_imports)] // unused in binaries that load every tool
pub use few::*;
pub use network::*;
#[allow(unused_imports)] // unused in binaries that open no window
pub use watching::*;

pub const GATEWAY: &str = env!("CARGO_BIN_EXE_netmon-mcp");
pub const DAEMON: &str = env!("CARGO_BIN_EXE_netmond");

/// The group of a test's sockets: that of the user that a gateway becomes if root starts it.
pub const GROUP: &str = "nogroup";
/// That user and its group.
pub const NOBODY: u32 = 65534;

/// A folder that other users may enter.
pub fn open_folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

/// The timeout for immediate events. A guest under emulation is slower than its clock and sets a factor:
/// `NETMON_TEST_PATIENCE=5` multiplies by five.
pub fn patience(time: Duration) -> Duration {
    time * std::env::var("NETMON_TEST_PATIENCE").ok().and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// Waits until `condition` holds; panics with `what` if it does not within a minute.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + patience(Duration::from_secs(60));
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "did not happen within a minute: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A terminal with this number of columns: our end of it, and the end for a program.
pub fn terminal(columns: u16) -> (OwnedFd, OwnedFd) {
    let size = libc::winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut ours, mut its) = (-1, -1);
    // SAFETY: the descriptors and the size are valid for the call; name and settings are null.
    let done = unsafe { libc::openpty(&mut ours, &mut its, std::ptr::null_mut(), std::ptr::null(), &size) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: openpty has just created both, and nothing else owns them.
    unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(its)) }
}

/// A scan takes slots in the tables of every daemon, since each sees the drops of the whole host.
static SCANS: RwLock<()> = RwLock::new(());

/// Held by tests that scan.
pub fn scanning() -> RwLockWriteGuard<'static, ()> {
    SCANS.write().unwrap_or_else(PoisonError::into_inner)
}

/// Held by tests that count drops per flow.
pub fn without_scans() -> RwLockReadGuard<'static, ()> {
    SCANS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a command line, split at spaces; panics with its output if it fails.
pub fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).stdin(Stdio::null()).output().expect(line);
    assert!(output.status.success(), "`{line}`: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The path of a program in PATH.
pub fn path_of(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.exists());
    found.unwrap_or_else(|| panic!("{program} is not in PATH"))
}

pub fn require_root() {
    deadline::watch();
    assert!(rustix::process::geteuid().is_root(), "this test needs root: it makes network namespaces and loads eBPF");
}

/// A netmond of this test, with a socket in its own folder; or a netmond that already serves.
pub struct Daemon {
    child: Option<Child>,
    pub socket: PathBuf,
    _folder: Option<TempDir>,
}

impl Daemon {
    /// A gateway that a permitted ordinary user starts: root's gateways refuse other hosts, for example.
    pub fn gateway_of_a_user(&self) -> Command {
        let group = std::os::unix::fs::MetadataExt::gid(&std::fs::metadata(&self.socket).unwrap());
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", &format!("--groups={group}"), GATEWAY, "--socket"]);
        command.arg(&self.socket);
        command
    }

    /// The netmond at `NETMON_TEST_SOCKET`, if that is set and one test runs at a time: under emulation loading
    /// everything takes longer than most tests.
    pub fn start() -> Daemon {
        match std::env::var_os("NETMON_TEST_SOCKET") {
            Some(socket) => Daemon { child: None, socket: socket.into(), _folder: None },
            None => Daemon::own(),
        }
    }

    /// A netmond that no other test uses, and that the test can stop.
    pub fn own() -> Daemon {
        Daemon::start_with(&[])
    }

    pub fn start_with(arguments: &[&str]) -> Daemon {
        Daemon::start_in(arguments, &[])
    }

    /// The same with these arguments and environment.
    pub fn start_in(arguments: &[&str], environment: &[(&str, &str)]) -> Daemon {
        require_root();
        let folder = open_folder();
        let socket = folder.path().join("netmond.sock");
        let child = Daemon::spawn(&socket, arguments, environment);
        let mut daemon = Daemon { child: Some(child), socket, _folder: Some(folder) };
        daemon.wait();
        daemon
    }

    fn spawn(socket: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Child {
        let mut command = Command::new(DAEMON);
        command.arg("--socket").arg(socket).args(["--group", GROUP]).args(arguments).env("RUST_LOG", "warn");
        command.envs(environment.iter().copied()).stdin(Stdio::null()).spawn().unwrap()
    }

    /// Waits until it serves: it has dropped its privileges by then.
    fn wait(&mut self) {
        until("netmond serves", || {
            assert!(self.child().try_wait().unwrap().is_none(), "netmond ended");
            ask(&self.socket, "{\"version\":2,\"tool\":\"status\",\"input\":{}}").ok()
        });
    }

    pub fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("a daemon of the test's own")
    }

    pub fn pid(&self) -> u32 {
        let asked = || Client::connect(&self.socket).call("status", json!({})).unwrap()["daemon"]["pid"].as_u64();
        self.child.as_ref().map_or_else(|| asked().unwrap() as u32, Child::id)
    }

    pub fn kill(&mut self) {
        self.child().kill().unwrap();
        self.child().wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.child = Some(Daemon::spawn(&self.socket, &[], &[]));
        self.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A process that ends with the test in any case.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a line to the daemon's socket and returns the answer; an error without one within 100 s.
pub fn ask(socket: &Path, line: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience(Duration::from_secs(100))))?;
    let _ = stream.write_all(format!("{line}\n").as_bytes()); // a refusal comes before it reads
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer)
}

/// An MCP client over a gateway's standard input and output.
pub struct Client {
    pub child: Child,
    stdin: Option<ChildStdin>,
    messages: Receiver<Value>,
    answers: HashMap<i64, Value>,
    pub notifications: Vec<Value>,
    next: i64,
}

/// The result of a tool call: its structured content, or its error text.
pub type Answer = Result<Value, String>;

impl Client {
    /// A client after `initialize`.
    pub fn connect(socket: &Path) -> Client {
        let mut command = Command::new(GATEWAY);
        command.arg("--socket").arg(socket);
        Client::connect_to(command)
    }

    pub fn connect_to(command: Command) -> Client {
        let mut client = Client::spawn(command);
        let answer = client.request("initialize", json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}}));
        assert!(answer["result"]["serverInfo"]["name"] == "netmon-mcp", "{answer}");
        client.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        client
    }

    /// A client before any message.
    pub fn spawn(mut command: Command) -> Client {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().unwrap();
        let (send, messages) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { return };
                let message = serde_json::from_str(&line).unwrap_or_else(|e| panic!("not JSON on stdout: {line}: {e}"));
                if send.send(message).is_err() {
                    return;
                }
            }
        });
        Client { child, stdin, messages, answers: HashMap::new(), notifications: Vec::new(), next: 1 }
    }

    pub fn send(&mut self, message: &Value) {
        self.send_line(&message.to_string());
    }

    /// Sends a line, which may be no message.
    pub fn send_line(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().expect("input is open"), "{line}").unwrap();
    }

    /// The next message that is not a response to a known request; panics if there is none within 100 s.
    pub fn unasked(&mut self) -> Value {
        self.messages.recv_timeout(Duration::from_secs(100)).expect("a message")
    }

    /// Sends a request and returns its id at once.
    pub fn begin(&mut self, method: &str, params: Value) -> i64 {
        let id = self.next;
        self.next += 1;
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}));
        id
    }

    /// The response to a request; panics if there is none within 100 s.
    pub fn end(&mut self, id: i64) -> Value {
        loop {
            if let Some(answer) = self.answers.remove(&id) {
                return answer;
            }
            let message = self.messages.recv_timeout(Duration::from_secs(100)).expect("an answer");
            match message["id"].as_i64() {
                Some(id) => drop(self.answers.insert(id, message)),
                None => self.notifications.push(message),
            }
        }
    }

    /// The next notification of this method; panics if there is none within 100 s.
    pub fn notified(&mut self, method: &str) -> Value {
        loop {
            if let Some(place) = self.notifications.iter().position(|message| message["method"] == method) {
                return self.notifications.remove(place);
            }
            let message = self.messages.recv_timeout(Duration::from_secs(100)).expect(method);
            match message["id"].as_i64() {
                Some(id) => drop(self.answers.insert(id, message)),
                None => self.notifications.push(message),
            }
        }
    }

    /// Whether the server says nothing more within `time`.
    pub fn is_silent(&mut self, time: Duration) -> bool {
        self.messages.recv_timeout(time).is_err()
    }

    pub fn request(&mut self, method: &str, params: Value) -> Value {
        let id = self.begin(method, params);
        self.end(id)
    }

    pub fn begin_call(&mut self, tool: &str, arguments: Value) -> i64 {
        self.begin("tools/call", json!({"name": tool, "arguments": arguments}))
    }

    pub fn end_call(&mut self, id: i64) -> Answer {
        let answer = self.end(id);
        let result = &answer["result"];
        if result["isError"] == true || answer.get("error").is_some() {
            let text = result["content"][0]["text"].as_str().map_or_else(|| answer["error"].to_string(), str::to_owned);
            return Err(text);
        }
        Ok(result["structuredContent"].clone())
    }

    pub fn call(&mut self, tool: &str, arguments: Value) -> Answer {
        let id = self.begin_call(tool, arguments);
        self.end_call(id)
    }

    /// Cancels a request.
    pub fn cancel(&mut self, id: i64) {
        let params = json!({"requestId": id});
        self.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}));
    }

    /// Ends the server's input.
    pub fn close(&mut self) {
        self.stdin = None;
    }

    /// Waits until `count` windows of a tool are open: every program is attached and counts.
    pub fn until_open(&mut self, tool: &str, count: u64) {
        until("the window is open", || (self.tool_status(tool)["windows"] == count).then_some(()));
    }

    /// Waits until a tool has no window open and nothing attached.
    pub fn until_detached(&mut self, tool: &str) {
        until("links are detached", || {
            let status = self.tool_status(tool);
            (status["windows"] == 0 && status["links"] == json!([])).then_some(())
        });
    }

    pub fn links(&mut self, tool: &str) -> Vec<String> {
        let tool = self.tool_status(tool);
        tool["links"].as_array().unwrap().iter().map(|l| l.as_str().unwrap().to_owned()).collect()
    }

    /// One tool's entry in `status`.
    pub fn tool_status(&mut self, tool: &str) -> Value {
        let status = self.call("status", json!({})).unwrap();
        let found = status["tools"].as_array().unwrap().iter().find(|t| t["name"] == tool).cloned();
        found.unwrap_or_else(|| panic!("{tool} in {status}"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
