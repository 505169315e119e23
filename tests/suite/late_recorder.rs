//! A recorder that gets its readings late, as on a busy host.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
};

use netmon_mcp::recorder::time::{self, Period};

use crate::{
    harness::*,
    past::{Recorder, ask_past, facts, recording},
};

/// The test forwards netmond's lines, and delays one.
#[test]
fn late_reading_is_of_the_time_in_which_it_was_taken() {
    const PORT: u16 = 21_197;
    let (pair, daemon) = (Pair::new(), Daemon::start());
    let (folder, (_recording, path)) = (open_folder(), recording());
    let socket = folder.path().join("netmond.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let _recorder = Recorder::start(&socket, &path, &[]);
    // It connects once before, and asks nothing.
    let asked = listener.incoming().find_map(|stream| {
        let (stream, mut question) = (stream.unwrap(), String::new());
        BufReader::new(&stream).read_line(&mut question).unwrap();
        (!question.is_empty()).then_some((stream, question))
    });
    let (mut recorder, question) = asked.unwrap();
    let mut netmond = UnixStream::connect(&daemon.socket).unwrap();
    netmond.write_all(question.as_bytes()).unwrap();
    let mut lines = BufReader::new(netmond).lines();
    let mut pass = |line: String| recorder.write_all(format!("{line}\n").as_bytes()).unwrap();
    pass(lines.next().unwrap().unwrap()); // it has opened

    let before = lines.next().unwrap().unwrap();
    let begin_us = time::now();
    for _ in 0..20 {
        connect(&pair.a, SocketAddr::new(B.parse().unwrap(), PORT)).unwrap_err();
    }
    let fault = Period { begin_us, end_us: time::now() };
    pass(before);
    until("the fault is recorded", || {
        pass(lines.next().unwrap().unwrap());
        facts(&path)?.period.filter(|period| period.end_us > fault.end_us)
    });
    let answer = ask_past(&daemon.socket, &path, &format!("trace_connections port={PORT} outcome=failed"), fault);
    assert_eq!(answer["outcomes"]["refused"], 20, "{answer:#}");
}
