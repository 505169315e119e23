//! Connections whose ends are not simply two processes: across a bridge, as with containers, and passed from one
//! process to another. Every socket tool shows both ends, with place and owner.

use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    thread,
};

use serde_json::{Value, json};

use crate::{harness::*, processes::*};

/// Two namespaces, joined by a bridge in a third one.
struct Bridged {
    a: Netns,
    bridge: Netns,
    b: Netns,
}

impl Bridged {
    fn new() -> Bridged {
        let (a, bridge, b) = (Netns::new(), Netns::new(), Netns::new());
        bridge.ip("link add br0 type bridge");
        bridge.ip("link set br0 up");
        for (end, port, address) in [(&a, "p0", A), (&b, "p1", B)] {
            run(&format!("ip link add v0 netns {} type veth peer name {port} netns {}", end.name(), bridge.name()));
            bridge.ip(&format!("link set {port} master br0"));
            bridge.ip(&format!("link set {port} up"));
            end.ip(&format!("addr add {address}/24 dev v0"));
            end.ip("link set v0 up");
        }
        Bridged { a, bridge, b }
    }
}

/// The answers of these tools to windows that are open during `traffic`.
fn answers<const N: usize>(daemon: &Daemon, asked: [(&str, Value); N], traffic: impl FnOnce()) -> [Value; N] {
    let windows = asked.map(|(tool, arguments)| daemon.watch(tool, arguments));
    traffic();
    windows.map(Watching::end)
}

/// The rows of a namespace, by the list's name.
fn of(answer: &Value, list: &str, netns: &Netns) -> Vec<Value> {
    let rows = answer[list].as_array().unwrap().iter();
    rows.filter(|row| row["owner"]["netns"] == netns.inode()).cloned().collect()
}

#[test]
fn bridged_containers_are_counted_at_both_ends() {
    let net = Bridged::new();
    let mut server = Process::in_netns(&net.b, &format!("tcp-listen {B} 7301"));
    assert_eq!(server.hear(), "listening");
    let daemon = Daemon::of_sockets();
    let mut sender = None;
    let by_connection = json!({"port": 7_301, "group_by": "connection"});
    let asked = [
        ("top_traffic", by_connection),
        ("trace_connections", json!({"port": 7_301})),
        ("profile_tcp", json!({"port": 7_301})),
    ];
    let [traffic, connections, profile] = answers(&daemon, asked, || {
        let mut process = Process::in_netns(&net.a, &format!("tcp-send {B} 7301 100000"));
        assert_eq!(process.hear(), "connected");
        process.go();
        assert_eq!(process.hear(), "sent");
        let pid = process.pid();
        drop(process);
        assert_eq!(server.hear(), "100000");
        sender = Some(pid);
    });
    let ends = [(&net.a, sender.unwrap(), (0, 100_000)), (&net.b, server.pid(), (100_000, 0))];
    for (netns, pid, (rx_bytes, tx_bytes)) in ends {
        let moved = of(&traffic, "rows", netns);
        assert_eq!((moved.len(), &moved[0]["owner"]["pid"]), (1, &json!(pid)), "{traffic:#}");
        assert_eq!((&moved[0]["rx_bytes"], &moved[0]["tx_bytes"]), (&json!(rx_bytes), &json!(tx_bytes)), "{traffic:#}");
        let connected = of(&connections, "connections", netns);
        assert_eq!((connected.len(), &connected[0]["owner"]["pid"]), (1, &json!(pid)), "{connections:#}");
        let owners: Vec<_> = profile["remotes"].as_array().unwrap().iter().map(|row| &row["owners"][0]).collect();
        assert!(owners.iter().any(|owner| owner["pid"] == pid && owner["netns"] == netns.inode()), "{profile:#}");
    }
    assert_eq!(of(&traffic, "rows", &net.bridge), Vec::<Value>::new(), "who forwards has no socket: {traffic:#}");
    assert_eq!(traffic["total"], json!({"rx_bytes": 100_000, "tx_bytes": 100_000}), "{traffic:#}");
}

#[test]
fn passed_connection_is_credited_to_its_new_holder() {
    let pair = Pair::new();
    let folder = open_folder();
    let path = folder.path().join("take");
    let mut taker = Process::in_netns(&pair.a, &format!("tcp-take {} 40000", path.display()));
    assert_eq!(taker.hear(), "ready");
    let listener = listen(&pair.b, B);
    let to: SocketAddr = listener.local_addr().unwrap();
    let daemon = Daemon::of_sockets();
    let mut client = Client::connect(&daemon.socket);
    let port = json!({"port": to.port(), "remote": B});
    let [traffic, profile] = answers(&daemon, [("top_traffic", port.clone()), ("profile_tcp", port.clone())], || {
        let stream: TcpStream = connect(&pair.a, to).unwrap();
        let mut served = listener.accept().unwrap().0;
        pass(stream, &path);
        assert_eq!(taker.hear(), "taken");
        let reads = thread::spawn(move || served.read_exact(&mut [0; 40_000]).map(|()| served));
        taker.go();
        assert_eq!(taker.hear(), "sent");
        drop(reads.join().unwrap().unwrap());
    });
    let row = &traffic["rows"][0];
    assert_eq!((&row["owner"]["pid"], &row["tx_bytes"]), (&json!(taker.pid()), &json!(40_000)), "{traffic:#}");
    assert_eq!(profile["remotes"][0]["owners"][0]["pid"], taker.pid(), "{profile:#}");
    let sockets = client.call("snapshot_sockets", json!({"pid": taker.pid(), "port": to.port()})).unwrap();
    assert_eq!(sockets["sockets"][0]["owner"]["pid"], taker.pid(), "{sockets:#}");
}
