//! Short programs, one of each kind: whether the kernel loads it, and under which rights it attaches.

use std::{io, os::fd::OwnedFd, ptr};

use libbpf_sys::{
    BPF_CGROUP_UDP4_SENDMSG, BPF_FUNC_get_socket_cookie, BPF_FUNC_sock_from_file, BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
    BPF_PROG_TYPE_SCHED_CLS, BPF_PROG_TYPE_TRACING, BPF_PROG_TYPE_XDP, BPF_TRACE_FEXIT, BPF_TRACE_ITER,
    BPF_TRACE_RAW_TP, BPF_XDP, bpf_attach_type, bpf_insn, bpf_prog_load, bpf_prog_load_opts, bpf_prog_type,
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
    /// What the program does.
    code: Vec<[u8; 8]>,
    /// What it is attached to, by its number among the kernel's types.
    target: u32,
}

fn shape(feature: Feature, kernel: &Kernel) -> io::Result<Shape> {
    let tracing = |attach, target: Option<u32>| {
        let target = target.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        Ok(Shape { kind: BPF_PROG_TYPE_TRACING, attach, code: returns(0).into(), target })
    };
    let iterator = |name: &str| tracing(BPF_TRACE_ITER, kernel.function(&format!("bpf_iter_{name}")));
    let other = |kind, attach, value| Ok(Shape { kind, attach, code: returns(value).into(), target: 0 });
    match feature {
        Feature::TracepointBtf => tracing(BPF_TRACE_RAW_TP, kernel.tracepoint(TRACEPOINT)),
        Feature::Fexit => tracing(BPF_TRACE_FEXIT, kernel.function(FUNCTION)),
        Feature::IterateFiles => iterator("task_file"),
        Feature::IterateTcp => iterator("tcp"),
        Feature::IterateUdp => iterator("udp"),
        Feature::IterateMaps => iterator("bpf_map"),
        Feature::FileSockets => {
            let sk = kernel.offset("socket", "sk").ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
            Ok(Shape { code: names_socket_of_file(sk as i16).into(), ..iterator("task_file")? })
        }
        Feature::TrafficControl => other(BPF_PROG_TYPE_SCHED_CLS, 0, NEXT),
        Feature::Xdp => other(BPF_PROG_TYPE_XDP, BPF_XDP, PASS),
        Feature::Cgroup => other(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_UDP4_SENDMSG, GOES_ON),
        Feature::Btf | Feature::SocketStorage | Feature::Loop => {
            Err(io::Error::other(format!("{feature} is not a kind of program")))
        }
    }
}

// Instructions, as the kernel's instruction set has them (Documentation/bpf/standardization/instruction-set.rst).
const MOVE: u8 = 0xb7;
const LOAD: u8 = 0x79;
const JUMP_IF_EQUAL: u8 = 0x15;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// One instruction; `registers` has the source in its upper half, and the destination in its lower one.
fn instruction(code: u8, registers: u8, offset: i16, value: i32) -> [u8; 8] {
    let ([a, b], [c, d, e, f]) = (offset.to_ne_bytes(), value.to_ne_bytes());
    [code, registers, a, b, c, d, e, f]
}

/// `r0 = value; exit`
fn returns(value: i32) -> [[u8; 8]; 2] {
    [instruction(MOVE, 0, 0, value), instruction(EXIT, 0, 0, 0)]
}

/// Requests the cookie of the socket of a file; `sk` is the offset of the pointer to it in `struct socket`.
fn names_socket_of_file(sk: i16) -> [[u8; 8]; 9] {
    const FILE: i16 = 24; // struct bpf_iter__task_file: after `meta`, `task` and `fd`
    let [end, exit] = returns(0);
    [
        instruction(LOAD, 0x11, FILE, 0),
        instruction(JUMP_IF_EQUAL, 0x01, 5, 0),
        instruction(CALL, 0, 0, BPF_FUNC_sock_from_file as i32),
        instruction(JUMP_IF_EQUAL, 0x00, 3, 0),
        instruction(LOAD, 0x01, sk, 0),
        instruction(JUMP_IF_EQUAL, 0x01, 1, 0),
        instruction(CALL, 0, 0, BPF_FUNC_get_socket_cookie as i32),
        end,
        exit,
    ]
}

/// Loads a program of a kind.
pub fn load(feature: Feature, kernel: &Kernel) -> io::Result<OwnedFd> {
    let shape = shape(feature, kernel)?;
    let program: Vec<bpf_insn> = shape
        .code
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
