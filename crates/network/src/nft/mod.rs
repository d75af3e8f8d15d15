//! nftables by nfnetlink (`include/uapi/linux/netfilter/nf_tables.h`).
//!
//! `expr` writes the expressions of a rule, `ruleset` is the one table of a bridge, `elements` are the published ports.

pub(crate) mod elements;
mod expr;
pub(crate) mod local_dns;
pub(crate) mod ruleset;

use crate::netlink::message::{Attrs, Batch};

/// `NFPROTO_IPV4`.
const FAMILY: u8 = 2;
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

fn push(batch: &mut Batch, what: &'static str, message: u16, flags: u16, body: impl FnOnce(&mut Attrs<'_>)) {
    batch.push(what, SUBSYSTEM << 8 | message, flags, &[FAMILY, 0, 0, 0], body);
}

/// Removes the whole table with everything in it.
pub(crate) fn delete_table(table: &str) -> Batch {
    transaction(|batch| {
        push(batch, "remove the nftables table", MSG_DELTABLE, 0, |a| {
            a.str(1, table)
        })
    })
}
