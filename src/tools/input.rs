//! The caller's input. Several spellings are accepted; an error states the allowed ones.

use std::time::Duration;

use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::schema::input_schema;
use crate::{limits, untrusted, wire::Error};

/// The two names that the length of a window has: in milliseconds, and in seconds (`network-monitor`).
const IN_MS: &str = "duration_ms";
const IN_SECONDS: &str = "duration";

/// Models give null for what they have nothing to say about.
fn leave_out_nulls<T: JsonSchema>(value: &mut Value) {
    if let Some(fields) = value.as_object_mut().filter(|fields| fields.values().any(Value::is_null)) {
        let known = input_schema::<T>();
        fields.retain(|name, field| !field.is_null() || known["properties"].get(name).is_none());
    }
}

/// Reads an input. A time may have a unit (`2s`, `500ms`, `1m30s`) and either name; without one it is in the unit of its
/// name. `value` has the tool's own name and unit afterwards.
pub fn understand<T: DeserializeOwned + JsonSchema>(value: &mut Value) -> Result<T, Error> {
    leave_out_nulls::<T>(value);
    decode(value).or_else(|e| if take_units::<T>(value)? { decode(value) } else { Err(e) })
}

/// Gives a time the name and the unit of the tool. Returns whether there was one.
fn take_units<T: JsonSchema>(value: &mut Value) -> Result<bool, Error> {
    let (known, Some(fields)) = (input_schema::<T>(), value.as_object_mut()) else { return Ok(false) };
    let names = [IN_MS, IN_SECONDS];
    let takes = names.into_iter().find(|name| known["properties"].get(name).is_some());
    let given: Vec<_> = names.into_iter().filter(|name| fields.contains_key(*name)).collect();
    let (takes, given) = match (takes, given.as_slice()) {
        (Some(takes), [given]) => (takes, *given),
        (Some(_), [_, _]) => {
            return Err(Error::InvalidInput(format!("{IN_SECONDS} and {IN_MS} are the same: give one of them")));
        }
        _ => return Ok(false),
    };
    let Some(time) = duration(given, &fields[given]) else {
        let shown = untrusted::clean(&fields[given].to_string());
        let reason = format!("{given}: invalid value {shown}: expected a time such as 2s or 500ms");
        // The tool's own name has an error of its own, with the bounds.
        return if given == takes { Ok(false) } else { Err(Error::InvalidInput(reason)) };
    };
    fields.shift_remove(given);
    let number = if takes == IN_MS { time.as_secs_f64() * 1e3 } else { time.as_secs_f64() };
    let whole = number as u64;
    fields.insert(takes.to_owned(), if whole as f64 == number { whole.into() } else { number.into() });
    Ok(true)
}

fn duration(name: &str, value: &Value) -> Option<Duration> {
    match value {
        Value::String(text) => text.parse::<SignedDuration>().ok()?.try_into().ok(),
        _ => Duration::try_from_secs_f64(value.as_f64()? / if name == IN_MS { 1e3 } else { 1.0 }).ok(),
    }
}

/// An input, or what is wrong with it and where.
pub fn decode<T: DeserializeOwned + JsonSchema>(value: &Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let reason = e.inner().to_string();
        if let Some(name) = quoted(&reason, "missing field `") {
            let allowed = &input_schema::<T>()["properties"][name]["enum"];
            let allowed = if allowed.is_null() { String::new() } else { format!("; expected one of {allowed}") };
            return Error::InvalidInput(format!("{name} is missing{allowed}"));
        }
        if let Some(name) = quoted(&reason, "unknown field `") {
            return Error::InvalidInput(unknown(name, &input_schema::<T>()));
        }
        let [path, reason] = [e.path().to_string(), reason].map(|text| untrusted::clean(&text));
        let units = if path == IN_MS || path == IN_SECONDS { ", or a time such as 2s or 500ms" } else { "" };
        Error::InvalidInput(if path == "." { reason } else { format!("{path}: {reason}{units}") })
    })
}

/// The name in an error of serde that begins like this.
fn quoted<'a>(reason: &'a str, begin: &str) -> Option<&'a str> {
    reason.strip_prefix(begin)?.split_once('`').map(|(name, _)| name)
}

