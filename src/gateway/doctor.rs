//! Checks of this host: what works, what is missing, and how to fix it.

use std::{fmt::Write, path::Path};

use futures::future::join_all;
use serde_json::{Map, json};

use super::{Gateway, daemon};
use crate::{
    answer::Limitation,
    starter,
    tools::{QUESTIONS, Question, Tool, diagnose::Diagnose},
};

const ANSWERS: &str = "netmond answers";
/// Long enough for a tool to say what it cannot see.
const WINDOW_MS: u64 = 100;

/// One thing that was looked at.
struct Check {
    what: String,
    /// How to fix it, if it is broken.
    trouble: Option<String>,
}

impl Check {
    fn new(what: impl Into<String>, well: bool, trouble: impl Into<String>) -> Self {
        Check { what: what.into(), trouble: (!well).then(|| trouble.into()) }
    }
}

/// The report, and whether everything is well.
pub async fn examine(gateway: &Gateway, socket: &Path) -> (String, bool) {
    let mut checks = host(socket);
    checks.extend(ask(gateway).await);
    let mut text = String::new();
    for check in &checks {
        let _ = match &check.trouble {
            None => writeln!(text, "ok   {}", check.what),
            Some(trouble) => writeln!(text, "FAIL {}\n     {trouble}", check.what),
        };
    }
    let notes = limits(gateway, &checks).await;
    for (limit, tools) in &notes {
        let _ = writeln!(text, "note {limit}\n     limits {}", tools.join(", "));
    }
    let well = checks.iter().all(|check| check.trouble.is_none());
    let verdict = match (well, notes.is_empty()) {
        (true, true) => "\nAll checks passed: every tool works on this host.\n",
        (true, false) => "\nAll checks passed. The notes say what the tools cannot see on this host.\n",
        (false, _) => "\nSome checks failed: see the lines marked FAIL.\n",
    };
    (text + verdict, well)
}

fn host(socket: &Path) -> Vec<Check> {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let netmond = daemon::netmond();
    let found = netmond.is_absolute()
        || std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(&netmond).exists());
    let way = if socket.exists() {
        Check::new(format!("a service at {}", socket.display()), true, "")
    } else {
        let what = format!(
            "no service at {}; {}",
            socket.display(),
            if starter::was_root() {
                "running as root, so netmon-mcp starts one on demand"
            } else {
                "not running as root"
            }
        );
        Check::new(what, starter::was_root(), "start the service: sudo systemctl start netmond; or use sudo netmon-mcp")
    };
    vec![
        Check::new(
            format!("Linux {kernel} has BTF type information"),
            Path::new("/sys/kernel/btf/vmlinux").exists(),
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y, which distributions set since 2021",
        ),
        cgroups(),
        Check::new(
            format!("netmond is installed ({})", netmond.display()),
            found,
            "install netmond beside netmon-mcp, or put it in PATH",
        ),
        way,
    ]
}

/// Units and containers are named by their cgroups of version 2.
fn cgroups() -> Check {
    let there = |path: &str| Path::new(path).join("cgroup.controllers").exists();
    let what = match (there("/sys/fs/cgroup"), there("/sys/fs/cgroup/unified")) {
        (true, _) => "cgroup v2: units and containers have names",
        (_, true) => "cgroup v2 beside v1: units have names; containers only in v1 have none",
        _ => {
            let trouble = "units and containers have no names: boot with systemd.unified_cgroup_hierarchy=1";
            return Check::new("cgroup v2 is mounted", false, trouble);
        }
    };
    Check::new(what, true, "")
}

/// What this host does not show to the tools, from a short window of each: every text once, with the tools that say it.
async fn limits(gateway: &Gateway, checks: &[Check]) -> Vec<(String, Vec<&'static str>)> {
    if checks.iter().any(|check| check.what == ANSWERS && check.trouble.is_some()) {
        return Vec::new();
    }
    let answers = join_all(QUESTIONS.iter().filter(|question| measures(question)).map(|question| async move {
        let input = json!({"duration_ms": WINDOW_MS}).as_object().cloned().unwrap_or_default();
        let answer = gateway.call(gateway.prepare(question.name, input)?).await?;
        Ok::<_, super::Failure>((question.name, answer.structured["measured"]["limits"].clone()))
    }));
    let mut notes: Vec<(String, Vec<&'static str>)> = Vec::new();
    for (tool, limits) in answers.await.into_iter().flatten() {
        let limits = serde_json::from_value::<Vec<Limitation>>(limits).unwrap_or_default();
        for limit in limits.into_iter().filter(|limit| !limit.code.is_of_a_window()) {
            match notes.iter_mut().find(|(text, _)| *text == limit.text) {
                Some((_, tools)) => tools.push(tool),
                None => notes.push((limit.text, vec![tool])),
            }
        }
    }
    notes
}

/// Whether it measures for a while by itself; `diagnose` asks the others.
fn measures(question: &Question) -> bool {
    question.recollect.is_none()
        && question.name != Diagnose::NAME
        && (question.input_schema)()["properties"].get("duration_ms").is_some()
}

async fn ask(gateway: &Gateway) -> Vec<Check> {
    let status = match gateway.prepare("status", Map::new()) {
        Ok(call) => gateway.call(call).await,
        Err(e) => Err(e),
    };
    let answer = match status {
        Ok(answer) => answer.structured,
        Err(e) => return vec![Check::new(ANSWERS, false, e.to_string())],
    };
    let daemon = &answer["daemon"];
    if daemon["connected"] != true {
        return vec![Check::new(ANSWERS, false, daemon["reason"].as_str().unwrap_or_default())];
    }
    let held = daemon["capabilities"].as_array().map_or(0, Vec::len);
    let mut checks = vec![
        Check::new(ANSWERS, true, ""),
        Check::new(
            format!("netmond runs as uid {} with {held} capabilities", daemon["uid"]),
            daemon["uid"] != 0,
            "netmond still runs as root: see its log",
        ),
    ];
    let recording = &answer["recording"];
    let what = match (recording["active"].as_bool(), recording["from"].as_str()) {
        (Some(true), from) => format!("the recorder is running; recording from {} on", from.unwrap_or("now")),
        (_, Some(from)) => format!("the recorder is not running; recording from {from} on"),
        _ => "no recording: start netmon-recorder to use since and until".into(),
    };
    let readable = recording["reason"].is_null() || recording["absent"] == true;
    checks.push(Check::new(what, readable, recording["reason"].as_str().unwrap_or_default()));
    for tool in answer["tools"].as_array().into_iter().flatten() {
        let name = tool["name"].as_str().unwrap_or_default();
        checks.push(Check::new(
            format!("{name} is available"),
            tool["available"] == true,
            tool["reason"].as_str().unwrap_or_default(),
        ));
    }
    checks
}
