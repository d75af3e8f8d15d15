//! The notation of `--publish`: `[[ADDRESS:][HOST-PORT[-END]]:]PORT[-END][/PROTOCOL]`.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::error::{Error, Result};
use crate::ports::{PortSpec, Protocol};

/// Reads one `--publish`. A range of ports gives one wish per port.
///
/// Without an address every one of the host's is meant, without a port of the host the kernel chooses one. Two ranges must be
/// of one length; a range of the host for a single port means the first free one.
pub fn parse_publish(text: &str) -> Result<Vec<PortSpec>> {
    let bad = |why: &str| {
        Error::invalid(format!(
            "cannot publish `{}`: {why}; write it as [[ADDRESS:]HOST-PORT:]PORT[/PROTOCOL]",
            text.escape_debug()
        ))
    };
    let (ports, protocol) = match text.split_once('/') {
        Some((ports, protocol)) => (ports, protocol.parse::<Protocol>()?),
        None => (text, Protocol::Tcp),
    };
    let (rest, target) = ports
        .rsplit_once(':')
        .map_or((None, ports), |(rest, target)| (Some(rest), target));
    let (address, host) = match rest {
        None => (None, ""),
        Some(rest) => rest
            .rsplit_once(':')
            .map_or((None, rest), |(address, host)| (Some(address), host)),
    };
    let host_ip = match address {
        None | Some("") => None,
        Some(address) => {
            let bare = address
                .strip_prefix('[')
                .and_then(|a| a.strip_suffix(']'))
                .unwrap_or(address);
            Some(
                bare.parse::<IpAddr>()
                    .map_err(|_| bad("the address is not one"))?,
            )
        }
    };
    let target =
        range(target).ok_or_else(|| bad("the port must be a number from 1 to 65535 or a range of them"))?;
    let wish = |host_ports, target_port| PortSpec {
        host_ip,
        host_ports,
        target_port,
        protocol,
    };
    // A lone 0 is Docker's other way to leave the choice to the kernel.
    if matches!(host, "" | "0") {
        return Ok(target.map(|port| wish(0..=0, port)).collect());
    }
    let host = range(host)
        .ok_or_else(|| bad("the host's port must be a number from 1 to 65535 or a range of them"))?;
    if target.len() == 1 {
        return Ok(vec![wish(host, *target.start())]);
    }
    if host.len() != target.len() {
        return Err(bad("the two ranges differ in length"));
    }
    Ok(host
        .zip(target)
        .map(|(host, target)| wish(host..=host, target))
        .collect())
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let port = |text: &str| -> Option<u16> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|&p| digits && p > 0)
    };
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    let range = port(start)?..=port(end)?;
    (!range.is_empty()).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(text: &str) -> (String, RangeInclusive<u16>, u16, Protocol) {
        let specs = parse_publish(text).unwrap();
        assert_eq!(specs.len(), 1, "{text}");
        (
            specs[0].host_ip.map_or("any".into(), |ip| ip.to_string()),
            specs[0].host_ports.clone(),
            specs[0].target_port,
            specs[0].protocol,
        )
    }

    #[test]
    fn the_forms() {
        assert_eq!(one("80"), ("any".into(), 0..=0, 80, Protocol::Tcp));
        assert_eq!(one("8080:80"), ("any".into(), 8080..=8080, 80, Protocol::Tcp));
        assert_eq!(
            one("127.0.0.1:8080:80/udp"),
            ("127.0.0.1".into(), 8080..=8080, 80, Protocol::Udp)
        );
        assert_eq!(
            one("127.0.0.1::80/SCTP"),
            ("127.0.0.1".into(), 0..=0, 80, Protocol::Sctp)
        );
        assert_eq!(one("0:80"), ("any".into(), 0..=0, 80, Protocol::Tcp));
        assert_eq!(
            one("8000-8010:80"),
            ("any".into(), 8000..=8010, 80, Protocol::Tcp)
        );
        assert_eq!(
            one("[::1]:8080:80"),
            ("::1".into(), 8080..=8080, 80, Protocol::Tcp)
        );
        let many = parse_publish("1.2.3.4:8000-8002:80-82").unwrap();
        assert_eq!(
            many.iter()
                .map(|s| (*s.host_ports.start(), s.target_port))
                .collect::<Vec<_>>(),
            [(8000, 80), (8001, 81), (8002, 82)]
        );
        assert_eq!(parse_publish("80-82").unwrap().len(), 3);
    }

    #[test]
    fn what_is_refused() {
        for bad in [
            "",
            ":",
            "0",
            "65536",
            "+80",
            "8080:",
            "8080:80:",
            "80-",
            "82-80",
            "1-2:80-82",
            "x:80",
            "1.2.3:80:80",
            "80/",
            "80/icmp",
            "-1:80",
            "0-5:80",
        ] {
            assert!(parse_publish(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[0-9a-f:.\\[\\]/-]{0,40}|.{0,40}") {
            if let Ok(specs) = parse_publish(&text) {
                prop_assert!(!specs.is_empty() && specs.len() <= 65535);
                prop_assert!(specs.iter().all(|s| s.target_port > 0));
            }
        }
    }
}
