//! What this host allows, what is missing, and how to mend it.

use std::{fmt::Write, path::Path};

use serde_json::Map;

use super::{Gateway, daemon};
use crate::sandbox;

/// One thing that was looked at.
struct Check {
    what: String,
    /// How to mend it, if it is not well.
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
    let well = checks.iter().all(|check| check.trouble.is_none());
    let verdict = if well {
        "\nEverything that netmon-mcp can measure, it can measure here.\n"
    } else {
        "\nSee the lines marked FAIL.\n"
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
            if sandbox::is_root() { "root, so one is started on demand" } else { "not root" }
        );
        Check::new(what, sandbox::is_root(), "start the service: sudo systemctl start netmond; or use sudo netmon-mcp")
    };
    vec![
        Check::new(
            format!("Linux {kernel} describes its types (BTF)"),
            sandbox::has_btf(),
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y; distributions' kernels since 2021 have it",
        ),
        Check::new(
            format!("netmond is installed ({})", netmond.display()),
            found,
            "install netmond beside netmon-mcp, or put it in PATH",
        ),
        way,
    ]
}

async fn ask(gateway: &Gateway) -> Vec<Check> {
    let status = match gateway.prepare("status", Map::new()) {
        Ok(call) => gateway.call(call).await,
        Err(e) => Err(e),
    };
    let answer = match status {
        Ok(answer) => answer.structured,
        Err(e) => return vec![Check::new("netmond answers", false, e.to_string())],
    };
    let daemon = &answer["daemon"];
    if daemon["connected"] != true {
        return vec![Check::new("netmond answers", false, daemon["reason"].as_str().unwrap_or_default())];
    }
    let held = daemon["capabilities"].as_array().map_or(0, Vec::len);
    let mut checks = vec![
        Check::new("netmond answers", true, ""),
        Check::new(
            format!("netmond serves as uid {} with {held} capabilities", daemon["uid"]),
            daemon["uid"] != 0,
            "it should have become a system user: see its log",
        ),
    ];
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
