//! A kernel that refuses more than the running one, for tests.

use std::{collections::HashMap, io};

/// Features that the probe denies in tests, on any kernel: `NETMON_TEST_DENY=fexit,iter/tcp=EMFILE,sock_send_length`
/// lists features and tracepoints. The released programs ignore it.
#[derive(Default)]
pub struct Denied(HashMap<String, Denial>);

pub struct Denial(i32);

impl Denial {
    /// The error that the probe meets.
    pub fn error(&self) -> io::Error {
        io::Error::from_raw_os_error(self.0)
    }
}

impl Denied {
    pub fn from_environment() -> Denied {
        let named = cfg!(debug_assertions).then(|| std::env::var("NETMON_TEST_DENY").ok()).flatten();
        named.map_or_else(Denied::default, |names| Denied::parse(&names))
    }

    fn parse(names: &str) -> Denied {
        let denial = |name: &str| match name.split_once('=') {
            Some((name, "EMFILE")) => (name.to_owned(), Denial(libc::EMFILE)),
            Some((name, "ENOMEM")) => (name.to_owned(), Denial(libc::ENOMEM)),
            Some((name, "EINVAL")) => (name.to_owned(), Denial(libc::EINVAL)),
            _ => (name.to_owned(), Denial(libc::EPERM)),
        };
        Denied(names.split(',').filter(|name| !name.is_empty()).map(denial).collect())
    }

    pub fn of(&self, name: &str) -> Option<&Denial> {
        self.0.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_features_are_parsed() {
        let denied = Denied::parse("fexit,iter/tcp=EMFILE,");
        assert_eq!(denied.of("fexit").map(|denial| denial.0), Some(libc::EPERM));
        assert_eq!(denied.of("iter/tcp").map(|denial| denial.0), Some(libc::EMFILE));
        assert!(denied.of("xdp").is_none());
    }
}
