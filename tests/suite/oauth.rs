//! OAuth tokens and TLS: attacks, and renewals.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::signature::Ed25519KeyPair;
use jsonwebtoken::{
    Algorithm, EncodingKey, Header, encode,
    jwk::{Jwk, PublicKeyUse},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{harness::*, http_harness::*};

const AUDIENCE: &str = "http://localhost:8080/mcp";

/// An authorization server that only serves its keys.
struct Issuer {
    url: String,
    key: EncodingKey,
    /// The number of its requests.
    asked: Arc<AtomicUsize>,
}

/// A fault of an authorization server.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// It accepts connections and stays silent.
    Hangs,
    /// Its metadata is another issuer's.
    OtherIssuer,
    /// It redirects requests for its keys.
    Redirects,
    /// Its key is for encryption.
    KeyForEncryption,
}

fn key() -> EncodingKey {
    EncodingKey::from_ed_der(Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap().as_ref())
}

impl Issuer {
    fn start() -> Issuer {
        Issuer::with(Fault::None)
    }

    fn with(fault: Fault) -> Issuer {
        let key = key();
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::EdDSA).unwrap();
        jwk.common.key_id = Some("one".into());
        if fault == Fault::KeyForEncryption {
            jwk.common.public_key_use = Some(PublicKeyUse::Encryption);
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let issuer = if fault == Fault::OtherIssuer { "https://other.example" } else { &url };
        let (jwks, metadata) = (json!({"keys": [jwk]}), json!({"issuer": issuer, "jwks_uri": format!("{url}/jwks")}));
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        thread::spawn(move || {
            let mut hanging = Vec::new();
            for mut stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::Relaxed);
                if fault == Fault::Hangs {
                    hanging.push(stream);
                    continue;
                }
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let request = lines.next().unwrap_or_default();
                lines.find(String::is_empty);
                let (status, body) = match request.split(' ').nth(1) {
                    Some("/jwks") if fault == Fault::Redirects => ("302 Found\r\nLocation: /elsewhere", String::new()),
                    Some("/jwks" | "/elsewhere") => ("200 OK", jwks.to_string()),
                    Some("/.well-known/oauth-authorization-server") => ("200 OK", metadata.to_string()),
                    _ => ("404 Not Found", String::new()),
                };
                let length = body.len();
                let _ =
                    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
            }
        });
        Issuer { url, key, asked }
    }

    /// A gateway that accepts its tokens.
    fn gateway(&self, daemon: &Daemon, more: &[&str]) -> Server {
        let arguments = [&["--oauth-issuer", &self.url, "--oauth-audience", AUDIENCE], more].concat();
        Server::start_with_credentials(&daemon.socket, &arguments)
    }

    /// A token with these claims changed.
    fn token(&self, changes: Value) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut claims =
            json!({"iss": self.url, "aud": AUDIENCE, "exp": now + 600, "sub": "alice", "scope": "other netmon:read"});
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        self.sign(&claims, &self.key, "one")
    }

    fn sign(&self, claims: &Value, key: &EncodingKey, id: &str) -> String {
        encode(&Header { kid: Some(id.into()), ..Header::new(Algorithm::EdDSA) }, claims, key).unwrap()
    }
}

