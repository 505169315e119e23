//! Every bound of the project, each with its reason. Reaching one is reported, never silent.

use std::time::Duration;

use crate::numbers;

/// The shortest window. In a shorter one, scheduling noise exceeds the measured values.
pub const WINDOW_MIN: Duration = Duration::from_millis(100);
/// The longest window. Clients give up on a tool call after one to four minutes.
pub const WINDOW_MAX: Duration = Duration::from_secs(60);

/// Requests that `netmond` works on at once; each is a thread with a small stack, and its unit allows 256.
pub const REQUESTS: usize = 192;
/// The share of one user: a gateway alone makes up to [`CALLS`], and two users who flood leave as many for others.
pub const REQUESTS_OF_A_USER: usize = 64;
/// The maximum delay of a kernel record on its way to the daemon.
pub const LATE: Duration = Duration::from_millis(50);

/// Connections that a thread of the gateway keeps for its next requests. The daemon closes each after [`REQUEST_TIME`].
pub const IDLE_CONNECTIONS: usize = 4;
/// A request is a tool's name and its arguments: a few hundred bytes.
pub const REQUEST_BYTES: usize = 64 << 10;
/// A client that has connected must have asked within this time, or is cut off.
pub const REQUEST_TIME: Duration = Duration::from_secs(5);
/// An answer must be taken within this time: the client that does not read holds a thread.
pub const ANSWER_TIME: Duration = Duration::from_secs(10);
/// The longest answer of `netmond`: 100,000 rows of 300 bytes, with room.
pub const ANSWER_BYTES: usize = SAMPLES_BYTES_OF_A_USER;
/// The memory for all answers of `netmond` at once, and for those of one user: with its maps it stays under the 512 MB
/// of the service's unit.
pub const SAMPLES_BYTES: usize = 144 << 20;
pub const SAMPLES_BYTES_OF_A_USER: usize = 48 << 20;
/// The minimum memory reserved for an answer before it is made.
pub const SAMPLE_HELD_MIN: usize = 512 << 10;
/// The maximum wait of a user's long answer for the previous one.
pub const LONG_ANSWER_WAIT: Duration = Duration::from_millis(250);
/// The longest interval between two checks for free memory.
pub const MEMORY_LOOK_MAX: Duration = Duration::from_millis(160);
/// The memory per byte of an answer while it is made: the rows, their JSON, and its line.
pub const ENCODING_COST: usize = 3;
/// The smallest read: most are shorter.
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
/// Sockets of which the values of a prompt's argument are taken: a person types after a few of them.
pub const COMPLETION_ROWS: usize = 1_000;
/// One line of JSON-RPC. A tool's arguments are small; rmcp's own bound is 16 MiB.
pub const LINE_BYTES: usize = 1 << 20;
/// The interval of progress notifications to a waiting client.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// The memory for all answers over HTTP at once, and for those of one client: with everything else that is bounded here
/// it stays under the 256 MB of the service's unit.
pub const ANSWERS_BYTES: usize = 96 << 20;
pub const ANSWERS_BYTES_OF_A_CALLER: usize = 48 << 20;
/// The minimum memory reserved for a call.
pub const ANSWER_HELD_MIN: usize = 128 << 10;
/// The memory per byte of a sample while an answer is made of it, and per byte of an answer while it is sent: measured.
pub const SAMPLE_COST: usize = 8;
pub const ANSWER_COST: usize = 8;
/// The length of a row of an answer, in both forms: between 300 and 600 bytes.
pub const ROW_BYTES: usize = 500;
/// The interval between two checks of a call for free memory.
pub const MEMORY_LOOK: Duration = Duration::from_millis(10);
/// Bytes of answers that a client may keep up for each request of [`RATE`], with [`ANSWERS_BURST_S`] seconds' worth at once: 1 MB a
/// second. To write a longer one takes tens of milliseconds of a thread.
pub const ANSWER_BYTES_PER_REQUEST: f64 = 5_000.0;
pub const ANSWERS_BURST_S: f64 = 4.0;
/// Calls of one client at once that do not watch but work.
pub const WORKING_CALLS: usize = 4;

