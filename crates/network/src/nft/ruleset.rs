//! The one table of all bridges, of which there is one for each family. What it looks like to an administrator is documented in
//! `docs/network.md`.
//!
//! Its rules depend on how many bridges there are, never on how many endpoints or ports: those are elements of two maps.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::io::Errno;

use super::expr::{Is, Rule, Side, Verdict};
use super::{
    CREATE, Ip, MSG_DELRULE, MSG_GETCHAIN, MSG_NEWCHAIN, MSG_NEWRULE, MSG_NEWSET, MSG_NEWTABLE, elements,
    push,
};
use crate::detour::{Detour, next_hop};
use crate::netlink::message::Batch;
use crate::netlink::{Refusal, Socket};

/// The administrator's chain: created when missing, otherwise never touched.
const USER: &str = "user";
/// Only there when this host was no router before there was a bridge.
const OTHERS: &str = "others";
const GUARD: &str = "guard";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const POSTROUTING: &str = "postrouting";
const FORWARD: &str = "forward";
/// Only there when the host's own rules decide about published ports, or did.
const INPUT: &str = "input";

/// `NF_INET_*` hooks and the standard priorities (`linux/netfilter_ipv4.h`).
const HOOKS: [(&str, &str, u32, i32); 6] = [
    // (chain, type, hook, priority)
    (GUARD, "filter", 0, -300),
    (PREROUTING, "nat", 0, -100),
    (FORWARD, "filter", 2, 0),
    (OUTPUT, "nat", 3, -100),
    (POSTROUTING, "nat", 4, 100),
    // After whatever filters there.
    (INPUT, "filter", 1, 200),
];

/// What the rules of one bridge depend on.
#[derive(Clone, Debug)]
pub(crate) struct BridgeRules {
    pub(crate) bridge: String,
    pub(crate) subnet: Ipv4Net,
    /// None: there is no IPv6 on it.
    pub(crate) v6: Option<Ipv6Net>,
    /// Whether endpoints may talk to each other.
    pub(crate) icc: bool,
    /// Whether packets to the outside get the host's address.
    pub(crate) masquerade: bool,
    /// Whether nothing leaves the bridge, and nothing comes to it.
    pub(crate) internal: bool,
    /// Whether addresses of IPv4 are not translated, neither on the way out nor for published ports.
    pub(crate) routed_v4: bool,
    /// The same of IPv6.
    pub(crate) routed_v6: bool,
}

impl BridgeRules {
    /// Its subnet of a family.
    fn subnet(&self, ip: Ip) -> Option<IpNet> {
        match ip {
            Ip::V4 => Some(self.subnet.into()),
            Ip::V6 => self.v6.map(IpNet::V6),
        }
    }

    /// Whether addresses of a family are not translated.
    pub(crate) fn routed(&self, ip: Ip) -> bool {
        match ip {
            Ip::V4 => self.routed_v4,
            Ip::V6 => self.routed_v6,
        }
    }
}

/// What the rules of one family depend on.
pub(crate) struct Ruleset<'a> {
    pub(crate) ip: Ip,
    pub(crate) table: &'a str,
    pub(crate) bridges: &'a [BridgeRules],
    /// Whether the host forwards for bridges only.
    pub(crate) bridges_only: bool,
    /// The way that new connections take if the host's rules decide about them.
    pub(crate) detour: Option<&'a Detour>,
    /// Whether there was such a way before.
    pub(crate) had_detour: bool,
    /// Whether the host's own clients reach published ports by the loopback address.
    pub(crate) by_loopback: bool,
}

/// Whether the table that exists lets the host forward for bridges only.
pub(crate) fn bridges_only(nft: &mut Socket, ip: Ip, table: &str) -> Result<bool, Refusal> {
    has_chain(nft, ip, table, OTHERS)
}

/// Whether the table that exists has the host's rules decide about published ports.
pub(crate) fn has_detour(nft: &mut Socket, ip: Ip, table: &str) -> Result<bool, Refusal> {
    has_chain(nft, ip, table, INPUT)
}

fn has_chain(nft: &mut Socket, ip: Ip, table: &str, chain: &str) -> Result<bool, Refusal> {
    let mut batch = Batch::new();
    push(
        &mut batch,
        ip,
        "look for an nftables chain of",
        MSG_GETCHAIN,
        0,
        |a| {
            a.str(1, table);
            a.str(3, chain);
        },
    );
    match nft.request(batch) {
        Ok(()) => Ok(true),
        Err(refusal) if refusal.errno == Errno::NOENT => Ok(false),
        Err(refusal) => Err(refusal),
    }
}

