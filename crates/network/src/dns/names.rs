//! Who is called what on which network, and who may ask.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// More name servers than any resolver asks.
const MAX_SERVERS: usize = 3;

/// The names of all networks. Names are compared without regard to case.
#[derive(Debug, Default)]
pub struct Names {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    networks: HashMap<String, Zone>,
    askers: HashMap<String, Asker>,
}

/// The names of one network.
#[derive(Debug, Default)]
struct Zone {
    /// To whom a name leads, in the order in which they came.
    names: HashMap<String, Vec<(String, Vec<IpAddr>)>>,
    /// Whose an address is, and the name that is said for it.
    addresses: HashMap<IpAddr, (String, String)>,
}

/// Who asks: what it sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// The networks it is on, in the order in which they are looked at.
    pub networks: Vec<String>,
    /// Names of its own for others: alias and name.
    pub links: Vec<(String, String)>,
    /// The servers that know the rest of the world; none: the rest is not asked for.
    pub servers: Vec<IpAddr>,
}

impl Names {
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// `owner` has addresses on a network, and these names there. The first one is said when somebody asks for an address.
    pub fn join(&self, network: &str, owner: &str, addresses: &[IpAddr], names: &[String]) {
        let mut inner = self.write();
        let zone = inner.networks.entry(network.to_owned()).or_default();
        zone.leave(owner);
        for name in names {
            let list = zone.names.entry(name.to_ascii_lowercase()).or_default();
            if !list.iter().any(|(there, _)| there == owner) {
                list.push((owner.to_owned(), addresses.to_vec()));
            }
        }
        if let Some(first) = names.first() {
            for address in addresses {
                zone.addresses.insert(*address, (owner.to_owned(), first.clone()));
            }
        }
    }

    /// `owner` is not on a network any more.
    pub fn leave(&self, network: &str, owner: &str) {
        let mut inner = self.write();
        if let Some(zone) = inner.networks.get_mut(network) {
            zone.leave(owner);
            if zone.names.is_empty() {
                inner.networks.remove(network);
            }
        }
    }

    /// What somebody sees who asks.
    pub fn set_asker(&self, key: &str, asker: Asker) {
        self.write().askers.insert(key.to_owned(), asker);
    }

    /// Nobody asks under this key any more.
    pub fn remove_asker(&self, key: &str) {
        self.write().askers.remove(key);
    }

    /// The addresses of a name of both families, given in lower case; none when no network that the asker is on knows it. `name.network` is the
    /// name on that network only.
    pub(crate) fn resolve(&self, key: &str, name: &str) -> Option<Vec<IpAddr>> {
        let inner = self.read();
        let asker = inner.askers.get(key)?;
        let link = asker
            .links
            .iter()
            .find(|(alias, _)| alias.eq_ignore_ascii_case(name));
        let wanted = link.map_or_else(|| name.to_owned(), |(_, target)| target.to_ascii_lowercase());
        let on = |network: &str, name: &str| {
            let list = inner.networks.get(network)?.names.get(name)?;
            Some(
                list.iter()
                    .flat_map(|(_, addresses)| addresses)
                    .copied()
                    .collect::<Vec<_>>(),
            )
        };
        asker
            .networks
            .iter()
            .find_map(|network| on(network, &wanted))
            .or_else(|| {
                asker.networks.iter().find_map(|network| {
                    // The network's name may have dots itself.
                    let at = wanted.len().checked_sub(network.len() + 1)?;
                    let (head, tail) = (wanted.get(..at)?, wanted.get(at + 1..)?);
                    let fits = wanted.as_bytes().get(at) == Some(&b'.') && tail.eq_ignore_ascii_case(network);
                    fits.then(|| on(network, head)).flatten()
                })
            })
    }

