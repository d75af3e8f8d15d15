//! What a network that a user has made is in the kernel: a bridge, or a parent that its endpoints are on.

use std::os::fd::BorrowedFd;

use vessel_network::{Bridge, Direct, EndpointRecord, EndpointRequest, Table, TapEndpoint};

use super::{NetworkRecord, from_network};
use crate::{Error, Result};

/// Clones are the same one.
#[derive(Clone)]
pub(super) enum Wire {
    Bridge(Bridge),
    Direct(Direct),
}

impl Wire {
    /// Makes it, or takes what there is of it.
    pub fn make(table: &Table, record: &NetworkRecord) -> Result<Self> {
        if let Some(parent) = &record.parent {
            let direct = Direct::ensure(&record.bridge, parent).map_err(from_network)?;
            return Ok(Self::Direct(direct));
        }
        let config = record.bridge(table);
        let made = Bridge::ensure_all(table, std::slice::from_ref(&config)).map_err(from_network)?;
        match made.into_iter().next() {
            Some(bridge) => bridge.map(Self::Bridge).map_err(from_network),
            None => Err(Error::system(format!("the bridge {} was not made", config.name))),
        }
    }

    pub fn bridge(&self) -> Option<&Bridge> {
        match self {
            Self::Bridge(bridge) => Some(bridge),
            Self::Direct(_) => None,
        }
    }

    /// Makes an end of a namespace. `before` is told of one that is only in the namespace, before it is made; those of bridges are
    /// found by their other side.
    pub fn attach_to(
        &self,
        netns: BorrowedFd<'_>,
        request: &EndpointRequest,
        before: &mut dyn FnMut(&EndpointRecord),
    ) -> Result<EndpointRecord> {
        match self {
            Self::Bridge(bridge) => bridge.attach_to(netns, request),
            Self::Direct(direct) => direct.attach_to(netns, request, before),
        }
        .map_err(from_network)
    }

    /// Makes a machine's end.
    pub fn attach_tap(&self, request: &EndpointRequest) -> Result<TapEndpoint> {
        match self {
            Self::Bridge(bridge) => bridge.attach_tap(request).map_err(from_network),
            Self::Direct(_) => Err(Error::unsupported(
                "a virtual machine cannot be on a macvlan or ipvlan network: put it on one of the driver bridge",
            )),
        }
    }

    /// Takes an end from a namespace that lives on, if that is not what giving it back does.
    pub fn unplug(&self, netns: BorrowedFd<'_>, end: &EndpointRecord) -> Result<()> {
        match self {
            Self::Bridge(_) => Ok(()),
            Self::Direct(direct) => direct.unplug(netns, end).map_err(from_network),
        }
    }

    pub fn release(&self, end: &EndpointRecord) -> Result<()> {
        match self {
            Self::Bridge(bridge) => bridge.release(end).map_err(from_network),
            Self::Direct(direct) => {
                direct.release(end);
                Ok(())
            }
        }
    }

    /// Waits until what was given back is gone.
    pub fn flush(&self) {
        if let Self::Bridge(bridge) = self {
            bridge.flush();
        }
    }

    /// Removes what was made for the network, except a parent, which others may be on.
    pub fn retire(&self) -> Result<()> {
        match self {
            Self::Bridge(bridge) => bridge.retire().map_err(from_network),
            Self::Direct(_) => Ok(()),
        }
    }
}
