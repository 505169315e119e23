//! What a process gives up once everything is open.
//!
//! Each layer is tried, and `status` and the log show the layers that this kernel did not apply. A missing layer does
//! not stop the service: the capabilities were dropped before.

use std::{io, sync::OnceLock};

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

use super::{
    files::{self, Reach},
    layer::{Layer, MEMORY, Role},
    syscalls,
};

static LAYERS: OnceLock<Vec<Layer>> = OnceLock::new();

/// Confines this process to `role`, for good; a gateway also has `reach`. Call it on the
/// thread that starts all others that serve: Landlock is a thread's own and only inherited by those it starts.
pub fn confine(role: Role, reach: &Reach) -> &'static [Layer] {
    LAYERS.get_or_init(|| {
        let _ = super::no_new_privileges(); // seccomp and Landlock of an ordinary user want it, and say so
        let layers = vec![no_core_dumps(), memory(role), files::restrict(role, reach), syscalls::restrict(role)];
        for layer in layers.iter().filter(|layer| !layer.applied) {
            let Layer { name, detail, .. } = layer;
            match layer.is_lacking() {
                true => tracing::warn!(layer = name, "not applied: {detail}"),
                false => tracing::info!(layer = name, "not applied: {detail}"),
            }
        }
        layers
    })
}

/// The layers of this process; none before [`confine`].
pub fn layers() -> Vec<Layer> {
    LAYERS.get().cloned().unwrap_or_default()
}

/// Kernel data must not reach a core file, nor another process of this user.
fn no_core_dumps() -> Layer {
    let applied = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable));
    let text = "no core dumps, no debugger: other processes of this user cannot read the memory";
    Layer::new("dumps", applied.map(|()| text.into()).map_err(|e| e.to_string()))
}

/// Lets [`confine`] lock memory later, if root is still there to allow it. A refusal is reported then.
pub fn allow_locking() {
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}

/// Keeps kernel data out of swap. Only pages in use are locked.
fn memory(role: Role) -> Layer {
    let result = if role == Role::Recorder {
        Ok("writes its data to disk".to_owned())
    } else if !matches!(role, Role::Daemon) {
        Ok("keeps kernel data for one answer only".to_owned())
    } else if getrlimit(Resource::Memlock).current.is_some() {
        // Locked beyond the limit, a later allocation would fail: better swap than an answer lost.
        Err("memory may be swapped: locking requires an unlimited RLIMIT_MEMLOCK (LimitMEMLOCK=infinity)".into())
    } else {
        // SAFETY: no pointer is passed.
        match unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) } {
            0 => Ok("memory is locked, never swapped".to_owned()),
            _ => Err(io::Error::last_os_error().to_string()),
        }
    };
    Layer::new(MEMORY, result)
}
