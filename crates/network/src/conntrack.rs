//! Connection tracking: forgetting flows whose published port is gone (`nfnetlink_conntrack.h`).
//!
//! TCP notices by itself that its endpoint is gone. A UDP sender does not: as long as it goes on, its flow would be
//! translated to the old address, which may by then belong to somebody else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;

use crate::error::Result;
use crate::netlink::message::{AttrIter, Attrs, Batch};
use crate::netlink::{Family, Socket};
use crate::nft::Ip;
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
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// Flags of the above, which the kernel's headers keep to themselves (`net/netfilter/nf_internals.h`).
const FILTER_PROTO_NUM: u32 = 1 << 3;
const FILTER_PROTO_SRC_PORT: u32 = 1 << 4;
const FILTER_PROTO_DST_PORT: u32 = 1 << 5;
/// The `struct nfgenmsg` of a message: the family, version 0, no resource.
const HEAD: usize = 4;

/// Deletes every flow that was translated to one of the mappings' targets.
pub(crate) fn forget(mappings: &[Mapping]) -> Result<()> {
    if mappings.is_empty() {
        return Ok(());
    }
    delete(mappings, Told::ByAnswers, |flow| {
        mappings.iter().any(|m| {
            (m.protocol.number(), m.target, m.target_port)
                == (flow.protocol, flow.answers_from.0, flow.answers_from.1)
        })
    })
}

/// Deletes every flow to one of the mappings' ports of the host that goes to the host itself, because it began before the port
/// was published: it would go on doing so.
pub(crate) fn forget_unpublished(mappings: &[Mapping]) -> Result<()> {
    if mappings.is_empty() {
        return Ok(());
    }
    delete(mappings, Told::ByDestination, |flow| {
        flow.to == flow.answers_from
            && mappings.iter().any(|m| {
                (m.protocol.number(), m.host_port) == (flow.protocol, flow.to.1)
                    && (m.host.is_unspecified() || m.host == flow.to.0)
            })
    })
}

/// What a flow is told by.
struct Flow {
    protocol: u8,
    /// Where its first packet was sent to.
    to: (IpAddr, u16),
    /// Where the answers come from: the same, unless the destination was translated.
    answers_from: (IpAddr, u16),
}

impl Flow {
    fn parse(attrs: AttrIter<'_>) -> Option<Self> {
        let original = attrs.find(CTA_TUPLE_ORIG)?;
        let reply = attrs.find(CTA_TUPLE_REPLY)?;
        Some(Self {
            protocol: *AttrIter(AttrIter(original).find(CTA_TUPLE_PROTO)?)
                .find(CTA_PROTO_NUM)?
                .first()?,
            to: end(original, CTA_IP_V4_DST, CTA_IP_V6_DST, CTA_PROTO_DST_PORT)?,
            answers_from: end(reply, CTA_IP_V4_SRC, CTA_IP_V6_SRC, CTA_PROTO_SRC_PORT)?,
        })
    }
}

fn end(tuple: &[u8], v4: u16, v6: u16, port: u16) -> Option<(IpAddr, u16)> {
    let addresses = AttrIter(AttrIter(tuple).find(CTA_TUPLE_IP)?);
    let address = match addresses.find(v4) {
        Some(bytes) => Ipv4Addr::from(*bytes.first_chunk::<4>()?).into(),
        None => Ipv6Addr::from(*addresses.find(v6)?.first_chunk::<16>()?).into(),
    };
    let port = AttrIter(AttrIter(tuple).find(CTA_TUPLE_PROTO)?).find(port)?;
    Some((address, u16::from_be_bytes(*port.first_chunk()?)))
}

/// By which of its ends the wanted flows are told.
#[derive(Clone, Copy)]
enum Told {
    ByDestination,
    ByAnswers,
}

/// Has the kernel list those flows only that have the mappings' protocol, and their port if they have but one: a busy host
/// tracks hundreds of thousands. Kernels before 5.8 list all.
fn narrow(attrs: &mut Attrs<'_>, mappings: &[Mapping], told: Told) {
    let protocol = mappings[0].protocol;
    if mappings.iter().any(|m| m.protocol != protocol) {
        return;
    }
    let (tuple, flags, port_kind, port_flag, port): (_, _, _, _, fn(&Mapping) -> u16) = match told {
        Told::ByDestination => (
            CTA_TUPLE_ORIG,
            CTA_FILTER_ORIG_FLAGS,
            CTA_PROTO_DST_PORT,
            FILTER_PROTO_DST_PORT,
            |m| m.host_port,
        ),
        Told::ByAnswers => (
            CTA_TUPLE_REPLY,
            CTA_FILTER_REPLY_FLAGS,
            CTA_PROTO_SRC_PORT,
            FILTER_PROTO_SRC_PORT,
            |m| m.target_port,
        ),
    };
    let one = port(&mappings[0]);
    let same = mappings.iter().all(|m| port(m) == one);
    attrs.nest(tuple, |a| {
        a.nest(CTA_TUPLE_PROTO, |a| {
            a.u8(CTA_PROTO_NUM, protocol.number());
            if same {
                a.put(port_kind, &one.to_be_bytes());
            }
        });
    });
    attrs.nest(CTA_FILTER, |a| {
        let wanted = FILTER_PROTO_NUM | if same { port_flag } else { 0 };
        for kind in [CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS] {
            a.u32(kind, if kind == flags { wanted } else { 0 });
        }
    });
}

/// Deletes the doomed among the flows that `mappings` are about.
fn delete(mappings: &[Mapping], told: Told, doomed: impl Fn(&Flow) -> bool) -> Result<()> {
    let mut socket = Socket::open(Family::Netfilter)?;
    for ip in Ip::ALL {
        let of_family: Vec<Mapping> = mappings
            .iter()
            .filter(|m| Ip::of(m.target) == ip)
            .copied()
            .collect();
        if !of_family.is_empty() {
            delete_family(&mut socket, ip, &of_family, told, &doomed)?;
        }
    }
    Ok(())
}

/// The same for mappings of one family, of which there is one at least.
fn delete_family(
    socket: &mut Socket,
    ip: Ip,
    mappings: &[Mapping],
    told: Told,
    doomed: impl Fn(&Flow) -> bool,
) -> Result<()> {
    let on = "of published ports";
    let head: [u8; HEAD] = [ip.number(), 0, 0, 0];
    let flows = socket
        .dump(|batch| {
            batch.push(
                "list tracked connections",
                SUBSYSTEM << 8 | MSG_GET,
                0,
                &head,
                |attrs| narrow(attrs, mappings, told),
            )
        })
        .map_err(|r| r.on(on))?;
    let mut batch = Batch::new();
    for attrs in flows.iter().filter_map(|f| Some(AttrIter(f.get(HEAD..)?))) {
        if Flow::parse(attrs).is_some_and(|flow| doomed(&flow)) {
            batch.push(
                "forget a tracked connection",
                SUBSYSTEM << 8 | MSG_DELETE,
                0,
                &head,
                |a| {
                    for kind in [CTA_TUPLE_ORIG, CTA_ID] {
                        if let Some(value) = attrs.find(kind) {
                            a.put(kind, value);
                        }
                    }
                },
            );
        }
    }
    match socket.request(batch) {
        // It timed out in between.
        Err(refusal) if refusal.errno != Errno::NOENT => Err(refusal.on(on)),
        _ => Ok(()),
    }
}
