//! Bearer tokens by client name. They are stored as digests, compared in constant time, and reloaded when the file
//! changes. A token that is removed from the file is refused at once, even if the file has errors.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest, rand};
use tokio_util::sync::CancellationToken;

use super::{
    identity::{Grant, Identity, Scope},
    watched::{self, Watched},
};
use crate::{gateway::hosts, limits, sync::lock, untrusted};

/// The prefix of a digest instead of a token.
const DIGEST: &str = "sha256:";

/// The tokens of a file: a line each, `NAME TOKEN [tools=…] [hosts=…]`.
pub struct Tokens {
    file: Watched,
    known: Mutex<Vec<Token>>,
}

/// One line.
struct Token {
    name: String,
    digest: [u8; digest::SHA256_OUTPUT_LEN],
    /// Whether the file holds the token itself, and not its digest.
    plain: bool,
    scope: Arc<Scope>,
    /// Cancelled when the line is gone.
    withdrawn: CancellationToken,
}

impl Token {
    fn is_same(&self, other: &Token) -> bool {
        self.name == other.name && self.digest == other.digest && self.scope == other.scope
    }
}

/// The content of a token file, and the faults of ignored lines.
struct Parsed {
    tokens: Vec<Token>,
    faults: Vec<String>,
}

impl Tokens {
    /// The tokens of the file. At startup, a fault in any line is an error, because an administrator reads it.
    pub fn load(path: &Path) -> io::Result<Tokens> {
        let file = Watched::new(path.into());
        file.changed();
        let Parsed { tokens, faults } = read(path)?;
        if let Some(fault) = faults.first() {
            return Err(io::Error::other(format!("{}: {fault}", path.display())));
        }
        if tokens.is_empty() {
            tracing::warn!("{} has no tokens: no client can authenticate with one", path.display());
        }
        Ok(Tokens { known: Mutex::new(tokens), file })
    }

    /// No token, and none to come.
    pub fn nobody() -> Tokens {
        let file = Watched::new("/nonexistent".into());
        file.changed();
        Tokens { file, known: Mutex::default() }
    }

    /// The grant of this token.
    pub fn grant(&self, token: &str) -> Option<Grant> {
        self.refresh();
        let digest = sha256(token);
        let known = lock(&self.known);
        // Every token is compared, so that the time says nothing about which one came close.
        let found = known.iter().fold(None, |found, token| {
            if verify_slices_are_equal(&token.digest, &digest).is_ok() { Some(token) } else { found }
        });
        found.map(|token| Grant {
            identity: Identity::Token(token.name.clone()),
            scope: Arc::clone(&token.scope),
            withdrawn: token.withdrawn.clone(),
            expires: None,
        })
    }

    /// Whether any line has this name.
    pub fn lists(&self, name: &str) -> bool {
        lock(&self.known).iter().any(|token| token.name == name)
    }

    /// Has the file read again at the next look, changed or not.
    pub fn forget(&self) {
        self.file.forget();
    }

    /// Reloads the file if it has changed, and revokes removed tokens. A file that is missing, unreadable or
    /// world-readable has no tokens.
    pub fn refresh(&self) {
        if !self.file.changed() {
            return;
        }
        let Parsed { mut tokens, faults } =
            read(&self.file.path).unwrap_or_else(|e| Parsed { tokens: Vec::new(), faults: vec![e.to_string()] });
        let mut known = lock(&self.known);
        for fault in &faults {
            tracing::error!("token file: {fault}");
        }
        let mut changed = tokens.len() != known.len();
        for old in known.drain(..) {
            match tokens.iter_mut().find(|token| token.is_same(&old)) {
                Some(same) => same.withdrawn = old.withdrawn,
                None => {
                    changed = true;
                    old.withdrawn.cancel();
                }
            }
        }
        if changed {
            tracing::info!(tokens = tokens.len(), "token file reloaded");
        }
        *known = tokens;
    }
}

fn sha256(text: &str) -> [u8; digest::SHA256_OUTPUT_LEN] {
    let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    bytes
}

fn read(path: &Path) -> io::Result<Parsed> {
    let (text, mode) = watched::read(path, limits::TOKEN_FILE_BYTES)?;
    let parsed = parse(&text);
    // Digests are not secret: they cannot be used to authenticate.
    if parsed.tokens.iter().any(|token| token.plain) || mode & 0o002 != 0 {
        watched::keeps_a_secret(path, mode)?;
    }
    Ok(parsed)
}

