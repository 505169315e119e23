//! The running kernel's BTF: names of its constants, and the arguments of its tracepoints.

use libbpf_rs::btf::{
    Btf,
    types::{Enum, Func, FuncProto, MemberAttr, Ptr, Struct, Typedef},
};

/// The kernel's own type information. A few megabytes: it is read while loading, and dropped.
pub struct Kernel(Btf<'static>);

// SAFETY: a `struct btf` of libbpf belongs to no thread; it is one allocation that `btf__free` gives back, on any.
unsafe impl Send for Kernel {}

impl Kernel {
    pub fn read() -> libbpf_rs::Result<Self> {
        Ok(Kernel(Btf::from_vmlinux()?))
    }

    /// The members of an enum by number, without what they all begin with.
    pub fn names(&self, name: &str, prefix: &str) -> Vec<(u32, String)> {
        let Some(members) = self.0.type_by_name::<Enum>(name) else { return Vec::new() };
        let named = members.iter().filter_map(|m| Some((m.value as u32, m.name?.to_str()?)));
        named.map(|(value, name)| (value, name.trim_start_matches(prefix).to_owned())).collect()
    }

    /// The number of arguments of a tracepoint; `None` if the kernel has no such tracepoint.
    pub fn arguments(&self, tracepoint: &str) -> Option<usize> {
        let pointer = Ptr::try_from(self.0.type_by_name::<Typedef>(&format!("btf_trace_{tracepoint}"))?.next_type()?);
        let function = FuncProto::try_from(pointer.ok()?.next_type()?).ok()?;
        Some(function.len().saturating_sub(1)) // the first is the tracepoint's own
    }

    /// Whether the kernel has a function that programs may call, or any other of that name.
    pub fn has_function(&self, name: &str) -> bool {
        self.function(name).is_some()
    }

    /// The number of a function's type.
    pub fn function(&self, name: &str) -> Option<u32> {
        Some(self.0.type_by_name::<Func>(name)?.type_id().into())
    }

    /// Where a member is in a struct, in bytes.
    pub fn offset(&self, name: &str, member: &str) -> Option<u32> {
        let members = self.0.type_by_name::<Struct>(name)?;
        let found = members.iter().find(|found| found.name.is_some_and(|name| name == member))?;
        match found.attr {
            MemberAttr::Normal { offset } => Some(offset / u8::BITS),
            MemberAttr::BitField { .. } => None,
        }
    }

    /// The number of a tracepoint's type.
    pub fn tracepoint(&self, name: &str) -> Option<u32> {
        Some(self.0.type_by_name::<Typedef>(&format!("btf_trace_{name}"))?.type_id().into())
    }
}
