//! Third-party programs, installed by `tests/clients/install` once for all tests.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

/// The folder of the installation.
pub fn packages() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients");
        let status = Command::new(driver("install")).arg(&folder).status().unwrap();
        assert!(
            status.success(),
            "tests/clients/install failed; it needs npm, python3 with venv, and their registries"
        );
        folder
    })
}

/// Our own file beside it.
pub fn driver(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// The installed Node.
pub fn node() -> Command {
    let machine = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
    Command::new(packages().join(format!("node/node_modules/node-linux-{machine}/bin/node")))
}

/// Our own script, run by the Python with the packages.
pub fn python(script: &str) -> Command {
    let mut command = Command::new(packages().join("python/bin/python"));
    command.arg(driver(script));
    command
}

/// A program of a package, run by the installed Node.
pub fn program(script: &str) -> Command {
    let mut command = node();
    command.arg(packages().join("node/node_modules").join(script));
    command
}

pub fn succeeds(mut command: Command) -> Output {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{}", text(&output.stdout), text(&output.stderr));
    output
}
