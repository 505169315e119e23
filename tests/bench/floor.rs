//! What the kernel's hooks cost by themselves: a program that does nothing, at the same place.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys::{
    BPF_PROG_TYPE_SCHED_CLS, BPF_TCX_EGRESS, BPF_TCX_INGRESS, bpf_insn, bpf_link_create, bpf_prog_load,
};

/// Two links at an interface's tcx hooks, until they are dropped.
pub struct Empty(#[expect(dead_code, reason = "held, not read")] [OwnedFd; 2]);

impl Empty {
    /// At the interface with this index in the network namespace of the caller.
    pub fn attach(ifindex: u32) -> Empty {
        // r0 = TCX_NEXT; exit
        let code = [(0xb7, -1), (0x95, 0)].map(|(code, imm)| bpf_insn { code, imm, ..Default::default() });
        // SAFETY: the strings end in NUL, the instructions and their number belong together, null options are allowed;
        // a descriptor that is not negative is new and ours.
        unsafe {
            let (name, license) = (c"empty".as_ptr(), c"GPL".as_ptr());
            let program = bpf_prog_load(BPF_PROG_TYPE_SCHED_CLS, name, license, code.as_ptr(), 2, std::ptr::null_mut());
            assert!(program >= 0, "{}", std::io::Error::last_os_error());
            let program = OwnedFd::from_raw_fd(program);
            Empty([BPF_TCX_INGRESS, BPF_TCX_EGRESS].map(|hook| {
                let link = bpf_link_create(program.as_raw_fd(), ifindex as i32, hook, std::ptr::null());
                assert!(link >= 0, "{}", std::io::Error::last_os_error());
                OwnedFd::from_raw_fd(link)
            }))
        }
    }
}
