//! The load beside the scenarios, with NETMON_LOAD=1: a busy thread on each CPU, and much healthy traffic.

use std::{
    io::Write,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    stage::{Net, V4},
    traffic::{self, Server},
};

/// Scenarios have lower numbers.
const NUMBER: usize = 999;
/// The busy threads give way to what the scenarios need at once, as a batch job does.
const NICE: i32 = 5;

/// Ends when dropped.
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn begin() -> Option<Load> {
        std::env::var_os("NETMON_LOAD")?;
        let net = Arc::new(Net::new(NUMBER));
        let mut load = Load { stop: Arc::default(), threads: Vec::new() };
        for _ in 0..thread::available_parallelism().unwrap().get() {
            load.run(spin);
        }
        let (sink, echo) = (at(&net, 80), at(&net, 443));
        let (stored, asked) = (Arc::clone(&net), net);
        load.run(move |goes_on| store(&stored, sink, goes_on));
        load.run(move |goes_on| ask(&asked, echo, goes_on));
        Some(load)
    }

    fn run(&mut self, work: impl FnOnce(&dyn Fn() -> bool) + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        self.threads.push(thread::spawn(move || work(&|| !stop.load(Ordering::Relaxed))));
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn at(net: &Net, port: u16) -> SocketAddr {
    (net.server_ip(V4), port).into()
}

fn spin(goes_on: &dyn Fn() -> bool) {
    // SAFETY: on Linux this changes the calling thread only.
    assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) }, 0);
    while goes_on() {
        std::hint::spin_loop();
    }
}

/// A backup: 8 MB, twenty times a second.
fn store(net: &Net, to: SocketAddr, goes_on: &dyn Fn() -> bool) {
    let server = Server::sink(&net.server, to);
    let mut stream = traffic::connected(&net.client, server.at);
    let block = vec![0; 8 << 20];
    while goes_on() && stream.write_all(&block).is_ok() {
        thread::sleep(Duration::from_millis(50));
    }
}

/// Clients of a service: a hundred connections a second.
fn ask(net: &Net, to: SocketAddr, goes_on: &dyn Fn() -> bool) {
    let server = Server::echo(&net.server, to);
    while goes_on() {
        if let Ok(stream) = traffic::try_connect(&net.client, server.at) {
            traffic::exchange(&stream, 1_000);
            traffic::finish(stream);
        }
        thread::sleep(Duration::from_millis(10));
    }
}
