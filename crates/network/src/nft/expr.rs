//! The expressions that a rule is made of.
//!
//! Registers: the first eight words hold what is compared or looked up, the other eight what a lookup yields, so that one rule
//! can key on address, protocol and port at once.

use ipnet::IpNet;

use super::Ip;
use crate::netlink::message::Attrs;

const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

const REG_VERDICT: u32 = 0;
/// The words of the key: `NFT_REG32_00` and on.
pub(super) const KEY: u32 = libc::NFT_REG32_00 as u32;
/// The words of a lookup's result.
pub(super) const RESULT: u32 = libc::NFT_REG32_08 as u32;

/// Keys of `enum nft_meta_keys` that the `libc` crate does not name (Linux 4.18).
const META_IIFKIND: i32 = 26;
const META_OIFKIND: i32 = 27;

const RTN_LOCAL: u32 = 2;
const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_F_DADDR: u32 = 2;

/// `ct state`: established and related.
const CT_ESTABLISHED_OR_RELATED: u32 = 2 | 4;
/// `ct state`: new.
const CT_NEW: u32 = 8;
/// `IPS_DST_NAT` of `ct status`.
const CT_STATUS_DNAT: u32 = 1 << 5;

/// Which side of the route an interface is on.
#[derive(Clone, Copy)]
pub(super) enum Side {
    In,
    Out,
}

/// Whether a comparison must hold or must not.
#[derive(Clone, Copy)]
pub(super) enum Is {
    Equal,
    NotEqual,
}

impl Is {
    fn op(self) -> u32 {
        match self {
            Is::Equal => libc::NFT_CMP_EQ as u32,
            Is::NotEqual => libc::NFT_CMP_NEQ as u32,
        }
    }
}

/// What a rule ends with.
pub(super) enum Verdict<'a> {
    Accept,
    Drop,
    Jump(&'a str),
}

/// A name as registers have it.
fn name(name: &str) -> [u8; libc::IFNAMSIZ] {
    let mut value = [0; libc::IFNAMSIZ];
    let len = name.len().min(libc::IFNAMSIZ - 1);
    value[..len].copy_from_slice(&name.as_bytes()[..len]);
    value
}

/// The expressions of one rule, written one after the other.
pub(super) struct Rule<'a, 'b>(pub(super) &'a mut Attrs<'b>);

