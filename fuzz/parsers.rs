//! What parses bytes from outside, with what must hold of any bytes. The fuzz targets run it on bytes that a fuzzer
//! makes up, and the suite on `seeds`: real ones, and all that ever failed.

use netmon_mcp::{
    answer::Endpoint,
    attribution, dns, packet,
    tools::{Question, network_monitor, trace_connections, trace_dns},
    untrusted,
};

/// A line of the socket between gateway and daemon, read by either side.
pub fn wire(line: &[u8]) {
    if let Ok(request) = netmon_mcp::serve::parse(line) {
        // What is taken for a request can be said again, and means the same.
        let again = serde_json::to_vec(&request).map(|mut line| {
            line.push(b'\n');
            netmon_mcp::serve::parse(&line).map(|request| request.tool)
        });
        assert!(matches!(again, Ok(Ok(tool)) if tool == request.tool));
    }
    if let Ok(line) = std::str::from_utf8(line) {
        let _ = netmon_mcp::gateway::daemon::read(line);
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
    let (name, record) = (&bytes[..end], &bytes[end + 1..]);
    let json = |sample: Option<serde_json::Result<String>>| sample.and_then(Result::ok);
    let (input, sample) = match name {
        b"network-monitor" => (
            "{\"operation\":\"outgoing\"}",
            json(network_monitor::of_record(record).map(|sample| serde_json::to_string(&sample))),
        ),
        b"trace_connections" => {
            let Ok(input) = serde_json::from_str("{}") else { return };
            ("{}", json(trace_connections::of_record(&input, record).map(|sample| serde_json::to_string(&sample))))
        }
        b"trace_dns" => ("{}", json(trace_dns::of_record(record).map(|sample| serde_json::to_string(&sample)))),
        _ => return,
    };
    if let (Ok(name), Some(sample)) = (std::str::from_utf8(name), sample) {
        report(name, input, &sample);
    }
}

/// What is made of others' names: those of processes, addresses, the paths of cgroups.
pub fn attribution(bytes: &[u8]) {
    let name = untrusted::name(bytes);
    assert!(name.chars().all(|c| !c.is_control()) && name.chars().count() <= netmon_mcp::limits::NAME_CHARS);
    let mut process = attribution::Process::new(1, bytes, 0, 0);
    if let Ok(path) = std::str::from_utf8(bytes) {
        let (unit, container) = (attribution::unit(path), attribution::container(path));
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
        let names = message.answers.iter().map(|(text, _)| text).chain([&message.name]);
        names.for_each(|name| assert!(name.chars().all(|c| !c.is_control()), "{name:?}"));
        assert!(!dns::rcode_name(message.rcode).is_empty() && !dns::type_name(message.kind).is_empty());
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
