//! Published ports as elements of the table's two maps: found by hash, however many there are.

use std::net::Ipv4Addr;

use rustix::io::Errno;

use super::{CREATE, MSG_DELSETELEM, MSG_GETSETELEM, MSG_NEWSETELEM, push, transaction};
use crate::netlink::message::{AttrIter, Attrs, Batch};
use crate::netlink::{Refusal, Socket};
use crate::ports::Protocol;

const NFT_SET_MAP: u32 = 8;
const EXCL: u16 = libc::NLM_F_EXCL as u16;
/// Elements in one message: their list is an attribute, which ends at 64 KiB.
const PER_MESSAGE: usize = 500;

/// nft's numbers of data types: what makes `nft list` print addresses and ports instead of bytes.
const TYPE_IPV4_ADDR: u32 = 7;
const TYPE_INET_PROTO: u32 = 12;
const TYPE_INET_SERVICE: u32 = 13;
const TYPE_BITS: u32 = 6;
const DESTINATION_TYPE: u32 = TYPE_IPV4_ADDR << TYPE_BITS | TYPE_INET_SERVICE;
const DESTINATION_LEN: u32 = 8;

/// One of the two maps.
pub(super) struct Map {
    pub(super) name: &'static str,
    pub(super) with_address: bool,
}

/// First ports on one address of the host, then ports on all of them.
pub(super) const MAPS: [Map; 2] = [
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
    fn of(mapping: &Mapping) -> &'static Self {
        if mapping.host.is_unspecified() {
            &MAPS[1]
        } else {
            &MAPS[0]
        }
    }

    pub(super) fn declare(&self, a: &mut Attrs<'_>, table: &str, id: u32) {
        let port = TYPE_INET_PROTO << TYPE_BITS | TYPE_INET_SERVICE;
        let (key_type, key_len) = if self.with_address {
            (TYPE_IPV4_ADDR << (2 * TYPE_BITS) | port, 12)
        } else {
            (port, 8)
        };
        a.str(1, table);
        a.str(2, self.name);
        a.be32(3, NFT_SET_MAP);
        a.be32(4, key_type);
        a.be32(5, key_len);
        a.be32(6, DESTINATION_TYPE);
        a.be32(7, DESTINATION_LEN);
        a.be32(10, id);
    }

    /// Every part of a key or of a result fills whole 32-bit words.
    fn key(&self, mapping: &Mapping) -> Vec<u8> {
        let mut key = Vec::with_capacity(12);
        if self.with_address {
            key.extend_from_slice(&mapping.host.octets());
        }
        key.extend_from_slice(&[mapping.protocol.number(), 0, 0, 0]);
        key.extend_from_slice(&mapping.host_port.to_be_bytes());
        key.extend_from_slice(&[0; 2]);
        key
    }

    fn parse(&self, key: &[u8], data: &[u8]) -> Option<Mapping> {
        let (host, key) = if self.with_address {
            (Ipv4Addr::from(*key.first_chunk::<4>()?), key.get(4..)?)
        } else {
            (Ipv4Addr::UNSPECIFIED, key)
        };
        Some(Mapping {
            protocol: Protocol::from_number(*key.first()?)?,
            host,
            host_port: u16::from_be_bytes(*key.get(4..)?.first_chunk()?),
            target: Ipv4Addr::from(*data.first_chunk::<4>()?),
            target_port: u16::from_be_bytes(*data.get(4..)?.first_chunk()?),
        })
    }
}

/// One port of the host and where its packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Mapping {
    pub(crate) protocol: Protocol,
    /// Unspecified: every address of the host.
    pub(crate) host: Ipv4Addr,
    pub(crate) host_port: u16,
    pub(crate) target: Ipv4Addr,
    pub(crate) target_port: u16,
}

fn list(batch: &mut Batch, what: &'static str, message: u16, flags: u16, table: &str, mappings: &[Mapping]) {
    for map in &MAPS {
        let of_map: Vec<_> = mappings
            .iter()
            .filter(|m| std::ptr::eq(Map::of(m), map))
            .collect();
        for part in of_map.chunks(PER_MESSAGE) {
            push(batch, what, message, flags, |a| {
                a.str(1, table);
                a.str(2, map.name);
                a.nest(3, |a| {
                    for mapping in part {
                        a.nest(1, |a| {
                            a.nest(1, |a| a.put(1, &map.key(mapping)));
                            if message == MSG_NEWSETELEM {
                                let mut data = mapping.target.octets().to_vec();
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

/// All published ports of a table; none when there is no such table.
pub(crate) fn dump(socket: &mut Socket, table: &str) -> Result<Vec<Mapping>, Refusal> {
    let mut mappings = Vec::new();
    for map in &MAPS {
        let listing = socket.dump(|batch| {
            push(batch, "list the published ports of", MSG_GETSETELEM, 0, |a| {
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
                map.parse(key, data)
            }));
        }
    }
    Ok(mappings)
}
