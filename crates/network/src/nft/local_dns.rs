//! The table inside a container's namespace that leads port 53 of the embedded DNS server's address to the ports it has.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use super::expr::Rule;
use super::{CREATE, Ip, MSG_DELTABLE, MSG_NEWCHAIN, MSG_NEWRULE, MSG_NEWTABLE, push, transaction};
use crate::netlink::message::Batch;
use crate::ports::Protocol;

/// Its name.
pub(crate) const TABLE: &str = "vessel_dns";
const CHAIN: &str = "output";
/// `NF_INET_LOCAL_OUT`, and the priority of destination translation.
const HOOK: u32 = 3;
const PRIORITY: i32 = -100;
const DNS: u16 = 53;

/// Makes the table, in the place of one that may be there.
pub(crate) fn redirect(address: Ipv4Addr, udp: u16, tcp: u16) -> Batch {
    transaction(|batch| {
        // What is to be removed must exist.
        for (what, message, flags) in [
            ("create", MSG_NEWTABLE, CREATE),
            ("replace", MSG_DELTABLE, 0),
            ("create", MSG_NEWTABLE, CREATE),
        ] {
            push(batch, Ip::V4, what, message, flags, |a| a.str(1, TABLE));
        }
        push(batch, Ip::V4, "create a chain in", MSG_NEWCHAIN, CREATE, |a| {
            a.str(1, TABLE);
            a.str(3, CHAIN);
            a.nest(4, |a| {
                a.be32(1, HOOK);
                a.be32(2, PRIORITY as u32);
            });
            a.be32(5, libc::NF_ACCEPT as u32);
            a.str(7, "nat");
        });
        for (protocol, port) in [(Protocol::Udp, udp), (Protocol::Tcp, tcp)] {
            const APPEND: u16 = CREATE | libc::NLM_F_APPEND as u16;
            push(batch, Ip::V4, "create a rule in", MSG_NEWRULE, APPEND, |a| {
                a.str(1, TABLE);
                a.str(2, CHAIN);
                a.nest(4, |a| {
                    Rule(a)
                        .destination_in(IpNet::V4(Ipv4Net::from(address)))
                        .destination_port(protocol, DNS)
                        .dnat_to(address, port);
                });
            });
        }
    })
}