#[test]
fn only_valid_jwts_are_accepted() {
    let (daemon, issuer) = (Daemon::light(), Issuer::start());
    let mut server = issuer.gateway(&daemon, &[]);
    let mut status = |token: String| {
        server.token = Some(token);
        let reply = server.call("status", json!({}));
        (reply.status, reply.header("www-authenticate").unwrap_or_default().to_owned())
    };
    assert_eq!(status(issuer.token(json!({}))).0, 200);
    let (code, challenge) = status(issuer.token(json!({"exp": 1_000_000_000})));
    assert_eq!(code, 401, "expired");
    assert!(challenge.contains("/.well-known/oauth-protected-resource/mcp\""), "{challenge}");
    for (what, changes) in [
        ("another audience", json!({"aud": "https://elsewhere.example/mcp"})),
        ("another issuer", json!({"iss": "https://elsewhere.example"})),
        ("not yet", json!({"nbf": 4_000_000_000_u64})),
        ("no expiry", json!({"exp": null})),
        ("no subject", json!({"sub": null})),
        ("an empty subject", json!({"sub": ""})),
        ("a subject that hides something", json!({"sub": "alice\u{200b}"})),
        ("a subject that a log would cut", json!({"sub": "x".repeat(256)})),
    ] {
        assert_eq!(status(issuer.token(changes)).0, 401, "{what}");
    }
    let (code, challenge) = status(issuer.token(json!({"scope": "netmon:write"})));
    assert_eq!(code, 403);
    assert!(challenge.contains("insufficient_scope"), "{challenge}");
    let claims =
        json!({"iss": issuer.url, "aud": AUDIENCE, "exp": 4_000_000_000_u64, "sub": "eve", "scope": "netmon:read"});
    assert_eq!(status(issuer.sign(&claims, &key(), "one")).0, 401, "another key");
    assert_eq!(status(issuer.sign(&claims, &key(), "two")).0, 401, "an unknown key");
    let shared = encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(b"guess")).unwrap();
    assert_eq!(status(shared).0, 401, "a shared secret");
    for nonsense in ["a.b.c", "nonsense", "eyJhbGciOiJub25lIn0.e30."] {
        assert_eq!(status(nonsense.into()).0, 401, "{nonsense}");
    }
    let odd = |change: &dyn Fn(&mut Header)| {
        let mut header = Header { kid: Some("one".into()), ..Header::new(Algorithm::EdDSA) };
        change(&mut header);
        encode(&header, &claims, &issuer.key).unwrap()
    };
    assert_eq!(status(odd(&|header| header.typ = Some("at+jwt".into()))).0, 200, "an access token (RFC 9068)");
    assert_eq!(status(odd(&|header| header.typ = Some("dpop+jwt".into()))).0, 401, "a proof, not a token");
    assert_eq!(status(odd(&|header| header.crit = Some(vec!["b64".into()]))).0, 401, "a critical parameter");
    server.until_logged(&["call", &format!("who=jwt:{}#alice", issuer.url), "outcome=\"ok\""]);
    for reason in ["ExpiredSignature", "InvalidAudience", "InvalidIssuer", "ImmatureSignature", "InvalidSignature"] {
        server.until_logged(&["refused", "peer=127.0.0.1:", "status=401", reason]);
    }
    server.until_logged(&["refused", "status=403"]);
    let metadata = server.get("/.well-known/oauth-protected-resource/mcp", "").json();
    assert_eq!((&metadata["resource"], &metadata["authorization_servers"][0]), (&json!(AUDIENCE), &json!(issuer.url)));
}