/// Users with a separate limit of lines in netmond's log.
pub const USERS_LOGGED: usize = 1_000;
/// Lines a second that the log takes of requests; beyond them a flood of clients would be one of the log.
pub const LOG_LINES_PER_SECOND: u32 = 20;

/// Characters kept of a name that came from outside (process, DNS, interface).
pub const NAME_CHARS: usize = 255;
/// Bytes of the structured answer if the caller set no `limit`. A longer answer loses its least important rows.
pub const ANSWER_UNASKED: usize = 4_000;
/// Bytes of the text of an answer if the caller set no `limit`.
pub const TEXT_UNASKED: usize = 1_500;
/// Rows of a list if the caller set no `limit`. [`ANSWER_UNASKED`] often cuts more.
pub const ROWS_DEFAULT: usize = 20;
/// The most rows that a `limit` may ask for.
pub const ROWS_MAX: usize = 10_000;
/// Rows that `diagnose` takes of each tool: enough that none that matters is cut, and 8 of these lists stay well under
/// [`ANSWER_BYTES`].
pub const DIAGNOSED_ROWS: usize = 5_000;

/// TCP connections that `diagnose` follows through its window, in eleven readings: 1,000 of them are 8 MB of JSON.
pub const DIAGNOSED_CONNECTIONS: usize = 1_000;
/// Changes of links, addresses and routes that `diagnose` keeps of a window: a host that starts a container makes ten.
pub const NETWORK_CHANGES: usize = 1_000;
/// Processes that are looked at for the network namespaces that they are in; each costs a few microseconds.
pub const NAMESPACE_PROCESSES: usize = 10_000;

/// Network namespaces where netmond reads accept queue overflows at both ends of a window, 0.1 ms each.
pub const LISTENING_NAMESPACES: usize = 256;

/// Interfaces measured at once, and places that are tried for one.
pub const MEASURED_INTERFACES: u32 = numbers::network_monitor::SLOTS as u32;
pub const MEASURED_PROBES: u32 = numbers::network_monitor::PROBES as u32;
/// Connects that are kept for the next `outgoing` call: 2 s at 4,000 a second, 1.2 MB.
pub const CONNECT_BACKLOG: usize = 8_192;
/// Connects in an answer unless a `limit` is given: they stay under [`ANSWER_UNASKED`]; the next call has those that came after.
pub const CONNECTS_SHOWN: usize = 10;
/// For how long connects are kept after an `outgoing` call, so that the client's next call misses none. One that follows
/// connects asks again within milliseconds.
pub const CONNECT_LINGER: Duration = Duration::from_secs(1);
/// Folders of cgroupfs that are searched for a cgroup id; a large Kubernetes node has about 3,000.
pub const CGROUPS: usize = 50_000;
/// The interval between two searches for a new id; on such a node a search takes about 20 ms.
pub const CGROUP_WALKS_PER_SECOND: u32 = 20;

