//! Published ports as elements of the table's two maps, in each family's table: found by hash, however many there are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;

use super::{CREATE, Ip, MSG_DELSETELEM, MSG_GETSETELEM, MSG_NEWSETELEM, octets, push, transaction};
use crate::netlink::message::{AttrIter, Attrs, Batch};
use crate::netlink::{Refusal, Socket};
use crate::ports::Protocol;

const NFT_SET_MAP: u32 = 8;
const EXCL: u16 = libc::NLM_F_EXCL as u16;
/// Elements in one message: their list is an attribute, which ends at 64 KiB.
const PER_MESSAGE: usize = 500;

/// nft's numbers of data types: what makes `nft list` print addresses and ports instead of bytes.
const TYPE_IPV4_ADDR: u32 = 7;
const TYPE_IPV6_ADDR: u32 = 8;
const TYPE_INET_PROTO: u32 = 12;
const TYPE_INET_SERVICE: u32 = 13;
const TYPE_BITS: u32 = 6;

/// One of the two maps.
pub(super) struct Map {
    pub(super) name: &'static str,
    pub(super) with_address: bool,
}

/// First ports on one address of the host, then ports on all of them.
pub(super) static MAPS: [Map; 2] = [
    Map {
        name: "published",
        with_address: true,
    },
    Map {
        name: "published_any",
        with_address: false,
    },
];

impl Map {
    /// Whether a published port is an element of this one.
    fn has(&self, mapping: &Mapping) -> bool {
        self.with_address != mapping.host.is_unspecified()
    }

    pub(super) fn declare(&self, a: &mut Attrs<'_>, ip: Ip, table: &str, id: u32) {
        let address = match ip {
            Ip::V4 => TYPE_IPV4_ADDR,
            Ip::V6 => TYPE_IPV6_ADDR,
        };
        let port = TYPE_INET_PROTO << TYPE_BITS | TYPE_INET_SERVICE;
        let (key_type, key_len) = if self.with_address {
            (address << (2 * TYPE_BITS) | port, ip.length() + 8)
        } else {
            (port, 8)
        };
        a.str(1, table);
        a.str(2, self.name);
        a.be32(3, NFT_SET_MAP);
        a.be32(4, key_type);
        a.be32(5, key_len);
        a.be32(6, address << TYPE_BITS | TYPE_INET_SERVICE);
        a.be32(7, ip.length() + 4);
        a.be32(10, id);
    }

    /// Every part of a key or of a result fills whole 32-bit words.
    fn key(&self, mapping: &Mapping) -> Vec<u8> {
        let mut key = Vec::with_capacity(24);
        if self.with_address {
            key.extend(octets(mapping.host));
        }
        key.extend_from_slice(&[mapping.protocol.number(), 0, 0, 0]);
        key.extend_from_slice(&mapping.host_port.to_be_bytes());
        key.extend_from_slice(&[0; 2]);
        key
    }

    fn parse(&self, ip: Ip, key: &[u8], data: &[u8]) -> Option<Mapping> {
        let address = |bytes: &[u8]| -> Option<IpAddr> {
            Some(match ip {
                Ip::V4 => Ipv4Addr::from(*bytes.first_chunk::<4>()?).into(),
                Ip::V6 => Ipv6Addr::from(*bytes.first_chunk::<16>()?).into(),
            })
        };
        let length = ip.length() as usize;
        let (host, key) = match ip {
            _ if self.with_address => (address(key)?, key.get(length..)?),
            Ip::V4 => (Ipv4Addr::UNSPECIFIED.into(), key),
            Ip::V6 => (Ipv6Addr::UNSPECIFIED.into(), key),
        };
        Some(Mapping {
            protocol: Protocol::from_number(*key.first()?)?,
            host,
            host_port: u16::from_be_bytes(*key.get(4..)?.first_chunk()?),
            target: address(data)?,
            target_port: u16::from_be_bytes(*data.get(length..)?.first_chunk()?),
        })
    }
}

/// One port of the host and where its packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Mapping {
    pub(crate) protocol: Protocol,
    /// Unspecified: every address of the host. Of the target's family.
    pub(crate) host: IpAddr,
    pub(crate) host_port: u16,
    pub(crate) target: IpAddr,
    pub(crate) target_port: u16,
}

fn list(batch: &mut Batch, what: &'static str, message: u16, flags: u16, table: &str, mappings: &[Mapping]) {
    for (ip, map) in every_map() {
        let of_map: Vec<_> = mappings
            .iter()
            .filter(|m| Ip::of(m.target) == ip && map.has(m))
            .collect();
        for part in of_map.chunks(PER_MESSAGE) {
            push(batch, ip, what, message, flags, |a| {
                a.str(1, table);
                a.str(2, map.name);
                a.nest(3, |a| {
                    for mapping in part {
                        a.nest(1, |a| {
                            a.nest(1, |a| a.put(1, &map.key(mapping)));
                            if message == MSG_NEWSETELEM {
                                let mut data = octets(mapping.target);
                                data.extend_from_slice(&mapping.target_port.to_be_bytes());
                                data.extend_from_slice(&[0; 2]);
                                a.nest(2, |a| a.put(1, &data));
                            }
                        });
                    }
                });
            });
        }
    }
}

/// Replaces elements: all of it or nothing. A key that is already there makes the whole transaction fail.
pub(crate) fn change(table: &str, remove: &[Mapping], add: &[Mapping]) -> Batch {
    transaction(|batch| {
        list(
            batch,
            "withdraw published ports from",
            MSG_DELSETELEM,
            0,
            table,
            remove,
        );
        list(
            batch,
            "publish ports through",
            MSG_NEWSETELEM,
            CREATE | EXCL,
            table,
            add,
        );
    })
}

fn every_map() -> impl Iterator<Item = (Ip, &'static Map)> {
    Ip::ALL
        .into_iter()
        .flat_map(|ip| MAPS.iter().map(move |map| (ip, map)))
}

/// All published ports of the tables of a name; none when there is no such table.
pub(crate) fn dump(socket: &mut Socket, table: &str) -> Result<Vec<Mapping>, Refusal> {
    let mut mappings = Vec::new();
    for (ip, map) in every_map() {
        let listing = socket.dump(|batch| {
            push(batch, ip, "list the published ports of", MSG_GETSETELEM, 0, |a| {
                a.str(1, table);
                a.str(2, map.name);
            });
        });
        let entries = match listing {
            Err(refusal) if refusal.errno == Errno::NOENT => continue,
            other => other?,
        };
        for elements in entries.iter().filter_map(|e| AttrIter(e.get(4..)?).find(3)) {
            mappings.extend(AttrIter(elements).filter_map(|(_, element)| {
                let key = AttrIter(AttrIter(element).find(1)?).find(1)?;
                let data = AttrIter(AttrIter(element).find(2)?).find(1)?;
                map.parse(ip, key, data)
            }));
        }
    }
    Ok(mappings)
}