/// Alice in the token file and alice of the authorization server are two clients.
#[test]
fn jwt_subject_does_not_inherit_a_token_of_its_name() {
    let (daemon, issuer, folder) = (Daemon::light(), Issuer::start(), TempDir::new().unwrap());
    let (token, file) = ("0123456789abcdef0123456789abcdef", folder.path().join("tokens"));
    fs::write(&file, format!("alice {token}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    [&file, folder.path()].iter().for_each(|path| std::os::unix::fs::chown(path, Some(65534), None).unwrap());
    let mut server = issuer.gateway(&daemon, &["--tokens", file.to_str().unwrap()]);
    server.token = Some(token.into());
    let session = server.initialize().header("mcp-session-id").unwrap().to_owned();
    let headers = format!("Mcp-Session-Id: {session}\r\n");
    server.post(&headers, &json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string());
    for subject in ["alice", "token:alice", "uid:0"] {
        server.token = Some(issuer.token(json!({"sub": subject})));
        assert_eq!(server.post(&headers, &message("ping", json!({}))).status, 404, "{subject} uses it");
        let delete = server.request(&headers, "").replacen("POST", "DELETE", 1);
        assert_eq!(exchange(server.connect(), &delete).status, 404, "{subject} ends it");
    }
    server.token = Some(token.into());
    assert_eq!(server.post(&headers, &message("ping", json!({}))).status, 200);
}

#[test]
fn stream_ends_when_its_token_expires() {
    let (daemon, issuer) = (Daemon::light(), Issuer::start());
    let mut server = issuer.gateway(&daemon, &[]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let skew = netmon_mcp::limits::CLOCK_SKEW.as_secs();
    server.token = Some(issuer.token(json!({"exp": now - skew + 3})));
    let begun = Instant::now();
    let arguments = json!({"operation": "incoming", "interface": "lo", "duration": 60});
    let (headers, body) = modern_call("network-monitor", arguments);
    assert_eq!(exchange(server.connect(), &server.request(&headers, &body)).status, 401);
    assert!(begun.elapsed().as_secs() < 6, "{:?}", begun.elapsed());
}

/// Redirects, another issuer's metadata, keys for other uses: none yields a key.
#[test]
fn jwks_must_come_from_the_issuer() {
    let daemon = Daemon::light();
    for (fault, said) in [
        (Fault::OtherIssuer, "another issuer"),
        (Fault::Redirects, "302 Found"),
        (Fault::KeyForEncryption, "unknown signing key"),
    ] {
        let issuer = Issuer::with(fault);
        let mut server = issuer.gateway(&daemon, &[]);
        server.token = Some(issuer.token(json!({})));
        let status = server.call("status", json!({})).status;
        assert!(status == 401 || status == 503, "{said}: {status}");
        server.until_logged(&[said]);
    }
}

/// Requests with unknown keys are answered at once, in any state of the authorization server; other requests as well.
#[test]
fn hanging_authorization_server_blocks_no_request() {
    let (daemon, issuer, folder) = (Daemon::light(), Issuer::with(Fault::Hangs), TempDir::new().unwrap());
    let (token, file) = ("0123456789abcdef0123456789abcdef", folder.path().join("tokens"));
    fs::write(&file, format!("alice {token}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    [&file, folder.path()].iter().for_each(|path| std::os::unix::fs::chown(path, Some(65534), None).unwrap());
    let mut server = issuer.gateway(&daemon, &["--tokens", file.to_str().unwrap()]);
    let begun = Instant::now();
    for id in 0..200 {
        server.token = Some(issuer.sign(&json!({"sub": "eve"}), &key(), &format!("unknown-{id}")));
        let reply = server.call("status", json!({}));
        assert!([401, 429, 503].contains(&reply.status), "{reply:?}");
    }
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    server.token = Some(token.into());
    assert_eq!(server.call("status", json!({})).status, 200);
    let asked = issuer.asked.load(Ordering::Relaxed);
    assert!(asked <= 6, "strangers had it asked {asked} times");
}

#[test]
fn metadata_is_absent_without_oauth() {
    let daemon = Daemon::light();
    let server = Server::start(&daemon.socket, &[]);
    assert_eq!(server.get("/.well-known/oauth-protected-resource", "").status, 404);
}

/// A self-signed certificate for localhost.
fn certificate(folder: &Path, name: &str) {
    let (key, new) = (folder.join("key.pem"), folder.join("new.pem"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
    command.args(["-subj", &format!("/CN={name}"), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
    assert!(command.arg("-keyout").arg(&key).arg("-out").arg(&new).output().unwrap().status.success());
    fs::rename(&new, folder.join("certificate.pem")).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    for path in [&key, &folder.to_path_buf()] {
        std::os::unix::fs::chown(path, Some(65534), None).unwrap(); // the user that the gateway becomes
    }
}

/// The subject of the certificate that a server shows.
fn shown(server: &Server) -> String {
    let line =
        format!("openssl s_client -connect {} < /dev/null 2>/dev/null | openssl x509 -noout -subject", server.address);
    String::from_utf8(Command::new("sh").args(["-c", &line]).output().unwrap().stdout).unwrap()
}

#[test]
fn renewed_certificate_is_used_for_new_connections() {
    let (daemon, folder) = (Daemon::light(), TempDir::new().unwrap());
    certificate(folder.path(), "first");
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (certificate_file, key_file) = (file("certificate.pem"), file("key.pem"));
    let mut command = Command::new(GATEWAY);
    command.args([
        "http",
        "--insecure-no-auth",
        "--listen",
        "127.0.0.1:0",
        "--tls-certificate",
        &certificate_file,
        "--tls-key",
        &key_file,
    ]);
    let server = Server::spawn({
        command.arg("--socket").arg(&daemon.socket);
        command
    });
    assert!(shown(&server).contains("first"), "{}", shown(&server));
    let (headers, body) = modern_call("status", json!({}));
    let mut curl = Command::new("curl");
    curl.args(["-s", "--cacert", &certificate_file, "-H", "Accept: application/json, text/event-stream"]);
    curl.args(["-H", "Content-Type: application/json", "-d", &body]);
    for header in headers.lines() {
        curl.args(["-H", header]);
    }
    let answer = curl.arg(format!("https://{}/mcp", server.address)).output().unwrap();
    assert!(String::from_utf8_lossy(&answer.stdout).contains("\"connected\":true"), "{answer:?}");
    certificate(folder.path(), "second");
    until("the new certificate is shown", || shown(&server).contains("second").then_some(()));
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o644)).unwrap();
    let output = Command::new(GATEWAY)
        .args(["--check-config", "--tls-certificate", &certificate_file, "--tls-key", &key_file])
        .output()
        .unwrap();
    let reason = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && reason.contains("chmod o="), "{reason}");
}
