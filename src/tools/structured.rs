//! Structured answers.

use serde::Serialize;
use serde_json::Value;

/// An output as JSON, without fields without a value.
pub fn structured(output: &impl Serialize) -> Value {
    let mut structured = serde_json::to_value(output).unwrap_or_default();
    if let Some(members) = structured.as_object_mut() {
        members.retain(|name, member| {
            drop_nulls(member);
            name == "healthy" || !member.is_null() // `null` is an answer there
        });
    }
    structured
}

/// Removes the fields without a value: they cost tokens and contain nothing.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => members.retain(|_, member| {
            drop_nulls(member);
            !member.is_null()
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
        let mut value = json!({"a": null, "b": [{"c": null, "d": 0}], "e": {"f": null}});
        drop_nulls(&mut value);
        assert_eq!(value, json!({"b": [{"d": 0}], "e": {}}));
    }
}
