//! Requests that a server holds until there is something to say (long polling), or until its time for that is over.

use std::time::Duration;

use super::evidence::Evidence;
use crate::{answer::count, replies::Replies, times::Times};

/// Servers hold requests for 5 s and longer: SQS for up to 20 s, most libraries for 25 s to 60 s. A program that computes
/// or waits this long does so for different times. The bucket of 5 s begins here.
const HELD: Duration = Duration::from_millis(4_700);
/// So many of the times from [`HELD`] on are alike if a timer of the server ends them.
const ALIKE: f64 = 0.8;

/// Fewer are always alike.
const SEVERAL: u64 = 3;

/// How many requests a server held. They say nothing of its speed.
pub fn held(times: &Times) -> u64 {
    let long = times.at_least(HELD);
    if long >= SEVERAL && times.most_alike(HELD) as f64 >= ALIKE * long as f64 { long } else { 0 }
}

/// The replies to requests that the server did not hold.
pub fn judged(replies: &Replies) -> Replies {
    match held(&replies.times) {
        0 => replies.clone(),
        _ => Replies { times: replies.times.below(HELD), ..replies.clone() },
    }
}

/// What is left out of the judgement.
pub fn left_out(evidence: &Evidence) -> Option<String> {
    let held: u64 = evidence.services.iter().map(|service| held(&service.replies.times)).sum();
    let held = (held > 0).then(|| count(held, "reply", "replies"))?;
    Some(format!(
        "slow_application: {held} left out. They took equally long, {:.0} s or more, as with long polling.",
        HELD.as_secs_f64()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::times::tests::of;

    const S: u32 = 1_000_000;

    #[test]
    fn equal_long_times_are_held_requests() {
        assert_eq!(held(&of(&[25 * S, 25 * S + 9_000, 25 * S, 3_000])), 3);
        assert_eq!(held(&of(&[25 * S, 25 * S, 25 * S, 25 * S, 25 * S, 7 * S])), 6, "most of them");
        assert_eq!(held(&of(&[25 * S, 17 * S, 6 * S, 9 * S])), 0, "they differ");
        assert_eq!((held(&of(&[2_500_000; 9])), held(&of(&[5 * S; 3]))), (0, 3), "short, and just long enough");
        assert_eq!(held(&of(&[5 * S; 2])), 0, "two are no pattern");
        assert_eq!(held(&of(&[])), 0);
    }
}