/// Reads a token file. What is wrong is said without the token.
fn parse(text: &str) -> Parsed {
    let mut parsed = Parsed { tokens: Vec::new(), faults: Vec::new() };
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let token = parse_line(line).and_then(|token| {
            let twice = parsed.tokens.iter().any(|known| known.name == token.name);
            if twice { Err(format!("duplicate name {}", token.name)) } else { Ok(token) }
        });
        match token {
            Ok(token) => parsed.tokens.push(token),
            Err(reason) => parsed.faults.push(format!("line {number} ignored: {reason}")),
        }
    }
    parsed
}

fn parse_line(line: &str) -> Result<Token, String> {
    const FORM: &str = "expected NAME TOKEN [tools=A,B] [hosts=A,B]";
    let mut words = line.split_whitespace();
    let (Some(name), Some(token)) = (words.next(), words.next()) else { return Err(FORM.into()) };
    if untrusted::clean(name) != name {
        return Err(format!("invalid name {}: use printable characters", untrusted::clean(name)));
    }
    let digest = match token.strip_prefix(DIGEST) {
        Some(hexadecimal) => {
            decoded(hexadecimal).ok_or_else(|| format!("invalid digest of {name}: expected 64 hexadecimal digits"))?
        }
        None if token.len() < limits::TOKEN_BYTES_MIN => {
            return Err(format!(
                "the token of {name} is too short: expected at least {} characters; `netmon-mcp token {name}` makes a \
                    new one",
                limits::TOKEN_BYTES_MIN
            ));
        }
        None => sha256(token),
    };
    let mut scope = Scope::default();
    for word in words {
        match word.split_once('=') {
            Some(("tools", tools)) => tools.split(',').try_for_each(|tool| scope.add_tool(tool))?,
            Some(("hosts", names)) => {
                for host in names.split(',') {
                    hosts::check_name(host)?;
                    scope.add_host(host);
                }
            }
            _ => return Err(FORM.into()), // without the word: it may be a part of the token
        }
    }
    let plain = !token.starts_with(DIGEST);
    Ok(Token { name: name.into(), digest, plain, scope: Arc::new(scope), withdrawn: CancellationToken::new() })
}

fn decoded(hexadecimal: &str) -> Option<[u8; digest::SHA256_OUTPUT_LEN]> {
    let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
    if hexadecimal.len() != bytes.len() * 2 || !hexadecimal.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hexadecimal.get(i * 2..i * 2 + 2)?, 16).ok()?;
    }
    Some(bytes)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A new token: 256 bits of the kernel's randomness, in hexadecimal.
pub fn generate() -> io::Result<String> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(|_| io::Error::other("getrandom failed"))?;
    Ok(hexadecimal(&bytes))
}

/// The form of this token in the file if readers of the file must not learn it.
pub fn digest_of(token: &str) -> String {
    format!("{DIGEST}{}", hexadecimal(&sha256(token)))
}

