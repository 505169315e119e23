//! The parsers of bytes from outside, with their invariants for any bytes. The fuzz targets run them on generated
//! bytes, and the suite on `seeds`: real inputs, and every input that has failed.

use netmon_mcp::{answer::Endpoint, dns, owner, packet, tools::Question, untrusted};

/// A line of the socket between gateway and daemon, parsed by either side.
pub fn wire(line: &[u8]) {
    if let Ok(request) = netmon_mcp::daemon::serve::parse(line) {
        // A valid request keeps its meaning when it is serialized again.
        let again = serde_json::to_vec(&request).map(|mut line| {
            line.push(b'\n');
            netmon_mcp::daemon::serve::parse(&line).map(|request| request.tool)
        });
        assert!(matches!(again, Ok(Ok(tool)) if tool == request.tool));
    }
    if let Ok(line) = std::str::from_utf8(line) {
        let _ = netmon_mcp::gateway::exchange::read(line);
    }
}

/// A tool's input and its sample, as they arrive in the gateway: the tool's name, the input, the sample, one line each.
pub fn reports(text: &str) {
    /// The limit of a counter: 10^16 bytes are nine days of a full 100 Gbit/s link, and a thousand of them do not
    /// overflow.
    const DIGITS: usize = 16;
    let mut lines = text.splitn(3, '\n');
    let (Some(name), Some(input), Some(sample)) = (lines.next(), lines.next(), lines.next()) else { return };
    if sample.split(|c: char| !c.is_ascii_digit()).all(|digits| digits.len() <= DIGITS) {
        report(name, input, sample);
    }
}

fn report(name: &str, input: &str, sample: &str) {
    let (Some(question), Ok(mut input)) = (Question::named(name), serde_json::from_str(input)) else { return };
    if (question.prepare)(&mut input, None).is_err() {
        return;
    }
    if let Ok(answer) = (question.report)(input, sample) {
        // No terminal control character passes, whatever names the sample has.
        assert!(answer.text.chars().all(|c| c == '\n' || !c.is_control()), "{:?}", answer.text);
    }
}

/// A ring buffer record, after the name of its tool and a line feed: it is parsed and reported.
pub fn records(bytes: &[u8]) {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let (Ok(name), record) = (std::str::from_utf8(&bytes[..end]), &bytes[end + 1..]) else { return };
    // Only network-monitor has a required argument; this input selects `outgoing`.
    let input = if name == "network-monitor" { "{\"operation\":\"outgoing\"}" } else { "{}" };
    let Ok(value) = serde_json::from_str(input) else { return };
    if let Some(sample) = Question::named(name).and_then(|question| (question.of_record)(&value, record)) {
        report(name, input, sample.get());
    }
}

/// The parsers of foreign names: processes, addresses, paths of cgroups.
pub fn attribution(bytes: &[u8]) {
    let name = untrusted::name(bytes);
    assert!(name.chars().all(|c| !c.is_control()) && name.chars().count() <= netmon_mcp::limits::NAME_CHARS);
    let mut process = owner::Process::new(1, bytes, 0, 0);
    if let Ok(path) = std::str::from_utf8(bytes) {
        let (unit, container) = (owner::unit(path), owner::container(path));
        assert!(unit.is_none_or(|unit| path.contains(unit)) && container.is_none_or(|id| id.len() == 64));
        process.cgroup = Some(path.into());
    }
    let owner = process.owner();
    assert!(owner.to_string().chars().chain(owner.unit.iter().flat_map(|unit| unit.chars())).all(|c| !c.is_control()));
    if let Some(address) = bytes.first_chunk() {
        assert!(!Endpoint::new(*address, 53).to_string().is_empty());
    }
}

/// A DNS message, or the captured part of one.
pub fn dns(bytes: &[u8]) {
    if let Some(message) = dns::parse(bytes) {
        for (name, kind) in message.answers.iter().chain(&message.questions) {
            assert!(name.chars().all(|c| !c.is_control()), "{name:?}");
            assert!(!dns::type_name(*kind).is_empty());
        }
        assert!(!dns::rcode_name(message.rcode).is_empty());
    }
}

/// A dropped packet: its EtherType, and its first bytes from the network header on.
pub fn packet(bytes: &[u8]) {
    if let Some((ethertype, bytes)) = bytes.split_first_chunk()
        && let Some(packet) = packet::parse(u16::from_be_bytes(*ethertype), bytes)
    {
        assert!(
            packet.protocol.chars().chain(packet.kind.iter().flat_map(|kind| kind.chars())).all(|c| !c.is_control())
        );
    }
}

/// The settings file.
pub fn settings(text: &str) {
    let _ = netmon_mcp::gateway::settings::parse(text);
}

/// A token file. An error about a line shows nothing that could be its token.
pub fn tokens(text: &str) {
    let (count, faults) = netmon_mcp::gateway::http::tokens::read_text(text);
    assert!(count + faults.len() <= text.lines().count());
    assert!(faults.iter().all(|fault| fault.chars().all(|c| !c.is_control())), "{faults:?}");
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, token, ..] = words[..] else { continue };
        let secret = token.len() >= netmon_mcp::limits::TOKEN_BYTES_MIN && !text.contains(&format!("{token} "));
        assert!(!secret || name.contains(token) || faults.iter().all(|fault| !fault.contains(token)), "{faults:?}");
    }
}

/// A bearer token, as JWT: only the authorization server can create a valid one.
pub fn jwt(text: &str) {
    use netmon_mcp::gateway::http::oauth::{self, OAuth};
    if let Ok(header) = oauth::header(text) {
        assert!(header.crit.is_none() && !format!("{:?}", header.alg).starts_with("HS"), "{header:?}");
    }
    // A key of RFC 8037. Its private half signed none of these.
    const KEY: &str = "{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"kid\":\"one\",\"x\":\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}]}";
    static SERVER: std::sync::OnceLock<OAuth> = std::sync::OnceLock::new();
    let server = SERVER.get_or_init(|| {
        let server = OAuth::new("https://as.example", "https://netmon.example/mcp", None).unwrap();
        server.with_keys(KEY).unwrap();
        server
    });
    assert!(server.grant(text).is_err(), "{text}");
}

/// An unauthenticated client's bytes on a connection: it learns only the health and where to get a token.
pub fn head(bytes: &[u8]) {
    let answer = String::from_utf8_lossy(&netmon_mcp::gateway::http::answer_to(bytes)).into_owned();
    for status in answer.match_indices("HTTP/1.1 ").map(|(at, start)| &answer[at + start.len()..]) {
        assert!(!status.starts_with("5") || status.starts_with("503") || status.starts_with("505"), "{answer}");
    }
    assert!(!answer.contains("jsonrpc") && !answer.contains("netmon_calls_total"), "{answer}");
}
