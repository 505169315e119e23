use super::{finding::Severity, text::headline, *};
use crate::answer::{Endpoint, Owner};

/// A diagnosis of 10 s with two checks, both judged.
fn output(findings: Vec<Finding>) -> Output {
    let mut output = Output {
        healthy: None,
        checks: Checks { judged: 2, total: 2 },
        ended_early: false,
        severities: Severities::of(&findings),
        findings,
        checked: vec![Code::Resets, Code::NoRoute],
        blind_spots: vec![],
        measured: Measured::window(Duration::from_secs(10)),
        tool_missing: false,
        detailed: usize::MAX,
    };
    output.healthy = output.healthy(Duration::from_secs(10));
    output
}

fn findings(severities: &[Severity]) -> Vec<Finding> {
    severities.iter().map(|severity| Finding::new(Code::Resets, *severity, "x")).collect()
}

/// The headline and `healthy` of an output.
fn headline_of(output: Output, asked: Duration) -> (String, Option<bool>) {
    let output = Output { healthy: output.healthy(asked), ..output };
    (headline(&output).trim_end().to_owned(), output.healthy)
}

const ASKED: Duration = Duration::from_secs(10);

#[test]
fn clean_window_is_one_healthy_line() {
    let (headline, healthy) = headline_of(output(vec![]), ASKED);
    assert_eq!((headline.as_str(), healthy), ("No fault seen (2 of 2 checks, 10.0 s)", Some(true)));
    assert_eq!(Diagnose::text(&output(vec![])), "No fault seen (2 of 2 checks, 10.0 s)\n");
}

#[test]
fn skipped_check_prevents_healthy() {
    let partial = || Output { checks: Checks { judged: 1, total: 2 }, tool_missing: true, ..output(vec![]) };
    let told = "No fault seen by the 1 of 2 checks that could run; 1 could not (see status); the window was 10.0 s";
    assert_eq!(headline_of(partial(), ASKED), (told.into(), None));
    let cut = Output { tool_missing: false, ..partial() };
    assert!(headline_of(cut, ASKED).0.contains("could not (see below)"));
    let early = Output { ended_early: true, ..partial() };
    let told = "No fault seen by the 1 of 2 checks that could run; 1 could not (see status); the window ended early, after 10.0 s";
    assert_eq!(headline_of(early, ASKED), (told.into(), None));
    let blind = Output { checks: Checks { judged: 0, total: 2 }, ..partial() };
    let told = "None of the 2 checks could run (see status); the window was 10.0 s";
    assert_eq!(headline_of(blind, ASKED), (told.into(), None));
}

#[test]
fn short_window_prevents_healthy() {
    let early = Output { ended_early: true, ..output(vec![]) };
    let told = "No fault seen (2 of 2 checks, 10.0 s); the window ended early";
    assert_eq!(headline_of(early, ASKED), (told.into(), None));
    let short = || Output { measured: Measured::window(Duration::from_millis(1_900)), ..output(vec![]) };
    let told = "No fault seen (2 of 2 checks, 1.9 s); window too short: use duration_ms=2000 or more";
    assert_eq!(headline_of(short(), Duration::from_millis(1_999)), (told.into(), None));
    // Attaching takes the first milliseconds of the requested window.
    let told = "No fault seen (2 of 2 checks, 1.9 s)";
    assert_eq!(headline_of(short(), Duration::from_secs(2)), (told.into(), Some(true)));
}

#[test]
fn headline_counts_findings_by_severity() {
    use Severity::*;
    let all = output(findings(&[Critical, Warning, Warning, Info]));
    let told = "4 findings: 1 critical, 2 warning, 1 info (2 of 2 checks, 10.0 s)";
    assert_eq!(headline_of(all, ASKED), (told.into(), Some(false)));
    let mut cut = output(findings(&[Warning, Info, Info]));
    cut.findings.truncate(1);
    let told = "3 findings, 1 shown; 2 more with limit=3: 1 warning, 2 info (2 of 2 checks, 10.0 s)";
    assert_eq!(headline_of(cut, ASKED), (told.into(), Some(false)));
    let one = Output { checks: Checks { judged: 1, total: 2 }, ended_early: true, ..output(findings(&[Warning])) };
    let told = "1 finding: 1 warning (1 of 2 checks could run, 10.0 s, ended early)";
    assert_eq!(headline_of(one, ASKED), (told.into(), Some(false)));
}

