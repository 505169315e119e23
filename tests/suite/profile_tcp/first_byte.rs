//! The time to the first byte: of servers that think, and of traffic without requests and replies.

use super::*;

/// The figures of a listener's row.
fn listener(answer: &Value, to: SocketAddr) -> &Value {
    let local = json!({"address": to.ip(), "port": to.port()});
    let rows = answer["listeners"].as_array().unwrap().iter();
    let found: Vec<_> = rows.filter(|row| row["local"] == local).collect();
    assert_eq!(found.len(), 1, "{answer:#}");
    found[0]
}

/// How many exchanges the answer leaves out.
fn left_out(answer: &Value) -> &Value {
    let mut limits = answer["measured"]["limits"].as_array().unwrap().iter();
    limits.find(|limit| limit["code"] == "exchanges_left_out").map_or(&Value::Null, |limit| &limit["count"])
}

/// Whether a median is that of the injected delays, in any order: 10 % and 0.2 ms.
fn is_injected(first_byte: &Value, delays: &[Duration]) {
    assert_eq!(first_byte["count"], delays.len(), "{first_byte:#}");
    let mut delays = delays.to_vec();
    delays.sort();
    let (found, injected) = (first_byte["p50"].as_f64().unwrap(), delays[(delays.len() - 1) / 2].as_secs_f64() * 1e6);
    let noise = patience(Duration::from_micros(200)).as_secs_f64() * 1e6;
    assert!((found - injected).abs() <= injected * 0.1 + noise, "{injected} µs: {first_byte:#}");
}

/// The server thinks so long about each of so many requests. Returns the real times, from request to reply.
fn think(ends: &mut Ends, count: usize, thinks: Duration) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..count {
        let asked = Instant::now();
        ends.client.write_all(&[1; 100]).unwrap();
        ends.server.read_exact(&mut [0; 100]).unwrap();
        thread::sleep(thinks);
        times.push(asked.elapsed());
        ends.server.write_all(&[2; 100]).unwrap();
        ends.client.read_exact(&mut [0; 100]).unwrap();
    }
    until_acknowledged(&ends.server);
    times
}

// In guests.
#[test]
fn server_that_thinks_is_late_at_both_ends() {
    let pair = Pair::new();
    let daemon = Daemon::of("profile_tcp");
    for (ms, count, address) in [(10, 20, B), (250, 4, B6), (2_500, 1, B)] {
        let mut ends = Ends::new(&pair.a, &pair.b, address, address);
        let thinks = Duration::from_millis(ms);
        let mut times = Vec::new();
        let answer = watched(&daemon, json!({"port": ends.to.port()}), || times = think(&mut ends, count, thinks));
        let (ours, theirs) = (listener(&answer, ends.to), ends.row(&answer));
        is_injected(&ours["first_byte_us"], &times);
        is_injected(&theirs["first_byte_us"], &times);
        assert_eq!(ours["owner"]["pid"], std::process::id(), "{ours:#}");
        assert_eq!(ours["owner"]["netns"], pair.b.inode(), "{ours:#}");
        let quick = patience(Duration::from_millis(1)).as_micros() as u64;
        assert!(between(&ours["rtt_us"]["min"], 1, quick), "not the network: {ours:#}");
        assert!(left_out(&answer).is_null(), "{answer:#}");
    }
}

#[test]
fn slow_path_is_in_the_clients_time_only() {
    let pair = SlowPair::new(Duration::from_millis(10));
    let daemon = Daemon::of("profile_tcp");
    let mut ends = Ends::new(&pair.a, &pair.b, SLOW_B, SLOW_B);
    let thinks = Duration::from_millis(30);
    let mut times = Vec::new();
    let answer = watched(&daemon, json!({"port": ends.to.port()}), || times = think(&mut ends, 10, thinks));
    // The request is 10 ms under way.
    let ours: Vec<_> = times.iter().map(|time| *time - Duration::from_millis(10)).collect();
    let theirs: Vec<_> = times.iter().map(|time| *time + Duration::from_millis(10)).collect();
    is_injected(&listener(&answer, ends.to)["first_byte_us"], &ours);
    is_injected(&ends.row(&answer)["first_byte_us"], &theirs);
}

/// Each request has a connection of its own, which the server closes as soon as it has replied.
#[test]
fn connection_per_request_counts() {
    let pair = Pair::new();
    let daemon = Daemon::of("profile_tcp");
    let listener_of_all = listen(&pair.b, B);
    let to = listener_of_all.local_addr().unwrap();
    let thinks = Duration::from_millis(20);
    for is_deferred in [false, true] {
        if is_deferred {
            defer_accept(&listener_of_all);
        }
        let mut took = Vec::new();
        let answer = watched(&daemon, json!({"port": to.port()}), || {
            for _ in 0..5 {
                thread::scope(|scope| {
                    let client = scope.spawn(|| {
                        let mut client = connect(&pair.a, to).unwrap();
                        let sent = Instant::now();
                        client.write_all(&[1; 100]).unwrap();
                        client.read_to_end(&mut Vec::new()).unwrap();
                        sent
                    });
                    let mut server = listener_of_all.accept().unwrap().0;
                    server.read_exact(&mut [0; 100]).unwrap();
                    thread::sleep(thinks);
                    let replied = Instant::now();
                    server.write_all(&[2; 100]).unwrap();
                    drop(server);
                    took.push(replied - client.join().unwrap());
                });
            }
        });
        is_injected(&listener(&answer, to)["first_byte_us"], &took);
    }
}

