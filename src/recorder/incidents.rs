//! Findings from the first window that has them to the last.

use serde_json::json;

use super::{
    store::Incident,
    time::{Micros, shown},
};
use crate::{limits, tools::diagnose::Finding};

/// The findings that are there now.
#[derive(Default)]
pub struct Tracker {
    open: Vec<Open>,
}

/// A finding, and how many windows in a row have not had it.
struct Open {
    incident: Incident,
    absent: u32,
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
        Tracker { open: incidents.into_iter().map(|incident| Open { incident, absent: 0 }).collect() }
    }

    /// Takes the findings of a window, each with its identity: returns what to write, and the incidents that began or
    /// ended.
    pub fn window(
        &mut self,
        (begin_us, end_us): (Micros, Micros),
        host: &str,
        findings: Vec<(String, Finding)>,
    ) -> (Vec<Incident>, Vec<Event>) {
        self.open.iter_mut().for_each(|open| open.absent += 1);
        let mut events = Vec::new();
        for (identity, finding) in findings {
            let place = self.open.iter_mut().find(|open| open.incident.identity == identity);
            let json = serde_json::to_string(&finding).unwrap_or_default();
            let severity = severity(&finding);
            if let Some(Open { incident, absent }) = place {
                incident.windows += i64::from(*absent > 0);
                (*absent, incident.end_us) = (0, end_us);
                if rank(&severity) >= rank(&incident.severity) {
                    (incident.severity, incident.finding) = (severity, json);
                }
            } else if self.open.len() < limits::INCIDENTS_OPEN {
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
                self.open.push(Open { incident, absent: 0 });
            }
        }
        for open in self.open.iter_mut().filter(|open| open.absent >= ABSENT) {
            open.incident.closed = true;
            events.push(Event::Ended(open.incident.clone()));
        }
        let changed = self.open.iter().filter(|open| open.absent == 0 || open.incident.closed);
        (changed.map(|open| open.incident.clone()).collect(), events)
    }

    /// Takes the ids over that the store gave, and forgets what has ended.
    pub fn written(&mut self, incidents: &[Incident]) {
        for incident in incidents {
            if let Some(open) = self.open.iter_mut().find(|open| open.incident.identity == incident.identity) {
                open.incident.id = incident.id;
            }
        }
        self.open.retain(|open| !open.incident.closed);
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
    use super::*;
    use crate::tools::diagnose::{Code, Severity};

    fn found(identity: &str, severity: Severity) -> (String, Finding) {
        (identity.into(), Finding::new(Code::Resets, severity, "x"))
    }

    /// One window per second: the incidents that began and ended in it.
    fn at(tracker: &mut Tracker, second: i64, findings: Vec<(String, Finding)>) -> (Vec<String>, Vec<String>) {
        let (mut written, events) = tracker.window((second, second + 1), "h", findings);
        for (id, incident) in written.iter_mut().enumerate() {
            incident.id.get_or_insert(id as i64);
        }
        tracker.written(&written);
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
        let (written, _) = tracker.window((0, 1), "h", vec![found("a", Severity::Warning)]);
        let mut tracker = Tracker::resume(written);
        assert_eq!(at(&mut tracker, 1, vec![found("a", Severity::Warning)]), (vec![], vec![]));
    }
}
