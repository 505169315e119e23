//! Findings over time: the same finding in several screens is one episode.

use serde::Serialize;
use serde_json::Value;

use crate::{gateway::fingerprint::Fingerprint, limits};

/// A finding, from the first screen that has it to the last.
#[derive(Serialize, Clone, Debug, PartialEq)]
pub struct Episode {
    pub code: String,
    /// `critical`, `warning` or `info`.
    pub severity: String,
    /// It is still found. Else it has ended.
    pub active: bool,
    /// In milliseconds since 1970.
    pub since_ms: i64,
    pub last_ms: i64,
    /// The finding of `diagnose`, as it was last.
    pub finding: Value,
}

/// Episodes of the last minutes.
#[derive(Default)]
pub struct Episodes(Vec<(Fingerprint, Episode)>);

impl Episodes {
    /// Notes the findings of a moment.
    pub fn note(&mut self, findings: &[Value], at_ms: i64) {
        self.0.iter_mut().for_each(|(_, episode)| episode.active = false);
        for finding in findings {
            let own = Fingerprint::of(finding);
            let text = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
            let (code, severity, finding) = (text("code"), text("severity"), finding.clone());
            let now = Episode { code, severity, active: true, since_ms: at_ms, last_ms: at_ms, finding };
            match self.0.iter_mut().find(|(known, _)| known.is_same(&own)) {
                Some((known, episode)) => {
                    *episode = Episode { since_ms: episode.since_ms, ..now };
                    if own.has_program() {
                        *known = own;
                    }
                }
                None => self.0.push((own, now)),
            }
        }
        self.sort();
        let kept_ms = limits::LIVE_EPISODE_KEPT.as_millis() as i64;
        self.0.retain(|(_, episode)| episode.active || at_ms - episode.last_ms < kept_ms);
    }

    /// Adds what is recorded of a finding: it may have begun earlier, or have ended.
    pub fn recall(&mut self, recorded: Episode) {
        let own = Fingerprint::of(&recorded.finding);
        match self.0.iter_mut().find(|(known, _)| known.is_same(&own)) {
            Some((_, episode)) => episode.since_ms = episode.since_ms.min(recorded.since_ms),
            None => self.0.push((own, recorded)),
        }
        self.sort();
    }

    fn sort(&mut self) {
        self.0.sort_by_key(|(_, episode)| (!episode.active, rank(episode), -episode.last_ms));
        self.0.truncate(limits::LIVE_EPISODES);
    }

    /// Those of now, worst first, then those that have ended, newest first.
    pub fn all(&self) -> Vec<Episode> {
        self.0.iter().map(|(_, episode)| episode.clone()).collect()
    }

    /// How many are above info now.
    pub fn faults(&self) -> u64 {
        self.0.iter().filter(|(_, episode)| episode.active && episode.severity != "info").count() as u64
    }
}

/// Worst first; of those that have ended only their time counts.
fn rank(episode: &Episode) -> u8 {
    match (episode.active, episode.severity.as_str()) {
        (false, _) | (true, "critical") => 0,
        (true, "warning") => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Its socket was closed when that screen was made.
    #[test]
    fn finding_without_its_program_goes_on() {
        let of = |process: Option<&str>| {
            let owner = json!({"process": process, "netns": 1});
            let service = json!({"address": "198.51.100.7", "port": 53});
            json!({"code": "firewall_drop", "severity": "warning", "evidence": {"owner": owner, "service": service}})
        };
        let mut episodes = Episodes::default();
        [None, Some("named"), None].into_iter().zip(1..).for_each(|(process, at)| episodes.note(&[of(process)], at));
        let all = |episodes: &Episodes| -> Vec<_> { episodes.all().iter().map(|e| (e.since_ms, e.last_ms)).collect() };
        assert_eq!(all(&episodes), [(1, 3)]);
        episodes.note(&[of(Some("named")), of(Some("dig"))], 4);
        assert_eq!(all(&episodes), [(1, 4), (4, 4)], "another program");
    }

    #[test]
    fn finding_that_continues_is_one_episode() {
        let finding = |pid: u32, severity: &str, code: &str| json!({"code": code, "severity": severity, "evidence": {"owner": {"pid": pid, "process": "curl"}}});
        let mut episodes = Episodes::default();
        episodes.note(&[finding(7, "warning", "resets"), finding(7, "critical", "no_route")], 1_000);
        episodes.note(&[finding(8, "warning", "resets")], 3_000);
        let of = |e: &Episode| (e.code.clone(), e.active, e.since_ms, e.last_ms);
        let all: Vec<_> = episodes.all().iter().map(of).collect();
        assert_eq!(all, [("resets".into(), true, 1_000, 3_000), ("no_route".into(), false, 1_000, 1_000)]);
        assert_eq!(episodes.faults(), 1);
        episodes.note(&[], 3_000 + limits::LIVE_EPISODE_KEPT.as_millis() as i64);
        assert!(episodes.all().is_empty());
    }
}
