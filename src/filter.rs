//! The filters of a question: a process by name, a remote by address or range.

use std::{
    borrow::Cow,
    fmt,
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
    str::FromStr,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

use crate::untrusted;

/// One address, or a range of them in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AddressRange {
    /// IPv4 as `::ffff:a.b.c.d`, which is how the kernel hands addresses to us.
    address: u128,
    mask: u128,
}

impl AddressRange {
    /// Whether an address, in the kernel's form, is in the range.
    pub fn contains(&self, address: [u8; 16]) -> bool {
        u128::from_be_bytes(address) & self.mask == self.address
    }

    /// Whether an address, as people write it, is in the range.
    pub fn includes(&self, address: IpAddr) -> bool {
        self.contains(match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        })
    }

    /// The range as a BPF program compares it: the bits that count, and which those are.
    pub fn words(&self) -> ([u64; 2], [u64; 2]) {
        let words = |bits: u128| {
            let bytes = bits.to_be_bytes().map(u64::from);
            let word = |half: &[u64]| (0..8).fold(0, |word, i| word | half[i] << shift(i));
            [word(&bytes[..8]), word(&bytes[8..])]
        };
        (words(self.address), words(self.mask))
    }
}

/// Where byte `i` of memory is in a word of this machine.
fn shift(i: usize) -> usize {
    8 * if cfg!(target_endian = "little") { i } else { 7 - i }
}

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "invalid address `{}`: expected an IPv4 or IPv6 address, or a range such as 10.0.0.0/8 or fd00::/16",
                untrusted::clean(text)
            )
        };
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let (bits, width, base) = match address {
            IpAddr::V4(v4) => (u128::from_be_bytes(v4.to_ipv6_mapped().octets()), 32, 96),
            IpAddr::V6(v6) => (u128::from_be_bytes(v6.octets()), 128, 0),
        };
        let prefix = match prefix {
            None => width,
            Some(prefix) => prefix.parse::<u32>().ok().filter(|p| *p <= width).ok_or_else(wrong)?,
        };
        let mask = u128::MAX.checked_shl(128 - base - prefix).unwrap_or(0);
        Ok(AddressRange { address: bits & mask, mask })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (address, ones) = (IpAddr::from(self.address.to_be_bytes()).to_canonical(), self.mask.count_ones());
        write!(f, "{address}/{}", if address.is_ipv4() && ones >= 96 { ones - 96 } else { ones })
    }
}

impl Serialize for AddressRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for AddressRange {
    fn schema_name() -> Cow<'static, str> {
        "AddressRange".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "An address or a CIDR range." })
    }
}

/// A process' own name (comm). The kernel keeps 15 bytes of it, so no more are compared.
#[derive(Serialize, Clone, Debug, PartialEq)]
pub struct Comm(String);

impl Comm {
    /// As the kernel holds it: ended and filled with zeros.
    pub fn bytes(&self) -> [u8; 16] {
        let mut comm = [0; 16];
        let length = self.0.len().min(15);
        comm[..length].copy_from_slice(&self.0.as_bytes()[..length]);
        comm
    }

    /// Whether the kernel's record of a name is this one. What follows its end may be of an older name.
    pub fn is(&self, comm: &[u8]) -> bool {
        let name = comm.split(|b| *b == 0).next().unwrap_or_default();
        name == &self.0.as_bytes()[..self.0.len().min(15)]
    }
}

impl<'de> Deserialize<'de> for Comm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        if name.is_empty() || name.len() > 64 || name.contains('\0') {
            return Err(de::Error::custom("invalid process name: expected 1 to 64 bytes, as in `ps -o comm`"));
        }
        Ok(Comm(name))
    }
}

impl JsonSchema for Comm {
    fn schema_name() -> Cow<'static, str> {
        "Comm".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "A process name (comm)." })
    }
}

