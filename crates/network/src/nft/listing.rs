//! The rules that a table has, whoever made them.

use rustix::io::Errno;

use super::SUBSYSTEM;
use crate::error::Result;
use crate::netlink::message::{AttrIter, text};
use crate::netlink::{Family, Socket};

const MSG_GETRULE: u16 = 7;
/// `NFTA_DATA_VALUE`, the kind of the attribute that holds what is compared with.
const VALUE: u16 = 1;
/// `NFPROTO_UNSPEC`: tables of every family.
const ANY_FAMILY: u8 = 0;

/// A rule, as far as its place and its interfaces go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The family of its table: `ip`, `ip6`, `inet` or a number.
    pub family: String,
    /// Its chain.
    pub chain: String,
    /// What `nft delete rule` calls it by.
    pub handle: u64,
    /// Its expressions, as the kernel has them.
    body: Vec<u8>,
}

impl Rule {
    /// Whether it speaks of an interface of this name.
    pub fn names(&self, interface: &str) -> bool {
        // An interface is compared as a string with the zero behind it, which is the value of an attribute of its own: what
        // stands before it is that one's head, a length and a kind, and not more of a longer name.
        let wanted = [&VALUE.to_ne_bytes()[..], interface.as_bytes(), &[0]].concat();
        self.body.windows(wanted.len()).any(|part| part == wanted)
    }

    fn parse(message: &[u8], table: &str) -> Option<Self> {
        let family = match *message.first()? {
            2 => "ip".to_owned(),
            10 => "ip6".to_owned(),
            1 => "inet".to_owned(),
            other => other.to_string(),
        };
        let attributes = message.get(4..)?;
        let find = |kind| AttrIter(attributes).find(kind);
        (text(find(1)?) == table).then_some(())?;
        Some(Self {
            family,
            chain: text(find(2)?),
            handle: u64::from_be_bytes(*find(3)?.first_chunk()?),
            body: find(4).unwrap_or_default().to_vec(),
        })
    }
}

/// The rules of all tables of a name; none when there is no such table.
///
/// # Errors
/// When the kernel refuses to list them.
pub fn rules(table: &str) -> Result<Vec<Rule>> {
    let mut socket = Socket::open(Family::Netfilter)?;
    let listing = socket.dump(|batch| {
        let head = [ANY_FAMILY, 0, 0, 0];
        let message = SUBSYSTEM << 8 | MSG_GETRULE;
        batch.push("list the nftables rules of", message, 0, &head, |a| {
            a.str(1, table)
        });
    });
    match listing {
        Err(refusal) if refusal.errno == Errno::NOENT => Ok(Vec::new()),
        Err(refusal) => Err(refusal.on(format_args!("table {table}"))),
        Ok(messages) => Ok(messages
            .iter()
            .filter_map(|message| Rule::parse(message, table))
            .collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_knows_its_interfaces() {
        let head = [20_u16, VALUE].map(u16::to_ne_bytes).concat();
        let rule = Rule {
            body: [&head[..], b"br-ab\0\0\0x"].concat(),
            ..Rule::default()
        };
        assert!(rule.names("br-ab"));
        assert!(!rule.names("br-a") && !rule.names("br-abc") && !rule.names("ab") && !rule.names("r-ab"));
    }

    #[test]
    fn messages_of_other_tables_and_torn_ones_are_left_out() {
        let mut attributes = Vec::new();
        for (kind, value) in [
            (1u16, &b"mine\0"[..]),
            (2, b"forward\0"),
            (3, &7u64.to_be_bytes()),
        ] {
            attributes.extend(((value.len() + 4) as u16).to_ne_bytes());
            attributes.extend(kind.to_ne_bytes());
            attributes.extend(value);
            attributes.resize(attributes.len().next_multiple_of(4), 0);
        }
        let message = [&[2, 0, 0, 0][..], &attributes].concat();
        let rule = Rule::parse(&message, "mine").unwrap();
        assert_eq!(
            (rule.chain.as_str(), rule.handle, rule.family.as_str()),
            ("forward", 7, "ip")
        );
        assert_eq!(Rule::parse(&message, "other"), None);
        for end in 0..message.len() - 1 {
            assert_eq!(Rule::parse(&message[..end], "mine"), None, "{end}");
        }
    }
}
