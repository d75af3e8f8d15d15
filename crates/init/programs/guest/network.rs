//! The guest's network by rtnetlink (rtnetlink(7)): addresses, routes, names.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::fault::{Context, Fault, Result, show};
use crate::os::{self, Address as SocketAddress, Errno, Fd};
use crate::protocol::{Address, Interface, Network, Route};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;

const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_ACK: u16 = 0x04;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;

const IFF_UP: u32 = 1;
/// No duplicate address detection: the host has given this address to nobody else.
const IFA_F_NODAD: u32 = 2;

/// Where the kernel shows interfaces.
const CARDS: &str = "/sys/class/net";

/// Whether all cards that are asked for are there.
pub fn is_complete(network: &Network) -> bool {
    network
        .interfaces
        .iter()
        .all(|interface| find(&interface.hardware).is_some())
}

/// Sets the network up.
pub fn configure(network: &Network) -> Result<()> {
    let socket = Netlink::open()?;
    socket.loopback()?;
    for hardware in &network.removed {
        if let Some((index, name)) = find(hardware) {
            socket.set_link(index, &name, 0, IFF_UP, &[])?;
        }
    }
    for interface in &network.interfaces {
        socket.bring_up(interface)?;
    }
    for route in &network.routes {
        socket.route(route)?;
    }
    Ok(())
}

/// The index and the name of the interface with this hardware address.
fn find(hardware: &[u8]) -> Option<(u32, String)> {
    let wanted = colons(hardware);
    os::names(CARDS.as_bytes()).ok()?.into_iter().find_map(|name| {
        let name = String::from_utf8(name).ok()?;
        let file = |what: &str| {
            let text = os::read_file(format!("{CARDS}/{name}/{what}").as_bytes(), 64).ok()?;
            String::from_utf8(text).ok()
        };
        let index = file("ifindex")?.trim().parse().ok()?;
        (file("address")?.trim() == wanted).then_some((index, name))
    })
}

fn colons(hardware: &[u8]) -> String {
    let pairs: Vec<String> = hardware.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.join(":")
}

struct Netlink(Fd);

/// A message under construction: its body, without the header.
struct Body(Vec<u8>);