impl Rule<'_, '_> {
    fn expr(&mut self, name: &str, body: impl FnOnce(&mut Attrs<'_>)) {
        self.0.nest(LIST_ELEM, |a| {
            a.str(EXPR_NAME, name);
            a.nest(EXPR_DATA, body);
        });
    }

    fn compare(&mut self, register: u32, is: Is, value: &[u8]) {
        self.expr("cmp", |a| {
            a.be32(1, register);
            a.be32(2, is.op());
            a.nest(3, |a| a.put(DATA_VALUE, value));
        });
    }

    fn mask(&mut self, register: u32, mask: &[u8]) {
        self.expr("bitwise", |a| {
            a.be32(1, register);
            a.be32(2, register);
            a.be32(3, mask.len() as u32);
            a.nest(4, |a| a.put(DATA_VALUE, mask));
            a.nest(5, |a| a.put(DATA_VALUE, &[0; 16][..mask.len().min(16)]));
        });
    }

    fn load_meta(&mut self, register: u32, key: i32) {
        self.expr("meta", |a| {
            a.be32(1, register);
            a.be32(2, key as u32);
        });
    }

    fn load_payload(&mut self, register: u32, base: i32, offset: u32, len: u32) {
        self.expr("payload", |a| {
            a.be32(1, register);
            a.be32(2, base as u32);
            a.be32(3, offset);
            a.be32(4, len);
        });
    }

    fn load_ct(&mut self, register: u32, key: i32) {
        self.expr("ct", |a| {
            a.be32(1, register);
            a.be32(2, key as u32);
        });
    }

    /// `iifname`/`oifname`: by name, so that the rule outlives a re-created interface.
    pub(super) fn interface(&mut self, side: Side, is: Is, interface: &str) -> &mut Self {
        self.load_meta(
            libc::NFT_REG_1 as u32,
            match side {
                Side::In => libc::NFT_META_IIFNAME,
                Side::Out => libc::NFT_META_OIFNAME,
            },
        );
        self.compare(libc::NFT_REG_1 as u32, is, &name(interface));
        self
    }

    /// `meta iifkind`/`oifkind`: what sort of interface it is, such as `bridge`.
    pub(super) fn kind(&mut self, side: Side, is: Is, kind: &str) -> &mut Self {
        self.load_meta(
            libc::NFT_REG_1 as u32,
            match side {
                Side::In => META_IIFKIND,
                Side::Out => META_OIFKIND,
            },
        );
        self.compare(libc::NFT_REG_1 as u32, is, &name(kind));
        self
    }

    /// `fib daddr type local` (or not): whether the packet is for an address of this host.
    pub(super) fn for_this_host(&mut self, is: Is) -> &mut Self {
        self.expr("fib", |a| {
            a.be32(1, KEY);
            a.be32(2, FIB_RESULT_ADDRTYPE);
            a.be32(3, FIB_F_DADDR);
        });
        self.compare(KEY, is, &RTN_LOCAL.to_ne_bytes());
        self
    }

    /// `ip saddr NET`.
    pub(super) fn source_in(&mut self, net: IpNet) -> &mut Self {
        self.address_in(false, net)
    }

    /// `ip daddr NET`.
    pub(super) fn destination_in(&mut self, net: IpNet) -> &mut Self {
        self.address_in(true, net)
    }

    fn address_in(&mut self, destination: bool, net: IpNet) -> &mut Self {
        let ip = Ip::of(net.addr());
        self.load_address(KEY, ip, destination);
        self.mask(KEY, &super::octets(net.netmask()));
        self.compare(KEY, Is::Equal, &super::octets(net.network()));
        self
    }

    fn load_address(&mut self, register: u32, ip: Ip, destination: bool) {
        let offset = ip.source_offset() + if destination { ip.length() } else { 0 };
        self.load_payload(register, libc::NFT_PAYLOAD_NETWORK_HEADER, offset, ip.length());
    }

    /// `ct state established,related`.
    pub(super) fn established(&mut self) -> &mut Self {
        self.load_ct(KEY, libc::NFT_CT_STATE);
        self.mask(KEY, &CT_ESTABLISHED_OR_RELATED.to_ne_bytes());
        self.compare(KEY, Is::NotEqual, &[0; 4]);
        self
    }

    /// `ct state new`.
    pub(super) fn new_connection(&mut self) -> &mut Self {
        self.load_ct(KEY, libc::NFT_CT_STATE);
        self.mask(KEY, &CT_NEW.to_ne_bytes());
        self.compare(KEY, Is::NotEqual, &[0; 4]);
        self
    }

    /// `ct status dnat`: somebody's rule gave the connection a new destination.
    pub(super) fn was_dnated(&mut self) -> &mut Self {
        self.load_ct(KEY, libc::NFT_CT_STATUS);
        self.mask(KEY, &CT_STATUS_DNAT.to_ne_bytes());
        self.compare(KEY, Is::NotEqual, &[0; 4]);
        self
    }

    /// `dnat to [ip daddr .] meta l4proto . th dport map @MAP`.
    pub(super) fn dnat_by_map(&mut self, ip: Ip, map: &str, with_address: bool) {
        self.published(ip, map, with_address).dnat(ip);
    }

    /// `[ip daddr .] meta l4proto . th dport @MAP`; the result is in its registers.
    pub(super) fn published(&mut self, ip: Ip, map: &str, with_address: bool) -> &mut Self {
        let mut word = KEY;
        if with_address {
            self.load_address(word, ip, true);
            word += ip.length() / 4;
        }
        self.load_meta(word, libc::NFT_META_L4PROTO);
        self.load_payload(word + 1, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
        self.expr("lookup", |a| {
            a.str(1, map);
            a.be32(2, KEY);
            a.be32(3, RESULT);
        });
        self
    }

    /// `dup to ADDRESS device INDEX`: a copy leaves by the interface.
    pub(super) fn copy_to(&mut self, address: std::net::IpAddr, interface: u32) -> &mut Self {
        self.immediate(KEY, &super::octets(address));
        self.immediate(RESULT, &interface.to_ne_bytes());
        self.expr("dup", |a| {
            a.be32(1, KEY);
            a.be32(2, RESULT);
        });
        self
    }

    /// `meta l4proto NUMBER`.
    pub(super) fn protocol(&mut self, number: u8) -> &mut Self {
        self.load_meta(KEY, libc::NFT_META_L4PROTO);
        self.compare(KEY, Is::Equal, &[number]);
        self
    }

    /// `PROTOCOL dport PORT`.
    pub(super) fn destination_port(&mut self, protocol: crate::ports::Protocol, port: u16) -> &mut Self {
        self.protocol(protocol.number());
        self.load_payload(KEY, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
        self.compare(KEY, Is::Equal, &port.to_be_bytes());
        self
    }

    fn immediate(&mut self, register: u32, value: &[u8]) {
        self.expr("immediate", |a| {
            a.be32(1, register);
            a.nest(2, |a| a.put(DATA_VALUE, value));
        });
    }

    /// `dnat to ADDRESS:PORT`.
    pub(super) fn dnat_to(&mut self, address: std::net::Ipv4Addr, port: u16) {
        self.immediate(RESULT, &address.octets());
        self.immediate(RESULT + 1, &port.to_be_bytes());
        self.dnat(Ip::V4);
    }

    /// `dnat` to the address and port in the registers of a result.
    fn dnat(&mut self, ip: Ip) {
        self.expr("nat", |a| {
            a.be32(1, libc::NFT_NAT_DNAT as u32);
            a.be32(2, u32::from(ip.number()));
            a.be32(3, RESULT);
            a.be32(5, RESULT + ip.length() / 4);
        });
    }

    pub(super) fn masquerade(&mut self) {
        self.expr("masq", |_| ());
    }

    pub(super) fn counter(&mut self) -> &mut Self {
        self.expr("counter", |_| ());
        self
    }

    pub(super) fn verdict(&mut self, verdict: Verdict<'_>) {
        self.expr("immediate", |a| {
            a.be32(1, REG_VERDICT);
            a.nest(2, |a| {
                a.nest(DATA_VERDICT, |a| match verdict {
                    Verdict::Accept => a.be32(VERDICT_CODE, libc::NF_ACCEPT as u32),
                    Verdict::Drop => a.be32(VERDICT_CODE, libc::NF_DROP as u32),
                    Verdict::Jump(chain) => {
                        a.be32(VERDICT_CODE, libc::NFT_JUMP as u32);
                        a.str(VERDICT_CHAIN, chain);
                    }
                });
            });
        });
    }
}
