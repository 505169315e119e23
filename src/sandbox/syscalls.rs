//! seccomp: which system calls a process may make, and with which arguments.
//!
//! What is not listed fails with EPERM, on every thread. It is an error and not death, so that a
//! library that tries something new finds its way round, as libraries do.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter, apply_filter_all_threads,
};

use super::layer::{Layer, Role};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What every program of ours needs to run at all: memory, threads, time, files that are open.
#[rustfmt::skip]
const PROCESS: &[c_long] = &[
    libc::SYS_brk, libc::SYS_clock_getres, libc::SYS_clock_gettime, libc::SYS_clock_nanosleep, libc::SYS_close,
    libc::SYS_dup, libc::SYS_dup3, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_fcntl, libc::SYS_fstat,
    libc::SYS_futex, libc::SYS_getegid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getpid, libc::SYS_getppid,
    libc::SYS_getrandom, libc::SYS_getrusage, libc::SYS_gettid, libc::SYS_gettimeofday, libc::SYS_getuid, libc::SYS_lseek,
    libc::SYS_madvise, libc::SYS_membarrier, libc::SYS_mremap, libc::SYS_munmap, libc::SYS_nanosleep,
    libc::SYS_pipe2, libc::SYS_ppoll, libc::SYS_read, libc::SYS_readv, libc::SYS_restart_syscall, libc::SYS_rseq,
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield, libc::SYS_set_robust_list, libc::SYS_sigaltstack, libc::SYS_sysinfo, libc::SYS_uname,
    libc::SYS_write, libc::SYS_writev,
];

/// Files to read; Landlock says which.
#[rustfmt::skip]
const FILES: &[c_long] = &[
    libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_fstatfs, libc::SYS_getcwd, libc::SYS_getdents64, libc::SYS_newfstatat,
    libc::SYS_pread64, libc::SYS_readlinkat, libc::SYS_statfs, libc::SYS_statx,
];

/// Sockets that are open, and those that are taken from a listener.
#[rustfmt::skip]
const SOCKETS: &[c_long] = &[
    libc::SYS_accept4, libc::SYS_bind, libc::SYS_connect, libc::SYS_getpeername, libc::SYS_getsockname, libc::SYS_getsockopt,
    libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_sendto, libc::SYS_setsockopt, libc::SYS_shutdown,
];

/// Files to write, make and remove; Landlock says where.
#[rustfmt::skip]
const WRITING: &[c_long] = &[
    libc::SYS_fallocate, libc::SYS_fchmod, libc::SYS_fdatasync, libc::SYS_flock, libc::SYS_fsync, libc::SYS_ftruncate,
    libc::SYS_openat, libc::SYS_pwrite64, libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")] libc::SYS_open, #[cfg(target_arch = "x86_64")] libc::SYS_rename,
    #[cfg(target_arch = "x86_64")] libc::SYS_unlink,
];

/// The older forms of the above, which x86-64 still has and the C library still uses.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLDER: &[c_long] = &[
    libc::SYS_access, libc::SYS_arch_prctl, libc::SYS_dup2, libc::SYS_epoll_wait, libc::SYS_lstat,
    libc::SYS_pipe, libc::SYS_poll, libc::SYS_readlink, libc::SYS_stat, libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// The commands of bpf(2) that serving uses: attach what is loaded, read and write maps, ask what a program has cost.
/// To load a program, to make a map, to reach anything by its id is not among them.
const BPF: &[u64] = &[
    1,  // BPF_MAP_LOOKUP_ELEM
    2,  // BPF_MAP_UPDATE_ELEM
    3,  // BPF_MAP_DELETE_ELEM
    4,  // BPF_MAP_GET_NEXT_KEY
    15, // BPF_OBJ_GET_INFO_BY_FD
    17, // BPF_RAW_TRACEPOINT_OPEN
    21, // BPF_MAP_LOOKUP_AND_DELETE_ELEM
    24, // BPF_MAP_LOOKUP_BATCH
    25, // BPF_MAP_LOOKUP_AND_DELETE_BATCH
    26, // BPF_MAP_UPDATE_BATCH
    27, // BPF_MAP_DELETE_BATCH
    28, // BPF_LINK_CREATE
    33, // BPF_ITER_CREATE
    34, // BPF_LINK_DETACH
];

/// What ssh cannot need, of all that the kernel offers: where hosts are configured, this list is refused, and
/// the rest, which is ssh's to know, is not.
#[rustfmt::skip]
const NEVER: &[c_long] = &[
    libc::SYS_acct, libc::SYS_add_key, libc::SYS_adjtimex, libc::SYS_bpf, libc::SYS_clock_adjtime, libc::SYS_clock_settime,
    libc::SYS_delete_module, libc::SYS_fanotify_init, libc::SYS_finit_module, libc::SYS_fsconfig, libc::SYS_fsmount,
    libc::SYS_fsopen, libc::SYS_fspick, libc::SYS_init_module, libc::SYS_io_uring_enter, libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup, libc::SYS_kcmp, libc::SYS_kexec_file_load, libc::SYS_kexec_load, libc::SYS_keyctl, libc::SYS_mount,
    libc::SYS_mount_setattr, libc::SYS_move_mount, libc::SYS_name_to_handle_at, libc::SYS_open_by_handle_at,
    libc::SYS_open_tree, libc::SYS_perf_event_open, libc::SYS_pidfd_getfd, libc::SYS_pivot_root, libc::SYS_process_madvise,
    libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_ptrace, libc::SYS_quotactl, libc::SYS_reboot,
    libc::SYS_request_key, libc::SYS_setns, libc::SYS_settimeofday, libc::SYS_swapoff, libc::SYS_swapon, libc::SYS_syslog,
    libc::SYS_umount2, libc::SYS_unshare, libc::SYS_userfaultfd,
];