impl Body {
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = (4 + value.len()) as u16;
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(&kind.to_le_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

impl Netlink {
    fn open() -> Result<Self> {
        let what = || "speak with the kernel about the network".into();
        let socket = os::socket(os::AF_NETLINK, os::SOCK_RAW, 0).context(what)?;
        os::bind(&socket, &SocketAddress::netlink()).context(what)?;
        Ok(Self(socket))
    }

    /// Sends a request and waits for its acknowledgement.
    fn ask(&self, kind: u16, flags: u16, body: &Body) -> os::Result<()> {
        let mut message = Vec::new();
        message.extend_from_slice(&((16 + body.0.len()) as u32).to_le_bytes());
        message.extend_from_slice(&kind.to_le_bytes());
        message.extend_from_slice(&(flags | NLM_F_REQUEST | NLM_F_ACK).to_le_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(&body.0);
        os::send_to(&self.0, &message, &SocketAddress::netlink())?;
        let mut answer = [0; 4096];
        let (count, _) = os::receive_from(&self.0, &mut answer)?;
        // Header of 16 bytes with the kind at 4, then the negative error number.
        let answer = answer.get(..count).unwrap_or_default();
        match (answer.get(4..6), answer.get(16..).and_then(<[u8]>::first_chunk)) {
            (Some(kind), Some(error)) if kind == NLMSG_ERROR.to_le_bytes() => {
                match i32::from_le_bytes(*error) {
                    0 => Ok(()),
                    error => Err(Errno(error.wrapping_neg())),
                }
            }
            _ => Err(Errno::INVAL),
        }
    }

    /// Changes an interface's flags within `mask`, and attributes.
    fn set_link(
        &self,
        index: u32,
        name: &str,
        flags: u32,
        mask: u32,
        attributes: &[(u16, &[u8])],
    ) -> Result<()> {
        // struct ifinfomsg: family, padding, type 2, index 4, flags 4, mask 4.
        let mut body = Body(
            [0u32, index, flags, mask]
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect(),
        );
        for (kind, value) in attributes {
            body.attribute(*kind, value);
        }
        self.ask(RTM_NEWLINK, 0, &body)
            .context(|| format!("change the network interface {name}"))
    }

    fn loopback(&self) -> Result<()> {
        self.set_link(1, "lo", IFF_UP, IFF_UP, &[])
    }

    fn bring_up(&self, interface: &Interface) -> Result<()> {
        let Some((index, found)) = find(&interface.hardware) else {
            return Err(Fault::new(
                crate::protocol::Failure::NotFound,
                format!("there is no network card {}", colons(&interface.hardware)),
            ));
        };
        let wanted = show(&interface.name);
        let mut attributes: Vec<(u16, &[u8])> = Vec::new();
        let named = [&interface.name[..], b"\0"].concat();
        if !wanted.is_empty() && wanted != found {
            // Only while it is down; the name may still be an other's, whose card comes first.
            self.set_link(index, &found, 0, IFF_UP, &[])?;
            if let Ok(text) = os::read_file(format!("{CARDS}/{wanted}/ifindex").as_bytes(), 64)
                && let Some(other) = core::str::from_utf8(&text)
                    .ok()
                    .and_then(|text| text.trim().parse().ok())
            {
                let aside = format!("card{other}\0");
                self.set_link(other, &wanted, 0, IFF_UP, &[(IFLA_IFNAME, aside.as_bytes())])?;
            }
            attributes.push((IFLA_IFNAME, &named));
        }
        let mtu = interface.mtu.to_le_bytes();
        if interface.mtu != 0 {
            attributes.push((IFLA_MTU, &mtu));
        }
        self.set_link(index, &found, 0, 0, &attributes)?;
        self.set_link(index, &wanted, IFF_UP, IFF_UP, &[])?;
        for address in &interface.addresses {
            self.address(index, address)?;
        }
        Ok(())
    }

    fn address(&self, index: u32, address: &Address) -> Result<()> {
        // struct ifaddrmsg: family, prefix, flags, scope, index 4.
        let mut body = Body(Vec::from([family(&address.address)?, address.prefix, 0, 0]));
        body.0.extend_from_slice(&index.to_le_bytes());
        body.attribute(IFA_LOCAL, &address.address);
        body.attribute(IFA_ADDRESS, &address.address);
        match address.address.first_chunk() {
            Some(bytes) if address.address.len() == 4 && address.prefix < 31 => {
                let hosts = u32::MAX.checked_shr(u32::from(address.prefix)).unwrap_or(0);
                let broadcast = u32::from_be_bytes(*bytes) | hosts;
                body.attribute(IFA_BROADCAST, &broadcast.to_be_bytes());
            }
            Some(_) if address.address.len() == 16 => body.attribute(IFA_FLAGS, &IFA_F_NODAD.to_le_bytes()),
            _ => {}
        }
        self.ask(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body)
            .context(|| format!("add the address {:?}/{}", address.address, address.prefix))
    }

    fn route(&self, route: &Route) -> Result<()> {
        let to = &route.destination;
        // The main table, static protocol, universe or link scope, unicast.
        let scope = if route.gateway.is_empty() { 253 } else { 0 };
        // struct rtmsg: family, prefix, source prefix, tos, table, protocol, scope, type, flags 4.
        let mut body = Body(Vec::from([
            family(&to.address)?,
            to.prefix,
            0,
            0,
            254,
            4,
            scope,
            1,
            0,
            0,
            0,
            0,
        ]));
        if to.prefix != 0 {
            body.attribute(RTA_DST, &to.address);
        }
        if !route.gateway.is_empty() {
            body.attribute(RTA_GATEWAY, &route.gateway);
        }
        if !route.hardware.is_empty() {
            let index = find(&route.hardware).map_or(0, |(index, _)| index);
            body.attribute(RTA_OIF, &index.to_le_bytes());
        }
        if route.metric != 0 {
            body.attribute(RTA_PRIORITY, &route.metric.to_le_bytes());
        }
        self.ask(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body)
            .context(|| format!("add the route to {:?}/{}", to.address, to.prefix))
    }
}

fn family(address: &[u8]) -> Result<u8> {
    match address.len() {
        4 => Ok(2),
        16 => Ok(10),
        _ => Err(Fault::invalid("an IP address has 4 or 16 bytes")),
    }
}