/// Threads that serve HTTP clients. A long answer, of which a client has one at a time, takes tens of milliseconds to
/// write: the other clients of that thread wait so long, and those of the other thread do not.
pub const WORKERS: usize = 2;
/// Time to gather the first events of an answer over HTTP. Most calls without a window take less.
pub const GATHERED: Duration = Duration::from_millis(20);
/// HTTP connections at once. An idle one costs about 10 KB, one in the middle of a header up to [`HEADER_BYTES`] more.
pub const CONNECTIONS: usize = 2_048;
/// Reserved for new clients: requests under way cannot take these, so one connection can always give way, for example
/// to a health check.
pub const CONNECTIONS_KEPT: usize = 16;
/// The least that `max_connections` can be set to.
pub const CONNECTIONS_MIN: usize = 2 * CONNECTIONS_KEPT;
/// Connections that give way at once: to choose them takes 0.1 ms.
pub const CONNECTIONS_GIVE_WAY: usize = 32;
/// A request's header, with a long token in it.
pub const HEADER_BYTES: usize = 16 << 10;
/// The time for a complete request header after the connection or the last answer. A slower client is an attack or
/// idle; clients reconnect by themselves.
pub const HEADER_TIME: Duration = Duration::from_secs(30);
/// A request's body: a tool's arguments. rmcp's own bound is 4 MiB.
pub const BODY_BYTES: usize = 1 << 20;
/// The memory per byte of a body while it is parsed: JSON such as `[0,0,0` is 16 times as long in memory as in text.
pub const BODY_COST: usize = 16;
/// The memory for all requests at once, and for those of one client.
pub const BODIES_BYTES: usize = 48 << 20;
pub const BODIES_BYTES_OF_A_CALLER: usize = 24 << 20;
/// A request's body must be whole this soon after its header.
pub const BODY_TIME: Duration = Duration::from_secs(10);
/// A client that takes nothing of its answer for so long is cut off.
pub const WRITE_TIME: Duration = Duration::from_secs(10);
/// After a connection could not be taken (no descriptors left), so that the loop does not spin.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// Sessions at once, of about 50 KB each: 26 MB.
pub const SESSIONS: usize = 512;
/// One client may have this part of them; the last such part is for clients that have fewer than [`SESSIONS_FEW`].
pub const SESSION_SHARES: usize = 8;
pub const SESSIONS_FEW: usize = 4;
/// A session that is not used for so long ends. Claude and opencode begin a new one without asking.
pub const SESSION_IDLE: Duration = Duration::from_secs(300);
/// For how long a session keeps an answer for a client that lost it.
pub const SESSION_CACHE: Duration = Duration::from_secs(5);
/// The `Retry-After` of a client that finds no free session.
pub const SESSION_RETRY: Duration = Duration::from_secs(30);
/// Tool calls of one client at once: half of [`CALLS`], so that no client takes the place of all others.
pub const CALLS_PER_CALLER: usize = 32;
/// The last [`CALLS_KEPT`] of [`CALLS`] are for clients with fewer than [`CALLS_FEW`] calls under way.
pub const CALLS_KEPT: usize = 16;
pub const CALLS_FEW: usize = 4;
/// The maximum wait of a call for earlier calls of the same client.
pub const CALL_WAIT: Duration = Duration::from_secs(10);
/// Requests a second that a client may keep up. An agent sends one in seconds; 200 cost a hundredth of a core.
pub const RATE: u32 = 200;
/// Seconds of a rate that a client may have saved up: what dashboards and load tests send at once.
pub const BURST_S: f64 = 10.0;
/// Clients with a remembered rate.
pub const CALLERS: usize = 10_000;
/// A token file: a thousand lines, with room.
pub const TOKEN_FILE_BYTES: u64 = 1 << 20;
/// A private key in PEM.
pub const KEY_FILE_BYTES: u64 = 1 << 20;
/// The interval between two checks of the token file: calls of a revoked token end within this time.
pub const TOKENS_EVERY: Duration = Duration::from_millis(250);
/// A token shorter than this can be guessed: 128 bits in hexadecimal.
pub const TOKEN_BYTES_MIN: usize = 32;
/// The maximum length of a call's arguments, and of its error, in a log line.
pub const AUDIT_CHARS: usize = 512;
/// The maximum length of untrusted text in a log line about a refusal.
pub const LOGGED_CHARS: usize = 128;
/// The same of an HTTP method: the longest that is registered has 17.
pub const METHOD_CHARS: usize = 20;
/// Lines a second about the refusals of one client, or of one source of strangers; and of all strangers together.
pub const REFUSALS_PER_SECOND: u32 = 20;
pub const REFUSALS_OF_STRANGERS_PER_SECOND: u32 = 60;
/// Wrong tokens a second from one source, beyond which the signatures of its JWTs are not checked: an attack on the CPU.
pub const FAILURES_PER_SECOND: f64 = 10.0;
/// The interval at which a gateway returns the memory of disconnected clients to the kernel: 0.1 ms of work if there is
/// none.
pub const MEMORY_EVERY: Duration = Duration::from_secs(10);
/// The time that a shutdown waits for clients to read their answers. systemd kills after 90 s, people after 5.
pub const FAREWELL: Duration = Duration::from_secs(3);
/// The interval at which a shutdown checks for unread answers.
pub const FAREWELL_LOOK: Duration = Duration::from_millis(5);
/// UDP sockets that `top_traffic` counts one by one: all slots but those of the rest.
/// 2 MB of counters; a slot is free when every window has ended in which its socket moved anything.
pub const UDP_SOCKETS_COUNTED: usize = (numbers::slots::SLOTS - numbers::slots::FIRST_SLOT) as usize;
/// Remotes of one UDP socket that `top_traffic` counts one by one.
pub const UDP_REMOTES_COUNTED: u64 = numbers::slots::REMOTES as u64;
/// Connections that closed in a window and are kept for its end: 8 MB when full.
pub const TCP_CLOSED_KEPT: usize = 65_536;