    /// The name of an address, with its network's behind it.
    pub(crate) fn reverse(&self, key: &str, address: IpAddr) -> Option<String> {
        let inner = self.read();
        let asker = inner.askers.get(key)?;
        asker.networks.iter().find_map(|network| {
            let (_, name) = inner.networks.get(network)?.addresses.get(&address)?;
            Some(format!("{name}.{network}"))
        })
    }

    /// Whom to ask for the rest.
    pub(crate) fn servers(&self, key: &str) -> Vec<IpAddr> {
        let inner = self.read();
        let servers = inner.askers.get(key).map(|asker| asker.servers.as_slice());
        servers
            .unwrap_or_default()
            .iter()
            .take(MAX_SERVERS)
            .copied()
            .collect()
    }
}

impl Zone {
    fn leave(&mut self, owner: &str) {
        self.names.retain(|_, list| {
            list.retain(|(there, _)| there != owner);
            !list.is_empty()
        });
        self.addresses.retain(|_, (there, _)| there != owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn asker(networks: &[&str]) -> Asker {
        Asker {
            networks: names(networks),
            ..Asker::default()
        }
    }

    #[test]
    fn names_are_seen_from_their_networks_only() {
        let known = Names::default();
        known.join("front", "1", &[ip(2)], &names(&["Web", "w"]));
        known.join("back", "2", &[ip(3)], &names(&["db"]));
        known.join("back", "3", &[ip(4)], &names(&["db2", "db"]));
        known.set_asker("a", asker(&["front"]));
        known.set_asker("b", asker(&["front", "back"]));
        assert_eq!(known.resolve("a", "web"), Some(vec![ip(2)]));
        assert_eq!(known.resolve("a", "db"), None);
        assert_eq!(known.resolve("b", "db"), Some(vec![ip(3), ip(4)]));
        assert_eq!(known.resolve("b", "db.back"), Some(vec![ip(3), ip(4)]));
        assert_eq!(known.resolve("b", "db.front"), None);
        assert_eq!(known.resolve("nobody", "web"), None);
        assert_eq!(known.reverse("b", ip(4)).as_deref(), Some("db2.back"));
        assert_eq!(known.reverse("a", ip(4)), None);
        known.leave("back", "2");
        assert_eq!(known.resolve("b", "db"), Some(vec![ip(4)]));
        known.leave("back", "3");
        assert_eq!(known.resolve("b", "db"), None);
        assert_eq!(known.reverse("b", ip(4)), None);
    }

    #[test]
    fn a_link_is_a_name_of_ones_own() {
        let known = Names::default();
        known.join("n", "1", &[ip(2)], &names(&["postgres"]));
        known.set_asker(
            "a",
            Asker {
                links: vec![("db".into(), "postgres".into())],
                ..asker(&["n"])
            },
        );
        known.set_asker("b", asker(&["n"]));
        assert_eq!(known.resolve("a", "db"), Some(vec![ip(2)]));
        assert_eq!(known.resolve("b", "db"), None);
    }

    #[test]
    fn both_families_lead_to_a_name_and_back() {
        let known = Names::default();
        let six: IpAddr = "fd00::2".parse().unwrap();
        known.join("n", "1", &[ip(2), six], &names(&["a"]));
        known.set_asker("x", asker(&["n"]));
        assert_eq!(known.resolve("x", "a"), Some(vec![ip(2), six]));
        for address in [ip(2), six] {
            assert_eq!(known.reverse("x", address).as_deref(), Some("a.n"));
        }
        known.leave("n", "1");
        assert_eq!(known.reverse("x", six), None);
    }

    #[test]
    fn who_joins_again_has_the_new_address_only() {
        let known = Names::default();
        known.join("n", "1", &[ip(2)], &names(&["a"]));
        known.join("n", "1", &[ip(9)], &names(&["a"]));
        known.set_asker("x", asker(&["n"]));
        assert_eq!(known.resolve("x", "a"), Some(vec![ip(9)]));
        assert_eq!(known.reverse("x", ip(2)), None);
    }
}