/// The flags of clone(2) that make a namespace.
#[rustfmt::skip]
const NAMESPACES: [i32; 8] = [
    libc::CLONE_NEWCGROUP, libc::CLONE_NEWIPC, libc::CLONE_NEWNET, libc::CLONE_NEWNS, libc::CLONE_NEWPID,
    libc::CLONE_NEWTIME, libc::CLONE_NEWUSER, libc::CLONE_NEWUTS,
];

/// Read and set the mode of a terminal, such as whether keys come one by one. None of them types for its user (`TIOCSTI`).
const TERMINAL_MODE: [u64; 7] =
    [libc::TCGETS2, libc::TCSETS, libc::TCSETSW, libc::TCSETSF, libc::TCSETS2, libc::TCSETSW2, libc::TCSETSF2];

/// All bits of an argument.
const ALL: u64 = u32::MAX as u64;
/// Of a socket's type: without `SOCK_CLOEXEC` and `SOCK_NONBLOCK`.
const TYPE: u64 = 0xf;

/// Narrows this process, all its threads and all that they start to what `role` needs. Of a daemon only the calling thread
/// and those that it starts: others may be loading programs still, and end when they have.
pub fn restrict(role: Role) -> Layer {
    let detail = match role {
        Role::Daemon => {
            "allow-list: no exec, no new process, no file writes; bpf(2) only to attach and read loaded programs"
        }
        Role::Gateway => "allow-list: no exec, no bpf(2), no new sockets except Unix sockets",
        Role::Viewer => "allow-list: no exec, no bpf(2), no new sockets except Unix sockets; sets the terminal's mode",
        Role::Recorder => "allow-list: no exec, no bpf(2), no new sockets except Unix sockets; writes files",
        Role::ClientGateway => "allow-list: no exec, no bpf(2), no new sockets except Unix, TCP and UDP sockets",
        Role::SshGateway => "exec allowed for ssh; no bpf(2), no raw sockets, no namespaces, no mounts",
    };
    let applied = filters(role).map_err(|e| e.to_string()).and_then(|filters| {
        filters.into_iter().try_for_each(|filter| {
            let program: seccompiler::BpfProgram = filter.try_into().map_err(|e: BackendError| e.to_string())?;
            let apply = if role == Role::Daemon { apply_filter } else { apply_filter_all_threads };
            apply(&program).map_err(|e| e.to_string())
        })
    });
    Layer::new("seccomp", applied.map(|()| detail.into()))
}

fn filters(role: Role) -> Result<Vec<SeccompFilter>, BackendError> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let errno = |errno: i32| SeccompAction::Errno(errno as u32);
    // The flags of clone3 are in memory, where no filter looks. Told that there is none, the C library takes clone.
    let clone3 = Rules::from([(libc::SYS_clone3, vec![])]);
    let no_clone3 = SeccompFilter::new(clone3, SeccompAction::Allow, errno(libc::ENOSYS), arch)?;
    if role == Role::SshGateway {
        let refused = SeccompFilter::new(refused()?, SeccompAction::Allow, errno(libc::EPERM), arch)?;
        return Ok(vec![no_clone3, refused]);
    }
    // Last, since it forbids to install another. The kernel takes the stricter of two filters' answers.
    let allowed = SeccompFilter::new(allowed(role)?, errno(libc::EPERM), SeccompAction::Allow, arch)?;
    Ok(vec![no_clone3, allowed])
}

/// A call with these arguments: of each its number, the bits that count, and their value.
fn with(arguments: &[(u8, u64, u64)]) -> Result<SeccompRule, BackendError> {
    let condition = |(n, mask, value): &(u8, u64, u64)| SeccompCondition::new(*n, Dword, MaskedEq(*mask), *value);
    SeccompRule::new(arguments.iter().map(condition).collect::<Result<_, _>>()?)
}

/// A call whose argument `n` is one of `values`.
fn one_of(n: u8, values: &[u64]) -> Result<Vec<SeccompRule>, BackendError> {
    values.iter().map(|value| with(&[(n, ALL, *value)])).collect()
}

