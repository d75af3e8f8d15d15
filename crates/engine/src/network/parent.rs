//! The interfaces that networks of the drivers macvlan and ipvlan are on in place of a bridge.
//!
//! One that was made for a network is gone with the last network that is on it.

use std::sync::Arc;

use vessel_api::NetworkCreateRequest;
use vessel_network::{DirectMode, Parent, interface_exists};

use super::{NetworkRecord, Networks, UserNetwork, from_network};
use crate::{Error, Result};

pub(super) const MACVLAN: &str = "macvlan";
pub(super) const IPVLAN: &str = "ipvlan";
/// How parents begin that are made for one network and lead nowhere, as with Docker.
const NOWHERE: &str = "dm-";

/// What a network is on in place of a bridge, if its driver is one of those that have none. Its name is the option `parent`; one
/// that is a VLAN of an interface that is there is made, and without a name one that leads nowhere.
pub(super) fn asked(
    request: &NetworkCreateRequest,
    id: &str,
    others: &[Arc<UserNetwork>],
) -> Result<Option<Parent>> {
    let driver = request.driver.as_str();
    if !matches!(driver, MACVLAN | IPVLAN) {
        return Ok(None);
    }
    let option = |key: &str| request.options.get(key).map_or("", String::as_str);
    if let flag @ ("private" | "vepa") = option("ipvlan_flag") {
        return Err(Error::unsupported(format!(
            "the option ipvlan_flag={flag} is not there: leave it out, or say bridge"
        )));
    }
    let mode = DirectMode::new(driver, option(&format!("{driver}_mode"))).map_err(from_network)?;
    let (name, ours) = match option("parent") {
        "" => (format!("{NOWHERE}{}", &id[..12]), true),
        name => (name.to_owned(), is_made(name, name.contains('.'), others)?),
    };
    Ok(Some(Parent { name, ours, mode }))
}

/// Whether a parent is one that is made for networks: it was made for one of the others, or it is missing and `can_be`.
pub(super) fn is_made(name: &str, can_be: bool, others: &[Arc<UserNetwork>]) -> Result<bool> {
    let there = interface_exists(name).map_err(from_network)?;
    let mut parents = others.iter().filter_map(|other| other.record.parent.as_ref());
    Ok(can_be && !there || parents.any(|parent| parent.ours && parent.name == name))
}

pub(super) fn leads_nowhere(parent: &Parent) -> bool {
    parent.ours && parent.name.starts_with(NOWHERE)
}

impl Networks {
    /// Removes the parent of a network if it was made for networks and no other one is on it. The caller makes networks.
    pub(super) fn remove_parent(&self, record: &NetworkRecord) -> Result<()> {
        let Some(parent) = &record.parent else {
            return Ok(());
        };
        let is_on_it = |other: &NetworkRecord| {
            other.id != record.id
                && other
                    .parent
                    .as_ref()
                    .is_some_and(|there| there.name == parent.name)
        };
        if self.user_networks().iter().any(|other| is_on_it(&other.record)) {
            return Ok(());
        }
        vessel_network::remove_parent(parent).map_err(from_network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;
    use crate::network::held;
    use vessel_api::Map;
    use vessel_network::{Netns, NetnsConfig};

    fn sh(script: &str) {
        let status = std::process::Command::new("sh").args(["-ec", script]).status();
        assert!(status.unwrap().success(), "{script}");
    }

    /// Any kind of interface stands for a VLAN here, which many kernels do not have.
    #[test]
    fn a_parent_goes_with_the_last_network_that_is_on_it() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let host = Netns::new_isolated(&NetnsConfig::default()).unwrap();
        host.run(|| {
            let directory = tempfile::tempdir().unwrap();
            let (store, _) = Store::open(directory.path()).unwrap();
            let open = || Networks::open_on(None, false, &store, "0123456789ab", &[]).unwrap();
            let create = |networks: &Networks, name: &str| {
                let request = NetworkCreateRequest {
                    name: name.into(),
                    driver: MACVLAN.into(),
                    options: Map::from([("parent".to_owned(), "up0.50".to_owned())]),
                    ..Default::default()
                };
                networks.create(&request, "0123456789ab").unwrap()
            };
            let there = || interface_exists("up0.50").unwrap();
            let remove = |networks: &Networks, name: &str| {
                let network = held(&networks.user).get(name).cloned().unwrap();
                networks.remove(&network).unwrap();
            };
            sh("ip link add up0.50 type veth peer name up1");
            let networks = open();
            // As a network is recorded that made it.
            let mut first = create(&networks, "first");
            assert!(!first.parent.as_ref().unwrap().ours);
            first.parent.as_mut().unwrap().ours = true;
            networks.records.put_now(&first.id, &first).unwrap();
            drop(networks);
            let networks = open();
            let second = create(&networks, "second");
            assert!(second.parent.as_ref().unwrap().ours);
            remove(&networks, "first");
            assert!(there());
            remove(&networks, "second");
            assert!(!there());
            // One that comes back finds that it was made by somebody else meanwhile.
            sh("ip link add up0.50 type veth peer name up1");
            networks.restore(&second).unwrap();
            remove(&networks, "second");
            assert!(there());
        })
        .unwrap();
    }
}
