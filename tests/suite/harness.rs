//! What the tests stand on: a daemon, an MCP client, network namespaces with traffic.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

pub const GATEWAY: &str = env!("CARGO_BIN_EXE_netmon-mcp");
pub const DAEMON: &str = env!("CARGO_BIN_EXE_netmond");

/// Waits until `condition` holds; panics with `what` if it does not within 20 s.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "did not happen within 20 s: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command line, by words; panics with its output if it fails.
pub fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).stdin(Stdio::null()).output().expect(line);
    assert!(output.status.success(), "`{line}`: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn require_root() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root: it makes network namespaces and loads eBPF");
}

/// A netmond of the test's own, on a socket in a folder of its own.
pub struct Daemon {
    pub child: Child,
    pub socket: PathBuf,
    _folder: TempDir,
}

impl Daemon {
    pub fn start() -> Daemon {
        Daemon::start_with(&[])
    }

    pub fn start_with(arguments: &[&str]) -> Daemon {
        require_root();
        let folder = TempDir::new().unwrap();
        let socket = folder.path().join("netmond.sock");
        let child = Daemon::spawn(&socket, arguments);
        let mut daemon = Daemon { child, socket, _folder: folder };
        daemon.wait();
        daemon
    }

    fn spawn(socket: &Path, arguments: &[&str]) -> Child {
        let mut command = Command::new(DAEMON);
        command.arg("--socket").arg(socket).args(["--group", "root"]).args(arguments).env("RUST_LOG", "warn");
        command.stdin(Stdio::null()).spawn().unwrap()
    }

    /// Until it serves: it has dropped its privileges by then.
    fn wait(&mut self) {
        until("netmond serves", || {
            assert!(self.child.try_wait().unwrap().is_none(), "netmond ended");
            ask(&self.socket, "{\"version\":1,\"tool\":\"status\",\"input\":{}}").ok()
        });
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.child = Daemon::spawn(&self.socket, &[]);
        self.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that ends with the test, however that ends.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A line to the daemon's socket, and its answer.
pub fn ask(socket: &Path, line: &str) -> std::io::Result<String> {
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.write_all(format!("{line}\n").as_bytes())?;
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

/// What a tool call came to: its structured content, or its error text.
pub type Answer = Result<Value, String>;

impl Client {
    /// A client that has introduced itself.
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

    /// A client that has said nothing yet.
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
        writeln!(self.stdin.as_mut().expect("input is open"), "{message}").unwrap();
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

    /// Ends the server's input.
    pub fn close(&mut self) {
        self.stdin = None;
    }

    /// Waits until `count` windows of a tool are open: everything is attached and counts.
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

    /// What `status` says of one tool.
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

/// A network namespace, removed when dropped.
#[derive(Clone)]
pub struct Netns(Arc<Inner>);

struct Inner {
    name: String,
}

impl Netns {
    pub fn new() -> Netns {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        require_root();
        let name = format!("nmt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(&format!("ip netns add {name}"));
        let netns = Netns(Arc::new(Inner { name }));
        netns.ip("link set lo up");
        netns
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The inode, which names it in answers.
    pub fn inode(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(format!("/run/netns/{}", self.0.name)).unwrap().ino()
    }

    /// `ip ARGUMENTS` in the namespace.
    pub fn ip(&self, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.0.name))
    }

    /// A command line in the namespace, by words.
    pub fn run(&self, line: &str) -> String {
        run(&format!("nsenter --net=/run/netns/{} {line}", self.0.name))
    }

    /// A command that will run in the namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.0.name)).arg(program);
        command
    }

    /// Calls `f` on a thread of its own in the namespace: sockets that it makes belong there.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = || {
                let file = File::open(format!("/run/netns/{}", self.0.name)).unwrap();
                // SAFETY: the descriptor is open; only this short-lived thread changes namespace.
                assert_eq!(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
                f()
            };
            scope.spawn(inside).join().unwrap()
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Two namespaces that are joined by a veth pair, `v0` in each, with IPv4 and IPv6 addresses.
pub struct Pair {
    pub a: Netns,
    pub b: Netns,
}

pub const A: &str = "10.77.0.1";
pub const B: &str = "10.77.0.2";
pub const A6: &str = "fd77::1";
pub const B6: &str = "fd77::2";

impl Pair {
    pub fn new() -> Pair {
        let (a, b) = (Netns::new(), Netns::new());
        run(&format!("ip link add v0 netns {} type veth peer name v0 netns {}", a.name(), b.name()));
        for (netns, v4, v6) in [(&a, A, A6), (&b, B, B6)] {
            netns.ip(&format!("addr add {v4}/24 dev v0"));
            netns.ip(&format!("addr add {v6}/64 dev v0 nodad"));
            netns.ip("link set v0 up");
        }
        Pair { a, b }
    }
}

/// A daemon that runs in a namespace, so that its own interfaces are the test's.
pub fn daemon_in(netns: &Netns) -> Daemon {
    netns.enter(Daemon::start)
}

/// Accepts on `address` and echoes what arrives, until the listener is dropped with the test.
pub fn echo_server(netns: &Netns, address: &str) -> SocketAddr {
    let ip: IpAddr = address.parse().unwrap();
    let listener = netns.enter(|| TcpListener::bind((ip, 0)).unwrap());
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut reader = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut reader, &mut &stream);
            });
        }
    });
    at
}

