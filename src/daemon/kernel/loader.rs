//! Loading the object of a tool: without what this kernel refuses, and with the name of what failed.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use super::{
    Common, Iterate, Program,
    feature::{Feature, Release},
    features::{Features, missing_capabilities},
    hub,
};
use crate::{
    answer::{Code, Limitation},
    wire::Error,
};
use libbpf_rs::{MapHandle, MapMut, OpenObject, ProgramMut, skel::OpenSkel};

/// The section of `bpf/files.h`.
const FILES: &str = ".rodata.files";
/// The map of `bpf/old_listeners.h`.
const OLD_LISTENERS: &str = "old_listeners";

/// Programs without which a tool still answers, and what its answers lack then.
pub struct Optional {
    /// Their names in the object.
    pub programs: &'static [&'static str],
    /// What they need besides their kind.
    pub needs: &'static [Feature],
    /// The limit in every answer without these programs: a sentence without its full stop and without the reason.
    /// `None` if only some questions need them; those are refused.
    pub lacks: Option<(Code, &'static str)>,
}

/// The limits of answers without one of the iterators over the host's TCP sockets.
pub mod lacks {
    use super::Code;

    /// What processes hold, in every network namespace.
    pub const HELD: Option<(Code, &str)> = Some((
        Code::OtherNamespacesNotSeen,
        "Sockets in other network namespaces are unavailable, and some owners are unknown",
    ));
    /// What is in the daemon's own network namespace, held or not.
    pub const UNHELD: Option<(Code, &str)> = Some((
        Code::UnheldTcpNotSeen,
        "TCP sockets without a process are unavailable: those in accept queues, and closed ones that still send",
    ));
    /// Orphans of other network namespaces.
    pub const ORPHANS: Option<(Code, &str)> =
        Some((Code::OrphansUnread, "Closed TCP sockets that still send are unavailable in other network namespaces"));
}

/// Collects what a tool loads, so that `status` can say what it costs.
pub struct Loader {
    features: Arc<Features>,
    common: Arc<Common>,
    optional: &'static [Optional],
    /// The programs, in the order of loading.
    pub programs: Vec<Program>,
    /// Those that were left out, and why.
    refused: Vec<(String, String)>,
    lacks: Vec<Limitation>,
}

impl Loader {
    pub fn new(features: Arc<Features>, common: Arc<Common>, optional: &'static [Optional]) -> Loader {
        Loader { features, common, optional, programs: Vec::new(), refused: Vec::new(), lacks: Vec::new() }
    }

    /// What this kernel has.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// The limits of the tool's answers without the programs that were left out: part of each sample.
    pub fn lacks(&self) -> Vec<Limitation> {
        self.lacks.clone()
    }

    /// Loads an object without the optional programs that this kernel refuses. Fails, before the kernel is asked, where
    /// a required one would be refused, or all of them.
    pub fn load<'obj, O: OpenSkel<'obj>>(&mut self, mut open: O) -> Result<O::Output, Error> {
        self.leave_out_refused(open.open_object_mut())?;
        self.tell_of_files(open.open_object_mut())?;
        FAILED.set(None);
        self.common.load(open).map_err(failure)
    }

    /// Sets `files_are_untrusted` of `bpf/files.h`, which is alone in its section. If it is 0, the table of old listeners
    /// stays empty, so it is made as small as possible.
    fn tell_of_files(&self, object: &mut OpenObject) -> Result<(), Error> {
        let are_untrusted = self.features.refusal(Feature::FileSockets).is_some();
        for mut map in object.maps_mut() {
            if map.name() == OLD_LISTENERS && !are_untrusted {
                map.set_max_entries(1)?;
            } else if map.name() == FILES
                && let Some(value) = map.initial_value_mut()
            {
                value.fill(are_untrusted.into());
            }
        }
        Ok(())
    }

    fn leave_out_refused(&mut self, object: &mut OpenObject) -> Result<(), Error> {
        let (mut kept, mut left_out) = (0, None);
        for mut program in object.progs_mut().filter(|program| program.autoload()) {
            let (name, section) =
                (program.name().to_string_lossy().into_owned(), program.section().to_string_lossy().into_owned());
            let optional = self.optional.iter().find(|optional| optional.programs.contains(&name.as_str()));
            let needs = optional.map_or(&[][..], |optional| optional.needs);
            match (self.refusal(&section, needs), optional) {
                (None, _) => kept += 1,
                (Some(reason), Some(optional)) => {
                    program.set_autoload(false);
                    left_out.get_or_insert_with(|| format!("program {name} needs {reason}"));
                    if let Some((code, text)) = optional.lacks
                        && !self.lacks.iter().any(|limit| limit.code == code)
                    {
                        self.lacks.push(Limitation::new(code, format!("{text}: requires {reason}.")));
                    }
                    self.refused.push((name, reason));
                }
                (Some(reason), None) => return Err(Error::Kernel(format!("program {name} needs {reason}"))),
            }
        }
        match left_out {
            Some(reason) if kept == 0 => Err(Error::Kernel(reason)),
            _ => Ok(()),
        }
    }

