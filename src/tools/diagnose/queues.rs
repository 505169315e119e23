//! The queues of the links of every network namespace, in successive readings.

use std::{collections::BTreeMap, time::Duration};

use crate::tools::snapshot_sockets::{Output, Queue};

/// A device's queue through the window.
#[derive(Default, Clone, Debug)]
pub struct QueueCourse {
    pub netns: u32,
    pub interface: String,
    pub kind: String,
    /// The time to drain the queue at its current rate, as the median of the readings, …
    pub delay: Duration,
    /// … and in which share of them it takes longer than [`STANDING`].
    pub standing_share: f64,
    pub dropped: u64,
    pub bits_per_second: f64,
    pub backlog_bytes: u64,
}

/// CoDel (RFC 8289) treats a queue that stands for longer as bad. A single TCP sender keeps 6 to 16 ms of packets in
/// the shaper that it fills, because the kernel limits its queue.
pub const STANDING: Duration = Duration::from_millis(5);

/// The queues that were seen at the beginning and at the end.
pub fn courses(readings: &[Output]) -> Vec<QueueCourse> {
    let mut queues = BTreeMap::<(u32, &str), Vec<(u64, &Queue)>>::new();
    for reading in readings {
        for queue in &reading.queues {
            queues.entry((queue.netns, &queue.interface)).or_default().push((reading.at_ns, queue));
        }
    }
    queues.into_values().filter_map(|readings| course(&readings)).collect()
}

fn course(readings: &[(u64, &Queue)]) -> Option<QueueCourse> {
    let ((begin_ns, first), (end_ns, last)) = (readings.first()?, readings.last()?);
    let seconds = end_ns.saturating_sub(*begin_ns) as f64 / 1e9;
    // A queue that was created again counts from zero.
    let bytes = last.bytes.checked_sub(first.bytes).filter(|_| seconds > 0.0)?;
    let delay = |queue: &Queue| match f64::from(queue.backlog_bytes) {
        0.0 => Duration::ZERO,
        _ if bytes == 0 => Duration::from_secs_f64(seconds), // nothing leaves
        backlog => Duration::from_secs_f64((backlog * seconds / bytes as f64).min(seconds)),
    };
    let mut delays: Vec<_> = readings.iter().map(|(_, queue)| delay(queue)).collect();
    delays.sort();
    let standing = delays.iter().filter(|delay| **delay >= STANDING).count();
    Some(QueueCourse {
        netns: last.netns,
        interface: last.interface.clone(),
        kind: last.kind.clone(),
        delay: delays[delays.len() / 2],
        standing_share: standing as f64 / delays.len() as f64,
        dropped: last.dropped.wrapping_sub(first.dropped).into(),
        bits_per_second: bytes as f64 * 8.0 / seconds,
        backlog_bytes: readings.iter().map(|(_, queue)| queue.backlog_bytes.into()).max().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(backlog_bytes: u32, bytes: u64, dropped: u32) -> Queue {
        Queue { netns: 7, interface: "eth0".into(), kind: "tbf".into(), backlog_bytes, dropped, bytes }
    }

    #[test]
    fn queue_delay_is_backlog_over_rate() {
        let second = 1_000_000_000;
        let readings = [queue(0, 0, 5), queue(50_000, 2_500_000, 6), queue(50_000, 5_000_000, 9)];
        let readings: Vec<_> = readings.iter().enumerate().map(|(n, queue)| (n as u64 * second, queue)).collect();
        let found = course(&readings).unwrap();
        assert_eq!((found.bits_per_second, found.dropped, found.delay), (20e6, 4, Duration::from_millis(20)));
        assert!(found.standing_share > 0.6 && found.standing_share < 0.7);
        let (old, new) = (queue(0, 90, 0), queue(0, 5, 0));
        assert!(course(&[(0, &old), (second, &new)]).is_none(), "it was set up anew");
    }
}
