//! The owner of a connection whose last copy a new program closes: a child has copies of its parent's files until
//! execve(), and the parent may close its own meanwhile.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
    thread,
};

use serde_json::{Value, json};

use crate::{harness::*, processes::Process};

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

/// Forks, drops `served` in this process, and lets the child execute `true`.
fn close_beside_a_child(served: Vec<TcpStream>) {
    let ((is_forked, forked), (goes_on, go_on)) = (pipe(), pipe());
    let (tells, waits) = (forked.as_raw_fd(), goes_on.as_raw_fd());
    let mut command = Command::new("true");
    // SAFETY: between fork and exec, two system calls on descriptors that are open until the child has ended.
    unsafe {
        command.pre_exec(move || {
            let mut byte = [1u8];
            let is_done =
                libc::write(tells, byte.as_ptr().cast(), 1) == 1 && libc::read(waits, byte.as_mut_ptr().cast(), 1) == 1;
            if is_done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    let child = thread::spawn(move || command.status().unwrap());
    assert_eq!(rustix::io::read(&is_forked, &mut [0u8]).unwrap(), 1);
    drop(served);
    assert_eq!(rustix::io::write(&go_on, &[1]).unwrap(), 1);
    assert!(child.join().unwrap().success());
}

/// The rows of the server's end.
fn served<'a>(answer: &'a Value, table: &str, netns: &Netns, to: SocketAddr) -> Vec<&'a Value> {
    let rows = answer[table].as_array().unwrap().iter();
    rows.filter(|row| row["owner"]["netns"] == netns.inode() && row["local"]["port"] == to.port()).collect()
}

#[test]
fn connection_belongs_to_the_parent_of_a_new_program() {
    let pair = Pair::new();
    let daemon = Daemon::of_sockets();
    let listener = listen(&pair.b, B);
    let to = listener.local_addr().unwrap();
    let open = || {
        let client = connect(&pair.a, to).unwrap();
        (client, listener.accept().unwrap().0)
    };
    let before = open();
    let tools = ["trace_connections", "top_traffic"];
    let asked = [json!({"port": to.port()}), json!({"port": to.port(), "group_by": "connection"})];
    let windows = tools.iter().zip(asked).map(|(tool, arguments)| daemon.watch(tool, arguments)).collect::<Vec<_>>();
    let (clients, mut ends): (Vec<_>, Vec<_>) = [before, open()].into_iter().unzip();
    for (client, end) in clients.iter().zip(&mut ends) {
        let mut client = client;
        client.write_all(&[1; 1_000]).unwrap();
        end.read_exact(&mut [0; 1_000]).unwrap();
    }
    close_beside_a_child(ends);
    for mut client in clients {
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "the server's end is closed");
    }
    for ((tool, window), table) in tools.iter().zip(windows).zip(["connections", "rows"]) {
        let answer = window.end();
        let rows = served(&answer, table, &pair.b, to);
        assert_eq!(rows.len(), 2, "{tool}: {answer:#}");
        assert!(rows.iter().all(|row| row["owner"]["pid"] == std::process::id()), "{tool}: {answer:#}");
    }
}

#[test]
fn connection_stays_with_a_process_that_executes_itself() {
    let pair = Pair::new();
    let daemon = Daemon::of_sockets();
    let listener = listen(&pair.b, B);
    let to = listener.local_addr().unwrap();
    for is_known in [true, false] {
        let watch = || daemon.watch("trace_connections", json!({"port": to.port(), "direction": "outbound"}));
        let before = is_known.then(watch);
        let mut process = Process::in_netns(&pair.a, &format!("tcp-execute {} {}", to.ip(), to.port()));
        process.hear();
        let window = before.unwrap_or_else(watch);
        let mut served = listener.accept().unwrap().0;
        process.go();
        assert_eq!(served.read(&mut [0]).unwrap(), 0);
        drop(served);
        let answer = window.end();
        let pids: Vec<_> = answer["connections"].as_array().unwrap().iter().map(|row| &row["owner"]["pid"]).collect();
        assert_eq!(pids, [&json!(process.pid())], "{is_known}: {answer:#}");
    }
}
