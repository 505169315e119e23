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
pub const ANSWER_BYTES: usize = 64 << 20;
/// How much of it is read at once, at the least: most are shorter.
pub const ANSWER_PART: usize = 4 << 10;
/// After a sample larger than this the gateway gives the memory back that reading it took: a busy host's are megabytes,
/// and fifty at once left 20 MB behind for good. To do it for every little one would be a waste.
pub const SAMPLE_KEPT: usize = 64 << 10;
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
/// Both forms of an answer together where the caller set no `limit`: beyond it rows are left out, the least first.
pub const ANSWER_UNASKED: usize = 8_000;
/// Rows of a list where the caller set no `limit`: of usual names, so many stay under [`ANSWER_UNASKED`] or a little over.
pub const ROWS_DEFAULT: usize = 20;
/// The most rows that a `limit` may ask for.
pub const ROWS_MAX: usize = 10_000;
/// Rows that `diagnose` takes of each tool: enough that none that matters is cut, and 8 of these lists stay well under
/// [`ANSWER_BYTES`].
pub const DIAGNOSED_ROWS: usize = 5_000;

/// TCP connections that `diagnose` follows through its window, in eleven readings: 1,000 of them are 8 MB of JSON.
pub const DIAGNOSED_CONNECTIONS: usize = 1_000;
/// Processes that are looked at for the network namespaces that they are in; each costs a few microseconds.
pub const NAMESPACE_PROCESSES: usize = 10_000;

/// Network namespaces whose overflows of accept queues are read at both ends of a window, 0.1 ms each.
pub const LISTENING_NAMESPACES: usize = 256;

/// Interfaces measured at once: `SLOTS` of `network_monitor.bpf.c`.
pub const MEASURED_INTERFACES: u32 = 64;
/// Connects that are kept for the next `outgoing` call: 2 s at 4,000 a second, 1.2 MB.
pub const CONNECT_BACKLOG: usize = 8_192;
/// Connects in an answer unless a `limit` is given, under [`ANSWER_UNASKED`] so; the next call has those that came after.
pub const CONNECTS_SHOWN: usize = 10;
/// For how long connects are kept after an `outgoing` call, so that the client's next call misses none. One that follows
/// connects asks again within milliseconds.
pub const CONNECT_LINGER: Duration = Duration::from_secs(1);
/// Folders of cgroupfs that are searched for a cgroup id; a large Kubernetes node has about 3,000.
pub const CGROUPS: usize = 50_000;
/// How often they are searched for an id that is new; on such a node a search takes about 20 ms.
pub const CGROUP_WALKS_PER_SECOND: u32 = 20;

/// HTTP connections at once. An idle one costs about 10 KB.
pub const CONNECTIONS: usize = 1_024;
/// A request's header, with a long token in it.
pub const HEADER_BYTES: usize = 64 << 10;
/// A request's header must be whole this soon after the connection or the last answer: what is slower is
/// an attack, or idle; clients open a new connection without asking anybody.
pub const HEADER_TIME: Duration = Duration::from_secs(30);
/// A request's body: a tool's arguments. rmcp's own bound is 4 MiB.
pub const BODY_BYTES: usize = 1 << 20;
/// A request's body must be whole this soon after its header.
pub const BODY_TIME: Duration = Duration::from_secs(10);
/// A client that takes nothing of its answer for so long is cut off.
pub const WRITE_TIME: Duration = Duration::from_secs(10);
/// After a connection could not be taken (no descriptors left), so that the loop does not spin.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// Sessions at once, of about 50 KB each: 26 MB.
pub const SESSIONS: usize = 512;
/// A session that is not used for so long ends. Claude and opencode begin a new one without asking.
pub const SESSION_IDLE: Duration = Duration::from_secs(300);
/// For how long a session keeps an answer for a client that lost it.
pub const SESSION_CACHE: Duration = Duration::from_secs(5);
/// What a client that finds every session taken is told to wait.
pub const SESSION_RETRY: Duration = Duration::from_secs(30);
/// Tool calls of one client at once: half of [`CALLS`], so that no client takes the place of all others.
pub const CALLS_PER_CALLER: usize = 32;
/// How long a call may wait for its client's earlier calls, before it is refused.
pub const CALL_WAIT: Duration = Duration::from_secs(10);
/// Requests a second that a client may keep up. An agent sends one in seconds; 2,000 cost a tenth of a core.
pub const RATE: u32 = 2_000;
/// Seconds of [`RATE`] that a client may have saved up: what dashboards and load tests send at once.
pub const BURST_S: f64 = 60.0;
/// Clients whose rate is remembered.
pub const CALLERS: usize = 10_000;
/// A token shorter than this can be guessed: 128 bits in hexadecimal.
pub const TOKEN_BYTES_MIN: usize = 32;
/// What a line about a call shows of its arguments.
pub const AUDIT_CHARS: usize = 1_024;
/// How often a gateway gives the kernel back the memory of clients that have left: a tenth of a millisecond while nothing is.
pub const MEMORY_EVERY: Duration = Duration::from_secs(10);
/// How long a shutdown waits for answers to be taken. systemd kills after 90 s, people after 5.
pub const FAREWELL: Duration = Duration::from_secs(3);
/// How often a shutdown looks whether they were.
pub const FAREWELL_LOOK: Duration = Duration::from_millis(5);
/// UDP sockets that `top_traffic` counts one by one: `SLOTS` without those of the rest in `slots.h`.
/// 2 MB of counters; a slot is free when every window has ended in which its socket moved anything.
pub const UDP_SOCKETS_COUNTED: usize = 65_536 - 2 * TRAFFIC_SPREAD;
/// Slots over which what is not counted one by one is spread, by CPU: `SPREAD` of `slots.h`.
pub const TRAFFIC_SPREAD: usize = 64;
/// Connections that closed in a window and are kept for its end: `FLOWS` of `top_traffic.bpf.c`, 8 MB when full.
pub const TCP_CLOSED_KEPT: usize = 65_536;

