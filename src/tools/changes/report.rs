//! Finds the figures that differ by more than the baseline varies.

use std::collections::BTreeMap;

use super::{Change, Figures, Input, Output, Sample};
use crate::{
    answer::{self, Owner},
    recorder::time::{Micros, Period, shown},
    tools::recollect::FromTo,
    untrusted,
};

/// So many minutes of a baseline tell how much it varies.
const BASELINE: usize = 10;
/// A difference of this many standard errors is not chance, even with the many figures of a host.
const ERRORS: f64 = 6.0;

/// How the figures of a subject are compared.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A sum a minute, with the least that is worth telling.
    Sum(f64),
    /// A mean of its samples, with the least difference.
    Mean(f64),
    /// Present or absent.
    Presence,
}

fn kind(subject: &str) -> Kind {
    match subject {
        "traffic" => Kind::Sum(500_000.0),
        "connections" => Kind::Sum(10.0),
        "failures" | "dns" => Kind::Sum(3.0),
        "drops" => Kind::Sum(10.0),
        "rtt" => Kind::Mean(1_000.0),
        "retransmits" => Kind::Mean(1.0),
        _ => Kind::Presence,
    }
}

/// The figures of one name: what each minute has, and over how many samples.
type Minutes = BTreeMap<Micros, (f64, i64)>;

/// The answer.
pub fn report(input: &Input, sample: Result<Sample, String>) -> Output {
    let nothing = |not_enough| Output { changes: Vec::new(), more: 0, period: None, baseline: None, not_enough };
    let sample = match sample {
        Ok(sample) => sample,
        Err(reason) => return nothing(Some(reason)),
    };
    let of = |Period { begin_us, end_us }| Some(FromTo { from: shown(begin_us), to: shown(end_us) });
    let periods = Output { period: of(sample.after.period), baseline: of(sample.before.period), ..nothing(None) };
    let (before, after) = (sample.before.minutes.len(), sample.after.minutes.len());
    if before < BASELINE || after == 0 {
        let reason = format!(
            "too little recorded: baseline {before} minutes (at least {BASELINE}), period {after} minutes (at least 1)"
        );
        return Output { not_enough: Some(reason), ..periods };
    }
    let mut changes = compare(&sample);
    changes.sort_by(|a, b| b.significance.total_cmp(&a.significance).then_with(|| a.summary.cmp(&b.summary)));
    let more = changes.len().saturating_sub(input.limit.rows()) as u64;
    changes.truncate(input.limit.rows());
    Output { changes, more, ..periods }
}

fn compare(sample: &Sample) -> Vec<Change> {
    let (before, after) = (by_name(&sample.before), by_name(&sample.after));
    let names: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).copied().collect();
    let none = Minutes::new();
    let mut changes = Vec::<Change>::new();
    for (subject, name) in names.into_iter().filter(|(_, name)| *name != "other") {
        let of = |all: &BTreeMap<(&str, &str), Minutes>| all.get(&(subject, name)).unwrap_or(&none).clone();
        let (before, after) = (of(&before), of(&after));
        let found = match kind(subject) {
            Kind::Sum(least) => {
                differs(&rates(&before, &sample.before), &rates(&after, &sample.after), least, 2.0, f64::sqrt)
            }
            Kind::Mean(least) => {
                let scale = if subject == "retransmits" { 100.0 } else { 1.0 };
                let (before, after) = (means(&before, scale), means(&after, scale));
                let enough = before.len() >= BASELINE / 2 && !after.is_empty();
                enough.then(|| differs(&before, &after, least, 1.5, |mean| mean / 10.0)).flatten()
            }
            Kind::Presence => presence(&before, &after, sample),
        };
        let Some((before, after, significance)) = found else { continue };
        // One transfer is a process, a unit, a remote and a port: it is reported once.
        let same = |other: &Change| {
            let (a, b) = (after - before, other.after - other.before);
            other.subject == subject && subject == "traffic" && (a - b).abs() <= 0.05 * a.abs()
        };
        if !changes.iter().any(same) {
            changes.push(change(subject, name, before, after, significance));
        }
    }
    changes
}

