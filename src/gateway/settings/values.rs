//! Values of settings that are words.

use std::str::FromStr;

use crate::untrusted;

/// The MCP transport.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Transport {
    Stdio,
    Http,
    /// A name of the past for [`Transport::Http`].
    Sse,
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stdio" => Ok(Transport::Stdio),
            "http" => Ok(Transport::Http),
            "sse" => Ok(Transport::Sse),
            _ => Err("expected stdio or http (sse means http)".into()),
        }
    }
}

/// The permission bits of a socket, in octal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mode(pub u32);

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        mode.map(Mode)
            .ok_or_else(|| format!("invalid mode `{}`: expected octal digits, such as 0660", untrusted::clean(text)))
    }
}
