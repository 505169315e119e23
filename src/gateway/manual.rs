//! Help texts: the tools with their arguments, and the manual page.

use clap_mangen::roff::{Roff, bold, roman};
use rmcp::model::Tool;
use serde_json::Value;

use crate::{
    answer,
    tools::{Question, resolve},
};

/// The tools, by what they are for.
pub fn list(tools: &[Tool]) -> String {
    let row = |tool: &Tool| [tool.name.to_string(), tool.title.clone().unwrap_or_default()];
    answer::table(["tool", "purpose"], tools.iter().map(row))
        + "\nnetmon-mcp tools TOOL           shows the arguments of a tool\nnetmon-mcp TOOL [key=value ...]  runs it\n"
}

/// One tool with its arguments: what each may be, and what it means.
pub fn describe(tool: &Tool) -> String {
    let schema = Value::Object((*tool.input_schema).clone());
    let row = |(name, property): (&String, &Value)| {
        let meaning = property["description"].as_str().unwrap_or_default();
        [name.clone(), allowed(resolve(property, &schema)), default(property), meaning.to_owned()]
    };
    let rows: Vec<_> = schema["properties"].as_object().into_iter().flatten().map(row).collect();
    let arguments = match rows.is_empty() {
        true => "This tool has no arguments.\n".to_owned(),
        false => answer::table(["argument", "is", "default", "meaning"], rows),
    };
    format!("{}: {}\n\n{arguments}", tool.name, tool.description.as_deref().unwrap_or_default())
}

/// The allowed values of an argument, in the syntax of the command line.
fn allowed(property: &Value) -> String {
    let words = |values: &Vec<Value>| values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("|");
    if let Some(values) = property["enum"].as_array() {
        return words(values);
    }
    let kind = match &property["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
        kind => kind.as_str(),
    };
    match (kind, &property["minimum"], &property["maximum"]) {
        (Some("boolean"), ..) => "true|false".into(),
        (Some("integer" | "number"), min, max) if !min.is_null() && !max.is_null() => format!("{min} to {max}"),
        (Some("integer" | "number"), ..) => "number".into(),
        _ => "text".into(),
    }
}

fn default(property: &Value) -> String {
    match &property["default"] {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The manual page, every command in it.
pub fn page(command: clap::Command) -> anyhow::Result<String> {
    // The page is the long help: what `-h` leaves out belongs to it.
    let command = command.mut_args(|argument| argument.hide_short_help(false));
    let mut commands = Roff::default();
    commands.control("SH", ["COMMANDS"]);
    for mut command in command.get_subcommands().cloned() {
        // A tool's arguments are those of `call`.
        let is_tool = Question::named(command.get_name()).is_some();
        let usage = command.render_usage().to_string();
        let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
        commands.control("TP", []);
        commands.text([bold(usage.trim_start_matches("Usage: ").replace("[OPTIONS] ", ""))]);
        commands.text([roman(about)]);
        if is_tool {
            continue;
        }
        for argument in command.get_arguments().filter(|argument| !argument.is_global_set()) {
            let name = argument
                .get_long()
                .map_or_else(|| argument.get_id().to_string().to_uppercase(), |long| format!("--{long}"));
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            commands.control("RS", []);
            commands.control("TP", []);
            commands.text([bold(name)]);
            commands.text([roman(help)]);
            commands.control("RE", []);
        }
    }
    let (page, mut text) = (clap_mangen::Man::new(command), Vec::new());
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    commands.to_writer(&mut text)?;
    page.render_options_section(&mut text)?;
    page.render_extra_section(&mut text)?;
    Ok(String::from_utf8(text)?)
}