fn allowed(role: Role) -> Result<Rules, BackendError> {
    const UNIX: u64 = libc::AF_UNIX as u64;
    const NETLINK: u64 = libc::AF_NETLINK as u64;
    /// `SIOCGIFNAME` and `SIOCGIFINDEX` of `linux/sockios.h`.
    const INTERFACE: [u64; 2] = [0x8910, 0x8933];
    /// `PR_GET_AUXV` of `linux/prctl.h`: the size of a page, among others.
    const GET_AUXV: u64 = 0x4155_5856;
    let unconditional = PROCESS.iter().chain(FILES).chain(SOCKETS).chain(OLDER);
    let mut rules: Rules = unconditional.map(|call| (*call, vec![])).collect();
    rules.insert(libc::SYS_clone3, vec![]); // a filter of its own answers it
    let code = (2, libc::PROT_EXEC as u64, 0); // memory is data or code: no more becomes executable
    let thread = (0, libc::CLONE_THREAD as u64, libc::CLONE_THREAD as u64); // and no process
    let writing = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64;
    let terminal = [libc::TCGETS, libc::TIOCGWINSZ, libc::FIONBIO];
    rules.insert(libc::SYS_mmap, vec![with(&[code])?]);
    rules.insert(libc::SYS_mprotect, vec![with(&[code])?]);
    rules.insert(libc::SYS_clone, vec![with(&[thread])?]);
    rules.insert(libc::SYS_openat, vec![with(&[(2, writing, 0)])?]);
    rules.insert(libc::SYS_ioctl, one_of(1, &[&terminal[..], &INTERFACE].concat())?);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![with(&[(1, writing, 0)])?]);
    rules.insert(libc::SYS_prctl, one_of(0, &[libc::PR_SET_NAME as u64, GET_AUXV])?);
    rules.insert(libc::SYS_prlimit64, one_of(2, &[0])?); // to read limits
    rules.insert(libc::SYS_tgkill, one_of(0, &[std::process::id().into()])?); // to abort
    rules.insert(libc::SYS_socketpair, one_of(0, &[UNIX])?);
    rules.insert(libc::SYS_socket, one_of(0, if role == Role::Daemon { &[UNIX, NETLINK] } else { &[UNIX] })?);
    if role == Role::ClientGateway {
        rules.insert(libc::SYS_socket, sockets_of_a_client()?);
        rules.insert(libc::SYS_sendmmsg, vec![]); // the C library asks for both families' addresses at once
        rules.entry(libc::SYS_ioctl).or_default().extend(one_of(1, &[libc::FIONREAD])?);
    }
    if role == Role::Viewer {
        rules.entry(libc::SYS_ioctl).or_default().extend(one_of(1, &TERMINAL_MODE)?);
    }
    if role == Role::Recorder {
        rules.extend(WRITING.iter().map(|call| (*call, vec![])));
    }
    match role {
        Role::Daemon => {
            rules.insert(libc::SYS_bpf, one_of(0, BPF)?);
            rules.insert(libc::SYS_capget, vec![]); // `status` reads what is held
        }
        // The daemon that a gateway has started is waited for.
        _ => rules.extend([libc::SYS_wait4, libc::SYS_waitid].map(|call| (call, vec![]))),
    }
    Ok(rules)
}

/// Unix sockets, TCP, UDP, and the netlink that lists addresses.
fn sockets_of_a_client() -> Result<Vec<SeccompRule>, BackendError> {
    let of = |family: i32, kind: i32| with(&[(0, ALL, family as u64), (1, TYPE, kind as u64)]);
    let mut rules = one_of(0, &[libc::AF_UNIX as u64])?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        rules.extend([of(family, libc::SOCK_STREAM)?, of(family, libc::SOCK_DGRAM)?]);
    }
    rules.push(with(&[(0, ALL, libc::AF_NETLINK as u64), (2, ALL, libc::NETLINK_ROUTE as u64)])?);
    Ok(rules)
}

fn refused() -> Result<Rules, BackendError> {
    let mut rules: Rules = NEVER.iter().map(|call| (*call, vec![])).collect();
    // clone3 is refused by a filter of its own, since its flags are in memory.
    let namespaces = NAMESPACES.iter().map(|flag| with(&[(0, *flag as u32 as u64, *flag as u32 as u64)]));
    rules.insert(libc::SYS_clone, namespaces.collect::<Result<_, _>>()?);
    let packet = with(&[(0, ALL, libc::AF_PACKET as u64)])?;
    rules.insert(libc::SYS_socket, vec![packet, with(&[(1, TYPE, libc::SOCK_RAW as u64)])?]);
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seccomp_filters_fit_the_kernel_limit() {
        for role in [Role::Daemon, Role::Gateway, Role::Viewer, Role::ClientGateway, Role::Recorder, Role::SshGateway] {
            for filter in filters(role).unwrap() {
                let program: seccompiler::BpfProgram = filter.try_into().unwrap();
                assert!(program.len() < 4_096, "{role:?}: {} instructions", program.len()); // BPF_MAXINSNS
            }
        }
    }

    #[test]
    fn bpf_load_and_get_by_id_commands_are_blocked() {
        // BPF_MAP_CREATE, BPF_PROG_LOAD, BPF_OBJ_PIN, BPF_OBJ_GET, BPF_PROG_ATTACH, the *_GET_FD_BY_ID, BPF_BTF_LOAD.
        for command in [0, 5, 6, 7, 8, 13, 14, 18, 19, 30] {
            assert!(!BPF.contains(&command), "{command}");
        }
    }
}
