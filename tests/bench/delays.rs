//! `trace_latency`: known delays, alone and two at a time, and whether it names their stages, their owners and how long
//! they are.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    Figure,
    harness::{delayed::*, slow::*, *},
};

/// Times that every case is tried.
const ROUNDS: usize = 8;
/// What a stage without a delay may take.
const SMALL_US: f64 = 1_000.0;
/// What the threads that inject a delay may be late.
const NOISE_US: f64 = 200.0;
const ALLOWED: f64 = 0.1;

/// What delays the exchanges of a connection.
#[derive(Clone, Copy, Default)]
struct Case {
    exchanges: usize,
    /// The server reads so late.
    late_ms: u64,
    /// It thinks so long.
    thinks_ms: u64,
    /// It computes for so long, and has a tenth of a CPU.
    works_ms: u64,
    /// Each way takes so long.
    path_ms: u64,
    /// The client's host sends so slowly.
    shaped: bool,
}

const CASES: [Case; 16] = {
    const NONE: Case = Case { exchanges: 10, late_ms: 0, thinks_ms: 0, works_ms: 0, path_ms: 0, shaped: false };
    [
        NONE,
        Case { late_ms: 5, ..NONE },
        Case { late_ms: 20, ..NONE },
        Case { late_ms: 100, ..NONE },
        Case { thinks_ms: 10, ..NONE },
        Case { thinks_ms: 250, exchanges: 4, ..NONE },
        Case { thinks_ms: 2_500, exchanges: 1, ..NONE },
        Case { works_ms: 15, exchanges: 5, ..NONE },
        Case { path_ms: 10, ..NONE },
        Case { shaped: true, ..NONE },
        Case { late_ms: 20, thinks_ms: 50, ..NONE },
        Case { late_ms: 20, path_ms: 10, ..NONE },
        Case { thinks_ms: 50, path_ms: 10, ..NONE },
        Case { late_ms: 10, shaped: true, ..NONE },
        Case { thinks_ms: 10, shaped: true, ..NONE },
        Case { works_ms: 15, path_ms: 10, exchanges: 5, ..NONE },
    ]
};

/// A packet of this length, with its headers, waits for most of 50 ms at this rate.
const SHAPER: &str = "tbf rate 240kbit burst 1600 latency 2s";
const SHAPED_BYTES: usize = 1_400;

/// A stage that is slow, and by how much.
struct Delay {
    stage: &'static str,
    side: &'static str,
    part: &'static str,
    us: f64,
}

/// What a round came to.
#[derive(Default)]
struct Round {
    /// What is wrong with the stages.
    wrong: Vec<String>,
    /// Rows of another owner.
    strangers: Vec<String>,
    /// The largest error of a stage, beyond [`NOISE_US`], as a part of the delay.
    error: f64,
}

pub fn stages() -> Vec<Figure> {
    let mut rounds = Vec::new();
    for case in CASES {
        for _ in 0..ROUNDS {
            let round = if case.path_ms == 0 {
                let pair = Pair::new();
                case.round(&pair.a, &pair.b, "v0", B)
            } else {
                let pair = SlowPair::new(Duration::from_millis(case.path_ms));
                case.round(&pair.a, &pair.b, "slow", SLOW_B)
            };
            for wrong in round.wrong.iter().chain(&round.strangers) {
                println!("  {}: {wrong}", case.name());
            }
            rounds.push(round);
        }
    }
    let all = rounds.len();
    let (right, owned) = (
        rounds.iter().filter(|round| round.wrong.is_empty()).count(),
        rounds.iter().filter(|round| round.strangers.is_empty()).count(),
    );
    let mut errors: Vec<_> = rounds.iter().map(|round| round.error * 100.0).collect();
    let (middle, _, most) = crate::median(&mut errors);
    let of = |count: usize| format!("{count} of {all}, {:.1} %", count as f64 * 100.0 / all as f64);
    let figure = |name: &str, measured: String, reach: &'static str, reached: bool| Figure {
        name: name.into(),
        measured,
        reach,
        reached,
    };
    vec![
        figure("known delays: right stages", of(right), ">= 98 %", right * 100 >= all * 98),
        figure("… right owner", of(owned), "always", owned == all),
        figure(
            "… error beyond 0.2 ms, median (most)",
            format!("{middle:.1} % ({most:.1} %)"),
            "<= 10 %",
            most <= ALLOWED * 100.0,
        ),
    ]
}

impl Case {
    fn name(&self) -> String {
        let Case { late_ms, thinks_ms, works_ms, path_ms, shaped, .. } = self;
        let named = [
            (*late_ms > 0, format!("read {late_ms} ms late")),
            (*thinks_ms > 0, format!("thinks {thinks_ms} ms")),
            (*works_ms > 0, format!("works {works_ms} ms with a tenth of a CPU")),
            (*path_ms > 0, format!("path {path_ms} ms")),
            (*shaped, "shaped".into()),
        ];
        named.into_iter().filter(|(is_it, _)| *is_it).map(|(_, name)| name).collect::<Vec<_>>().join(", ")
    }

