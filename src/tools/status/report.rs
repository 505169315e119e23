//! What this server can see, with a daemon and without.

use super::{Daemon, Gateway, Output, Sample, ToolStatus};
use crate::{sandbox, tools::QUESTIONS};

/// The answer.
pub fn report(sample: Sample) -> Output {
    Output {
        version: env!("CARGO_PKG_VERSION").into(),
        kernel: Some(sample.kernel),
        daemon: Daemon {
            connected: true,
            reason: None,
            version: Some(sample.version),
            pid: Some(sample.pid),
            uid: Some(sample.uid),
            capabilities: sample.capabilities,
            sandbox: sample.sandbox,
        },
        gateway: Gateway { sandbox: sandbox::layers() },
        kernel_features: sample.kernel_features,
        tools: sample.tools,
        memory_bytes: Some(sample.memory_bytes),
        uptime_s: Some(sample.uptime_s),
    }
}

/// The answer without a daemon.
pub fn without_daemon(reason: &str) -> Output {
    let unavailable = |name: &str| ToolStatus {
        name: name.into(),
        available: false,
        reason: Some("no daemon".into()),
        windows: 0,
        links: vec![],
        programs: vec![],
        keeps: vec![],
    };
    Output {
        version: env!("CARGO_PKG_VERSION").into(),
        kernel: Some(rustix::system::uname().release().to_string_lossy().into_owned()),
        daemon: Daemon {
            connected: false,
            reason: Some(reason.into()),
            version: None,
            pid: None,
            uid: None,
            capabilities: vec![],
            sandbox: vec![],
        },
        gateway: Gateway { sandbox: sandbox::layers() },
        kernel_features: vec![],
        tools: QUESTIONS.iter().filter(|q| q.recollect.is_none()).map(|q| unavailable(q.name)).collect(),
        memory_bytes: None,
        uptime_s: None,
    }
}