/// As web servers do: the kernel makes the connection when the request arrives.
fn defer_accept(listener: &TcpListener) {
    let seconds = 5i32;
    // SAFETY: the option is an int.
    let done = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size_of::<i32>() as u32,
        )
    };
    assert_eq!(done, 0);
}

/// A client that sends its requests without waiting: the first reply belongs to the first request.
#[test]
fn pipelined_requests_have_one_first_byte() {
    let pair = Pair::new();
    let daemon = Daemon::of("profile_tcp");
    let ends = Ends::new(&pair.a, &pair.b, B, B);
    let thinks = Duration::from_millis(50);
    let mut times = Vec::new();
    let answer = watched(&daemon, json!({"port": ends.to.port()}), || {
        let (mut client, mut server) = (&ends.client, &ends.server);
        let asked = Instant::now();
        client.write_all(&[1; 300]).unwrap();
        for _ in 0..3 {
            server.read_exact(&mut [0; 100]).unwrap();
            thread::sleep(thinks);
            times.push(asked.elapsed());
            server.write_all(&[2; 100]).unwrap();
        }
        client.read_exact(&mut [0; 300]).unwrap();
        until_acknowledged(server);
    });
    is_injected(&listener(&answer, ends.to)["first_byte_us"], &times[..1]);
    is_injected(&ends.row(&answer)["first_byte_us"], &times[..1]);
}

/// Exchanges in which a second request comes while the first one waits for its reply.
fn overlap(ends: &Ends, count: usize) {
    let (mut client, mut server) = (&ends.client, &ends.server);
    for _ in 0..count {
        for _ in 0..2 {
            client.write_all(&[1; 100]).unwrap();
            server.read_exact(&mut [0; 100]).unwrap();
            thread::sleep(Duration::from_millis(20));
        }
        for _ in 0..2 {
            server.write_all(&[2; 100]).unwrap();
            client.read_exact(&mut [0; 100]).unwrap();
        }
    }
}

/// As HTTP/2 and WebSocket do: both ends send when they like.
#[test]
fn both_ways_at_once_is_left_out_and_counted() {
    let pair = Pair::new();
    let daemon = Daemon::of("profile_tcp");
    let ends = Ends::new(&pair.a, &pair.b, B, B);
    let answer = watched(&daemon, json!({"port": ends.to.port()}), || {
        overlap(&ends, 6);
        until_acknowledged(&ends.server);
    });
    assert_eq!(answer["listeners"], json!([]), "{answer:#}");
    assert!(ends.row(&answer).get("first_byte_us").is_none(), "{answer:#}");
    assert_eq!(left_out(&answer), 6, "3 of each end: {answer:#}");
}

/// A pool gives a connection to somebody else later.
#[test]
fn left_out_connection_is_looked_at_again() {
    let pair = Pair::new();
    let daemon = Daemon::of("profile_tcp");
    let ends = Ends::new(&pair.a, &pair.b, B, B);
    let answer = watched(&daemon, json!({"port": ends.to.port()}), || {
        let (mut client, mut server) = (&ends.client, &ends.server);
        overlap(&ends, 4);
        thread::sleep(Duration::from_millis(1_100)); // OMITTED_NS
        for _ in 0..5 {
            client.write_all(&[1; 100]).unwrap();
            server.read_exact(&mut [0; 100]).unwrap();
            server.write_all(&[2; 100]).unwrap();
            client.read_exact(&mut [0; 100]).unwrap();
        }
        until_acknowledged(server);
    });
    let replies = listener(&answer, ends.to)["first_byte_us"]["count"].as_u64().unwrap();
    assert!((3..=5).contains(&replies), "the first of them may still be unclear: {answer:#}");
}

/// As chats do: what the server sends belongs to no request.
#[test]
fn unasked_data_is_left_out_and_counted() {
    let pair = Pair::new();
    let daemon = Daemon::of("profile_tcp");
    let ends = Ends::new(&pair.a, &pair.b, B, B);
    let answer = watched(&daemon, json!({"port": ends.to.port()}), || {
        let (mut client, mut server) = (&ends.client, &ends.server);
        client.write_all(&[1; 100]).unwrap();
        server.read_exact(&mut [0; 100]).unwrap();
        for wait in [0, 1_100] {
            thread::sleep(Duration::from_millis(wait));
            server.write_all(&[2; 100]).unwrap();
            client.read_exact(&mut [0; 100]).unwrap();
        }
        until_acknowledged(server);
    });
    assert_eq!(listener(&answer, ends.to)["first_byte_us"]["count"], 1, "the first one is a reply: {answer:#}");
    assert_eq!(left_out(&answer), 1, "the last one: {answer:#}");
}

/// A connection from before the window: its first whole exchange counts, not the one that began before.
#[test]
fn exchange_from_before_the_window_is_not_counted() {
    let pair = Pair::new();
    let daemon = Daemon::of("profile_tcp");
    let mut ends = Ends::new(&pair.a, &pair.b, B, B);
    ends.round_trips(2);
    ends.client.write_all(&[1]).unwrap();
    ends.server.read_exact(&mut [0]).unwrap();
    let mut times = Vec::new();
    let answer = watched(&daemon, json!({"port": ends.to.port()}), || {
        ends.server.write_all(&[2]).unwrap();
        ends.client.read_exact(&mut [0]).unwrap();
        times = think(&mut ends, 3, Duration::from_millis(20));
    });
    is_injected(&listener(&answer, ends.to)["first_byte_us"], &times);
    is_injected(&ends.row(&answer)["first_byte_us"], &times);
}