    fn round(self, a: &Netns, b: &Netns, device: &str, address: &str) -> Round {
        if self.shaped {
            a.run(&format!("tc qdisc add dev {device} root {SHAPER}"));
        }
        let daemon = daemon_for("trace_latency", a);
        let mut ends = Ends::new(a, b, address);
        let window = daemon.watch("trace_latency", json!({"port": ends.to.port(), "limit": 100}));
        let (took, gap) = self.run(&mut ends);
        let answer = window.end();
        let mut round = Round::default();
        let delays = self.delays(&took, gap);
        for row in answer["stages"].as_array().unwrap() {
            round.judge(row, &delays, &self);
            let netns = if row["side"] == "server" { b } else { a };
            if row["owner"]["pid"] != std::process::id() || row["owner"]["netns"] != netns.inode() {
                round.strangers.push(row.to_string());
            }
        }
        let is_there = |delay: &&Delay| answer["stages"].as_array().unwrap().iter().any(|row| delay.is_of(row));
        round.wrong.extend(delays.iter().filter(|delay| !is_there(delay)).map(|it| format!("no {}", it.stage)));
        round
    }

    /// The traffic; and the longest time that the working server did not run.
    fn run(&self, ends: &mut Ends) -> (Took, Duration) {
        let late = Duration::from_millis(self.late_ms);
        if self.works_ms == 0 {
            let bytes = if self.shaped { SHAPED_BYTES } else { BYTES };
            let thinks = Duration::from_millis(self.thinks_ms);
            return (ends.exchange_of(bytes, self.exchanges, late, || _ = after(thinks)), Duration::ZERO);
        }
        let quota = Quota::new(&format!("nmb-delays-{}", std::process::id()));
        let (mut gap, mut is_in) = (Duration::ZERO, false);
        let works = Duration::from_millis(self.works_ms);
        std::thread::scope(|scope| {
            let serving = scope.spawn(|| {
                let took = ends.exchange_of(BYTES, self.exchanges, late, || {
                    if !std::mem::replace(&mut is_in, true) {
                        quota.take_this_thread(); // its client is not in it
                    }
                    gap = gap.max(work(works));
                });
                (took, gap)
            });
            serving.join().unwrap()
        })
    }

    /// What is slow in this case.
    fn delays(&self, took: &Took, gap: Duration) -> Vec<Delay> {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        let delay = |stage, side, time| Delay { stage, side, part: "p50", us: us(time) };
        let mut delays = Vec::new();
        if self.late_ms > 0 {
            delays.push(delay("socket_to_read", "server", middle(&took.late)));
        }
        if self.thinks_ms + self.works_ms > 0 {
            delays.push(delay("request_to_reply", "server", middle(&took.thought)));
        }
        if self.works_ms > 0 {
            // It is thrown off its CPU while it computes, or must wait for one when a request wakes it up.
            let woken = took.arriving[took.arriving.len() - 1].saturating_sub(Duration::from_millis(self.path_ms));
            delays.push(Delay { part: "max", ..delay("runnable_to_running", "server", gap.max(woken)) });
        }
        if self.path_ms > 0 {
            let both = Duration::from_millis(2 * self.path_ms);
            delays.extend(["client", "server"].map(|side| delay("wire_to_ack", side, both)));
        }
        if self.shaped {
            delays.push(delay("write_to_wire", "client", middle(&took.arriving)));
        }
        if !delays.is_empty() {
            delays.push(delay("request_to_reply", "client", middle(&took.whole)));
        }
        delays
    }

    /// Stages that a delay may slow down as well, for a time that is not known.
    fn may_be_slow(&self, row: &Value) -> bool {
        let is = |stage: &str| row["stage"] == stage && row["side"] == "server";
        // A server without CPU time reads late, too; and a shaper also holds acknowledgements back.
        self.works_ms > 0 && (is("socket_to_read") || is("runnable_to_running")) || self.shaped && is("wire_to_ack")
    }
}

/// Computes for so long; returns the longest time in which it did not run.
fn work(time: Duration) -> Duration {
    let cpu = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    };
    let (begun, mut last, mut gap) = (cpu(), Instant::now(), Duration::ZERO);
    while cpu() - begun < time {
        let now = Instant::now();
        gap = gap.max(now - std::mem::replace(&mut last, now));
    }
    gap
}

impl Delay {
    fn is_of(&self, row: &Value) -> bool {
        row["stage"] == self.stage && row["side"] == self.side
    }
}

impl Round {
    /// Looks at a stage of the answer.
    fn judge(&mut self, row: &Value, delays: &[Delay], case: &Case) {
        let us = |part: &str| row["us"][part].as_f64().unwrap();
        let (stage, side) = (&row["stage"], &row["side"]);
        if let Some(delay) = delays.iter().find(|delay| delay.is_of(row)) {
            let found = us(delay.part);
            let error = ((found - delay.us).abs() - NOISE_US).max(0.0) / delay.us;
            self.error = self.error.max(error);
            if error > ALLOWED {
                self.wrong.push(format!("{stage} of the {side}: {found} µs instead of {:.0}", delay.us));
            }
        } else if us("p50") > SMALL_US && !case.may_be_slow(row) {
            self.wrong.push(format!("{stage} of the {side}: {} µs", us("p50")));
        }
    }
}
