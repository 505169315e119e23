//! Findings from the first window that has them to the last.

use serde_json::json;

use super::{
    store::Incident,
    time::{Micros, shown},
};
use crate::{
    limits,
    tools::diagnose::{
        Finding,
        identity::{has_program, is_same},
    },
};

/// The findings that are there now.
#[derive(Default)]
pub struct Tracker {
    open: Vec<Open>,
}

struct Open {
    incident: Incident,
    /// How many windows in a row have not had it.
    absent: u32,
    /// Whether the store has it as it is.
    is_written: bool,
}

/// The changes of a window.
#[derive(Debug, PartialEq)]
pub enum Event {
    Begun(Incident),
    Ended(Incident),
}

impl Event {
    /// The form that the incident program reads.
    pub fn json(&self) -> String {
        let (event, incident) = match self {
            Event::Begun(incident) => ("begun", incident),
            Event::Ended(incident) => ("ended", incident),
        };
        let finding: serde_json::Value = serde_json::from_str(&incident.finding).unwrap_or_default();
        let to = incident.closed.then(|| shown(incident.end_us));
        json!({"event": event, "host": incident.host, "from": shown(incident.begin_us), "to": to, "finding": finding})
            .to_string()
    }

    /// One line for the journal, with fields.
    pub fn log(&self) {
        let (Event::Begun(incident) | Event::Ended(incident)) = self;
        let Incident { code, severity, finding, .. } = incident;
        let finding: serde_json::Value = serde_json::from_str(finding).unwrap_or_default();
        let (summary, from, to) =
            (finding["summary"].as_str().unwrap_or_default(), shown(incident.begin_us), shown(incident.end_us));
        match self {
            Event::Begun(_) => tracing::warn!(code, severity, from, "incident began: {summary}"),
            Event::Ended(_) => tracing::info!(code, severity, from, to, "incident ended: {summary}"),
        }
    }
}

impl Tracker {
    /// Goes on with what was open when the last recorder ended.
    pub fn resume(incidents: Vec<Incident>) -> Self {
        let open = |incident| Open { incident, absent: 0, is_written: true };
        Tracker { open: incidents.into_iter().map(open).collect() }
    }

    /// Takes the findings of a window, each with its identity: returns the incidents that began or ended.
    pub fn window(
        &mut self,
        (begin_us, end_us): (Micros, Micros),
        host: &str,
        findings: Vec<(String, Finding)>,
    ) -> Vec<Event> {
        self.open.iter_mut().for_each(|open| open.absent += 1);
        let mut events = Vec::new();
        let (exact, others): (Vec<_>, _) = findings.into_iter().partition(|(identity, _)| self.is_open(identity));
        for (identity, finding) in exact.into_iter().chain(others) {
            let place = self.place_of(&identity);
            let json = serde_json::to_string(&finding).unwrap_or_default();
            let severity = severity(&finding);
            if let Some(Open { incident, absent, is_written }) = place {
                incident.windows += i64::from(*absent > 0);
                (*absent, *is_written, incident.end_us) = (0, false, end_us);
                let as_good = has_program(&identity) || !has_program(&incident.identity);
                let (rank, worst) = (rank(&severity), rank(&incident.severity));
                if rank > worst || (rank == worst && as_good) {
                    (incident.severity, incident.finding) = (severity, json);
                }
                if as_good {
                    incident.identity = identity;
                }
            } else if self.open.iter().filter(|open| !open.incident.closed).count() < limits::INCIDENTS_OPEN {
                let incident = Incident {
                    id: None,
                    identity,
                    code: finding.code.to_string(),
                    severity,
                    begin_us,
                    end_us,
                    closed: false,
                    windows: 1,
                    host: host.into(),
                    finding: json,
                };
                events.push(Event::Begun(incident.clone()));
                self.open.push(Open { incident, absent: 0, is_written: false });
            }
        }
        for open in self.open.iter_mut().filter(|open| open.absent >= ABSENT && !open.incident.closed) {
            (open.incident.closed, open.is_written) = (true, false);
            events.push(Event::Ended(open.incident.clone()));
        }
        self.forget_oldest();
        events
    }

