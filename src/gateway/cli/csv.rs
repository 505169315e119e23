//! An answer as comma-separated values (RFC 4180): a table for spreadsheets and databases.

use serde_json::{Map, Value};

use crate::tools::resolve;

/// The rows of the answer's first list that has any, with a line of names above them; an answer without lists is one
/// row. What lies deeper has its path for a name (`owner.pid`), a list inside a row is JSON. The columns are those of the
/// schema, so that they are the same whatever was measured.
pub fn table(answer: &Value, schema: &Value) -> anyhow::Result<String> {
    let properties = schema["properties"].as_object();
    let lists = properties.into_iter().flatten().filter_map(|(name, property)| {
        let item = resolve(&resolve(property, schema)["items"], schema);
        Some((answer[name].as_array()?.as_slice(), item)).filter(|_| item["properties"].is_object())
    });
    let lists: Vec<_> = lists.collect();
    let has_rows = lists.iter().find(|(rows, _)| !rows.is_empty());
    let (rows, row) = has_rows.or(lists.first()).copied().unwrap_or((std::slice::from_ref(answer), schema));
    let mut columns = Vec::new();
    paths(row, schema, &mut Vec::new(), &mut columns);
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(columns.iter().map(|path| path.join(".")))?;
    for row in rows {
        writer.write_record(columns.iter().map(|path| cell(path.iter().fold(row, |value, name| &value[name]))))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// The paths of all that is no object.
fn paths(schema: &Value, root: &Value, above: &mut Vec<String>, columns: &mut Vec<Vec<String>>) {
    /// Deeper than any answer: a schema that refers to itself ends.
    const DEEPEST: usize = 6;
    for (name, property) in schema["properties"].as_object().into_iter().flat_map(Map::iter) {
        above.push(name.clone());
        let property = resolve(property, root);
        if property["properties"].is_object() && above.len() < DEEPEST {
            paths(property, root, above, columns);
        } else {
            columns.push(above.clone());
        }
        above.pop();
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tools::{QUESTIONS, Question};

    #[test]
    fn csv_of_every_tool_has_columns() {
        for question in QUESTIONS {
            let text = table(&json!({}), &(question.whole_schema)()).unwrap();
            assert!(text.lines().next().unwrap().split(',').count() > 2, "{}: {text}", question.name);
        }
    }

    #[test]
    fn csv_column_of_a_nested_field_is_its_path() {
        let schema = (Question::named("snapshot_sockets").unwrap().whole_schema)();
        let row = json!({"owner": {"pid": 7, "process": "a, \"b\""}, "local": {"address": "::1", "port": 80}});
        let text = table(&json!({"sockets": [row]}), &schema).unwrap();
        let (names, values) = text.split_once('\n').unwrap();
        assert!(names.starts_with("owner.pid,owner.process,") && names.contains("local.address,local.port"), "{names}");
        assert!(values.starts_with("7,\"a, \"\"b\"\"\",") && values.contains("::1,80,"), "{values}");
        let listeners = table(&json!({"sockets": [], "listeners": [{"accept_queue": 3}]}), &schema).unwrap();
        assert!(listeners.contains("accept_queue,") && listeners.lines().count() == 2, "{listeners}");
    }
}
