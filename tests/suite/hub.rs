//! Programs of several tools at one tracepoint, where one program is attached: each window sees all of its events while
//! other windows open and close.

use std::io::{Read, Write};

use serde_json::{Value, json};

use crate::harness::*;

/// Their programs follow the same state changes.
const TOOLS: [&str; 3] = ["trace_connections", "top_traffic", "profile_tcp"];

/// How many ends of connections an answer has.
fn ends(tool: &str, answer: &Value) -> u64 {
    let count =
        |list: &str| answer[list].as_array().unwrap().iter().map(|row| row["connections"].as_u64().unwrap()).sum();
    match tool {
        "trace_connections" => answer["connections"].as_array().unwrap().len() as u64,
        "top_traffic" => count("rows"),
        _ => count("remotes"),
    }
}

#[test]
fn windows_of_other_tools_open_and_close_beside_one() {
    let (netns, daemon) = (Netns::new(), Daemon::own());
    let listener = listen(&netns, "127.0.0.1");
    let to = listener.local_addr().unwrap();
    let connect_once = || {
        let mut client = connect(&netns, to).unwrap();
        let mut server = listener.accept().unwrap().0;
        client.write_all(&[1]).unwrap();
        server.read_exact(&mut [0]).unwrap();
        drop(client);
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
    };
    let mut status = Client::connect(&daemon.socket);
    for (opened, closed) in
        [([0, 1, 2], [0, 1, 2]), ([0, 1, 2], [1, 2, 0]), ([2, 1, 0], [1, 0, 2]), ([1, 2, 0], [0, 2, 1])]
    {
        let mut windows: [Option<Watching>; 3] = [None, None, None];
        let mut expected = [0; 3];
        let mut connect = |windows: &[Option<Watching>; 3]| {
            connect_once();
            let open = windows.iter().zip(&mut expected).filter(|(window, _)| window.is_some());
            open.for_each(|(_, count)| *count += 2);
        };
        for tool in opened {
            windows[tool] = Some(daemon.watch(TOOLS[tool], json!({"port": to.port()})));
            connect(&windows);
        }
        let mut counts = [0; 3];
        for tool in closed {
            counts[tool] = ends(TOOLS[tool], &windows[tool].take().unwrap().end());
            status.until_detached(TOOLS[tool]);
            connect(&windows);
        }
        assert_eq!(counts, expected, "opened {opened:?}, closed {closed:?}");
    }
}