    fn is_open(&self, identity: &str) -> bool {
        self.open.iter().any(|open| !open.incident.closed && open.incident.identity == identity)
    }

    /// The open incident of this identity; else the newest of the same finding with or without its program.
    fn place_of(&mut self, identity: &str) -> Option<&mut Open> {
        let open = || self.open.iter().enumerate().filter(|(_, open)| !open.incident.closed);
        let exact = open().find(|(_, open)| open.incident.identity == identity);
        let same = || {
            open().filter(|(_, open)| is_same(&open.incident.identity, identity)).min_by_key(|(_, open)| open.absent)
        };
        let place = exact.or_else(same)?.0;
        self.open.get_mut(place)
    }

    /// Of what has ended while nothing can be written, the newest wait.
    fn forget_oldest(&mut self) {
        let ended = self.open.iter().filter(|open| open.incident.closed).count();
        let mut surplus = ended.saturating_sub(limits::INCIDENTS_OPEN);
        self.open.retain(|open| {
            let is_kept = !open.incident.closed || surplus == 0;
            surplus -= usize::from(!is_kept);
            is_kept
        });
    }

    /// What the store does not have yet.
    pub fn unwritten(&self) -> Vec<Incident> {
        self.open.iter().filter(|open| !open.is_written).map(|open| open.incident.clone()).collect()
    }

    /// The store has all of [`Self::unwritten`]: takes the ids over that it gave, and forgets what has ended.
    pub fn written(&mut self, incidents: &[Incident]) {
        for (open, incident) in self.open.iter_mut().filter(|open| !open.is_written).zip(incidents) {
            (open.incident.id, open.is_written) = (incident.id, true);
        }
        self.open.retain(|open| !open.incident.closed);
    }

    /// Another store begins: it has none of them.
    pub fn begin_again(&mut self) {
        self.open.iter_mut().for_each(|open| (open.incident.id, open.is_written) = (None, false));
    }
}

/// So many windows without it end an incident.
const ABSENT: u32 = 3;

fn severity(finding: &Finding) -> String {
    serde_json::to_value(finding.severity).ok().and_then(|name| Some(name.as_str()?.to_owned())).unwrap_or_default()
}

