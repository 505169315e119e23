//! Two faults at once, faults amid healthy traffic, faults in a part of the window.

use std::{thread, time::Duration};

use super::{stage::*, traffic::*};

/// One service is down, and the port of another one is firewalled.
pub fn refused_and_firewalled(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(V4), 443).into());
    net.nft(&net.server, &["input tcp dport 443 drop"]);
    stage.watch(|watch| {
        thread::scope(|scope| {
            scope.spawn(|| watch.every(PAUSE, || drop(try_connect(&net.client, (net.server_ip(V4), 81).into()))));
            watch.every(PAUSE, || drop(try_connect(&net.client, server.at)));
        });
    });
    stage.expect("connection_refused").is("/remote/port", 81);
    stage.expect("firewall_drop").is("/service/port", 443);
}

/// A listener that overflows beside one whose server resets.
pub fn overflow_and_resets(stage: &mut Stage) {
    let net = stage.net();
    let full = (net.server_ip(V4), 80).into();
    let _listener = listener(&net.server, full, 1);
    let server = Server::start(&net.server, (net.server_ip(V4), 8080).into(), |mut stream| {
        let _ = std::io::Read::read(&mut stream, &mut [0; 10]);
        reset(stream);
    });
    let mut held = Vec::new();
    stage.watch(|watch| {
        thread::scope(|scope| {
            scope.spawn(|| watch.every(PAUSE, || held.extend(try_connect(&net.client, full))));
            watch.every(PAUSE, || {
                if let Ok(stream) = try_connect(&net.client, server.at) {
                    exchange(&stream, 3);
                }
            });
        });
    });
    stage.expect("listen_queue_overflow").is("/local/port", 80);
    stage.expect("resets").is("/server/port", 8080);
}

/// A service that stops in the middle of the window, amid another one's heavy traffic.
pub fn refused_for_a_while(stage: &mut Stage) {
    let net = stage.net();
    let healthy = Server::sink(&net.server, (net.server_ip(V6), 443).into());
    let busy = connected(&net.client, healthy.at);
    let mut server = Some(Server::echo(&net.server, (net.server_ip(V4), 80).into()));
    let at = (net.server_ip(V4), 80).into();
    stage.watch(|watch| {
        thread::scope(|scope| {
            scope.spawn(|| pour(&busy, || watch.goes_on()));
            watch.every(PAUSE, || {
                if watch.elapsed() > Duration::from_secs(3) {
                    server = None;
                }
                if let Ok(stream) = try_connect(&net.client, at) {
                    exchange(&stream, 10);
                }
            });
        });
    });
    let expected = stage.expect("connection_refused").owned_in(&net.client);
    expected.is("/remote/port", 80).at_least("/refused", 3.0).at_least("/established", 1.0);
}

/// A firewall rule in a part of the window: not at its beginning, which a busy host needs to attach.
pub fn firewalled_for_a_while(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(V4), 80).into());
    net.nft(&net.server, &[]);
    stage.watch(|watch| {
        let mut ruled = false;
        watch.every(PAUSE, || {
            let now = (2_000..4_500).contains(&watch.elapsed().as_millis());
            if now != ruled {
                net.server.run(if now {
                    "nft add rule inet t input tcp dport 80 drop"
                } else {
                    "nft flush chain inet t input"
                });
                ruled = now;
            }
            if let Ok(stream) = try_connect(&net.client, server.at) {
                exchange(&stream, 10);
            }
        });
    });
    stage.expect("firewall_drop").is("/service/port", 80).at_least("/packets", 2.0);
}
