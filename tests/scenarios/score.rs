//! How well a diagnosis names the injected faults, and the report of all scenarios.

use std::{collections::BTreeSet, fmt::Write as _, io::Write as _};

use serde_json::Value;

use crate::stage::Stage;

/// The result of a scenario.
#[derive(Default)]
pub struct Score {
    pub name: String,
    /// Found as expected with the right evidence, found with wrong evidence, not found.
    pub right: usize,
    pub wrong: usize,
    pub missed: usize,
    pub extra: usize,
    /// The codes of the injected faults, and those that were found.
    expected: Vec<String>,
    found: Vec<String>,
    /// What is wrong with the evidence.
    faults: Vec<String>,
    pub details: String,
}

impl Score {
    /// Counts another reason why it is wrong.
    pub fn fail(&mut self, why: &str) {
        self.wrong += 1;
        self.faults.push(why.into());
        let _ = writeln!(self.details, "\n== {}: {why}", self.name);
    }

    fn line(&self) -> String {
        let verdict = match self.wrong + self.missed + self.extra {
            0 => "right".into(),
            _ => format!("WRONG {}", self.faults.join("; ")),
        };
        let (expected, found) = (self.expected.join(" "), self.found.join(" "));
        format!("{:32} | {expected:40} | {found:50} | {verdict}\n", self.name)
    }

    /// Precision and recall in one: of pairs of a place and a fault. A finding at the wrong place is missed and extra. A
    /// healthy network without a finding above `info` has 1.
    fn f1(&self) -> f64 {
        let (right, others) = (2 * self.right, 2 * self.wrong + self.missed + self.extra);
        if right + others == 0 { 1.0 } else { right as f64 / (right + others) as f64 }
    }

    /// A row of the report, which has nothing that differs from run to run.
    fn row(&self) -> [String; 5] {
        let inject = if self.expected.is_empty() { "none" } else { "fault" };
        let root = self.found.iter().filter(|code| !code.ends_with("(info)")).cloned().collect::<Vec<_>>();
        [self.name.clone(), inject.into(), self.expected.join(" "), root.join(" "), format!("{:.3}", self.f1())]
    }
}

/// Whether `healthy` agrees with the findings and the checks of a whole window.
fn is_honest(answer: &Value) -> bool {
    let fault = answer["findings"].as_array().is_some_and(|all| all.iter().any(|f| f["severity"] != "info"));
    let whole = answer["checks"]["judged"] == answer["checks"]["total"];
    let expected = if fault {
        Value::from(false)
    } else if whole {
        Value::from(true)
    } else {
        Value::Null
    };
    answer["healthy"] == expected
}

/// Compares the findings at the scenario's own places with the expected ones.
pub fn score(name: &str, stage: &Stage) -> Score {
    let findings = stage.findings();
    let mut score = Score { name: name.into(), ..Score::default() };
    let mut evidence = Vec::new();
    if !is_honest(&stage.answer) {
        score.wrong += 1;
        evidence.push(format!("healthy is {}, checks are {}", stage.answer["healthy"], stage.answer["checks"]));
    }
    for expected in &stage.expected {
        let same: Vec<_> = findings.iter().filter(|finding| finding["code"] == expected.code).collect();
        let faults: Vec<_> = same.iter().map(|finding| expected.faults(finding)).collect();
        match faults.iter().min_by_key(|faults| faults.len()) {
            None => {
                score.missed += 1;
                evidence.push(format!("{} not found", expected.code));
            }
            Some(faults) if faults.is_empty() => score.right += 1,
            Some(faults) => {
                score.wrong += 1;
                evidence.push(format!("{}: {}", expected.code, faults.join(", ")));
            }
        }
    }
    let known =
        |code: &Value| stage.expected.iter().map(|e| e.code).chain(stage.tolerated.iter().copied()).any(|c| code == c);
    let harmful: Vec<_> = findings.iter().filter(|f| f["severity"] != "info").collect();
    for finding in &harmful {
        let steps = finding["next_step"].as_str().unwrap_or_default();
        for step in steps.lines().filter(|line| line.starts_with("netmon-mcp ") && !line.contains('=')) {
            score.wrong += 1;
            evidence.push(format!("{}: {step} has no argument", finding["code"]));
        }
    }
    let extra: Vec<_> = harmful.iter().filter(|f| !known(&f["code"])).collect();
    // A duplicate finding is an extra finding.
    let twice = |expected: &str| {
        let count = |all: &mut dyn Iterator<Item = bool>| all.filter(|same| *same).count();
        let told = count(&mut harmful.iter().map(|f| f["code"] == expected));
        told.saturating_sub(count(&mut stage.expected.iter().map(|e| e.code == expected)))
    };
    let codes: BTreeSet<_> = stage.expected.iter().map(|e| e.code).collect();
    score.extra = extra.len() + codes.into_iter().map(twice).sum::<usize>();
    score.expected = stage.expected.iter().map(|e| e.code.to_owned()).collect();
    score.found = findings
        .iter()
        .map(|f| {
            let mark = if f["severity"] == "info" { "(info)" } else { "" };
            format!("{}{mark}", f["code"].as_str().unwrap_or("?"))
        })
        .collect();
    score.expected.sort();
    score.found.sort();
    score.found.dedup();
    score.faults.clone_from(&evidence);
    let _ = write!(
        score.details,
        "\n== {name}: {}\n{}",
        evidence.join("; "),
        findings.iter().map(|f| format!("{f}\n")).collect::<String>()
    );
    let _ = writeln!(score.details, "blind: {}", stage.answer["blind_spots"]);
    score
}

/// A table on standard error, past the test harness' capture, and the same in `target/scenarios.csv`.
pub fn report(scores: &[Score]) {
    let sum = |part: fn(&Score) -> usize| scores.iter().map(part).sum::<usize>();
    let all = Score {
        name: "all".into(),
        right: sum(|s| s.right),
        wrong: sum(|s| s.wrong),
        missed: sum(|s| s.missed),
        extra: sum(|s| s.extra),
        ..Score::default()
    };
    let percent = |part: usize, whole: usize| if whole == 0 { 100.0 } else { 100.0 * part as f64 / whole as f64 };
    let mut text = format!("\n{:32} | {:40} | {:50} | evidence\n", "scenario", "expected", "found");
    scores.iter().for_each(|score| text += &score.line());
    let Score { right, wrong, missed, extra, .. } = all;
    let _ = writeln!(
        text,
        "{} scenarios; precision {:.1} % ({right} right, {wrong} with wrong evidence, {extra} extra), recall {:.1} % ({missed} missed)",
        scores.len(),
        percent(right, right + wrong + extra),
        percent(right, right + wrong + missed),
    );
    let _ = std::io::stderr().write_all(text.as_bytes());
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut rows = csv::Writer::from_path(folder.join("scenarios.csv")).unwrap();
    rows.write_record(["scenario", "inject", "root_causes", "found", "f1"]).unwrap();
    for score in scores.iter().chain([&all]) {
        rows.write_record(score.row()).unwrap();
    }
    rows.flush().unwrap();
}
