//! Bearer tokens: who may come in, by name. Kept as digests, compared in constant time, read again when
//! the file changes.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Mutex,
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest, rand};

use crate::{bpf::lock, limits, logging::Throttle};

/// A file of which we want to know when it has changed.
pub struct Watched {
    pub path: PathBuf,
    seen: Mutex<Option<Stamp>>,
}

/// A write changes the times or the size, a rename the inode, a change of its mode the second time.
type Stamp = (u64, u64, [i64; 4]);

impl Watched {
    pub fn new(path: PathBuf) -> Self {
        Watched { path, seen: Mutex::default() }
    }

    /// Whether the file is another one than at the last call. One that is gone has not changed: it may be
    /// on its way back.
    pub fn changed(&self) -> bool {
        let Ok(meta) = fs::metadata(&self.path) else { return false };
        let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
        let stamp = Some((meta.ino(), meta.size(), times));
        let mut seen = lock(&self.seen);
        std::mem::replace(&mut *seen, stamp) != stamp
    }

    /// Makes the next [`Watched::changed`] true.
    pub fn forget(&self) {
        *lock(&self.seen) = None;
    }
}

/// A file that does not read is tried again at each request.
static FAILURES: Throttle = Throttle::new(1);

/// The tokens of a file: a line each, `NAME TOKEN`.
pub struct Tokens {
    file: Watched,
    known: Mutex<Vec<Token>>,
}

struct Token {
    name: String,
    digest: digest::Digest,
}

impl Tokens {
    /// The tokens of the file, or what is wrong with it.
    pub fn load(path: &Path) -> io::Result<Tokens> {
        let file = Watched::new(path.into());
        file.changed();
        Ok(Tokens { known: Mutex::new(read(path)?), file })
    }

    /// The name of who has this token. A file that has changed is read first, so that a token that was
    /// taken out of it is refused from then on.
    pub fn name(&self, token: &str) -> Option<String> {
        if self.file.changed() {
            self.reload();
        }
        let digest = digest::digest(&digest::SHA256, token.as_bytes());
        let known = lock(&self.known);
        // Every token is compared, so that the time says nothing about which one came close.
        let found = known.iter().fold(None, |found, token| {
            if verify_slices_are_equal(token.digest.as_ref(), digest.as_ref()).is_ok() { Some(token) } else { found }
        });
        found.map(|token| token.name.clone())
    }

    /// Has the file read again at the next request, changed or not.
    pub fn forget(&self) {
        self.file.forget();
    }

    fn reload(&self) {
        match read(&self.file.path) {
            Ok(tokens) => {
                tracing::info!(tokens = tokens.len(), "read the tokens again");
                *lock(&self.known) = tokens;
            }
            Err(e) => {
                self.file.forget(); // a token that was taken out must not outlive what is wrong with the file
                if let Some(skipped) = FAILURES.admit() {
                    tracing::error!(skipped, "the tokens stay as they were: {e}");
                }
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<Token>> {
    let wrong = |e: &dyn std::fmt::Display| io::Error::other(format!("{}: {e}", path.display()));
    let meta = fs::metadata(path).map_err(|e| wrong(&e))?;
    if meta.mode() & 0o007 != 0 {
        return Err(wrong(&"every user of this host may read or change it; `chmod o= ` ends that"));
    }
    parse(&fs::read_to_string(path).map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))
}

/// Reads `NAME TOKEN` lines. What is wrong is said without the token.
fn parse(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens: Vec<Token> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let mut words = line.split_whitespace();
        let (name, token) = match (words.next(), words.next(), words.next()) {
            (None, ..) => continue,
            (Some(name), ..) if name.starts_with('#') => continue,
            (Some(name), Some(token), None) => (name, token),
            _ => return Err(format!("line {number} is not NAME TOKEN")),
        };
        if token.len() < limits::TOKEN_BYTES_MIN {
            return Err(format!(
                "line {number}: the token of {name} has fewer than {} characters; `netmon-mcp token {name}` makes a good one",
                limits::TOKEN_BYTES_MIN
            ));
        }
        if tokens.iter().any(|token| token.name == name) {
            return Err(format!("line {number}: there is a token of {name} already"));
        }
        tokens.push(Token { name: name.into(), digest: digest::digest(&digest::SHA256, token.as_bytes()) });
    }
    if tokens.is_empty() { Err("no line of it is NAME TOKEN".into()) } else { Ok(tokens) }
}

/// A new token: 256 bits of the kernel's randomness, in hexadecimal.
pub fn generate() -> io::Result<String> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(|_| io::Error::other("the kernel gave no random bytes"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::PermissionsExt};

    use super::*;

    const ONE: &str = "one 0123456789abcdef0123456789abcdef\n";
    const TWO: &str = "# a comment\n\ntwo fedcba9876543210fedcba9876543210\n";

    fn written(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn each_token_has_its_name_and_others_have_none() {
        let file = written(&format!("{ONE}{TWO}"));
        let tokens = Tokens::load(file.path()).unwrap();
        assert_eq!(tokens.name("0123456789abcdef0123456789abcdef").as_deref(), Some("one"));
        assert_eq!(tokens.name("fedcba9876543210fedcba9876543210").as_deref(), Some("two"));
        for other in ["", "one", "0123456789abcdef0123456789abcde", "0123456789abcdef0123456789abcdef0"] {
            assert_eq!(tokens.name(other), None);
        }
    }

    #[test]
    fn a_file_that_is_renamed_into_place_counts_at_once_and_a_broken_one_does_not() {
        let file = written(ONE);
        let tokens = Tokens::load(file.path()).unwrap();
        written(TWO).persist(file.path()).unwrap();
        assert_eq!(tokens.name("0123456789abcdef0123456789abcdef"), None);
        assert_eq!(tokens.name("fedcba9876543210fedcba9876543210").as_deref(), Some("two"));
        written("nonsense\n").persist(file.path()).unwrap();
        assert_eq!(tokens.name("fedcba9876543210fedcba9876543210").as_deref(), Some("two"));
    }

    #[test]
    fn a_file_that_does_not_protect_is_refused_without_its_secrets() {
        for text in ["", "one\n", "one short\n", "one a b\n", &format!("{ONE}{ONE}")] {
            let reason = Tokens::load(written(text).path()).err().unwrap().to_string();
            assert!(!reason.contains("short") && !reason.contains("0123456789abcdef"), "{reason}");
        }
        let open = written(ONE);
        fs::set_permissions(open.path(), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Tokens::load(open.path()).err().unwrap().to_string().contains("every user"));
    }

    #[test]
    fn a_generated_token_is_long_and_new() {
        let (a, b) = (generate().unwrap(), generate().unwrap());
        assert!(a.len() == 64 && a != b);
    }
}