/// The number of valid tokens in a token file, and the faults of its other lines.
pub fn read_text(text: &str) -> (usize, Vec<String>) {
    let Parsed { tokens, faults } = parse(text);
    (tokens.len(), faults)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, os::unix::fs::PermissionsExt};

    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    const OTHER: &str = "fedcba9876543210fedcba9876543210";

    fn one() -> String {
        format!("one {TOKEN}\n")
    }

    fn two() -> String {
        format!("# a comment\n\ntwo {OTHER}\n")
    }

    fn written(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn name(tokens: &Tokens, token: &str) -> Option<String> {
        tokens.grant(token).map(|grant| grant.identity.to_string())
    }

    #[test]
    fn each_token_maps_to_its_name() {
        let file = written(&(one() + &two()));
        let tokens = Tokens::load(file.path()).unwrap();
        assert_eq!(name(&tokens, TOKEN).as_deref(), Some("token:one"));
        assert_eq!(name(&tokens, OTHER).as_deref(), Some("token:two"));
        for other in ["", "one", &TOKEN[1..], &format!("{TOKEN}0")] {
            assert_eq!(name(&tokens, other), None);
        }
    }

    #[test]
    fn digest_accepts_its_token_but_not_itself() {
        let digest = digest_of(TOKEN);
        let file = written(&format!("one {digest}\n"));
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
        let tokens = Tokens::load(file.path()).unwrap();
        assert_eq!(name(&tokens, TOKEN).as_deref(), Some("token:one"));
        assert_eq!(name(&tokens, &digest), None);
        assert_eq!(name(&tokens, digest.strip_prefix(DIGEST).unwrap()), None);
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o646)).unwrap();
        assert_eq!(name(&tokens, TOKEN), None, "everybody may add a line");
    }

    /// Every removal of a line ends its token, and what the token began.
    #[test]
    fn unlisted_token_is_withdrawn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let write = |text: &str| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        };
        let all = one() + &two();
        type Act<'a> = Box<dyn Fn() + 'a>;
        let cases: [(&str, Act); 8] = [
            ("deleted", Box::new(|| fs::remove_file(&path).unwrap())),
            ("empty", Box::new(|| write(""))),
            ("a comment only", Box::new(|| write("# nobody\n"))),
            (
                "a folder",
                Box::new(|| {
                    fs::remove_file(&path).unwrap();
                    fs::create_dir(&path).unwrap()
                }),
            ),
            ("not text", Box::new(|| fs::write(&path, [0xff, 0xfe]).unwrap())),
            ("open to all", Box::new(|| fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap())),
            ("a typo, and another token", Box::new(|| write(&format!("two\n{}", one().replace('0', "1"))))),
            ("another token of the same name", Box::new(|| write(&format!("one {OTHER}\n")))),
        ];
        for (what, act) in cases {
            let _ = fs::remove_dir(&path);
            write(&all);
            let tokens = Tokens::load(&path).unwrap();
            let grant = tokens.grant(TOKEN).unwrap();
            act();
            tokens.refresh();
            assert!(grant.withdrawn.is_cancelled(), "{what}");
            assert_eq!(name(&tokens, TOKEN), None, "{what}");
            assert_eq!(tokens.lists("one"), what.contains("another token"), "{what}");
        }
    }

    #[test]
    fn valid_token_line_survives_an_invalid_one() {
        let file = written(&(one() + &two()));
        let tokens = Tokens::load(file.path()).unwrap();
        let grant = tokens.grant(TOKEN).unwrap();
        fs::write(file.path(), format!("nonsense\n{}two short\n", one())).unwrap();
        assert_eq!(name(&tokens, TOKEN).as_deref(), Some("token:one"));
        assert_eq!(name(&tokens, OTHER), None);
        assert!(!grant.withdrawn.is_cancelled());
    }

    #[test]
    fn token_line_limits_tools_and_hosts() {
        let file = written(&format!("one {TOKEN} tools=status,diagnose hosts=local\ntwo {OTHER} hosts=web1\n"));
        let tokens = Tokens::load(file.path()).unwrap();
        let (one, two) = (tokens.grant(TOKEN).unwrap(), tokens.grant(OTHER).unwrap());
        assert!(one.scope.allows_tool("status") && !one.scope.allows_tool("top_traffic"));
        assert!(one.scope.allows_host(None) && !one.scope.allows_host(Some("web1")));
        assert!(two.scope.allows_tool("top_traffic") && !two.scope.allows_host(None));
        fs::write(file.path(), format!("one {TOKEN}\n")).unwrap();
        assert!(tokens.grant(TOKEN).unwrap().scope.is_full() && one.withdrawn.is_cancelled(), "another scope");
    }

    #[test]
    fn token_file_errors_hide_the_secrets() {
        let twice = one() + &one();
        for text in [
            "one\n",
            "one xyzzy\n",
            &format!("one a {TOKEN}\n"),
            &twice,
            "one sha256:12\n",
            &format!("a {TOKEN} tools=x\n"),
        ] {
            let reason = Tokens::load(written(text).path()).err().unwrap().to_string();
            assert!(reason.contains("line ") && !reason.contains("xyzzy") && !reason.contains(TOKEN), "{reason}");
        }
        let open = written(&one());
        fs::set_permissions(open.path(), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Tokens::load(open.path()).err().unwrap().to_string().contains("chmod o="));
    }

    #[test]
    fn generated_tokens_are_long_and_unique() {
        let (a, b) = (generate().unwrap(), generate().unwrap());
        assert!(a.len() == 64 && a != b);
    }
}