/// Connections that wait to be accepted, of one listener in another network namespace.
pub const WAITING: u64 = numbers::accept_queue::WAITING as u64;
/// Of these, the connections with readable round trips.
pub const WAITING_RTTS: u64 = numbers::profile_tcp::WAITING_RTTS as u64;
/// Sockets that a process uses through io_uring only, of one ring: an iterator may write 32 KiB for one file.
pub const RING_SOCKETS: u64 = numbers::ring_files::RING_SOCKETS as u64;
/// Iterators that are read at once: for each there is room for a copy of a socket, and more would leave rows out.
pub const READERS: usize = numbers::below::ROOMS as usize;
/// Sockets in other network namespaces that their process has closed and that are followed.
pub const ORPHANS: u64 = numbers::orphans::ORPHANS as u64;

/// Sockets with separate round trips in `profile_tcp`: 32 MB if all are busy.
pub const RTT_SOCKETS: u64 = numbers::round_trips::RTTS as u64;
/// Connections that closed in its window: 12 MB when full.
pub const PROFILED_CLOSED: usize = 65_536;
/// Of these, the connections with stored round trips: 7 MB when full.
pub const PROFILED_CLOSED_RTTS: u64 = numbers::profile_tcp::CLOSED_RTTS as u64;
/// Distinct kinds of resets: 0.6 MB when full.
pub const RESET_KINDS: u64 = numbers::resets::RESETS as u64;
/// Listeners, and servers that this host asks, with times to the first byte: 3.6 MB when full.
pub const REPLIERS: u64 = numbers::replies::REPLIERS as u64;
/// Owners named of one remote: those with the most retransmits. With more, five remotes would not stay under 8 KB.
pub const OWNERS_OF_A_REMOTE: usize = 2;

/// Owners with their ends that `trace_latency` tells apart: 0.5 MB when full.
pub const LATENCY_GROUPS: usize = numbers::stages::GROUPS as usize;
/// Histograms of a stage of one of them: 14 MB when full.
pub const LATENCY_TIMES: usize = numbers::stages::TIMES as usize;
/// Beyond this number of them, the remotes of a listener share one.
pub const LATENCY_REMOTES: usize = numbers::stages::REMOTES_APART as usize;

/// The time limit to connect to another host: TCP, the ssh handshake, and the start of the other gateway.
pub const HOST_CONNECT: Duration = Duration::from_secs(10);
/// For how long a host that could not be reached is not tried again.
pub const HOST_RETRY: Duration = Duration::from_secs(5);
/// ssh destinations with parsed settings, jump hosts included: 10 ms each.
pub const SSH_DESTINATIONS: usize = 1_000;
/// The maximum length of an error message of ssh.
pub const COMPLAINT_BYTES: u64 = 64 << 10;
/// The wait for that message after the connection has failed.
pub const COMPLAINT_TIME: Duration = Duration::from_secs(1);

/// A TLS handshake is two round trips.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// The time limit for an authorization server to return its keys.
pub const JWKS_TIME: Duration = Duration::from_secs(5);
/// After this its keys are fetched again: one that it has withdrawn is good no longer …
pub const JWKS_MAX_AGE: Duration = Duration::from_secs(600);
/// … or after this, if the server does not answer.
pub const JWKS_KEPT: Duration = Duration::from_secs(3_600);
/// The retry interval if the server does not answer.
pub const JWKS_RETRY: Duration = Duration::from_secs(30);
/// The longest document of an authorization server.
pub const JWKS_BYTES: usize = 1 << 20;
/// An unknown key does not have them fetched sooner than this after the last time.
pub const JWKS_MIN_AGE: Duration = Duration::from_secs(10);
/// By how much its clock and ours may differ.
pub const CLOCK_SKEW: Duration = Duration::from_secs(30);