#[test]
fn info_findings_stay_healthy_and_are_counted() {
    let told = "No fault seen (2 of 2 checks, 10.0 s); 1 info finding";
    assert_eq!(headline_of(output(findings(&[Severity::Info])), ASKED), (told.into(), Some(true)));
    let mut cut = output(findings(&[Severity::Info; 3]));
    cut.findings.truncate(2);
    let told = "No fault seen (2 of 2 checks, 10.0 s); 3 info findings, 2 shown; 1 more with limit=3";
    assert_eq!(headline_of(cut, ASKED), (told.into(), Some(true)));
}

#[test]
fn finding_text_has_evidence_and_next_steps() {
    let owner = Owner { process: Some("nginx".into()), pid: Some(5), ..Owner::default() };
    let finding = Finding::new(Code::ConnectTimeout, Severity::Warning, "it waits")
        .owner(&owner)
        .with("remote", Endpoint { address: [10, 0, 0, 1].into(), port: 80 })
        .with("rtt_us_p50", 1_500)
        .look("trace_connections", &[("outcome", "failed".into())]);
    let text = Diagnose::text(&output(vec![finding]));
    let told = "WARNING connect_timeout: it waits\n    owner    nginx[5]\n    remote   10.0.0.1:80\n    rtt_p50  1.5 ms\n  netmon-mcp call trace_connections outcome=failed\n";
    assert!(text.ends_with(told), "{text}");
}

#[test]
fn answer_about_many_faults_and_gaps_is_short() {
    let finding =
        Finding::new(Code::DnsUnanswered, Severity::Warning, "a DNS server does not answer: 84 of 103 queries");
    let finding = finding.with("names", vec!["a-long-name.of-a-service.svc.cluster.local"; 3]);
    let every: Vec<_> = rules::decided_by(rules::NETWORK).map(|code| code.to_string()).collect();
    let gap = |n| format!("tool_{n}: {n} rows were cut{}{}", coverage::SKIPPED, every.join(", "));
    let others = [Code::Resets, Code::NoRoute].map(|code| Finding { code, ..finding.clone() });
    let all = vec![finding; 20].into_iter().chain(others).collect();
    let output = Output { blind_spots: (0..20).map(gap).collect(), ..output(all) };
    let answer = super::super::whole_or_short::<Diagnose>(&serde_json::json!({}), output);
    assert!(answer.is_short(), "{} bytes, {}", answer.bytes(), answer.text);
    for told in ["WARNING dns_unanswered", "WARNING resets", "WARNING no_route", " more in blind_spots"] {
        assert!(answer.text.contains(told), "{told}: {}", answer.text);
    }
}

#[test]
fn namespace_with_a_name_is_told_by_it() {
    let owner = Owner { process: Some("api".into()), netns: Some(7), ..Owner::default() };
    let of = |named: bool| {
        let finding = Finding::new(Code::Resets, Severity::Warning, "x").owner(&owner);
        Diagnose::text(&output(vec![if named { finding.with("namespace", "blue") } else { finding }]))
    };
    assert!(of(true).contains("namespace  blue") && !of(true).contains("netns 7"), "{}", of(true));
    assert!(of(false).contains("netns 7"), "{}", of(false));
}

#[test]
fn evidence_of_an_address_or_another_thing_is_told() {
    let finding = Finding::new(Code::Resets, Severity::Warning, "x")
        .with("remote", serde_json::json!({"address": "192.0.2.1"}))
        .with("gap", serde_json::json!({"length_ms": 5}))
        .with("owner", serde_json::json!({"pid": 7, "process": "curl"}));
    let text = text::text(&output(vec![finding]));
    for line in ["remote  192.0.2.1\n", "length_ms 5\n", "curl[7]\n"] {
        assert!(text.contains(line), "{line} {text}");
    }
}
