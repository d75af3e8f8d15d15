//! nftables by nfnetlink (`include/uapi/linux/netfilter/nf_tables.h`).
//!
//! `expr` writes the expressions of a rule, `ruleset` is the one table of a bridge, `elements` are the published ports.

pub(crate) mod elements;
mod expr;
pub(crate) mod listing;
pub(crate) mod local_dns;
pub(crate) mod ruleset;

use crate::netlink::message::{Attrs, Batch};

/// The family of a table: one of each is called the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ip {
    V4,
    V6,
}

impl Ip {
    /// Both of them.
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn of(address: std::net::IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `NFPROTO_*`, which are `AF_*`.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::V4 => libc::AF_INET as u8,
            Self::V6 => libc::AF_INET6 as u8,
        }
    }

    /// The number of its ICMP (`IPPROTO_*`).
    fn icmp(self) -> u8 {
        match self {
            Self::V4 => libc::IPPROTO_ICMP as u8,
            Self::V6 => libc::IPPROTO_ICMPV6 as u8,
        }
    }

    /// Bytes of an address.
    fn length(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// Where a header has the source; the destination follows it.
    fn source_offset(self) -> u32 {
        match self {
            Self::V4 => 12,
            Self::V6 => 8,
        }
    }
}

const SUBSYSTEM: u16 = 10;
const MSG_BATCH_BEGIN: u16 = 0x10;
const MSG_BATCH_END: u16 = 0x11;
const CREATE: u16 = libc::NLM_F_CREATE as u16;

const MSG_NEWTABLE: u16 = 0;
const MSG_DELTABLE: u16 = 2;
const MSG_NEWCHAIN: u16 = 3;
const MSG_GETCHAIN: u16 = 4;
const MSG_NEWRULE: u16 = 6;
const MSG_DELRULE: u16 = 8;
const MSG_NEWSET: u16 = 9;
const MSG_NEWSETELEM: u16 = 12;
const MSG_GETSETELEM: u16 = 13;
const MSG_DELSETELEM: u16 = 14;

/// An address as packets and registers have it.
fn octets(address: std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A transaction: what `fill` adds happens as a whole or not at all.
pub(crate) fn transaction(fill: impl FnOnce(&mut Batch)) -> Batch {
    // `res_id` of the markers says which subsystem the transaction is for, in network byte order.
    let marker = [0, 0, (SUBSYSTEM >> 8) as u8, SUBSYSTEM as u8];
    let mut batch = Batch::new();
    batch.push(
        "begin an nftables transaction for",
        MSG_BATCH_BEGIN,
        0,
        &marker,
        |_| (),
    );
    fill(&mut batch);
    batch.push(
        "end an nftables transaction for",
        MSG_BATCH_END,
        0,
        &marker,
        |_| (),
    );
    batch
}

fn push(
    batch: &mut Batch,
    ip: Ip,
    what: &'static str,
    message: u16,
    flags: u16,
    body: impl FnOnce(&mut Attrs<'_>),
) {
    batch.push(
        what,
        SUBSYSTEM << 8 | message,
        flags,
        &[ip.number(), 0, 0, 0],
        body,
    );
}

/// Removes the whole table with everything in it.
pub(crate) fn delete_table(ip: Ip, table: &str) -> Batch {
    transaction(|batch| {
        push(batch, ip, "remove the nftables table", MSG_DELTABLE, 0, |a| {
            a.str(1, table)
        })
    })
}