    /// Why the kernel does not load a program of this section, if it does not.
    fn refusal(&self, section: &str, needs: &[Feature]) -> Option<String> {
        let kind = Feature::of_section(section);
        let refused = kind.iter().chain(needs).find_map(|feature| {
            let reason = self.features.refusal(*feature)?;
            Some(format!("{feature} ({reason})"))
        });
        let tracepoint = || {
            let name = section.strip_prefix("tp_btf/")?;
            let missing = self.features.tracepoint(name).is_none();
            missing.then(|| format!("the tracepoint {name}, which is missing in Linux {}", Release::running()))
        };
        refused.or_else(tracepoint)
    }

    /// Why an optional program was left out, if it was.
    pub fn refused(&self, program: &str) -> Option<String> {
        self.refused.iter().find(|(name, _)| name == program).map(|(_, reason)| reason.clone())
    }

    /// Fails if all of these optional programs were left out.
    pub fn require_one_of(&self, programs: &[&str]) -> Result<(), Error> {
        let refused: Vec<_> = programs.iter().filter_map(|program| self.refused(program)).collect();
        match (refused.first(), programs.first()) {
            (Some(reason), Some(program)) if refused.len() == programs.len() => {
                Err(Error::Kernel(format!("program {program} needs {reason}")))
            }
            _ => Ok(()),
        }
    }

    /// Fails where the kernel does not have a feature that the whole tool needs.
    pub fn require(&self, feature: Feature) -> Result<(), Error> {
        let refused = |reason| Err(Error::Kernel(format!("it needs {feature} ({reason})")));
        self.features.refusal(feature).map_or(Ok(()), refused)
    }

    /// An iterator, which shows nothing if it was left out.
    pub fn iterator(&mut self, program: &ProgramMut<'_>) -> io::Result<Iterate> {
        self.optional(program).map(Iterate)
    }

    /// An optional program, if it was loaded.
    pub fn optional(&mut self, program: &ProgramMut<'_>) -> io::Result<Option<Program>> {
        if program.autoload() { self.program(program).map(Some) } else { Ok(None) }
    }

    /// Keeps a loaded program beyond the life of its object.
    pub fn program(&mut self, program: &ProgramMut<'_>) -> io::Result<Program> {
        let fd: OwnedFd = program.as_fd().try_clone_to_owned()?;
        let program = Program::new(&program.name().to_string_lossy(), fd);
        self.programs.push(program.clone());
        Ok(program)
    }

    /// A program at a tracepoint that other tools use too; `next` is where it goes on.
    pub fn shared(&mut self, program: &ProgramMut<'_>, next: &MapMut<'_>) -> Result<Program, Error> {
        let loaded = self.program(program)?;
        if let Some(hub) = self.common.hubs.at(&program.section().to_string_lossy()) {
            loaded.join(hub::Place { hub, next: Arc::new(self.map(next)?) });
        }
        Ok(loaded)
    }

    /// Keeps a map beyond the life of its object.
    pub fn map(&mut self, map: &MapMut<'_>) -> libbpf_rs::Result<MapHandle> {
        MapHandle::try_from(map)
    }

    /// Keeps a ring buffer, and the `.data.unread` of its object.
    pub fn ring(&mut self, records: &MapMut<'_>, unread: &MapMut<'_>) -> libbpf_rs::Result<Ring> {
        Ok(Ring { records: self.map(records)?, unread: self.map(unread)? })
    }
}

/// A ring buffer of `bpf/ring.h`.
pub struct Ring {
    pub records: MapHandle,
    /// A number of bytes.
    pub unread: MapHandle,
}

thread_local! {
    /// The program that the kernel refused last on this thread, and the errno: libbpf only logs them.
    static FAILED: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// Sends libbpf's messages to the log: they are for debugging; our errors are for users.
pub fn adopt_libbpf() {
    libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Debug, |_, text| {
        note_failure(&text);
        tracing::debug!(target: "libbpf", "{}", text.trim_end());
    })));
}

/// Looks at a message of libbpf for a program that was refused.
fn note_failure(message: &str) {
    // libbpf.c, bpf_object_load_prog: "prog '%s': BPF program load failed: %s", such as "-EPERM".
    let refused =
        message.strip_prefix("libbpf: prog '").and_then(|rest| rest.split_once("': BPF program load failed: "));
    if let Some((name, errno)) = refused {
        FAILED.set(Some((name.to_owned(), errno.trim().trim_start_matches('-').to_owned())));
    }
}

/// A refused object as an error: which program, which errno, which right is missing.
fn failure(e: libbpf_rs::Error) -> Error {
    let denied = matches!(e.kind(), libbpf_rs::ErrorKind::PermissionDenied);
    let missing = if denied { missing_capabilities() } else { Vec::new() };
    let lacks = if missing.is_empty() { String::new() } else { format!("; netmond lacks {}", missing.join(" and ")) };
    match (FAILED.take(), Error::from(e)) {
        (Some((program, errno)), Error::Kernel(text)) => {
            Error::Kernel(format!("program {program} ({errno}): {text}{lacks}"))
        }
        (_, e) => e,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libbpf_message_yields_the_refused_program() {
        FAILED.set(None);
        note_failure("libbpf: prog 'drop': -- BEGIN PROG LOAD LOG --\n");
        assert_eq!(FAILED.take(), None);
        note_failure("libbpf: prog 'drop': BPF program load failed: -EPERM\n");
        assert_eq!(FAILED.take(), Some(("drop".to_owned(), "EPERM".to_owned())));
    }
}