/// Distinct dropped flows, all CPUs together: 0.9 MB. Further flows are counted by place only.
pub const DROP_FLOWS: usize = 4_096;
/// The minimum of distinct flows per CPU on a host with many CPUs: packets may arrive at a few CPUs only.
pub const DROP_FLOWS_PER_CPU_MIN: usize = 128;
/// Their ids are one value of a per-CPU map, which may have 32 KiB.
pub const DROP_FLOWS_PER_CPU_MAX: usize = numbers::trace_drops::FLOWS as usize;
/// Sockets for which netmond searches the owner among all open files.
pub const SOCKETS_WANTED: usize = numbers::holders::WANTED as usize;
/// Kernel symbols that one answer asks for. Some 50 are usual.
pub const SYMBOLS: usize = numbers::trace_drops::SYMBOLS as usize;

/// More records than the largest ring buffer holds: 1 MiB of short DNS messages.
pub const RING_RECORDS: usize = 8_192;

/// DNS messages of a window: 2,000 queries and answers, each seen at two interfaces, 6 MB.
pub const DNS_MESSAGES: usize = 8_192;
/// Of these, TCP segments: most are not DNS, and short ones are kept without a check.
pub const DNS_SEGMENTS: usize = DNS_MESSAGES / 2;
/// Bytes of a DNS message that are surely captured: all but the longest headers, 128 bytes, and a length over TCP.
pub const DNS_CAPTURE: usize = numbers::trace_dns::CAPTURE as usize - 128 - 2;
/// TCP connections with DNS messages that are reassembled at the same time.
pub const DNS_STREAMS: usize = 1_024;
/// Parts of such a connection that wait for what is between them: as many segments as come out of order.
pub const DNS_PIECES: usize = 16;
/// Queries of one id between the same two ends, or for the same name, among which the one of a message is looked for.
pub const DNS_SAME_KEY: usize = 256;
/// A query that is younger than this is not called unanswered: a resolver that asks others may need as long.
pub const DNS_PATIENCE: Duration = Duration::from_secs(1);

/// The time that an unanswered query stays for the next reading: resolvers ask again after 5 s (resolv.conf(5)).
pub const DNS_UNDECIDED: Duration = Duration::from_secs(5);
/// Within this time the same id and name, from another address and without a socket, are one query behind a translation.
pub const DNS_TRANSLATION: Duration = Duration::from_secs(2);

/// Bytes of a recording, where the settings do not say: a week of a busy host, months of a quiet one.
pub const RECORDING_BYTES: u64 = 1 << 30;
/// The least: fewer would not hold an hour of a busy host.
pub const RECORDING_BYTES_MIN: u64 = 16 << 20;
/// How old a window may become.
pub const RECORDING_AGE: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Windows that are older are merged to a minute.
pub const RECORDING_WHOLE: Duration = Duration::from_secs(24 * 3_600);
/// The maximum wait of a reader and the recorder for each other: in WAL mode only while the journal restarts.
pub const RECORDING_WAIT: Duration = Duration::from_secs(2);
/// Windows that are removed at once where the recording is too large, and how often after each window: more than come.
pub const RECORDING_BATCH: i64 = 16;
pub const RECORDING_REMOVALS: usize = 8;
/// Windows of one minute and of one hour, at an interval of a second.
pub const RECORDING_MINUTE: i64 = 64;
pub const RECORDING_HOUR: i64 = 3_700;
/// Windows that share a dictionary, at most: an hour of the usual interval.
pub const RECORDING_DICTIONARY_WINDOWS: i64 = 360;
/// Of a dictionary: room for a row of each kind and the names that recur.
pub const RECORDING_DICTIONARY_BYTES: usize = 16 << 10;
/// Windows that wait to be written while the disk is full: a minute of them.
pub const RECORDING_PENDING: usize = 6;
/// How often the recording is looked at for new incidents, while a client follows them.
pub const RECORDING_FOLLOWED_EVERY: Duration = Duration::from_secs(1);
/// The retry interval while netmond is unavailable.
pub const RECORDER_RETRY: Duration = Duration::from_secs(1);
/// The time limit for netmond to load everything before its first answer, on a slow machine.
pub const LOADING_TIME: Duration = Duration::from_secs(120);
/// The shortest time between two readings that are recorded, and what it is where the settings do not say.
pub const RECORDER_INTERVAL_MIN: Duration = Duration::from_secs(1);
pub const RECORDER_INTERVAL: Duration = Duration::from_secs(10);
/// Names of a subject that a minute keeps one by one; the others are one.
pub const SERIES_NAMES: usize = 50;
/// Maximum of open incidents: nobody reads more of them one by one.
pub const INCIDENTS_OPEN: usize = 200;
/// The time limit of the incident program, and its rate limit.
pub const HOOK_TIME: Duration = Duration::from_secs(10);
pub const HOOKS_PER_MINUTE: u32 = 30;
/// Bytes of samples, as JSON, that one question about the past may merge: a merged sample is about as long.
pub const RECALLED_BYTES: u64 = 48 << 20;
/// The same where windows are read one by one: they are judged separately, or their sum is reduced.
pub const JUDGED_BYTES: u64 = 1 << 30;
/// Rows of each list in the sum of an hour, and in an answer that is made of such sums.
pub const SUM_ROWS: usize = 1_000;
/// Gaps that an answer names one by one.
pub const GAPS_SHOWN: usize = 50;
/// The default length of a period in the past with only an end.
pub const RECALLED: Duration = Duration::from_secs(600);

