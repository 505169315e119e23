//! Asking one tool at a shell.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};

use super::{
    DIAGNOSE, FAULT_FOUND, INTERRUPTED, NO_HOSTS,
    asking::{Form, How},
    complain, fail, failed, interrupts, print, usage, usage_error,
    watch::watch,
    written,
};
use crate::{
    answer,
    gateway::{Call, Failure, Gateway, hosts::look, offer},
    limits,
    tools::{Answer, Question, Recollects, Tool, changes::Changes, incidents::Incidents, status::Status},
};

/// Makes the call and prints its answer.
pub async fn call(gateway: &Gateway, tool: &str, how: How) -> ExitCode {
    let (form, exit_code) = (how.form(), how.exit_code);
    if exit_code && tool != DIAGNOSE {
        let text = format!("--exit-code works with {DIAGNOSE} only, not with {tool}");
        return usage_error(&text, form);
    }
    if let Ok(terminal) = rustix::termios::tcgetwinsize(io::stdout()) {
        answer::fit(terminal.ws_col);
    }
    if let Err(reason) = usage::once(how.arguments.iter().map(|(key, _)| key.as_str())) {
        return usage_error(&reason, form);
    }
    let arguments = typed(tool, how.arguments);
    let measures_nothing =
        tool == look::TOOL || Question::named(tool).is_some_and(|question| question.recollect.is_some());
    if how.watch.is_some() && (exit_code || !matches!(form, Form::Text | Form::Ndjson) || measures_nothing) {
        return usage_error(
            "--watch works only with tools that measure, with -o text or -o ndjson, and without --exit-code",
            form,
        );
    }
    let asked = if tool == look::TOOL {
        match look::check(&arguments) {
            Ok(()) if gateway.hosts().is_empty() => return usage_error(NO_HOSTS, form),
            Ok(()) => list_hosts(gateway).await,
            Err(e) => return usage_error(&e.to_string(), form),
        }
    } else {
        match (gateway.prepare(tool, arguments), how.watch) {
            (Ok(call), Some(every)) => {
                let watched = watch(gateway, tool, call, every, form).await;
                return watched.unwrap_or_else(|e| match e.downcast_ref() {
                    Some(failure) => failed(failure, form),
                    None => {
                        complain(&format!("{e:#}"), form);
                        ExitCode::FAILURE
                    }
                });
            }
            (Ok(call), None) => ask(gateway, tool, call).await,
            (Err(e), _) => return failed(&e, form),
        }
    };
    let answer = match asked {
        Ok(Some(answer)) => answer,
        Ok(None) => return ExitCode::from(INTERRUPTED),
        Err(e) => return failed(&e, form),
    };
    let healthy = answer.structured["healthy"].as_bool();
    let has_data = has_data(tool, &answer.structured);
    match written(tool, answer, form).and_then(|text| print(&text)) {
        Err(e) => fail(&e.to_string()),
        Ok(()) if exit_code && healthy == Some(false) => ExitCode::from(FAULT_FOUND),
        Ok(()) if !has_data => ExitCode::FAILURE,
        Ok(()) => ExitCode::SUCCESS,
    }
}

/// Whether an answer is one, and not only a reason: `status` has no data without netmond, the tools that read the
/// recording have none without it, or if nothing was recorded in the period.
fn has_data(tool: &str, answer: &Value) -> bool {
    match tool {
        Status::NAME => answer["daemon"]["connected"] != false,
        Incidents::NAME => !answer["reason"].is_string(),
        Changes::NAME => answer["period"].is_object(),
        _ => true,
    }
}

/// The arguments, each of the type that the tool wants.
fn typed(tool: &str, arguments: Vec<(String, String)>) -> Map<String, Value> {
    let schema = Question::named(tool).map(offer::arguments).unwrap_or_default();
    arguments.into_iter().map(|(key, text)| (key.clone(), value(&schema, &key, text))).collect()
}

/// The other hosts, or nothing if that was cancelled. On a terminal it names those that have not answered yet.
async fn list_hosts(gateway: &Gateway) -> Result<Option<Answer>, Failure> {
    let bar = progress_bar(look::TOOL, limits::HOST_CONNECT);
    let mut interrupt = interrupts()?;
    let mut work = std::pin::pin!(look::states(gateway.hosts()));
    let mut tick = tokio::time::interval(TICK);
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut work => break Some(answer),
            _ = interrupt.recv() => break None,
            _ = tick.tick() => if let Some(bar) = &bar {
                bar.set_style(style("{msg} {elapsed}"));
                bar.set_message(look::progress(gateway.hosts()));
                bar.tick();
            },
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(answer)
}

/// The refresh interval of the progress bar.
const TICK: Duration = Duration::from_millis(100);

/// The answer, or nothing if it was cancelled: the first Ctrl-C ends the window, a second one cancels.
async fn ask(gateway: &Gateway, tool: &str, call: Call) -> Result<Option<Answer>, Failure> {
    let bar = progress_bar(tool, call.duration);
    let opened = Arc::clone(&call.opened);
    let mut enough = call.can_end_early().then(|| Arc::clone(&call.enough));
    let mut interrupt = interrupts()?;
    let mut work = std::pin::pin!(gateway.call(call));
    let mut tick = tokio::time::interval(TICK);
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut work => break answer.map(Some),
            _ = interrupt.recv() => match enough.take() {
                Some(enough) => enough.notify_one(),
                None => break Ok(None),
            },
            _ = tick.tick() => if let Some(bar) = &bar { show(bar, opened.get()) },
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    answer
}

/// On a terminal, for what takes longer than a blink.
fn progress_bar(tool: &str, duration: Duration) -> Option<ProgressBar> {
    if !io::stderr().is_terminal() || duration < Duration::from_millis(500) {
        return None;
    }
    let bar = ProgressBar::new(duration.as_millis() as u64).with_message(tool.to_owned());
    Some(bar.with_style(style("{msg}: loading eBPF programs")))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The elapsed part of the window. The time before it opens does not count.
fn show(bar: &ProgressBar, opened: Option<&Instant>) {
    let Some(opened) = opened else { return bar.tick() };
    if bar.position() == 0 {
        bar.reset_elapsed();
        bar.set_style(style("{msg} {bar:40} {elapsed}"));
    }
    bar.set_position(opened.elapsed().as_millis() as u64);
}

/// A shell has only text: what it means is the schema's to say.
fn value(schema: &Value, key: &str, text: String) -> Value {
    let kind = &schema["properties"][key]["type"];
    let is_text = |kind: &Value| {
        kind == "string" || kind.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "string"))
    };
    if is_text(kind) { Value::String(text) } else { serde_json::from_str(&text).unwrap_or(Value::String(text)) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn argument_text_is_typed_by_the_schema() {
        let schema = json!({"properties": {"name": {"type": ["string", "null"]}, "n": {"type": "integer"}}});
        assert_eq!(value(&schema, "name", "5".into()), json!("5"));
        assert_eq!(value(&schema, "n", "5".into()), json!(5));
        assert_eq!(value(&schema, "n", "x".into()), json!("x"));
        assert_eq!(value(&schema, "unknown", "true".into()), json!(true));
    }
}
