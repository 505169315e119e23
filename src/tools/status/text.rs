//! What this server can see, and the table of tools.

use super::Output;
use crate::{answer, untrusted};

/// The answer for a person.
pub fn text(output: &Output) -> String {
    let d = &output.daemon;
    let mut text = match (&d.reason, output.memory_bytes) {
        (Some(reason), _) => format!("netmon-mcp {}; netmond is unavailable: {reason}\n\n", output.version),
        (None, memory) => format!(
            "netmon-mcp {} on Linux {}; netmond pid {} uid {}, capabilities: {}, {} resident, up {} s\n\n",
            output.version,
            output.kernel.as_deref().unwrap_or("?"),
            answer::or_dash(&d.pid),
            answer::or_dash(&d.uid),
            if d.capabilities.is_empty() { "none".into() } else { d.capabilities.join(" ") },
            answer::bytes(memory.unwrap_or_default()),
            answer::or_dash(&output.uptime_s),
        ),
    };
    for (process, layers) in [("netmond", &d.sandbox), ("netmon-mcp", &output.gateway.sandbox)] {
        for layer in layers.iter().filter(|layer| layer.is_lacking()) {
            text += &format!("{process}: {} is not applied: {}\n", layer.name, layer.detail);
        }
    }
    for feature in output.kernel_features.iter().filter(|feature| feature.available != Some(true)) {
        let known = if feature.available == Some(false) { "unavailable" } else { "unknown" };
        text += &format!("kernel: {}: {known}: {}\n", feature.name, feature.reason.as_deref().unwrap_or_default());
    }
    text += &answer::table(
        ["tool", "available", "?>links", "?>runs", "?>ns/run", "reason"],
        output.tools.iter().map(|tool| {
            let runs: u64 = tool.programs.iter().map(|program| program.run_count).sum();
            let ns: u64 = tool.programs.iter().map(|program| program.run_time_ns).sum();
            let cost = ns.checked_div(runs).map_or_else(|| "-".into(), |ns| ns.to_string());
            let available = if tool.available { "yes" } else { "no" };
            [
                tool.name.clone(),
                available.into(),
                tool.links.len().to_string(),
                runs.to_string(),
                cost,
                tool.reason.clone().unwrap_or_default(),
            ]
        }),
    );
    untrusted::lines(&text)
}