fn rank(severity: &str) -> u8 {
    u8::from(severity == "critical")
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::{
        answer::Owner,
        tools::diagnose::{Code, HostPort, Severity},
    };

    fn found(identity: &str, severity: Severity) -> (String, Finding) {
        (identity.into(), Finding::new(Code::Resets, severity, "x"))
    }

    /// Gives every new incident an id, like the store.
    fn write(tracker: &mut Tracker) -> Vec<Incident> {
        let mut incidents = tracker.unwritten();
        for incident in &mut incidents {
            incident.id.get_or_insert(incident.begin_us);
        }
        tracker.written(&incidents);
        incidents
    }

    /// One window per second: the incidents that began and ended in it.
    fn at(tracker: &mut Tracker, second: i64, findings: Vec<(String, Finding)>) -> (Vec<String>, Vec<String>) {
        let events = tracker.window((second, second + 1), "h", findings);
        write(tracker);
        let (mut begun, mut ended) = (Vec::new(), Vec::new());
        for event in events {
            match event {
                Event::Begun(incident) => begun.push(incident.identity),
                Event::Ended(incident) => ended.push(incident.identity),
            }
        }
        (begun, ended)
    }

    #[test]
    fn incident_ends_after_three_clean_windows() {
        let mut tracker = Tracker::default();
        let warning = || vec![found("a", Severity::Warning)];
        assert_eq!(at(&mut tracker, 0, warning()), (vec!["a".into()], vec![]));
        for second in [1, 2] {
            assert_eq!(at(&mut tracker, second, vec![]), (vec![], vec![]));
        }
        assert_eq!(at(&mut tracker, 3, warning()), (vec![], vec![]), "it is the same");
        for second in [4, 5] {
            assert_eq!(at(&mut tracker, second, vec![]), (vec![], vec![]));
        }
        assert_eq!(at(&mut tracker, 6, vec![]), (vec![], vec!["a".into()]));
        assert_eq!(at(&mut tracker, 7, warning()), (vec!["a".into()], vec![]), "another one");
    }

    /// Its socket was closed when the window ended.
    #[test]
    fn incident_goes_on_without_its_program() {
        let mut tracker = Tracker::default();
        let of = |process: &str| {
            let owner = Owner { process: Some(process.into()).filter(|_| !process.is_empty()), ..Owner::default() };
            let place = HostPort::from(IpAddr::from([198, 51, 100, 7]));
            let finding = Finding::new(Code::FirewallDrop, Severity::Warning, process).owner(&owner).at(place);
            vec![(finding.identity(), finding)]
        };
        assert_eq!(at(&mut tracker, 0, of("")).0.len(), 1);
        for (second, process) in [(1, "named"), (2, ""), (3, "named")] {
            assert_eq!(at(&mut tracker, second, of(process)), (vec![], vec![]));
            assert_eq!(tracker.open[0].incident.identity, of("named")[0].0);
            assert!(tracker.open[0].incident.finding.contains("named"));
        }
        assert_eq!(tracker.open[0].incident.windows, 4);
        let both = |one: &str| [of(one), of("dig")].concat();
        assert_eq!(at(&mut tracker, 4, both("named")).0.len(), 1, "another program");
        let ended: Vec<_> = (5..8).flat_map(|second| at(&mut tracker, second, both("")).1).collect();
        assert_eq!(ended, [of("named")[0].0.clone()], "the other one goes on");
    }

    #[test]
    fn incident_counts_windows_and_keeps_the_worst() {
        let mut tracker = Tracker::default();
        let twice = vec![found("a", Severity::Warning), found("a", Severity::Critical)];
        tracker.window((0, 1), "h", twice);
        tracker.window((1, 2), "h", vec![found("a", Severity::Warning)]);
        let incident = &tracker.open[0].incident;
        assert_eq!((incident.windows, incident.severity.as_str()), (2, "critical"));
        assert_eq!((incident.begin_us, incident.end_us), (0, 2));
    }

    #[test]
    fn open_incident_survives_a_restart() {
        let mut tracker = Tracker::default();
        tracker.window((0, 1), "h", vec![found("a", Severity::Warning)]);
        let mut tracker = Tracker::resume(write(&mut tracker));
        assert_eq!(at(&mut tracker, 1, vec![found("a", Severity::Warning)]), (vec![], vec![]));
    }

    #[test]
    fn new_incidents_begin_while_nothing_can_be_written() {
        let mut tracker = Tracker::default();
        let most = limits::INCIDENTS_OPEN as i64;
        for n in 0..most + 10 {
            let second = n * 4;
            let begun = tracker.window((second, second + 1), "h", vec![found(&n.to_string(), Severity::Warning)]);
            assert_eq!(begun.len(), 1, "{n}");
            (1..4).for_each(|later| drop(tracker.window((second + later, second + later + 1), "h", vec![])));
        }
        let waiting = write(&mut tracker);
        assert_eq!((waiting.len(), waiting[0].begin_us), (most as usize, 40), "the newest");
    }

    #[test]
    fn incident_that_ends_while_nothing_can_be_written_is_written_later() {
        let mut tracker = Tracker::default();
        let mut windows = (0..4).map(|second| (second, second + 1));
        tracker.window(windows.next().unwrap(), "h", vec![found("a", Severity::Warning)]);
        windows.for_each(|window| drop(tracker.window(window, "h", vec![])));
        tracker.window((4, 5), "h", vec![found("a", Severity::Warning)]);
        let told: Vec<_> = write(&mut tracker).iter().map(|it| (it.begin_us, it.end_us, it.closed)).collect();
        assert_eq!(told, [(0, 1, true), (4, 5, false)], "the second is another one");
        assert_eq!(write(&mut tracker), [], "all of it is written");
        tracker.begin_again();
        let again: Vec<_> = tracker.unwritten().iter().map(|it| (it.id, it.begin_us)).collect();
        assert_eq!(again, [(None, 4)], "what is open goes on in another file");
    }
}