/// Connects from a namespace.
pub fn connect(netns: &Netns, to: SocketAddr) -> std::io::Result<TcpStream> {
    netns.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(10)))
}

/// A cgroup of the test's own in the cgroup v2 hierarchy, removed when dropped.
pub struct Cgroup(PathBuf);

impl Cgroup {
    pub fn new(name: &str) -> Cgroup {
        let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        let root =
            root.into_iter().find(|path| path.join("cgroup.controllers").exists()).expect("cgroup v2 is mounted");
        let path = root.join("system.slice").join(name);
        std::fs::create_dir_all(&path).unwrap();
        Cgroup(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        until("the cgroup is empty", || std::fs::remove_dir(&self.0).ok());
        let _ = std::fs::remove_dir(self.0.parent().unwrap()); // unless another test is in it
    }
}

/// A tun interface, `tun7`: a device whose packets start with the IP header.
pub struct Tunnel(File);

impl Tunnel {
    pub fn new(netns: &Netns) -> Tunnel {
        /// `TUNSETIFF`, `IFF_TUN` and `IFF_NO_PI` of linux/if_tun.h.
        const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
        const FLAGS: u16 = 0x0001 | 0x1000;
        let file = netns.enter(|| {
            let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
            let mut request = [0u8; 40];
            request[..4].copy_from_slice(b"tun7");
            request[16..18].copy_from_slice(&FLAGS.to_ne_bytes());
            // SAFETY: the request is a struct ifreq: a name of 16 bytes, then a union of 24.
            assert_eq!(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) }, 0);
            file
        });
        netns.ip("addr add 10.79.0.1/24 dev tun7");
        netns.ip("link set tun7 up");
        Tunnel(file)
    }

    /// Lets a UDP packet with `bytes` of payload arrive at the interface.
    pub fn inject_udp(&self, bytes: u16) {
        let mut packet = vec![0u8; 28 + usize::from(bytes)];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(28 + bytes).to_be_bytes());
        (packet[8], packet[9]) = (64, 17);
        packet[12..16].copy_from_slice(&[10, 79, 0, 2]);
        packet[16..20].copy_from_slice(&[10, 79, 0, 1]);
        let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        packet[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
        packet[20..28].copy_from_slice(&[0, 9, 0, 9, 0, 8 + bytes as u8, 0, 0]);
        (&self.0).write_all(&packet).unwrap();
    }
}