fn by_name(figures: &Figures) -> BTreeMap<(&str, &str), Minutes> {
    let mut named = BTreeMap::<(&str, &str), Minutes>::new();
    for minute in &figures.figures {
        let key = (minute.figure.subject.as_str(), minute.figure.name.as_str());
        named.entry(key).or_default().insert(minute.minute_us, (minute.figure.value, minute.figure.count));
    }
    named
}

/// The figure of each recorded minute, extrapolated to the full minute.
fn rates(minutes: &Minutes, of: &Figures) -> Vec<f64> {
    of.minutes.iter().map(|(minute, covered)| minutes.get(minute).map_or(0.0, |(value, _)| value / covered)).collect()
}

/// The mean of each minute that has samples.
fn means(minutes: &Minutes, scale: f64) -> Vec<f64> {
    minutes.values().filter(|(_, count)| *count >= 10).map(|(sum, count)| sum * scale / *count as f64).collect()
}

/// Both means and the significance of their difference, if there is one beyond the baseline's variation. `noise` is how
/// much a figure of a mean varies at the least.
fn differs(
    before: &[f64],
    after: &[f64],
    least: f64,
    factor: f64,
    noise: impl Fn(f64) -> f64,
) -> Option<(f64, f64, f64)> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let (was, is) = (mean(before), mean(after));
    let (low, high) = (was.min(is), was.max(is));
    if high - low < least || high < factor * low {
        return None;
    }
    // With bursts in the baseline, the period has to exceed the usual range.
    let mut sorted = before.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
    if (is > was && is <= 1.2 * at(0.95)) || (is < was && is >= 0.8 * at(0.05)) {
        return None;
    }
    let variance = before.iter().map(|value| (value - was).powi(2)).sum::<f64>() / (before.len().max(2) - 1) as f64;
    let spread = variance.sqrt().max(noise(high)).max(least / 10.0);
    let error = spread * (1.0 / before.len() as f64 + 1.0 / after.len() as f64).sqrt();
    let errors = (is - was).abs() / error;
    (errors >= ERRORS).then(|| (was, is, errors / (errors + ERRORS)))
}

/// It appeared and is still there; or it was always there and has disappeared.
fn presence(before: &Minutes, after: &Minutes, sample: &Sample) -> Option<(f64, f64, f64)> {
    const SURE: f64 = 0.9;
    let (last, _) = sample.after.minutes.last()?;
    let is_there = after.contains_key(last);
    let share = before.len() as f64 / sample.before.minutes.len() as f64;
    match is_there {
        true if before.is_empty() => Some((0.0, 1.0, SURE)),
        false if share >= 0.9 && after.len() < sample.after.minutes.len() => Some((1.0, 0.0, SURE)),
        _ => None,
    }
}

fn change(subject: &str, name: &str, before: f64, after: f64, significance: f64) -> Change {
    let word = |key: &str| name.split(' ').find_map(|word| word.strip_prefix(key)).map(untrusted::clean);
    let (process, unit) = (word("process:"), word("unit:"));
    let owner = (process.is_some() || unit.is_some()).then(|| Owner { process, unit, ..Owner::default() });
    let factor = (before > 0.0).then(|| rounded(after / before));
    Change {
        subject: subject.into(),
        owner,
        remote: word("remote:"),
        factor,
        significance: rounded(significance),
        summary: summary(subject, &untrusted::clean(name), before, after, factor),
        before: rounded(before),
        after: rounded(after),
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn summary(subject: &str, name: &str, before: f64, after: f64, factor: Option<f64>) -> String {
    let shown = |value: f64| match subject {
        "traffic" => format!("{} per minute", answer::bytes(value as u64)),
        "rtt" => answer::micros(value as u64),
        "retransmits" => format!("{value:.1} %"),
        _ => format!("{value:.1} per minute"),
    };
    if kind(subject) == Kind::Presence {
        let what = if after > before { "is new" } else { "is gone" };
        return format!("{subject}: {name} {what}");
    }
    let times = factor.map_or_else(|| ", new".into(), |factor| format!(", {factor:.1} times"));
    format!("{subject}: {name} from {} to {}{times}", shown(before), shown(after))
}
