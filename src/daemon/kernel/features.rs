//! What this kernel lets us load, found out once.
//!
//! Kernels differ: an old one lacks a kind of program, a vendor's refuses one by policy. A short program of each kind
//! shows it. Refused programs are left out of every object before it is loaded, so that no object is loaded twice;
//! [`status`](crate::tools::status) has the list.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, OnceLock},
};

use caps::{CapSet, CapsHashSet};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    denied::Denied,
    feature::{Feature, Release},
    probe,
};
use crate::{answer::errno_name, daemon::kernel::btf::Kernel, sandbox, sync::lock};

/// Whether the kernel has a feature.
#[derive(Clone, Debug, PartialEq)]
pub enum Support {
    /// It has; while serving, its programs need these capabilities.
    Available(CapsHashSet),
    /// It has not, or refuses it; the reason is a phrase, such as "EPERM: netmond lacks CAP_BPF".
    Refused(String),
    /// The probe failed for a reason that says nothing about the kernel, such as EMFILE.
    Unknown(String),
}

// A feature, as `status` shows it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[schemars(inline)]
pub struct KernelFeature {
    pub name: String,
    // null: the probe itself failed.
    pub available: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The features of the running kernel, and its types.
pub struct Features {
    found: HashMap<Feature, Support>,
    /// While tools are loaded; dropped afterwards.
    kernel: Mutex<Option<Kernel>>,
    denied: Denied,
}

impl Features {
    /// Asks the kernel. The calling thread holds the capabilities for loading.
    pub fn probe() -> Features {
        let denied = Denied::from_environment();
        let kernel = match denied.of(Feature::Btf.name()) {
            Some(denial) => Err(denial.error()),
            None => Kernel::read().map_err(|e| io::Error::other(format!("{e:#}"))),
        };
        let prober = Prober { kernel: kernel.as_ref().ok(), denied: &denied };
        let btf = kernel.as_ref().map_or_else(no_btf, |_| Support::Available(CapsHashSet::new()));
        let mut found = HashMap::from([(Feature::Btf, btf)]);
        for feature in Feature::ALL.into_iter().skip(1) {
            let support = prober.support(feature);
            match &support {
                Support::Available(_) => {}
                Support::Refused(reason) => tracing::info!(feature = feature.name(), "unavailable: {reason}"),
                Support::Unknown(reason) => tracing::warn!(feature = feature.name(), "probing failed: {reason}"),
            }
            found.insert(feature, support);
        }
        Features { found, kernel: Mutex::new(kernel.ok()), denied }
    }

    /// Features without a kernel, for tests.
    #[cfg(test)]
    pub fn none() -> Features {
        Features { found: HashMap::new(), kernel: Mutex::default(), denied: Denied::default() }
    }

    pub fn support(&self, feature: Feature) -> &Support {
        static UNASKED: OnceLock<Support> = OnceLock::new();
        self.found.get(&feature).unwrap_or_else(|| UNASKED.get_or_init(|| Support::Unknown("not probed".into())))
    }

    /// Why the kernel does not load what needs `feature`; `None` if it does, or if that is not known.
    pub fn refusal(&self, feature: Feature) -> Option<&str> {
        match self.support(feature) {
            Support::Refused(reason) => Some(reason),
            Support::Available(_) | Support::Unknown(_) => None,
        }
    }

    /// The capabilities that programs with these features need while serving.
    pub fn keeps(&self, features: impl IntoIterator<Item = Feature>) -> CapsHashSet {
        let wanted = |feature| match self.support(feature) {
            Support::Available(needs) => needs.clone(),
            Support::Refused(_) | Support::Unknown(_) => CapsHashSet::new(),
        };
        features.into_iter().flat_map(wanted).collect()
    }

    /// Reads the kernel's types; `None` if it has none, or after everything is loaded.
    pub fn kernel<T>(&self, ask: impl FnOnce(&Kernel) -> T) -> Option<T> {
        self.types().as_ref().map(ask)
    }

    /// The number of arguments of a tracepoint; `None` if this kernel has no such tracepoint.
    pub fn tracepoint(&self, name: &str) -> Option<usize> {
        if self.denied.of(name).is_some() {
            return None;
        }
        self.kernel(|kernel| kernel.arguments(name))?
    }

    fn types(&self) -> MutexGuard<'_, Option<Kernel>> {
        lock(&self.kernel)
    }

    /// Gives the kernel's types back: megabytes, which nothing needs once everything is loaded.
    pub fn forget_types(&self) {
        *self.types() = None;
    }

    /// For `status`, in the order of [`Feature::ALL`].
    pub fn list(&self) -> Vec<KernelFeature> {
        let described = |feature: Feature| {
            let (available, reason) = match self.support(feature) {
                Support::Available(_) => (Some(true), None),
                Support::Refused(reason) => (Some(false), Some(reason.clone())),
                Support::Unknown(reason) => (None, Some(reason.clone())),
            };
            KernelFeature { name: feature.name().into(), available, reason }
        };
        Feature::ALL.into_iter().map(described).collect()
    }
}

