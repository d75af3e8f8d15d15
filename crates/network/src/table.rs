//! The one nftables table of a set of bridges: its rules, and the published ports as elements of its maps.
//!
//! The rules are made of what the bridges say of themselves and are always replaced as a whole, in one transaction; the ports
//! of all bridges share two maps, so that a port that one bridge has published is refused to the others by name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;

use crate::address::check_name;
use crate::bridge::lock;
use crate::endpoint::EndpointRecord;
use crate::error::{Error, ErrorKind, Result};
use crate::netlink::{Family, Refusal, Socket};
use crate::nft::elements::{self, Mapping};
use crate::nft::ruleset::{self, BridgeRules, Ruleset};
use crate::nft::{Ip, transaction};
use crate::ports::{PortSpec, Protocol, PublishedPort, Reservation, hosts, reserve};
use crate::{conntrack, detour, netns};

/// A table that bridges share. Clones are the same table.
#[derive(Clone)]
pub struct Table {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    /// Whether the host's rules for what comes in decide about published ports.
    host_decides: bool,
    /// The families of which they did when the table was opened.
    had_detour: Vec<Ip>,
    /// Also serializes changes of the published ports, so that a reconciliation sees no half of one.
    nft: Mutex<Socket>,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    /// What the rules in the kernel say. It changes when they have.
    installed: Installed,
    /// By interface: the published ports of endpoints that were not released.
    mappings: HashMap<String, Vec<Mapping>>,
    /// By protocol and port of the host: on which of its addresses, and whose. Only for conflicts.
    ports: HashMap<(Protocol, u16), Vec<(IpAddr, String)>>,
}

/// The rules of all bridges.
#[derive(Clone, Default)]
struct Installed {
    bridges: BTreeMap<String, BridgeRules>,
    v4: Option<Part>,
    /// There is one, because there is, or was, a bridge with IPv6.
    v6: Option<Part>,
}

/// The table of one family.
#[derive(Clone, Copy)]
struct Part {
    /// The host forwards for bridges only: what it was when there was nothing of the table yet.
    bridges_only: bool,
    /// The host's own clients reach published ports by the loopback address.
    by_loopback: bool,
}

impl Table {
    /// A table of this name. Nothing is changed before the first bridge is added.
    ///
    /// # Errors
    /// A name that is none; a kernel without nftables.
    pub fn open(name: &str) -> Result<Self> {
        Self::new(name, false)
    }

    /// The same, of which the host's own rules for what comes in (`input`) decide who reaches published ports.
    ///
    /// # Errors
    /// Those of [`Table::open`]. A kernel that cannot duplicate packets refuses the first bridge.
    pub fn open_behind_input(name: &str) -> Result<Self> {
        Self::new(name, true)
    }

