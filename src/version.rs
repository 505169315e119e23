//! Which build this is.

use std::sync::LazyLock;

/// What `--version` prints: the version, and the revision if the build knows it (`NETMON_REVISION`, which the flake sets).
pub static VERSION: LazyLock<String> =
    LazyLock::new(|| described(env!("CARGO_PKG_VERSION"), option_env!("NETMON_REVISION")));

fn described(version: &str, revision: Option<&str>) -> String {
    revision.map_or_else(|| version.to_owned(), |revision| format!("{version} ({revision})"))
}

#[cfg(test)]
mod tests {
    use super::described;

    #[test]
    fn version_shows_a_known_revision() {
        assert_eq!(described("1.2.3", Some("0a1b2c")), "1.2.3 (0a1b2c)");
        assert_eq!(described("1.2.3", None), "1.2.3");
    }
}
