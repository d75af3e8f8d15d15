//! Connection tracking: forgetting flows whose published port is gone (`nfnetlink_conntrack.h`).
//!
//! TCP notices by itself that its endpoint is gone. A UDP sender does not: as long as it goes on, its flow would be
//! translated to the old address, which may by then belong to somebody else.

use std::net::Ipv4Addr;

use rustix::io::Errno;

use crate::error::Result;
use crate::netlink::message::{AttrIter, Batch};
use crate::netlink::{Family, Socket};
use crate::nft::elements::Mapping;

const SUBSYSTEM: u16 = 1;
const MSG_GET: u16 = 1;
const MSG_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
/// `AF_INET`, version 0, no resource.
const HEAD: [u8; 4] = [libc::AF_INET as u8, 0, 0, 0];

/// Deletes every flow that was translated to one of the mappings' targets.
pub(crate) fn forget(mappings: &[Mapping]) -> Result<()> {
    if mappings.is_empty() {
        return Ok(());
    }
    let on = "for removed ports";
    let mut socket = Socket::open(Family::Netfilter)?;
    let flows = socket.dump(|batch| batch.push("list tracked connections", SUBSYSTEM << 8 | MSG_GET, 0, &HEAD, |_| ())).map_err(|r| r.on(on))?;
    let mut batch = Batch::new();
    for attrs in flows.iter().filter_map(|f| Some(AttrIter(f.get(HEAD.len()..)?))) {
        let Some(source) = attrs.find(CTA_TUPLE_REPLY).and_then(reply_source) else { continue };
        if !mappings.iter().any(|m| (m.protocol.number(), m.target, m.target_port) == source) {
            continue;
        }
        batch.push("forget a tracked connection", SUBSYSTEM << 8 | MSG_DELETE, 0, &HEAD, |a| {
            for kind in [CTA_TUPLE_ORIG, CTA_ID] {
                if let Some(value) = attrs.find(kind) {
                    a.put(kind, value);
                }
            }
        });
    }
    match socket.request(batch) {
        // It timed out in between.
        Err(refusal) if refusal.errno != Errno::NOENT => Err(refusal.on(on)),
        _ => Ok(()),
    }
}

/// Protocol, address and port that a flow's answers come from.
fn reply_source(tuple: &[u8]) -> Option<(u8, Ipv4Addr, u16)> {
    let ip = AttrIter(AttrIter(tuple).find(CTA_TUPLE_IP)?).find(CTA_IP_V4_SRC)?;
    let proto = AttrIter(AttrIter(tuple).find(CTA_TUPLE_PROTO)?);
    let number = *proto.find(CTA_PROTO_NUM)?.first()?;
    let port = u16::from_be_bytes(*proto.find(CTA_PROTO_SRC_PORT)?.first_chunk()?);
    Some((number, Ipv4Addr::from(*ip.first_chunk::<4>()?), port))
}
