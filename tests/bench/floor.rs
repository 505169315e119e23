//! The cost of the kernel's hooks alone: an empty program at the same place.

use std::{
    ffi::CStr,
    fs::File,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

use libbpf_rs::libbpf_sys::{
    BPF_CGROUP_INET_EGRESS, BPF_CGROUP_INET_INGRESS, BPF_PROG_TYPE_CGROUP_SKB, BPF_PROG_TYPE_RAW_TRACEPOINT,
    BPF_PROG_TYPE_SCHED_CLS, BPF_TCX_EGRESS, BPF_TCX_INGRESS, bpf_insn, bpf_link_create, bpf_prog_load,
    bpf_raw_tracepoint_open,
};
use netmon_mcp::daemon::kernel::cgroup_root;

/// Those of the other tools' programs that `diagnose` opens. One program is attached at each.
const TRACEPOINTS: &[&CStr] = &[
    c"fib6_table_lookup",
    c"fib_table_lookup",
    c"inet_sk_error_report",
    c"inet_sock_set_state",
    c"kfree_skb",
    c"net_dev_queue",
    c"netif_receive_skb",
    c"sock_recv_length",
    c"sock_send_length",
    c"tcp_probe",
    c"tcp_receive_reset",
    c"tcp_send_reset",
];

/// Those of `trace_latency`.
pub const TRACEPOINTS_OF_LATENCY: &[&CStr] = &[
    c"net_dev_start_xmit",
    c"sched_switch",
    c"sched_wakeup",
    c"sk_data_ready",
    c"sock_recv_length",
    c"sock_send_length",
];

/// Those of `trace_connections`.
pub const TRACEPOINTS_OF_CONNECTIONS: &[&CStr] =
    &[c"fib6_table_lookup", c"fib_table_lookup", c"inet_sk_error_report", c"inet_sock_set_state"];

/// Those of `trace_drops`.
pub const TRACEPOINTS_OF_DROPS: &[&CStr] = &[c"kfree_skb"];

/// Those of `profile_tcp`.
pub const TRACEPOINTS_OF_PROFILE: &[&CStr] =
    &[c"inet_sock_set_state", c"tcp_probe", c"tcp_receive_reset", c"tcp_send_reset"];

/// Those of `top_traffic`.
pub const TRACEPOINTS_OF_TRAFFIC: &[&CStr] = &[c"inet_sock_set_state", c"sock_recv_length", c"sock_send_length"];

/// Links of an empty program, until they are dropped.
pub struct Empty(#[expect(dead_code, reason = "held, not read")] Vec<OwnedFd>);

impl Empty {
    /// At both tcx hooks of the interface with this index in the network namespace of the caller.
    pub fn attach(ifindex: u32) -> Empty {
        let program = load(BPF_PROG_TYPE_SCHED_CLS, -1); // the next program decides
        let link = |hook| {
            // SAFETY: the program is open, and null options are allowed.
            let link = unsafe { bpf_link_create(program.as_raw_fd(), ifindex as i32, hook, ptr::null()) };
            owned(link)
        };
        Empty([BPF_TCX_INGRESS, BPF_TCX_EGRESS].map(link).into())
    }

    /// At the root cgroup, for the packets of all sockets in both directions.
    pub fn cgroup() -> Empty {
        let folder = File::open(cgroup_root().expect("cgroup v2")).unwrap();
        let program = load(BPF_PROG_TYPE_CGROUP_SKB, 1);
        let link = |at| {
            // SAFETY: the program and the folder are open, and null options are allowed.
            owned(unsafe { bpf_link_create(program.as_raw_fd(), folder.as_raw_fd(), at, ptr::null()) })
        };
        Empty([BPF_CGROUP_INET_INGRESS, BPF_CGROUP_INET_EGRESS].map(link).into())
    }

    /// At the tracepoints of `diagnose` and of the recorder.
    pub fn diagnose() -> Empty {
        Empty::diagnose_but(&[])
    }

    /// At the tracepoints of all tools that measure.
    pub fn all() -> Empty {
        Empty::all_but(&[])
    }

    /// The same without those of some tools, which measure.
    pub fn all_but(others: &[&CStr]) -> Empty {
        Empty::trace(&without([TRACEPOINTS, TRACEPOINTS_OF_LATENCY].concat(), others))
    }

    /// At the tracepoints of `diagnose` and of the recorder, but those of some tools, which measure.
    pub fn diagnose_but(others: &[&CStr]) -> Empty {
        Empty::trace(&without([TRACEPOINTS, &[c"neigh_update"]].concat(), others))
    }

    /// At tracepoints, raw programs and typed programs are called alike.
    pub fn trace(tracepoints: &[&CStr]) -> Empty {
        let program = load(BPF_PROG_TYPE_RAW_TRACEPOINT, 0);
        // SAFETY: the name ends in NUL, and the program is open.
        let link = |name: &&CStr| owned(unsafe { bpf_raw_tracepoint_open(name.as_ptr(), program.as_raw_fd()) });
        Empty(tracepoints.iter().map(link).collect())
    }
}

fn without<'a>(mut tracepoints: Vec<&'a CStr>, others: &[&CStr]) -> Vec<&'a CStr> {
    tracepoints.retain(|name| !others.contains(name));
    tracepoints
}

/// `r0 = returns; exit`.
fn load(kind: u32, returns: i32) -> OwnedFd {
    let code = [(0xb7, returns), (0x95, 0)].map(|(code, imm)| bpf_insn { code, imm, ..Default::default() });
    let (name, license) = (c"empty", c"GPL");
    // SAFETY: the strings end in NUL, the instructions and their number belong together, null options are allowed.
    owned(unsafe { bpf_prog_load(kind, name.as_ptr(), license.as_ptr(), code.as_ptr(), 2, ptr::null_mut()) })
}

fn owned(fd: i32) -> OwnedFd {
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: a descriptor that is not negative is new and ours.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
