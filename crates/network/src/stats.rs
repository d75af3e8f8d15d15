//! Counters of an endpoint's interface.

use crate::error::{Error, ErrorKind, Result};
use crate::link;
use crate::netlink::{Family, Socket};

/// What went through an interface, as its endpoint sees it: received is what came in from the bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct InterfaceStats {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// Reads counters of endpoints: one query each, on one socket.
pub struct StatsReader(Socket);

impl StatsReader {
    /// A reader for the interfaces of the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Socket::open(Family::Route).map(Self)
    }

    /// The counters of the endpoint whose interface on the host is `ifname`.
    ///
    /// Read on the host's side, where what the endpoint sends arrives: so received and sent change places.
    pub fn endpoint(&mut self, ifname: &str) -> Result<InterfaceStats> {
        let link = link::find(&mut self.0, ifname).map_err(|r| r.on(ifname))?;
        let link = link.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("the interface {ifname} does not exist: its endpoint is gone"),
            )
        })?;
        // The order of `struct rtnl_link_stats64`.
        let counter = |n: usize| link.stats.get(n).copied().unwrap_or(0);
        Ok(InterfaceStats {
            tx_packets: counter(0),
            rx_packets: counter(1),
            tx_bytes: counter(2),
            rx_bytes: counter(3),
            tx_errors: counter(4),
            rx_errors: counter(5),
            tx_dropped: counter(6),
            rx_dropped: counter(7),
        })
    }
}
