//! Every bound of the project, each with its reason. Reaching one is reported, never silent.

use std::time::Duration;

/// The shortest window. Below it the noise of scheduling is larger than what is measured.
pub const WINDOW_MIN: Duration = Duration::from_millis(100);
/// The longest window. Clients give up on a tool call after one to four minutes.
pub const WINDOW_MAX: Duration = Duration::from_secs(60);

/// Requests that `netmond` works on at once; each is a thread with a small stack.
pub const REQUESTS: usize = 128;
/// Of these, the most for one user: the rest stays free for others. A gateway alone makes up to [`CALLS`].
pub const REQUESTS_OF_A_USER: usize = 96;
/// A request is a tool's name and its arguments: a few hundred bytes.
pub const REQUEST_BYTES: usize = 64 << 10;
/// A client that has connected must have asked within this time, or is cut off.
pub const REQUEST_TIME: Duration = Duration::from_secs(5);
/// An answer must be taken within this time: the client that does not read holds a thread.
pub const ANSWER_TIME: Duration = Duration::from_secs(10);
/// The longest answer of `netmond`: 100,000 rows of 300 bytes, with room.
pub const ANSWER_BYTES: u64 = 64 << 20;
/// Beyond its window, how long an answer may take before the gateway calls it lost.
pub const ANSWER_GRACE: Duration = Duration::from_secs(20);
/// The stack of a thread that serves a request. libbpf and serde use a few KiB of it.
pub const THREAD_STACK: usize = 256 << 10;

/// Tool calls that one gateway works on at once; more are refused with a sentence.
pub const CALLS: usize = 64;
/// One line of JSON-RPC. A tool's arguments are small; rmcp's own bound is 16 MiB.
pub const LINE_BYTES: usize = 1 << 20;
/// How often a waiting client hears of progress.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Lines a second that the log takes of requests; beyond them a flood of clients would be one of the log.
pub const LOG_LINES_PER_SECOND: u32 = 20;

/// Characters kept of a name that came from outside (process, DNS, interface).
pub const NAME_CHARS: usize = 255;
/// What the kernel keeps of a process' name (TASK_COMM_LEN, without the NUL).
pub const COMM_BYTES: usize = 15;
/// Rows of a list where the caller set no `limit`: a default answer stays under 8 KB.
pub const ROWS_DEFAULT: usize = 20;
/// The most rows that a `limit` may ask for.
pub const ROWS_MAX: usize = 10_000;

/// Interfaces measured at once: `SLOTS` of `network_monitor.bpf.c`.
pub const MEASURED_INTERFACES: u32 = 64;
/// Connects that are kept for the next `outgoing` call: 2 s at 4,000 a second, 1.2 MB.
pub const CONNECT_BACKLOG: usize = 8_192;
/// For how long connects are kept after an `outgoing` call that reported some, so that the client's
/// next call misses none. A client asks again within milliseconds.
pub const CONNECT_LINGER: Duration = Duration::from_secs(1);
/// Folders of cgroupfs that are searched for a cgroup id; a large Kubernetes node has about 3,000.
pub const CGROUPS: usize = 50_000;
