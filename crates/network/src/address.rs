//! Hardware addresses and interface names.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// An Ethernet address, written `02:42:ac:11:00:02`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Docker's scheme: `02:42` and the four bytes of the address.
    ///
    /// The same address always has the same hardware address, so no neighbour's ARP cache goes stale when an address
    /// passes from one endpoint to the next.
    pub fn for_ip(ip: Ipv4Addr) -> Self {
        let [a, b, c, d] = ip.octets();
        Self([0x02, 0x42, a, b, c, d])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for MacAddr {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl FromStr for MacAddr {
    type Err = Error;

    /// Six bytes in hexadecimal, separated by `:` or `-`. An address that the kernel would refuse (multicast, all zero) is
    /// refused here.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::invalid(format!(
                "`{}` is not a MAC address; write it as 02:42:ac:11:00:02",
                text.escape_debug()
            ))
        };
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
                .ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        if bytes == [0; 6] || bytes[0] & 1 != 0 {
            return Err(Error::invalid(format!(
                "the MAC address {text} is not one of a single interface (it is zero or multicast)"
            )));
        }
        Ok(Self(bytes))
    }
}

/// Checks a name for an interface or a table: what the kernel takes, without what would be awkward in a path or a rule.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    let ok = (1..=15).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if ok {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "`{}` cannot name {what}: use 1 to 15 letters, digits, `-`, `_` and `.`, beginning with a letter or digit",
        name.escape_debug()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mac_of_an_address_is_dockers() {
        assert_eq!(
            MacAddr::for_ip(Ipv4Addr::new(172, 17, 0, 2)).to_string(),
            "02:42:ac:11:00:02"
        );
    }

    #[test]
    fn multicast_zero_and_nonsense_are_refused() {
        for bad in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:02:03",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "2:42:ac:11:0:2",
            "+2:42:ac:11:00:02",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names() {
        for good in ["vessel0", "br-1.2", "a"] {
            check_name("a bridge", good).unwrap();
        }
        for bad in ["", ".", "..", "-x", "a/b", "sixteen-chars-xx", "a b", "é"] {
            assert!(check_name("a bridge", bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(mut bytes in any::<[u8; 6]>()) {
            bytes[0] = bytes[0] & !1 | 2;
            let mac = MacAddr(bytes);
            prop_assert_eq!(mac.to_string().parse::<MacAddr>().unwrap(), mac);
        }

        #[test]
        fn any_text_is_survived(text in ".{0,40}") {
            let _ = text.parse::<MacAddr>();
            let _ = check_name("x", &text);
        }
    }
}