fn no_btf(e: &io::Error) -> Support {
    Support::Refused(format!(
        "/sys/kernel/btf/vmlinux is unreadable ({e}): boot a kernel with CONFIG_DEBUG_INFO_BTF=y, which distributions \
            set since 2021"
    ))
}

struct Prober<'a> {
    kernel: Option<&'a Kernel>,
    denied: &'a Denied,
}

impl Prober<'_> {
    fn support(&self, feature: Feature) -> Support {
        if let Some(denial) = self.denied.of(feature.name()) {
            return explain(feature, &denial.error());
        }
        let Some(kernel) = self.kernel else {
            return Support::Refused("the kernel has no BTF type information (see btf)".into());
        };
        let known = |function: &str| match kernel.has_function(function) {
            true => Support::Available(CapsHashSet::new()),
            false => Support::Refused(too_old(feature)),
        };
        match feature {
            Feature::Btf => Support::Available(CapsHashSet::new()),
            // The function behind the helper of tracing programs, and the helper itself.
            Feature::SocketStorage => known("bpf_get_socket_ptr_cookie"),
            Feature::Loop => known("bpf_loop"),
            _ => match probe::load(feature, kernel) {
                Ok(program) => self.attachable(feature, &program),
                Err(e) => explain(feature, &e),
            },
        }
    }

    fn attachable(&self, feature: Feature, program: &OwnedFd) -> Support {
        match sandbox::needed(|| probe::attach(feature, program)) {
            Ok(needs) => Support::Available(needs),
            Err(e) => explain(feature, &e),
        }
    }
}

/// The meaning of a probe's error.
fn explain(feature: Feature, e: &io::Error) -> Support {
    let errno = e.raw_os_error().unwrap_or(0);
    match errno {
        libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::EINTR | libc::ENOSPC | libc::EBUSY => {
            Support::Unknown(format!("{}: {e}", errno_name(errno)))
        }
        _ => Support::Refused(refusal(feature, errno, Release::running(), missing_capabilities())),
    }
}

/// The capabilities for loading that this thread does not hold.
pub fn missing_capabilities() -> Vec<String> {
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    sandbox::LOADING.iter().filter(|wanted| !held.contains(wanted)).map(ToString::to_string).collect()
}

fn refusal(feature: Feature, errno: i32, running: Release, missing: Vec<String>) -> String {
    match errno_name(errno) {
        _ if running < feature.since() => too_old(feature),
        _ if feature == Feature::Cgroup && errno == libc::ENOENT => {
            "cgroup v2 is not mounted at /sys/fs/cgroup or /sys/fs/cgroup/unified".into()
        }
        name if feature == Feature::FileSockets && errno == libc::EACCES && missing.is_empty() => {
            format!("{name}: the verifier does not trust such a socket; netmond reads a copy")
        }
        name if [libc::EPERM, libc::EACCES].contains(&errno) && !missing.is_empty() => {
            format!("{name}: netmond lacks {}", missing.join(" and "))
        }
        name if [libc::EPERM, libc::EACCES].contains(&errno) => {
            format!("{name}: a kernel policy denies it; Linux {running} is new enough")
        }
        name => format!("{name}: this kernel was built without it"),
    }
}

fn too_old(feature: Feature) -> String {
    match (Release::running(), feature.since()) {
        (running, since) if running < since => format!("Linux {running} is too old: {feature} needs {since} or newer"),
        _ => "this kernel was built without it".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_distinguishes_age_policy_and_capabilities() {
        let text = |errno, running, missing: &[&str]| {
            refusal(Feature::Fexit, errno, running, missing.iter().map(ToString::to_string).collect())
        };
        assert!(text(libc::EPERM, Release(6, 18), &[]).starts_with("EPERM: a kernel policy denies it"));
        assert_eq!(text(libc::EPERM, Release(6, 18), &["CAP_BPF"]), "EPERM: netmond lacks CAP_BPF");
        assert_eq!(text(524, Release(6, 18), &[]), "ENOTSUPP: this kernel was built without it");
        let unmounted = refusal(Feature::Cgroup, libc::ENOENT, Release(6, 18), Vec::new());
        assert!(unmounted.starts_with("cgroup v2 is not mounted"), "{unmounted}");
        // The running kernel is newer than 5.5, so only the given release decides here.
        assert!(!text(libc::EINVAL, Release(5, 4), &[]).contains("EINVAL"));
    }

    #[test]
    fn exhausted_resources_leave_support_unknown() {
        for errno in [libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::EAGAIN, libc::ENOSPC] {
            let support = explain(Feature::IterateTcp, &io::Error::from_raw_os_error(errno));
            assert!(matches!(&support, Support::Unknown(reason) if reason.starts_with('E')), "{support:?}");
        }
    }
}
