//! Slow or broken connections.

use std::{
    io::{Read, Write},
    thread,
    time::Duration,
};

use rustix::net::sockopt;

use super::{stage::*, traffic::*};

/// Three percent of the packets are lost far away.
pub fn retransmits(stage: &mut Stage, family: Family) {
    let net = stage.wired(Duration::from_millis(1), |number, packet| packet.len() > 200 && number % 33 == 32);
    let server = Server::sink(&net.server, (net.server_ip(family), 80).into());
    let stream = connected(&net.client, server.at);
    stage.watch(|watch| {
        pour(&stream, || watch.goes_on());
    });
    let expected = stage.expect("retransmits").owned_in(&net.client).at_least("/retransmit_percent", 1.0);
    expected.is("/remote_address", server.at.ip().to_string()).at_least("/retransmits", 5.0);
}

/// Requests over a path of 60 ms each way.
pub fn high_rtt(stage: &mut Stage, family: Family) {
    let net = stage.wired(Duration::from_millis(60), |_, _| false);
    let server = Server::echo(&net.server, (net.server_ip(family), 80).into());
    let stream = connected(&net.client, server.at);
    stage.watch(|watch| {
        watch.every(Duration::from_millis(50), || {
            exchange(&stream, 100);
        })
    });
    let expected = stage.expect("high_rtt").owned_in(&net.client).at_least("/rtt_us_p50", 110_000.0);
    expected.is("/remote_address", server.at.ip().to_string());
    stage.tolerated.push("high_rtt"); // the server's end measures the same way
}

/// Loss, for uploads with a separate short connection each.
pub fn retransmits_of_short(stage: &mut Stage) {
    let net = stage.wired(Duration::from_millis(1), |number, packet| packet.len() > 200 && number % 20 == 19);
    let server = Server::sink(&net.server, (net.server_ip(V4), 80).into());
    stage.watch(|watch| {
        watch.every(Duration::from_millis(100), || {
            if let Ok(mut stream) = try_connect(&net.client, server.at) {
                let _ = stream.write_all(&[7; 50_000]);
                finish(stream);
            }
        });
    });
    let expected = stage.expect("retransmits").owned_in(&net.client).at_least("/retransmits", 5.0);
    expected.is("/remote_address", server.at.ip().to_string()).is("/remote_port", 80);
}

/// Requests over a path of 60 ms each way, each with its own connection.
pub fn high_rtt_of_short(stage: &mut Stage) {
    let net = stage.wired(Duration::from_millis(60), |_, _| false);
    let server = Server::echo(&net.server, (net.server_ip(V4), 80).into());
    stage.watch(|watch| {
        watch.every(Duration::from_millis(50), || {
            if let Ok(stream) = try_connect(&net.client, server.at) {
                exchange(&stream, 100);
            }
        })
    });
    let expected = stage.expect("high_rtt").owned_in(&net.client).at_least("/rtt_us_p50", 110_000.0);
    expected.is("/remote_address", server.at.ip().to_string());
    stage.tolerated.push("high_rtt"); // the server's end measures the same way
}

/// An upload over a link of 2 Mbit/s with a long queue, which TCP fills.
pub fn queue(stage: &mut Stage) {
    let net = stage.wired(Duration::from_millis(5), |_, packet| {
        thread::sleep(Duration::from_micros(4 * packet.len() as u64));
        false
    });
    net.client.run("sysctl -qw net.ipv4.tcp_congestion_control=reno");
    let server = Server::sink(&net.server, (net.server_ip(V4), 80).into());
    let stream = connected(&net.client, server.at);
    stage.watch(|watch| {
        pour(&stream, || watch.goes_on());
    });
    let expected = stage.expect("high_rtt").owned_in(&net.client).at_least("/rtt_us_p50", 80_000.0);
    expected.is("/remote_address", server.at.ip().to_string());
}

/// The server reads ten times per second.
pub fn slow_receiver(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let server = Server::start(&net.server, (net.server_ip(family), 80).into(), |mut stream| {
        let mut buffer = [0; 4_096];
        while stream.read(&mut buffer).is_ok_and(|n| n > 0) {
            thread::sleep(Duration::from_millis(100));
        }
    });
    let stream = connected(&net.client, server.at);
    stage.watch(|watch| {
        pour(&stream, || watch.goes_on());
    });
    let expected = stage.expect("receiver_limited").owned_in(&net.client).at_least("/waited_percent", 50.0);
    expected.is("/remote_address", server.at.ip().to_string());
}

/// A send buffer of a few kilobytes on a path of 20 ms.
pub fn small_send_buffer(stage: &mut Stage, family: Family) {
    let net = stage.wired(Duration::from_millis(10), |_, _| false);
    let server = Server::sink(&net.server, (net.server_ip(family), 80).into());
    let stream = connected(&net.client, server.at);
    sockopt::set_socket_send_buffer_size(&stream, 4_096).unwrap();
    stage.watch(|watch| {
        pour(&stream, || watch.goes_on());
    });
    let expected = stage.expect("sender_limited").owned_in(&net.client).at_least("/waited_percent", 30.0);
    expected.is("/remote_address", server.at.ip().to_string());
}

/// Loopback has no latency, but delayed acknowledgements stop a writer with room for only one segment.
pub fn small_send_buffer_on_loopback(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::sink(&net.client, ([127, 0, 0, 1], 80).into());
    let stream = connected(&net.client, server.at);
    sockopt::set_socket_send_buffer_size(&stream, 2_048).unwrap();
    stage.watch(|watch| {
        pour(&stream, || watch.goes_on());
    });
    let expected = stage.expect("sender_limited").owned_in(&net.client).at_least("/waited_percent", 30.0);
    expected.is("/remote_address", "127.0.0.1");
}

/// The server accepts a request, and resets instead of answering.
pub fn server_resets(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let server = Server::start(&net.server, (net.server_ip(family), 80).into(), |mut stream| {
        let _ = stream.read(&mut [0; 100]);
        reset(stream);
    });
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            if let Ok(mut stream) = try_connect(&net.client, server.at) {
                let _ = stream.write_all(b"GET");
                let _ = stream.read(&mut [0; 100]);
            }
        })
    });
    let expected = stage.expect("resets").is("/sent_by", "the server").is("/server/port", 80);
    expected.owned_in(&net.server).at_least("/count", 5.0);
}

/// A rule resets connections in the middle.
pub fn firewall_resets(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(V4), 80).into());
    net.nft(&net.server, &["input tcp dport 80 tcp flags & (psh | ack) == (psh | ack) reject with tcp reset"]);
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            if let Ok(stream) = try_connect(&net.client, server.at) {
                exchange(&stream, 100);
            }
        })
    });
    stage.expect("firewall_drop").is("/service/port", 80).at_least("/packets", 5.0);
    stage.tolerated.push("resets");
}