    fn new(name: &str, host_decides: bool) -> Result<Self> {
        check_name("an nftables table", name)?;
        let mut nft = Socket::open(Family::Netfilter)?;
        let mut had_detour = Vec::new();
        for ip in Ip::ALL {
            if ruleset::has_detour(&mut nft, ip, name).map_err(|r| r.on(format_args!("table {name}")))? {
                had_detour.push(ip);
            }
        }
        if !host_decides && !had_detour.is_empty() {
            detour::remove(&mut Socket::open(Family::Route)?, name)?;
        }
        Ok(Self {
            shared: Arc::new(Shared {
                name: name.to_owned(),
                host_decides,
                had_detour,
                nft: Mutex::new(nft),
                books: Mutex::default(),
            }),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Adds rules, or replaces those of the same bridges, in one transaction.
    ///
    /// # Errors
    /// When the kernel refuses them: then everything is as before.
    pub(crate) fn add(&self, bridges: impl IntoIterator<Item = BridgeRules>) -> Result<()> {
        let mut nft = lock(&self.shared.nft);
        let mut wanted = self.books().installed.clone();
        for rules in bridges {
            wanted.bridges.insert(rules.bridge.clone(), rules);
        }
        self.install(&mut nft, wanted)
    }

    /// Removes the rules of a bridge; one that has none is fine.
    ///
    /// # Errors
    /// When the kernel refuses: then everything is as before.
    pub fn remove(&self, bridge: &str) -> Result<()> {
        let mut nft = lock(&self.shared.nft);
        let mut wanted = self.books().installed.clone();
        if wanted.bridges.remove(bridge).is_none() {
            return Ok(());
        }
        self.install(&mut nft, wanted)
    }

    /// The names of the bridges that it has rules of.
    pub(crate) fn bridges(&self) -> Vec<String> {
        self.books().installed.bridges.keys().cloned().collect()
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        lock(&self.shared.books)
    }

    /// Makes the kernel have these rules, and then the books.
    fn install(&self, nft: &mut Socket, mut wanted: Installed) -> Result<()> {
        wanted.v4 = Some(Part {
            bridges_only: self.bridges_only(nft, Ip::V4, wanted.v4)?,
            by_loopback: true,
        });
        if wanted.v6.is_some() || wanted.bridges.values().any(|bridge| bridge.v6.is_some()) {
            wanted.v6 = Some(Part {
                bridges_only: self.bridges_only(nft, Ip::V6, wanted.v6)?,
                by_loopback: translates_loopback(),
            });
        }
        let detour = match self.shared.host_decides {
            true => Some(detour::ensure(
                &mut Socket::open(Family::Route)?,
                &self.shared.name,
            )?),
            false => None,
        };
        let bridges: Vec<BridgeRules> = wanted.bridges.values().cloned().collect();
        let all = transaction(|batch| {
            for (ip, part) in [(Ip::V4, wanted.v4), (Ip::V6, wanted.v6)] {
                let Some(part) = part else {
                    continue;
                };
                let rules = Ruleset {
                    ip,
                    detour: detour.as_ref(),
                    had_detour: self.shared.had_detour.contains(&ip),
                    table: &self.shared.name,
                    bridges: &bridges,
                    bridges_only: part.bridges_only,
                    by_loopback: part.by_loopback,
                };
                rules.ensure(batch);
            }
        });
        nft.transaction(all).map_err(|refusal| self.failed(refusal))?;
        self.books().installed = wanted;
        Ok(())
    }

    /// Whether the host is to forward for bridges only, which is decided when there begins to be something of a family: it did
    /// not forward then, or an earlier process of ours had it do so.
    fn bridges_only(&self, nft: &mut Socket, ip: Ip, part: Option<Part>) -> Result<bool> {
        if let Some(part) = part {
            return Ok(part.bridges_only);
        }
        let switch = match ip {
            Ip::V4 => "ipv4/ip_forward",
            Ip::V6 => "ipv6/conf/all/forwarding",
        };
        let forwards = netns::read_sysctl(switch).is_ok_and(|value| value.trim_end() == "1");
        Ok(!forwards
            || ruleset::bridges_only(nft, ip, &self.shared.name).map_err(|refusal| self.failed(refusal))?)
    }

    fn failed(&self, refusal: Refusal) -> Error {
        refusal.on(format_args!("table {}", self.shared.name))
    }

    /// Publishes ports: all of them or none, of each family that the endpoint has. The record gets them.
    pub fn publish(&self, record: &mut EndpointRecord, specs: &[PortSpec]) -> Result<Vec<Reservation>> {
        let mut socket = lock(&self.shared.nft);
        self.adopt(record)?;
        let mut reservations: Vec<Reservation> = Vec::with_capacity(specs.len());
        let mut direct: Vec<PublishedPort> = Vec::new();
        for spec in specs {
            let more = {
                let books = self.books();
                let (past, hosts): (Vec<IpAddr>, Vec<IpAddr>) = hosts(spec, record.v6.is_some())?
                    .into_iter()
                    .partition(|host| books.routed(&record.bridge, *host));
                for host in past {
                    let address = record.addresses().find(|own| own.is_ipv4() == host.is_ipv4());
                    let port = address.map(|own| PublishedPort::direct(own, spec.target_port, spec.protocol));
                    direct.extend(port.filter(|port| spec.target_port != 0 && !direct.contains(port)));
                }
                if hosts.is_empty() {
                    continue;
                }
                reserve(spec, &hosts, |host, port| {
                    if reservations.iter().any(|earlier| {
                        earlier.port.host_port == port
                            && earlier.port.protocol == spec.protocol
                            && same_host(earlier.port.host_ip, host)
                    }) {
                        return Some(record.ifname.clone());
                    }
                    books.owner_of(spec.protocol, host, port)
                })?
            };
            reservations.extend(more);
        }
        let ports: Vec<PublishedPort> = reservations.iter().map(|r| r.port).chain(direct).collect();
        let mut mappings = Vec::with_capacity(ports.len());
        for port in &ports {
            mappings.push(mapping(port, record)?);
        }
        if mappings.is_empty() {
            return Ok(reservations);
        }
        let by_loopback = self.books().installed.v6.map(|part| part.by_loopback);
        if mappings.iter().any(|m| m.target.is_ipv6()) && by_loopback != Some(translates_loopback()) {
            // Bridge netfilter was switched on or off since.
            let installed = self.books().installed.clone();
            self.install(&mut socket, installed)?;
        }
        self.insert(&mut socket, &mappings)?;
        for mapping in &mappings {
            self.books().remember(&record.ifname, *mapping);
        }
        record.ports.extend(ports);
        drop(socket);
        mappings.retain(|m| m.protocol == Protocol::Udp);
        if let Err(error) = conntrack::forget_unpublished(&mappings) {
            tracing::warn!(interface = record.ifname, %error, "UDP flows that began before their port was published do not reach it yet");
        }
        Ok(reservations)
    }

    fn insert(&self, socket: &mut Socket, mappings: &[Mapping]) -> Result<()> {
        let table = &self.shared.name;
        // A mapping that is in the kernel but not in our books is a leftover: replace it.
        let Err(refusal) = socket.transaction(elements::change(table, &[], mappings)) else {
            return Ok(());
        };
        match refusal.errno {
            Errno::EXIST | Errno::BUSY => {}
            // The table was removed under us (`nft flush ruleset`): put everything back first.
            Errno::NOENT => {
                self.restore_with(socket)?;
            }
            _ => return Err(self.failed(refusal)),
        }
        let stale: Vec<Mapping> = elements::dump(socket, table)
            .map_err(|r| self.failed(r))?
            .into_iter()
            .filter(|old| {
                mappings.iter().any(|new| {
                    (old.protocol, old.host, old.host_port) == (new.protocol, new.host, new.host_port)
                })
            })
            .collect();
        socket
            .transaction(elements::change(table, &stale, mappings))
            .map_err(|r| self.failed(r))
    }

    /// Withdraws all published ports of an endpoint.
    ///
    /// # Errors
    /// When the kernel does not let go of them.
    pub fn give_up(&self, record: &EndpointRecord) -> Result<()> {
        self.withdraw(record).map(drop)
    }

    /// The same; what they were.
    pub(crate) fn withdraw(&self, record: &EndpointRecord) -> Result<Vec<Mapping>> {
        let mut socket = lock(&self.shared.nft);
        let mappings = {
            self.adopt(record)?;
            let books = self.books();
            let v6 = books.installed.v6.is_some();
            let mut mappings = books.mappings.get(&record.ifname).cloned().unwrap_or_default();
            mappings.retain(|mapping| v6 || mapping.target.is_ipv4());
            mappings
        };
        if mappings.is_empty() {
            self.books().forget(&record.ifname);
            return Ok(mappings);
        }
        let table = &self.shared.name;
        match socket.transaction(elements::change(table, &mappings, &[])) {
            Ok(()) => {}
            // Somebody has removed elements or the table: remove those that are there.
            Err(refusal) if refusal.errno == Errno::NOENT => {
                let there = elements::dump(&mut socket, table).map_err(|r| self.failed(r))?;
                let left: Vec<Mapping> = mappings.iter().filter(|m| there.contains(m)).copied().collect();
                if !left.is_empty() {
                    socket
                        .transaction(elements::change(table, &left, &[]))
                        .map_err(|r| self.failed(r))?;
                }
            }
            Err(refusal) => return Err(self.failed(refusal)),
        }
        self.books().forget(&record.ifname);
        Ok(mappings)
    }

    /// Leads the published ports of one endpoint to another one: those of IPv6, or those of IPv4. What keeps others off them
    /// stays as it is.
    ///
    /// # Errors
    /// When they cannot be withdrawn, or not be published anew: then nobody has them.
    pub fn hand_over(&self, from: &mut EndpointRecord, to: &mut EndpointRecord, v6: bool) -> Result<()> {
        let (mut moved, stay): (Vec<PublishedPort>, Vec<PublishedPort>) =
            from.ports.iter().partition(|port| port.host_ip.is_ipv6() == v6);
        // What is reached at an endpoint's own address is not reached at another's.
        let own: Vec<IpAddr> = from.addresses().collect();
        moved.retain(|port| !own.contains(&port.host_ip));
        if moved.is_empty() {
            return Ok(());
        }
        let mut mappings = Vec::with_capacity(from.ports.len());
        for (ports, endpoint) in [(&moved, &*to), (&stay, &*from)] {
            for port in ports {
                mappings.push((endpoint.ifname.clone(), mapping(port, endpoint)?));
            }
        }
        self.withdraw(from)?;
        from.ports.clear();
        let mut socket = lock(&self.shared.nft);
        let elements: Vec<Mapping> = mappings.iter().map(|(_, mapping)| *mapping).collect();
        self.insert(&mut socket, &elements)?;
        let mut books = self.books();
        for (ifname, mapping) in mappings {
            books.remember(&ifname, mapping);
        }
        from.ports = stay;
        to.ports.extend(moved);
        Ok(())
    }

    /// Takes the ports of an endpoint that somebody else has recorded into the books: so they stay, whatever becomes of its
    /// bridge.
    ///
    /// # Errors
    /// When it has not the addresses that its ports would need.
    pub fn adopt(&self, record: &EndpointRecord) -> Result<()> {
        if record.ports.is_empty() {
            return Ok(());
        }
        let mut books = self.books();
        for port in &record.ports {
            books.remember(&record.ifname, mapping(port, record)?);
        }
        Ok(())
    }

    /// Puts the table, its rules and its elements in the state that the books say; how many elements it removed and added.
    pub(crate) fn restore(&self) -> Result<(usize, usize)> {
        self.restore_with(&mut lock(&self.shared.nft))
    }

    fn restore_with(&self, nft: &mut Socket) -> Result<(usize, usize)> {
        let table = &self.shared.name;
        let installed = self.books().installed.clone();
        self.install(nft, installed)?;
        let (wanted, v6): (BTreeSet<Mapping>, bool) = {
            let books = self.books();
            let wanted = books.mappings.values().flatten().copied().collect();
            (wanted, books.installed.v6.is_some())
        };
        // Of a family without rules there is nothing to be found.
        let ruled = |mapping: &Mapping| v6 || mapping.target.is_ipv4();
        let wanted: BTreeSet<Mapping> = wanted.into_iter().filter(ruled).collect();
        let present: BTreeSet<Mapping> = elements::dump(nft, table)
            .map_err(|r| self.failed(r))?
            .into_iter()
            .filter(ruled)
            .collect();
        let remove: Vec<Mapping> = present.difference(&wanted).copied().collect();
        let add: Vec<Mapping> = wanted.difference(&present).copied().collect();
        if !remove.is_empty() || !add.is_empty() {
            nft.transaction(elements::change(table, &remove, &add))
                .map_err(|r| self.failed(r))?;
        }
        Ok((remove.len(), add.len()))
    }
}

impl Books {
    /// Whether published ports of a bridge's endpoints are reached at their own addresses, in the family of this one.
    fn routed(&self, bridge: &str, host: IpAddr) -> bool {
        let rules = self.installed.bridges.get(bridge);
        rules.is_some_and(|rules| rules.routed(Ip::of(host)))
    }

    fn owner_of(&self, protocol: Protocol, host: IpAddr, port: u16) -> Option<String> {
        let list = self.ports.get(&(protocol, port))?;
        list.iter()
            .find(|(taken, _)| same_host(*taken, host))
            .map(|(_, owner)| owner.clone())
    }

    fn remember(&mut self, ifname: &str, mapping: Mapping) {
        let of_endpoint = self.mappings.entry(ifname.to_owned()).or_default();
        if of_endpoint.contains(&mapping) {
            return;
        }
        of_endpoint.push(mapping);
        if mapping.host == mapping.target {
            // No port of the host.
            return;
        }
        self.ports
            .entry((mapping.protocol, mapping.host_port))
            .or_default()
            .push((mapping.host, ifname.to_owned()));
    }

    fn forget(&mut self, ifname: &str) {
        for mapping in self.mappings.remove(ifname).unwrap_or_default() {
            let key = (mapping.protocol, mapping.host_port);
            if let Some(list) = self.ports.get_mut(&key) {
                list.retain(|(host, owner)| !(*host == mapping.host && owner == ifname));
                if list.is_empty() {
                    self.ports.remove(&key);
                }
            }
        }
    }
}

/// Where a published port leads, of an endpoint that has its family.
fn mapping(port: &PublishedPort, endpoint: &EndpointRecord) -> Result<Mapping> {
    let target = endpoint
        .addresses()
        .find(|address| address.is_ipv4() == port.host_ip.is_ipv4())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!(
                    "cannot publish {port}: the endpoint {} has no address of that family",
                    endpoint.ifname
                ),
            )
        })?;
    Ok(Mapping {
        protocol: port.protocol,
        host: port.host_ip,
        host_port: port.host_port,
        target,
        target_port: port.target_port,
    })
}

/// Whether two published addresses collide: the same one, or one of them is all of the family.
fn same_host(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
}

/// Whether connections to `::1` can be translated. Bridge netfilter translates answers back before the kernel looks at whether a
/// packet may have that address, which none may that came in by a wire.
fn translates_loopback() -> bool {
    !netns::read_sysctl("bridge/bridge-nf-call-ip6tables").is_ok_and(|value| value.trim_end() == "1")
}
