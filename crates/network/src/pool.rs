//! Endpoints and namespaces made in advance, so that a start takes one in microseconds.
//!
//! A background thread keeps the stock at its level. Requests for something special bypass the pool, except that a request
//! for the very address of an endpoint in stock gets that one. What is in stock dies with the process by itself: its
//! namespaces are held by nothing but descriptors.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::address::MacAddr;
use crate::bridge::{Bridge, lock};
use crate::endpoint::{Endpoint, EndpointRequest};
use crate::error::{Error, Result};
use crate::netns::{Netns, NetnsConfig};

/// How long the filler rests after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// How much is kept in stock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Endpoints of the bridge.
    pub endpoints: usize,
    /// Namespaces with nothing but loopback.
    pub isolated: usize,
    /// How the namespaces are set up.
    pub netns: NetnsConfig,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            endpoints: 6,
            isolated: 4,
            netns: NetnsConfig::default(),
        }
    }
}

/// A stock of endpoints of one bridge and of isolated namespaces.
pub struct Pool {
    bridge: Bridge,
    shared: Arc<Shared>,
    filler: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    config: PoolConfig,
    stock: Mutex<Stock>,
    /// Something was taken, or the end has come.
    changed: Condvar,
}

#[derive(Default)]
struct Stock {
    endpoints: VecDeque<Endpoint>,
    isolated: VecDeque<Netns>,
    ended: bool,
}

impl Pool {
    /// Starts to fill. Reconcile the bridge before, or the stock is taken for what it is: endpoints of a bridge that does not
    /// yet know which addresses are in use.
    pub fn start(bridge: Bridge, config: PoolConfig) -> Result<Self> {
        let shared = Arc::new(Shared {
            config,
            stock: Mutex::default(),
            changed: Condvar::new(),
        });
        let filler = {
            let (bridge, shared) = (bridge.clone(), Arc::clone(&shared));
            thread::Builder::new()
                .name("net-pool".into())
                .stack_size(256 * 1024)
                .spawn(move || fill(&bridge, &shared))
                .map_err(|e| Error::io("start the thread that prepares endpoints", e))?
        };
        Ok(Self {
            bridge,
            shared,
            filler: Mutex::new(Some(filler)),
        })
    }

    /// The bridge the endpoints are on.
    pub fn bridge(&self) -> &Bridge {
        &self.bridge
    }

    /// An endpoint: from the stock when it can serve the request, otherwise made on the spot.
    pub fn take(&self, request: &EndpointRequest) -> Result<Endpoint> {
        let plain = request.netns == self.shared.config.netns && request.address_v6.is_none();
        let in_stock = plain.then(|| {
            let mut stock = lock(&self.shared.stock);
            match request.address.map(IpAddr::V4) {
                None if request.mac.is_none() => stock.endpoints.pop_front(),
                None => None,
                // The address is in stock: the same endpoint if it fits, otherwise it makes room.
                Some(address) => {
                    let at = stock.endpoints.iter().position(|e| e.record.address == address)?;
                    stock.endpoints.remove(at)
                }
            }
        });
        self.shared.changed.notify_one();
        match in_stock.flatten() {
            Some(endpoint) if request.mac.is_none_or(|mac: MacAddr| mac == endpoint.record.mac) => {
                Ok(endpoint)
            }
            Some(unfit) => {
                drop(unfit.netns);
                self.bridge.release(&unfit.record)?;
                self.bridge.attach(request)
            }
            None => self.bridge.attach(request),
        }
    }

    /// A namespace with nothing but loopback, up.
    pub fn take_isolated(&self, config: &NetnsConfig) -> Result<Netns> {
        let in_stock = if *config == self.shared.config.netns {
            lock(&self.shared.stock).isolated.pop_front()
        } else {
            None
        };
        self.shared.changed.notify_one();
        match in_stock {
            Some(netns) => Ok(netns),
            None => Netns::new_isolated(config),
        }
    }

    /// What is in stock: endpoints and isolated namespaces.
    pub fn stock(&self) -> (usize, usize) {
        let stock = lock(&self.shared.stock);
        (stock.endpoints.len(), stock.isolated.len())
    }

    /// The host's interfaces of the endpoints in stock.
    pub fn prepared(&self) -> Vec<String> {
        let stock = lock(&self.shared.stock);
        let interfaces = stock.endpoints.iter();
        interfaces
            .map(|endpoint| endpoint.record.ifname.clone())
            .collect()
    }

    /// Stops to fill and gives the stock back; afterwards everything is made on the spot.
    pub fn drain(&self) {
        lock(&self.shared.stock).ended = true;
        self.shared.changed.notify_all();
        if let Some(filler) = lock(&self.filler).take() {
            // A panic of the filler was reported where it happened; there is nothing left to stop.
            let _ = filler.join();
        }
        let endpoints = std::mem::take(&mut lock(&self.shared.stock).endpoints);
        lock(&self.shared.stock).isolated.clear();
        for endpoint in endpoints {
            drop(endpoint.netns);
            if let Err(error) = self.bridge.release(&endpoint.record) {
                tracing::warn!(interface = endpoint.record.ifname, %error, "a prepared endpoint could not be given back");
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.drain();
    }
}

/// What the filler makes next.
enum Next {
    Endpoint,
    Isolated,
}

fn fill(bridge: &Bridge, shared: &Shared) {
    let config = &shared.config;
    let request = EndpointRequest {
        netns: config.netns.clone(),
        ..EndpointRequest::default()
    };
    loop {
        let next = {
            let mut stock = lock(&shared.stock);
            loop {
                if stock.ended {
                    return;
                }
                if stock.endpoints.len() < config.endpoints {
                    break Next::Endpoint;
                }
                if stock.isolated.len() < config.isolated {
                    break Next::Isolated;
                }
                stock = shared.changed.wait(stock).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let made = match next {
            Next::Endpoint => bridge
                .attach(&request)
                .map(|endpoint| lock(&shared.stock).endpoints.push_back(endpoint)),
            Next::Isolated => {
                Netns::new_isolated(&config.netns).map(|netns| lock(&shared.stock).isolated.push_back(netns))
            }
        };
        if let Err(error) = made {
            // Whoever takes now gets the error itself; here it only means to try again later.
            tracing::warn!(%error, "an endpoint could not be prepared");
            let stock = lock(&shared.stock);
            if !stock.ended {
                drop(shared.changed.wait_timeout(stock, RETRY));
            }
        }
    }
}
