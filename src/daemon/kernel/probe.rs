//! Two-instruction programs, one of each kind: whether the kernel loads it, and under which rights it attaches.

use std::{io, os::fd::OwnedFd, ptr};

use libbpf_sys::{
    BPF_CGROUP_UDP4_SENDMSG, BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_PROG_TYPE_SCHED_CLS, BPF_PROG_TYPE_TRACING,
    BPF_PROG_TYPE_XDP, BPF_TRACE_FEXIT, BPF_TRACE_ITER, BPF_TRACE_RAW_TP, BPF_XDP, bpf_attach_type, bpf_insn,
    bpf_prog_load, bpf_prog_load_opts, bpf_prog_type,
};

use super::{Program, check, feature::Feature};
use crate::daemon::kernel::{Direction, btf::Kernel};

/// A tracepoint that every kernel has and that fires seldom.
const TRACEPOINT: &str = "tcp_retransmit_skb";
/// A function that every kernel has and that is called seldom.
const FUNCTION: &str = "inet_listen";
/// Every namespace has its loopback interface under this number.
pub const LOOPBACK: u32 = 1;

/// `TCX_NEXT`, which is `TC_ACT_UNSPEC`: the packet goes on to what comes next.
const NEXT: i32 = -1;
/// What a program at a cgroup returns that does not object.
const GOES_ON: i32 = 1;
/// `XDP_PASS`.
const PASS: i32 = 2;

/// The attributes that the kernel requires for a kind.
struct Shape {
    kind: bpf_prog_type,
    attach: bpf_attach_type,
    /// What the program returns.
    returns: i32,
    /// What it is attached to, by its number among the kernel's types.
    target: u32,
}

fn shape(feature: Feature, kernel: &Kernel) -> io::Result<Shape> {
    let tracing = |attach, target: Option<u32>| {
        let target = target.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        Ok(Shape { kind: BPF_PROG_TYPE_TRACING, attach, returns: 0, target })
    };
    let iterator = |name: &str| tracing(BPF_TRACE_ITER, kernel.function(&format!("bpf_iter_{name}")));
    match feature {
        Feature::TracepointBtf => tracing(BPF_TRACE_RAW_TP, kernel.tracepoint(TRACEPOINT)),
        Feature::Fexit => tracing(BPF_TRACE_FEXIT, kernel.function(FUNCTION)),
        Feature::IterateFiles => iterator("task_file"),
        Feature::IterateTcp => iterator("tcp"),
        Feature::IterateUdp => iterator("udp"),
        Feature::IterateMaps => iterator("bpf_map"),
        Feature::TrafficControl => Ok(Shape { kind: BPF_PROG_TYPE_SCHED_CLS, attach: 0, returns: NEXT, target: 0 }),
        Feature::Xdp => Ok(Shape { kind: BPF_PROG_TYPE_XDP, attach: BPF_XDP, returns: PASS, target: 0 }),
        Feature::Cgroup => Ok(Shape {
            kind: BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
            attach: BPF_CGROUP_UDP4_SENDMSG,
            returns: GOES_ON,
            target: 0,
        }),
        Feature::Btf | Feature::SocketStorage | Feature::Loop => {
            Err(io::Error::other(format!("{feature} is not a kind of program")))
        }
    }
}

/// `r0 = returns; exit`, as the kernel's instruction set has it (Documentation/bpf/standardization/instruction-set.rst).
fn instructions(returns: i32) -> [[u8; 8]; 2] {
    let [a, b, c, d] = returns.to_ne_bytes();
    [[0xb7, 0, 0, 0, a, b, c, d], [0x95, 0, 0, 0, 0, 0, 0, 0]]
}

/// Loads a program of a kind.
pub fn load(feature: Feature, kernel: &Kernel) -> io::Result<OwnedFd> {
    let shape = shape(feature, kernel)?;
    let program: Vec<bpf_insn> = instructions(shape.returns)
        .iter()
        // SAFETY: a `bpf_insn` is 8 bytes of integers, which any bytes are a value of.
        .map(|bytes| unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) })
        .collect();
    let mut options = bpf_prog_load_opts {
        sz: size_of::<bpf_prog_load_opts>() as _,
        expected_attach_type: shape.attach,
        attach_btf_id: shape.target,
        ..Default::default()
    };
    // SAFETY: the strings end with NUL, the instructions are as many as is said, and the options say their size.
    check(unsafe {
        bpf_prog_load(
            shape.kind,
            c"netmon_probe".as_ptr(),
            c"GPL".as_ptr(),
            program.as_ptr(),
            program.len() as _,
            &mut options,
        )
    })
}

/// Attaches it and detaches it again, as serving does. XDP is not tried: it is attached to an interface in use, and
/// only on request.
pub fn attach(feature: Feature, program: &OwnedFd) -> io::Result<()> {
    let program = Program::new("netmon_probe", program.try_clone()?);
    match feature {
        Feature::TracepointBtf | Feature::Fexit => program.trace().map(drop),
        Feature::TrafficControl => program.tc(LOOPBACK, Direction::Ingress).map(drop),
        Feature::Xdp => Ok(()),
        Feature::Cgroup => program.cgroup(BPF_CGROUP_UDP4_SENDMSG).map(drop),
        _ => program.try_iterator(),
    }
}
