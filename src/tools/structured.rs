//! Structured answers.

use serde::Serialize;
use serde_json::Value;

/// Fields whose `null` is an answer: it is not known whether the host is healthy, nothing limits a connection, a query has
/// no answer yet, and a row is about every port.
pub const NULL_ANSWERS: [&str; 4] = ["healthy", "limited_by", "rcode", "port"];

/// An output as JSON, without fields without a value: they cost tokens and contain nothing.
pub fn structured(output: &impl Serialize) -> Value {
    let mut structured = serde_json::to_value(output).unwrap_or_default();
    drop_nulls(&mut structured);
    structured
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => members.retain(|name, member| {
            drop_nulls(member);
            !member.is_null() || NULL_ANSWERS.contains(&name.as_str())
        }),
        Value::Array(members) => members.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_without_a_value_are_absent() {
        let mut value = json!({"a": null, "b": [{"c": null, "d": 0}], "e": {"f": null, "port": null}});
        drop_nulls(&mut value);
        assert_eq!(value, json!({"b": [{"d": 0}], "e": {"port": null}}));
    }
}
