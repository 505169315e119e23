//! What parses bytes from outside, with what must hold of any bytes. The fuzz targets run it on bytes that a fuzzer
//! makes up, and the suite on `seeds`: real ones, and all that ever failed.

use netmon_mcp::{answer::Endpoint, dns, owner, packet, tools::Question, untrusted};

/// A line of the socket between gateway and daemon, read by either side.
pub fn wire(line: &[u8]) {
    if let Ok(request) = netmon_mcp::daemon::serve::parse(line) {
        // What is taken for a request can be said again, and means the same.
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

/// A tool's question and its sample, as they arrive in the gateway: the tool's name, the input, the sample, a line each.
pub fn reports(text: &str) {
    /// Of the largest counter: 10^16 bytes are nine days of a full 100 Gbit/s link, and a thousand of them do not overflow.
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
        // Nothing that acts on a terminal gets through, whatever the names in the sample were.
        assert!(answer.text.chars().all(|c| c == '\n' || !c.is_control()), "{:?}", answer.text);
    }
}

/// A record of a ring buffer, after the name of the tool that reads it and a line feed: what it becomes is reported.
pub fn records(bytes: &[u8]) {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let (Ok(name), record) = (std::str::from_utf8(&bytes[..end]), &bytes[end + 1..]) else { return };
    // Its own input makes `outgoing` what network-monitor does; every other tool has none that must be given.
    let input = if name == "network-monitor" { "{\"operation\":\"outgoing\"}" } else { "{}" };
    let Ok(value) = serde_json::from_str(input) else { return };
    if let Some(sample) = Question::named(name).and_then(|question| (question.of_record)(&value, record)) {
        report(name, input, sample.get());
    }
}

/// What is made of others' names: those of processes, addresses, the paths of cgroups.
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

/// A DNS message, or what a capture left of one.
pub fn dns(bytes: &[u8]) {
    if let Some(message) = dns::parse(bytes) {
        for (name, kind) in message.answers.iter().chain(&message.questions) {
            assert!(name.chars().all(|c| !c.is_control()), "{name:?}");
            assert!(!dns::type_name(*kind).is_empty());
        }
        assert!(!dns::rcode_name(message.rcode).is_empty());
    }
}

/// A packet that was dropped: its EtherType, and its first bytes from the network header on.
pub fn packet(bytes: &[u8]) {
    if let Some((ethertype, bytes)) = bytes.split_first_chunk()
        && let Some(packet) = packet::parse(u16::from_be_bytes(*ethertype), bytes)
    {
        assert!(
            packet.protocol.chars().chain(packet.kind.iter().flat_map(|kind| kind.chars())).all(|c| !c.is_control())
        );
    }
}

/// The file of settings.
pub fn settings(text: &str) {
    let _ = netmon_mcp::gateway::settings::parse(text);
}

/// A token file. What is wrong with a line is said without what could be its token.
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

/// A bearer token, as JWT: nobody but the authorization server can make one that is good.
pub fn jwt(text: &str) {
    use netmon_mcp::gateway::http::oauth::{self, OAuth};
    if let Ok(header) = oauth::header(text) {
        assert!(header.crit.is_none() && !format!("{:?}", header.alg).starts_with("HS"), "{header:?}");
    }
    // A key of RFC 8037, whose private half signed none of these.
    const KEY: &str = "{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"kid\":\"one\",\"x\":\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}]}";
    static SERVER: std::sync::OnceLock<OAuth> = std::sync::OnceLock::new();
    let server = SERVER.get_or_init(|| {
        let server = OAuth::new("https://as.example", "https://netmon.example/mcp", None).unwrap();
        server.with_keys(KEY).unwrap();
        server
    });
    assert!(server.grant(text).is_err(), "{text}");
}

/// What a client without a token sends on a connection: it learns that we are well and where to get a token, and no more.
pub fn head(bytes: &[u8]) {
    let answer = String::from_utf8_lossy(&netmon_mcp::gateway::http::answer_to(bytes)).into_owned();
    for status in answer.match_indices("HTTP/1.1 ").map(|(at, start)| &answer[at + start.len()..]) {
        assert!(!status.starts_with("5") || status.starts_with("503") || status.starts_with("505"), "{answer}");
    }
    assert!(!answer.contains("jsonrpc") && !answer.contains("netmon_calls_total"), "{answer}");
}