/// Rows of each table of the live view: more than a tall terminal shows, and a screen stays under 300 KB.
pub const LIVE_ROWS: usize = 100;
/// Points of its history: five minutes at one a second.
pub const LIVE_POINTS: usize = 300;
/// Interfaces and processes with a history of their own.
pub const LIVE_SERIES: usize = 12;
/// The period of its findings and events: at least this long, at most twice. A fault shows in ten seconds.
pub const LIVE_RECENT: Duration = Duration::from_secs(10);
/// Bytes of samples in half of that period. A busier host has a shorter one.
pub const LIVE_BYTES: usize = 8 << 20;
/// The pause after judging that period, as a multiple of the time that judging took: it takes at most a hundredth of a core.
pub const LIVE_SHARE: u32 = 100;
/// Findings that the live view keeps, and for how long after their end.
pub const LIVE_EPISODES: usize = 100;
pub const LIVE_EPISODE_KEPT: Duration = Duration::from_secs(600);
/// The delay of a reading after which the live view says that netmond does not answer. A busy machine is late by less.
pub const LIVE_LATE: Duration = Duration::from_secs(3);
/// The retry interval while netmond is unavailable.
pub const LIVE_RETRY: Duration = Duration::from_secs(1);
/// The interval at which it asks for memory and recording.
pub const LIVE_STATUS_EVERY: Duration = Duration::from_secs(10);

/// How often the page gets a new screen.
pub const LIVE_EVERY: Duration = Duration::from_secs(1);
/// Pages that follow this host at once, and those of one client: each gets about 50 KB a second.
pub const VIEWERS: usize = 64;
pub const VIEWERS_OF_A_CLIENT: usize = 16;
/// Points of a plot of the past: a screen has room for a few hundred.
pub const TIMELINE_POINTS: i64 = 360;
/// The longest period of such a plot: a recording is kept that long.
pub const TIMELINE_MAX: Duration = Duration::from_secs(31 * 24 * 3_600);
/// Names of a family of metrics about this host; the others are one.
pub const SERIES_EXPORTED: usize = 100;

/// Recorded windows before a moment of the past whose figures the terminal view shows: ten minutes of windows of 10 s.
pub const THEN_POINTS: usize = 60;
/// Figures of recorded windows that it keeps, to scroll back without reading them again.
pub const THEN_KEPT: usize = 1_000;
/// Windows that make a screen of the past: events are about 10 to 20 s, as in the live view.
pub const THEN_WHOLE: usize = 2;

/// Log lines that the terminal view keeps, to print them when it ends.
pub const TOP_MESSAGES: usize = 50;
/// The windows of trace_latency while its page is open, one after another.
pub const TOP_LATENCY: Duration = Duration::from_secs(2);