/// A socket's port or a process number in a question: an integer other than 0.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $number:ty, $nonzero:ty, $allowed:literal, $schema:tt) => {
        $(#[$doc])*
        #[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
        #[serde(transparent)]
        pub struct $name($nonzero);

        impl $name {
            /// As the kernel has it.
            pub fn get(self) -> $number {
                self.0.get()
            }

            fn read(text: &str) -> Result<Self, String> {
                text.parse().map($name).map_err(|_| format!("invalid value {}: expected {}", untrusted::clean(text), $allowed))
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::read(text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::read(&Value::deserialize(deserializer)?.to_string()).map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

number!(
    /// The port of a socket.
    Port, u16, NonZeroU16, "a port number from 1 to 65535",
    { "type": "integer", "minimum": 1, "maximum": 65_535 }
);
number!(
    /// A process.
    Pid, u32, NonZeroU32, "a process number from 1 to 4294967295",
    { "type": "integer", "minimum": 1 }
);

/// The filters of a question about sockets; all of them must match.
#[derive(Clone, Copy, Default)]
pub struct Filter<'a> {
    pub process: Option<&'a Comm>,
    pub pid: Option<Pid>,
    pub remote: Option<AddressRange>,
    /// Of either end.
    pub port: Option<Port>,
}

impl Filter<'_> {
    /// Whether nothing is left out.
    pub fn matches_everything(&self) -> bool {
        self.process.is_none() && self.pid.is_none() && self.remote.is_none() && self.port.is_none()
    }

    /// Whether this is the process.
    pub fn owner(&self, pid: u32, comm: &[u8]) -> bool {
        self.pid.is_none_or(|wanted| wanted.get() == pid) && self.process.is_none_or(|process| process.is(comm))
    }

    /// Whether these are the ends, the remote address in the kernel's form.
    pub fn ends(&self, remote: [u8; 16], ports: [u16; 2]) -> bool {
        self.remote.is_none_or(|range| range.contains(remote))
            && self.port.is_none_or(|port| ports.contains(&port.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(address: &str) -> [u8; 16] {
        match address.parse().unwrap() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        }
    }

    #[test]
    fn address_ranges_contain_their_addresses() {
        for (range, inside, outside) in [
            ("10.0.0.1", "10.0.0.1", "10.0.0.2"),
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3/8", "10.255.0.1", "fd00::1"),
            ("0.0.0.0/0", "1.2.3.4", "::1"),
            ("fd00::/16", "fd00:1::1", "fd01::1"),
            ("::1", "::1", "::2"),
        ] {
            let remote: AddressRange = range.parse().unwrap();
            assert!(remote.contains(mapped(inside)) && !remote.contains(mapped(outside)), "{range}");
            let again: AddressRange = remote.to_string().parse().unwrap();
            assert_eq!(again, remote, "{remote}");
        }
        assert!("::/0".parse::<AddressRange>().unwrap().contains(mapped("10.0.0.1")));
    }

    #[test]
    fn range_words_match_packet_byte_order() {
        let (address, mask) = "10.0.0.0/8".parse::<AddressRange>().unwrap().words();
        let packet = mapped("10.9.8.7");
        let word = |i: usize| u64::from_ne_bytes(packet[i..i + 8].try_into().unwrap());
        assert_eq!([word(0) & mask[0], word(8) & mask[1]], address);
    }

    #[test]
    fn invalid_range_error_shows_an_example() {
        for text in ["", "10.0.0", "10.0.0.0/33", "::1/129", "10.0.0.0/-1", "example.org", "10.0.0.1/8/8"] {
            let error = text.parse::<AddressRange>().unwrap_err();
            assert!(error.contains("10.0.0.0/8"), "{text}: {error}");
        }
    }

    #[test]
    fn port_and_pid_errors_state_the_bounds() {
        #[derive(Deserialize)]
        struct Input {
            #[serde(default)]
            port: Option<Port>,
            #[serde(default)]
            pid: Option<Pid>,
        }
        let parse = |text: &str| serde_json::from_str::<Input>(text).map_err(|e| e.to_string());
        let good = parse("{\"port\": 65535, \"pid\": 4294967295}").unwrap();
        assert_eq!((good.port.map(Port::get), good.pid.map(Pid::get)), (Some(65_535), Some(u32::MAX)));
        assert_eq!(parse("{\"port\": null}").unwrap().port, None);
        for number in ["0", "-1", "65536", "1.5", "1e300", "\"80\"", "true", "{}"] {
            let error = parse(&format!("{{\"port\": {number}}}")).err().unwrap();
            assert!(error.contains("a port number from 1 to 65535"), "{error}");
        }
        assert!(parse("{\"pid\": 0}").err().unwrap().contains("a process number from 1"));
    }

    #[test]
    fn long_process_name_matches_its_first_15_bytes() {
        let comm: Comm = serde_json::from_str("\"systemd-resolved\"").unwrap();
        assert!(comm.is(b"systemd-resolve\0") && !comm.is(b"systemd-resolv\0\0"));
        let comm: Comm = serde_json::from_str("\"sh\"").unwrap();
        assert!(comm.is(b"sh\0junk") && !comm.is(b"shell\0"));
        assert!(serde_json::from_str::<Comm>("\"\"").is_err());
    }
}