/// The error for an argument of the input that the schema does not have, if there is one.
pub fn unknown_argument(input: &Value, schema: &Value) -> Option<Error> {
    let known = &schema["properties"];
    let durations = [IN_MS, IN_SECONDS];
    let has_window = durations.iter().any(|name| known.get(name).is_some());
    let is_known = |name: &str| known.get(name).is_some() || has_window && durations.contains(&name);
    let (name, _) = input.as_object()?.iter().find(|(name, _)| !is_known(name))?;
    Some(Error::InvalidInput(unknown(name, schema)))
}

/// Says which arguments there are, and which of them may have been meant.
fn unknown(name: &str, schema: &Value) -> String {
    let known: Vec<_> = schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    if known.is_empty() {
        return format!("unknown argument {}: this tool takes no arguments", untrusted::clean(name));
    }
    format!("unknown argument {} Arguments: {}", meant(name, &known), known.join(", "))
}

/// An unknown name, and which of the known ones may have been meant.
pub fn meant(name: &str, known: &[&str]) -> String {
    /// The similarity that clap requires for its own proposals.
    const ALIKE: f64 = 0.7;
    // A long one is none of them, and to compare it takes long.
    let likeness = |known: &&&str| if name.len() > limits::LOGGED_CHARS { 0.0 } else { strsim::jaro(name, known) };
    let nearest = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let shown = untrusted::clean(name);
    match nearest.filter(|known| likeness(known) > ALIKE) {
        Some(known) => format!("{shown}; did you mean {known}?"),
        None => shown + ".",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tools::Question;

    #[derive(serde::Deserialize, JsonSchema, Debug)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct InMs {
        duration_ms: crate::answer::WindowMs<1_000>,
        name: Option<String>,
    }

    #[derive(serde::Deserialize, JsonSchema, Debug)]
    #[allow(dead_code)]
    struct InSeconds {
        duration: crate::answer::WindowSeconds,
        name: Option<String>,
    }

    #[test]
    fn durations_accept_units_under_both_names() {
        for (given, ms) in [
            (json!({"duration": "2s", "name": null}), 2_000),
            (json!({"duration": 2}), 2_000),
            (json!({"duration_ms": "500ms"}), 500),
            (json!({"duration": "0m 1.5s"}), 1_500),
            (json!({"duration_ms": 300}), 300),
        ] {
            let time = Duration::from_millis(ms);
            assert_eq!(understand::<InMs>(&mut given.clone()).unwrap().duration_ms.duration(), time, "{given}");
            assert_eq!(understand::<InSeconds>(&mut given.clone()).unwrap().duration.duration(), time, "{given}");
        }
        let refuse = |mut given| understand::<InMs>(&mut given).unwrap_err().to_string();
        assert!(
            refuse(json!({"duration": "2s", "duration_ms": 500})).contains("duration and duration_ms are the same")
        );
        for wrong in [json!("2x"), json!(""), json!("-1s"), json!(-1), json!([])] {
            let error = refuse(json!({"duration": wrong}));
            assert!(error.starts_with("duration: invalid value ") && error.contains("such as 2s"), "{error}");
        }
        let error = refuse(json!({"duration": "70s"}));
        assert!(error.contains("70000,") || error.contains("70000:"), "{error}");
        for wrong in [json!({"duration_ms": "soon"}), json!({"duration": "2m"}), json!({"duration_ms": -5})] {
            let error = refuse(wrong);
            assert!(error.contains("from 100 to 60000, or a time such as 2s"), "{error}");
        }
    }

    #[test]
    fn unknown_argument_error_suggests_a_name() {
        let error = decode::<InMs>(&json!({"durations": 5})).unwrap_err().to_string();
        assert_eq!(error, "unknown argument durations; did you mean duration_ms? Arguments: duration_ms, name");
        let error = decode::<InMs>(&json!({"q\u{1b}": 5})).unwrap_err().to_string();
        assert!(error.starts_with("unknown argument q") && error.contains(". Arguments: "), "{error}");
        assert!(!error.contains('\u{1b}'));
    }
    #[test]
    fn missing_field_error_lists_the_choices() {
        #[derive(serde::Deserialize, JsonSchema, Debug)]
        struct Named {
            #[allow(dead_code)]
            name: String,
        }
        let error = decode::<Named>(&json!({})).unwrap_err().to_string();
        assert_eq!(error, "name is missing");
        let error =
            (Question::named("network-monitor").unwrap().prepare)(&mut json!({}), None).unwrap_err().to_string();
        assert!(error.contains("operation is missing; expected one of [\"incoming\",\"outgoing\"]"), "{error}");
    }
}
