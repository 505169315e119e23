//! Exchanges with delays of a known length.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use super::{Netns, connect, listen, until};

/// The length of a request and of a reply.
pub const BYTES: usize = 64;

/// A connection with both of its ends.
pub struct Ends {
    pub to: SocketAddr,
    pub client: TcpStream,
    pub server: TcpStream,
}

/// How long each step took, in order of length.
#[derive(Default, Debug)]
pub struct Took {
    /// From the client's write to the arrival at the server.
    pub arriving: Vec<Duration>,
    /// From the arrival to the read.
    pub late: Vec<Duration>,
    /// From the read to the reply.
    pub thought: Vec<Duration>,
    /// From the client's write to the reply in its hands.
    pub whole: Vec<Duration>,
}

/// The middle one; of an even number, the lower one.
pub fn middle(times: &[Duration]) -> Duration {
    times[(times.len() - 1) / 2]
}

impl Ends {
    pub fn new(a: &Netns, b: &Netns, address: &str) -> Ends {
        let listener = listen(b, address);
        let to = listener.local_addr().unwrap();
        let client = connect(a, to).unwrap();
        let server = listener.accept().unwrap().0;
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        Ends { to, client, server }
    }

    /// So many exchanges. The server reads `late` after a request arrived, and replies `thought` after it was read.
    pub fn exchange(&mut self, count: usize, late: Duration, thought: Duration) -> Took {
        self.exchange_of(BYTES, count, late, || _ = after(thought))
    }

    /// The same with requests of so many bytes, and a server that does `work`.
    pub fn exchange_of(&mut self, bytes: usize, count: usize, late: Duration, mut work: impl FnMut()) -> Took {
        let (mut server, mut took) = (&self.server, Took::default());
        thread::scope(|scope| {
            let ((writing, begun), mut client) = (channel(), &self.client);
            let asking = scope.spawn(move || {
                let ask = |_| {
                    let begin = Instant::now();
                    writing.send(begin).unwrap();
                    client.write_all(&vec![1; bytes]).unwrap();
                    client.read_exact(&mut [0; BYTES]).unwrap();
                    begin.elapsed()
                };
                (0..count).map(ask).collect()
            });
            for _ in 0..count {
                server.peek(&mut [0]).unwrap();
                took.arriving.push(begun.recv().unwrap().elapsed());
                took.late.push(after(late));
                server.read_exact(&mut vec![0; bytes]).unwrap();
                let read = Instant::now();
                work();
                took.thought.push(read.elapsed());
                server.write_all(&[2; BYTES]).unwrap();
            }
            took.whole = asking.join().unwrap();
        });
        for times in [&mut took.arriving, &mut took.late, &mut took.thought, &mut took.whole] {
            times.sort();
        }
        took
    }
}

/// Sleeps, and returns the real time.
pub fn after(delay: Duration) -> Duration {
    let begin = Instant::now();
    if !delay.is_zero() {
        thread::sleep(delay);
    }
    begin.elapsed()
}

/// A group with a tenth of a CPU, in either version of cgroups.
pub struct Quota {
    pub folder: PathBuf,
    is_v1: bool,
}

impl Quota {
    pub fn new(name: &str) -> Quota {
        let v1 = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"].map(PathBuf::from);
        let v1 = v1.into_iter().find(|path| path.exists());
        let folder = v1.clone().unwrap_or_else(|| "/sys/fs/cgroup".into()).join(name);
        if v1.is_none() {
            fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+cpu").unwrap();
        }
        fs::create_dir_all(&folder).unwrap();
        match v1 {
            Some(_) => fs::write(folder.join("cpu.cfs_quota_us"), "10000").unwrap(),
            None => fs::write(folder.join("cpu.max"), "10000 100000").unwrap(),
        }
        Quota { folder, is_v1: v1.is_some() }
    }

    /// Takes this thread in, until it ends.
    pub fn take_this_thread(&self) {
        let threads = if self.is_v1 {
            "tasks"
        } else {
            fs::write(self.folder.join("cgroup.type"), "threaded").unwrap();
            "cgroup.threads"
        };
        fs::write(self.folder.join(threads), rustix::thread::gettid().as_raw_nonzero().to_string()).unwrap();
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        until("the group is empty", || fs::remove_dir(&self.folder).ok());
    }
}
