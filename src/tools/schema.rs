//! The schemas of questions and answers: derived, then made short, since the list of tools is part of every conversation.

use schemars::{JsonSchema, Schema, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::{Map, Value, json};

use super::structured::NULL_ANSWERS;

/// A JSON schema that clients of every kind can read, without redundant parts: the list of tools is part of every
/// conversation.
pub fn input_schema<T: JsonSchema>() -> Value {
    fn plain(schema: &mut Schema) {
        drop_formats(schema);
        if schema.get("default").is_some_and(Value::is_null) {
            schema.remove("default");
        }
    }
    schema::<T>(plain)
}

/// The same of an answer, which validates it without repeating in each tool what the server's instructions
/// say once: what an owner, an endpoint and `measured` are. Bounds and required fields are for who writes a
/// value, and this one is read. A field without a value is absent, so that no type is `null`, except where that is an answer.
pub fn output_schema<T: JsonSchema>() -> Value {
    /// Values that a reader needs to see before the answer. A longer list is of codes that explain themselves.
    const LISTED: usize = 12;
    fn terse(schema: &mut Schema) {
        drop_formats(schema);
        for keyword in ["minimum", "maximum", "default", "required"] {
            schema.remove(keyword);
        }
        // The name and the text of a field describe it: a bare type adds nothing.
        const BARE: [&str; 4] = ["boolean", "integer", "number", "string"];
        let says_nothing = |kinds: &Value| match kinds {
            Value::Array(kinds) => kinds.iter().any(|kind| kind == "null"),
            kind => BARE.iter().any(|bare| kind == bare),
        };
        let is_bare = ["enum", "items", "properties"].iter().all(|keyword| schema.get(*keyword).is_none());
        if is_bare && schema.get("type").is_some_and(says_nothing) {
            schema.remove("type");
        }
        without_null(schema);
        if schema.get("enum").and_then(Value::as_array).is_some_and(|values| values.len() > LISTED) {
            schema.remove("enum");
        }
        // Nor does the bare type of a list's items, or of a map's values.
        const LITTLE: [&str; 4] = ["type", "format", "minimum", "maximum"];
        let says_little = |of: &Value| {
            *of == true || of.as_object().is_some_and(|of| of.keys().all(|keyword| LITTLE.contains(&keyword.as_str())))
        };
        for keyword in ["items", "additionalProperties"] {
            if schema.get(keyword).is_some_and(says_little) {
                schema.remove(keyword);
            }
        }
        let definitions = schema.get_mut("$defs").and_then(Value::as_object_mut);
        for definition in definitions.into_iter().flat_map(|all| all.values_mut()).filter_map(Value::as_object_mut) {
            definition.shift_remove("description"); // its fields have their own
        }
        share(schema);
    }
    let mut schema = schema::<T>(terse);
    inline_once(&mut schema);
    allow_null(&mut schema);
    schema
}

/// Lets fields be `null` where that is an answer.
fn allow_null(schema: &mut Value) {
    match schema {
        Value::Object(keywords) => {
            let fields = keywords.get_mut("properties").and_then(Value::as_object_mut);
            let answers = fields.into_iter().flatten().filter(|(name, _)| NULL_ANSWERS.contains(&name.as_str()));
            for field in answers.filter_map(|(_, field)| field.as_object_mut()) {
                if let Some(values) = field.get_mut("enum").and_then(Value::as_array_mut) {
                    values.push(Value::Null);
                }
                match (field.get("type").cloned(), field.shift_remove("$ref")) {
                    (Some(kind @ Value::String(_)), _) => drop(field.insert("type".into(), json!([kind, "null"]))),
                    (_, Some(shared)) => {
                        drop(field.insert("anyOf".into(), json!([{"$ref": shared}, {"type": "null"}])));
                    }
                    _ => {}
                }
            }
            keywords.values_mut().for_each(allow_null);
        }
        Value::Array(schemas) => schemas.iter_mut().for_each(allow_null),
        _ => {}
    }
}

/// The same without the alternative `null`.
fn without_null(schema: &mut Schema) {
    if let Some(kinds) = schema.get_mut("type").and_then(Value::as_array_mut) {
        kinds.retain(|kind| kind != "null");
        if let [only] = kinds.as_slice() {
            let only = only.clone();
            schema.insert("type".into(), only);
        }
    }
    if let Some(kinds) = schema.get_mut("anyOf").and_then(Value::as_array_mut) {
        kinds.retain(|kind| kind["type"] != "null");
        if let [Value::Object(only)] = kinds.as_slice() {
            let only = only.clone();
            schema.remove("anyOf");
            only.into_iter().for_each(|(keyword, value)| _ = schema.insert(keyword, value));
        }
    }
    if let Some(values) = schema.get_mut("enum").and_then(Value::as_array_mut) {
        values.retain(|value| !value.is_null());
    }
}

/// The complete schema of an answer, for programs that parse answers.
pub fn whole_schema<T: JsonSchema>() -> Value {
    schema::<T>(drop_formats)
}

/// What a schema refers to, or the part that is not null where it may be null.
pub fn resolve<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
        return &root["$defs"][name];
    }
    match schema["anyOf"].as_array().and_then(|kinds| kinds.iter().find(|kind| kind["type"] != "null")) {
        Some(kind) => resolve(kind, root),
        None => schema,
    }
}

/// Puts what is used once in its place, where it needs no name.
fn inline_once(schema: &mut Value) {
    let Some(mut definitions) = schema.get("$defs").and_then(Value::as_object).cloned() else { return };
    let text = schema.to_string();
    definitions.retain(|name, _| text.matches(&format!("\"#/$defs/{name}\"")).count() == 1);
    if let Some(named) = schema.get_mut("$defs").and_then(Value::as_object_mut) {
        named.retain(|name, _| !definitions.contains_key(name));
    }
    put(schema, &definitions);
    if schema["$defs"] == json!({}) {
        schema.as_object_mut().and_then(|root| root.shift_remove("$defs"));
    }
}

fn put(schema: &mut Value, definitions: &Map<String, Value>) {
    let name = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix("#/$defs/"));
    if let Some(definition) = name.and_then(|name| definitions.get(name)) {
        let mut definition = definition.clone();
        if let Some(description) = schema.get("description") {
            definition["description"] = description.clone();
        }
        *schema = definition;
    }
    match schema {
        Value::Object(members) => members.values_mut().for_each(|member| put(member, definitions)),
        Value::Array(members) => members.iter_mut().for_each(|member| put(member, definitions)),
        _ => {}
    }
}

/// Makes a plain object of what the instructions explain.
fn share(schema: &mut Schema) {
    const SHARED: [&str; 3] = ["Owner", "Endpoint", "Measured"];
    let is_shared = |schema: &Value| {
        let name = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/"));
        name.is_some_and(|name| SHARED.contains(&name))
    };
    if is_shared(schema.as_value()) {
        schema.remove("$ref");
        schema.insert("type".into(), "object".into());
    }
    if let Some(definitions) = schema.get_mut("$defs").and_then(Value::as_object_mut) {
        definitions.retain(|name, _| !SHARED.contains(&name.as_str()));
        if definitions.is_empty() {
            schema.remove("$defs");
        }
    }
}

/// Clients print warnings about integer formats such as `uint64`; a title repeats the name.
fn drop_formats(schema: &mut Schema) {
    for keyword in ["format", "title"] {
        schema.remove(keyword);
    }
}

fn schema<T: JsonSchema>(simplify: fn(&mut Schema)) -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|s| s.meta_schema = None).with_transform(RecursiveTransform(simplify));
    settings.into_generator().into_root_schema_for::<T>().to_value()
}
