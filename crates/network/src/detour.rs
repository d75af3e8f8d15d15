//! Published ports under the host's own rules for what comes in.
//!
//! A published port is translated before the kernel looks where a packet goes: so it is forwarded, and a firewall's rules for
//! `input` never see it. With the detour the first packet of a connection from outside is left as it is. It passes the hook
//! `input`, where the host's rules, whoever made them, decide about it like about one for a program of the host. What they
//! accept reaches a chain of ours that comes after them, and is sent out by one end of a pair of interfaces; it comes in by the
//! other end, and what comes in there is translated. All further packets of the connection are translated at once, because
//! connection tracking knows it. No program copies anything.
//!
//! Limits: a filter that asks whether the way back to a sender leads through the interface a packet came in by (`fib saddr . iif`)
//! drops what comes in by the pair. The kernel's own check (`rp_filter`) does not: it is loose there.

use std::hash::{DefaultHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::address::MacAddr;
use crate::error::{Error, ErrorKind, Result};
use crate::interface::{enable_v6, remove_interface};
use crate::link;
use crate::netlink::Socket;
use crate::netlink::message::Batch;
use crate::netns;
use crate::nft::Ip;

/// A pair that exists.
#[derive(Clone, Debug)]
pub(crate) struct Detour {
    /// The end by which packets are sent out.
    pub(crate) out: u32,
    /// The end by which they come in.
    pub(crate) back: String,
}

/// Both ends have the same address: what is sent to one is for the other.
const MAC: MacAddr = MacAddr([0x02, 0x42, 0, 0, 0, 1]);
/// An interface without an address takes nothing where the kernel checks the way back.
const BACK: Ipv4Addr = Ipv4Addr::new(169, 254, 86, 1);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Whom a packet is sent to: nobody has these addresses, and nobody needs to on a pair without ARP.
pub(crate) fn next_hop(ip: Ip) -> IpAddr {
    match ip {
        Ip::V4 => Ipv4Addr::new(169, 254, 86, 2).into(),
        Ip::V6 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2).into(),
    }
}

/// The names of the two ends, which belong to a table.
fn names(table: &str) -> (String, String) {
    // `DefaultHasher::new` has fixed keys.
    let mut hasher = DefaultHasher::new();
    hasher.write(table.as_bytes());
    let id = hasher.finish() as u32;
    (format!("vi{id:08x}o"), format!("vi{id:08x}i"))
}

/// Whether an interface is called as the ends of such pairs are.
pub(crate) fn is_end(name: &str) -> bool {
    name.strip_prefix("vi")
        .and_then(|rest| rest.strip_suffix(['i', 'o']))
        .is_some_and(|id| id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Makes the pair, or what of it is missing.
pub(crate) fn ensure(route: &mut Socket, table: &str) -> Result<Detour> {
    let (out, back) = names(table);
    if link::find(route, &out).map_err(|r| r.on(&out))?.is_none() {
        let mut batch = Batch::new();
        link::add_pair(&mut batch, &out, &back, MAC);
        route.request(batch).map_err(|r| r.on(&out))?;
    }
    let has_v6 = netns::read_sysctl("ipv6/conf/all/disable_ipv6").is_ok();
    let mut ends = Vec::new();
    for name in [&out, &back] {
        let link = link::find(route, name).map_err(|r| r.on(name))?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("the interface {name} vanished while it was set up"),
            )
        })?;
        netns::ensure_sysctl(&format!("ipv4/conf/{name}/rp_filter"), "2")?;
        let mut addresses: Vec<(IpAddr, IpNet)> = Vec::new();
        if *name == back {
            addresses.push((BACK.into(), Ipv4Net::from(BACK).into()));
        }
        let mut batch = Batch::new();
        if has_v6 {
            enable_v6(name)?;
            link::no_link_local(&mut batch, name);
            addresses.push((LINK_LOCAL.into(), Ipv6Net::new_assert(LINK_LOCAL, 64).into()));
        }
        link::set_up(&mut batch, link.index);
        for (address, net) in addresses {
            let there = link::addresses(route, Ip::of(address), Some(link.index)).map_err(|r| r.on(name))?;
            if !there.iter().any(|(other, _)| *other == address) {
                link::add_address(&mut batch, link.index, address, net);
            }
        }
        link::settle(&mut batch, name);
        route.request(batch).map_err(|r| r.on(name))?;
        ends.push(link.index);
    }
    Ok(Detour {
        out: ends.first().copied().unwrap_or(0),
        back,
    })
}

/// Removes the pair; one that is not there is fine.
pub(crate) fn remove(route: &mut Socket, table: &str) -> Result<()> {
    remove_interface(route, &names(table).0)
}