impl Ruleset<'_> {
    /// The part of a transaction that creates what is missing and replaces every rule except the administrator's. Published
    /// ports stay as they are.
    pub(crate) fn ensure(&self, batch: &mut Batch) {
        push(
            batch,
            self.ip,
            "create the nftables table",
            MSG_NEWTABLE,
            CREATE,
            |a| a.str(1, self.table),
        );
        let plain = [Some(USER), self.bridges_only.then_some(OTHERS)];
        for chain in plain.into_iter().flatten() {
            push(
                batch,
                self.ip,
                "create the nftables chains of",
                MSG_NEWCHAIN,
                CREATE,
                |a| {
                    a.str(1, self.table);
                    a.str(3, chain);
                },
            );
        }
        for (chain, kind, hook, priority) in self.hooks() {
            push(
                batch,
                self.ip,
                "create the nftables chains of",
                MSG_NEWCHAIN,
                CREATE,
                |a| {
                    a.str(1, self.table);
                    a.str(3, chain);
                    a.nest(4, |a| {
                        a.be32(1, hook);
                        a.be32(2, priority as u32);
                    });
                    a.be32(5, libc::NF_ACCEPT as u32);
                    a.str(7, kind);
                },
            );
        }
        for (id, map) in elements::MAPS.iter().enumerate() {
            push(
                batch,
                self.ip,
                "create the nftables maps of",
                MSG_NEWSET,
                CREATE,
                |a| map.declare(a, self.ip, self.table, id as u32 + 1),
            );
        }
        let others = self.bridges_only.then_some(OTHERS);
        for chain in self.hooks().map(|(chain, ..)| chain).chain(others) {
            push(
                batch,
                self.ip,
                "replace the nftables rules of",
                MSG_DELRULE,
                0,
                |a| {
                    a.str(1, self.table);
                    a.str(2, chain);
                },
            );
        }
        self.guard(batch);
        self.nat(batch);
        self.forward(batch);
        self.input(batch);
    }

    fn hooks(&self) -> impl Iterator<Item = (&'static str, &'static str, u32, i32)> {
        let with_input = self.detour.is_some() || self.had_detour;
        HOOKS
            .into_iter()
            .filter(move |(chain, ..)| with_input || *chain != INPUT)
    }

    /// What the host's rules have accepted takes the way by which it comes in once more, to be translated.
    fn input(&self, batch: &mut Batch) {
        let Some(detour) = self.detour else {
            return;
        };
        if self.ip == Ip::V6 {
            // They are not translated, see there.
            self.rule(batch, INPUT, |r| {
                r.destination_in(link_local()).verdict(Verdict::Accept)
            });
        }
        for map in &elements::MAPS {
            self.rule(batch, INPUT, |r| {
                for interface in ["lo", &detour.back] {
                    r.interface(Side::In, Is::NotEqual, interface);
                }
                r.new_connection()
                    .published(self.ip, map.name, map.with_address)
                    .copy_to(next_hop(self.ip), detour.out)
                    .verdict(Verdict::Drop);
            });
        }
    }

    /// Nothing on a wire may be for 127.0.0.0/8 (RFC 1122, 3.2.1.3). The bridge routes it for the sake of ports published on
    /// 127.0.0.1, so what the kernel would otherwise discard is dropped here: before connection tracking, where the answers
    /// to our own translated connections still carry the bridge's address.
    ///
    /// The kernel discards what is for `::1` by itself, but bridge netfilter, where it is on, translates before it does.
    fn guard(&self, batch: &mut Batch) {
        self.rule(batch, GUARD, |r| {
            r.interface(Side::In, Is::NotEqual, "lo")
                .destination_in(self.loopback())
                .counter()
                .verdict(Verdict::Drop);
        });
    }

    fn nat(&self, batch: &mut Batch) {
        for chain in [PREROUTING, OUTPUT] {
            self.rule(batch, chain, |r| {
                r.for_this_host(Is::NotEqual).verdict(Verdict::Accept)
            });
            if self.ip == Ip::V6 {
                // Answers to a link-local address stay on the link: they would not come back to be translated.
                self.rule(batch, chain, |r| {
                    r.destination_in(link_local()).verdict(Verdict::Accept)
                });
            }
            if !self.by_loopback {
                self.rule(batch, chain, |r| {
                    r.destination_in(self.loopback()).verdict(Verdict::Accept)
                });
            }
            if let Some(detour) = self.detour.filter(|_| chain == PREROUTING) {
                self.rule(batch, chain, |r| {
                    r.interface(Side::In, Is::NotEqual, &detour.back)
                        .verdict(Verdict::Accept)
                });
            }
            for map in &elements::MAPS {
                self.rule(batch, chain, |r| {
                    r.dnat_by_map(self.ip, map.name, map.with_address)
                });
            }
        }
        for bridge in self.bridges {
            if let Some(subnet) = bridge.subnet(self.ip).filter(|_| !bridge.routed(self.ip)) {
                self.postrouting(batch, bridge, subnet);
            }
        }
    }

    fn postrouting(&self, batch: &mut Batch, bridge: &BridgeRules, subnet: IpNet) {
        if bridge.masquerade {
            self.rule(batch, POSTROUTING, |r| {
                // The host talking to itself by the bridge's address is not leaving.
                r.interface(Side::Out, Is::NotEqual, "lo");
                r.interface(Side::Out, Is::NotEqual, &bridge.bridge)
                    .source_in(subnet)
                    .masquerade();
            });
        }
        // An endpoint that reaches a port of its own subnet by the host's address must get its answers from the host, and a
        // local client on 127.0.0.1 must have an address that the endpoint can answer to.
        for source in [subnet, self.loopback()] {
            self.rule(batch, POSTROUTING, |r| {
                r.interface(Side::Out, Is::Equal, &bridge.bridge)
                    .source_in(source)
                    .was_dnated()
                    .masquerade();
            });
        }
    }

    /// Whatever goes to a bridge must be an answer, be meant for a published port, or come from the same bridge: so endpoints
    /// of different bridges reach each other by published ports only.
    fn forward(&self, batch: &mut Batch) {
        self.rule(batch, FORWARD, |r| r.verdict(Verdict::Jump(USER)));
        if self.bridges_only {
            // Whoever made a router of the host has to see to it that it is none for others.
            self.rule(batch, OTHERS, |r| {
                r.kind(Side::In, Is::NotEqual, "bridge")
                    .kind(Side::Out, Is::NotEqual, "bridge")
                    .counter()
                    .verdict(Verdict::Drop);
            });
            self.rule(batch, FORWARD, |r| r.verdict(Verdict::Jump(OTHERS)));
        }
        let bridges = || {
            self.bridges
                .iter()
                .filter(|bridge| bridge.subnet(self.ip).is_some())
        };
        // Before anything is accepted: no rule for others opens an internal network.
        for bridge in bridges().filter(|bridge| bridge.internal) {
            for (here, there) in [(Side::In, Side::Out), (Side::Out, Side::In)] {
                self.rule(batch, FORWARD, |r| {
                    r.interface(here, Is::Equal, &bridge.bridge)
                        .interface(there, Is::NotEqual, &bridge.bridge)
                        .counter()
                        .verdict(Verdict::Drop);
                });
            }
        }
        self.rule(batch, FORWARD, |r| r.established().verdict(Verdict::Accept));
        self.rule(batch, FORWARD, |r| r.was_dnated().verdict(Verdict::Accept));
        for bridge in bridges() {
            if bridge.icc {
                self.rule(batch, FORWARD, |r| {
                    r.interface(Side::In, Is::Equal, &bridge.bridge)
                        .interface(Side::Out, Is::Equal, &bridge.bridge)
                        .verdict(Verdict::Accept)
                });
            }
            if bridge.routed(self.ip) {
                self.reachable(batch, &bridge.bridge);
            }
            self.rule(batch, FORWARD, |r| {
                r.interface(Side::Out, Is::Equal, &bridge.bridge)
                    .counter()
                    .verdict(Verdict::Drop)
            });
        }
    }

    /// Published ports of a bridge that is routed to are elements that lead to themselves: found by where a packet goes, they
    /// let it pass. So does ICMP, without which there is no way to know how large packets may be.
    fn reachable(&self, batch: &mut Batch, bridge: &str) {
        let from_elsewhere = |r: &mut Rule<'_, '_>| {
            r.interface(Side::In, Is::NotEqual, bridge)
                .interface(Side::Out, Is::Equal, bridge);
        };
        self.rule(batch, FORWARD, |r| {
            from_elsewhere(r);
            r.protocol(self.ip.icmp()).verdict(Verdict::Accept);
        });
        for map in elements::MAPS.iter().filter(|map| map.with_address) {
            self.rule(batch, FORWARD, |r| {
                from_elsewhere(r);
                r.published(self.ip, map.name, true).verdict(Verdict::Accept);
            });
        }
    }

    fn rule(&self, batch: &mut Batch, chain: &str, body: impl FnOnce(&mut Rule<'_, '_>)) {
        const APPEND: u16 = CREATE | libc::NLM_F_APPEND as u16;
        push(
            batch,
            self.ip,
            "replace the nftables rules of",
            MSG_NEWRULE,
            APPEND,
            |a| {
                a.str(1, self.table);
                a.str(2, chain);
                a.nest(4, |a| body(&mut Rule(a)));
            },
        );
    }

    fn loopback(&self) -> IpNet {
        match self.ip {
            Ip::V4 => Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8).into(),
            Ip::V6 => Ipv6Net::from(Ipv6Addr::LOCALHOST).into(),
        }
    }
}

fn link_local() -> IpNet {
    Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10).into()
}
