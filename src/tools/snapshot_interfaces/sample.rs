//! Readings of the interfaces.

use std::time::Instant;

use super::{Input, Sample};
use crate::{
    daemon::{netlink, session::Session},
    interface::Interface,
    untrusted,
    wire::Error,
};

/// Every interface, as it was at the last reading.
pub struct Interfaces {
    input: Input,
    before: Vec<Interface>,
    begun: Instant,
}

impl Interfaces {
    pub fn open(input: Input) -> Result<Self, Error> {
        if let Some(name) = &input.interface {
            netlink::interface_named(name)?;
        }
        Ok(Interfaces { input, before: netlink::interfaces()?, begun: Instant::now() })
    }
}

impl Session<Sample> for Interfaces {
    fn read(&mut self, _: bool) -> Result<Sample, Error> {
        let (after, now) = (netlink::interfaces()?, Instant::now());
        let window_ns = (now - std::mem::replace(&mut self.begun, now)).as_nanos() as u64;
        let before = std::mem::replace(&mut self.before, after.clone());
        let default_routes = netlink::default_routes()?;
        let primary = netlink::primary(&after, &default_routes);
        let primary = after.iter().find(|i| Some(i.index) == primary).map(|i| i.name.clone());
        let asked = self.input.interface.as_ref();
        let shown: Vec<_> = after.into_iter().filter(|i| asked.is_none_or(|name| *name == i.name)).collect();
        if let (Some(name), true) = (asked, shown.is_empty()) {
            return Err(Error::Gone(format!("{} disappeared during the measurement", untrusted::clean(name))));
        }
        let reading = |i: Interface| (before.iter().find(|b| b.index == i.index).unwrap_or(&i).clone(), i);
        Ok(Sample { interfaces: shown.into_iter().map(reading).collect(), primary, default_routes, window_ns })
    }
}