/// Sockets whose round trips `profile_tcp` tells apart at once: `RTTS` of `round_trips.h`, 32 MB if they are all busy.
pub const RTT_SOCKETS: u64 = 65_536;
/// Connections that closed in its window: `CLOSED` of `profile_tcp.bpf.c`, 12 MB when full.
pub const PROFILED_CLOSED: u64 = 65_536;
/// Of these, the ones whose round trips are kept: `CLOSED_RTTS` there, 7 MB when full.
pub const PROFILED_CLOSED_RTTS: u64 = 16_384;
/// Kinds of resets that are told apart: `RESETS` of `resets.h`, 0.6 MB when full.
pub const RESET_KINDS: u64 = 4_096;
/// Owners named of one remote: those with the most retransmits. With more, five remotes would not stay under 8 KB.
pub const OWNERS_OF_A_REMOTE: usize = 2;

/// How long it may take to reach another host: a TCP connection, an ssh handshake, the other gateway's start.
pub const HOST_CONNECT: Duration = Duration::from_secs(10);
/// For how long a host that could not be reached is not tried again.
pub const HOST_RETRY: Duration = Duration::from_secs(5);
/// How long `hosts` waits for the state of a host.
pub const HOST_LOOK: Duration = Duration::from_secs(3);
/// What is read of a complaint of ssh's.
pub const COMPLAINT_BYTES: u64 = 64 << 10;
/// How long to wait for it after the connection has failed.
pub const COMPLAINT_TIME: Duration = Duration::from_secs(1);

/// A TLS handshake is two round trips.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How long an authorization server may take to show its keys.
pub const JWKS_TIME: Duration = Duration::from_secs(5);
/// After this its keys are fetched again: one that it has withdrawn is good no longer …
pub const JWKS_MAX_AGE: Duration = Duration::from_secs(600);
/// … or after this, if the server does not answer.
pub const JWKS_KEPT: Duration = Duration::from_secs(3_600);
/// An unknown key does not have them fetched sooner than this after the last time.
pub const JWKS_MIN_AGE: Duration = Duration::from_secs(10);
/// By how much its clock and ours may differ.
pub const CLOCK_SKEW: Duration = Duration::from_secs(30);

/// Dropped flows that are told apart at once, all CPUs together: 0.9 MB. More are counted by place only.
pub const DROP_FLOWS: usize = 4_096;
/// On a host of many CPUs each still tells some flows apart: packets may arrive at a few of them only.
pub const DROP_FLOWS_PER_CPU_MIN: usize = 128;
/// `FLOWS` of `trace_drops.bpf.c`: their ids are one value of a per-CPU map, which may have 32 KiB.
pub const DROP_FLOWS_PER_CPU_MAX: usize = 2_048;
/// Sockets whose owner is looked for among all open files: `wanted` of `holders.h`.
pub const SOCKETS_WANTED: usize = 4_096;
/// Kernel symbols that one answer asks for: `addresses` of `trace_drops.bpf.c`. Some 50 are usual.
pub const SYMBOLS: usize = 512;
/// Rows of drops where the caller set no `limit`: each carries its explanation, and 12 stay under 8 KB.
pub const DROP_ROWS_DEFAULT: usize = 12;

/// More records than the largest ring buffer holds: 1 MiB of short DNS messages.
pub const RING_RECORDS: usize = 8_192;

/// DNS messages of a window: 2,000 queries and answers, each seen at two interfaces, 6 MB.
pub const DNS_MESSAGES: usize = 8_192;
/// Of these, segments of TCP: they come by the thousand of what is not DNS at all, and short ones are kept unjudged.
pub const DNS_SEGMENTS: usize = DNS_MESSAGES / 2;
/// Bytes of a DNS message that are surely captured: `CAPTURE` of `trace_dns.bpf.c` less the longest headers.
pub const DNS_CAPTURE: usize = 512;
/// TCP connections whose DNS messages are put together.
pub const DNS_STREAMS: usize = 1_024;
/// A query without an answer that is younger than this is not called unanswered: a resolver that asks
/// others may need as long.
pub const DNS_PATIENCE: Duration = Duration::from_secs(1);
/// Within this time the same id and name, from another address and without a socket, are the same query
/// behind a translation of addresses.
pub const DNS_TRANSLATION: Duration = Duration::from_secs(2);
