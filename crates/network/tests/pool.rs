//! Endpoints made in advance.

mod common;
use common::*;
use std::time::{Duration, Instant};
use vessel_network::*;

fn wait_for_stock(pool: &Pool, want: (usize, usize)) {
    let end = Instant::now() + Duration::from_secs(10);
    while pool.stock() != want {
        assert!(Instant::now() < end, "stock is {:?}, not {want:?}", pool.stock());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn small() -> PoolConfig {
    PoolConfig {
        endpoints: 3,
        isolated: 2,
        netns: NetnsConfig {
            sysctls: vec![("ipv4/ip_unprivileged_port_start".into(), "0".into())],
        },
    }
}

#[test]
fn the_stock_is_used_in_order_and_refilled() {
    on_a_host(|| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let empty = dump();
        let pool = Pool::start(bridge.clone(), small()).unwrap();
        wait_for_stock(&pool, (3, 2));
        // The stock explains itself to a reconciliation.
        assert_eq!(bridge.reconcile(&[]).unwrap(), Reconciled::default());
        let request = EndpointRequest {
            netns: small().netns,
            ..plain()
        };
        let taken: Vec<Endpoint> = (0..8).map(|_| pool.take(&request).unwrap()).collect();
        let mut addresses: Vec<_> = taken.iter().map(|e| e.record.address).collect();
        assert_eq!(addresses[0].to_string(), "172.17.0.2");
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 8);
        wait_for_stock(&pool, (3, 2));
        let start = taken[0]
            .netns
            .run(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap())
            .unwrap();
        assert_eq!(start, "0\n");
        tcp_server(&taken[7].netns, 80);
        assert!(tcp(&taken[0].netns, taken[7].record.address, 80).is_ok());
        let lonely = pool.take_isolated(&small().netns).unwrap();
        assert_eq!(
            lonely.run(|| sh("ip -o link show up | wc -l")).unwrap().trim(),
            "1"
        );
        for e in taken {
            bridge.release(&e.record).unwrap();
        }
        pool.drain();
        assert_eq!(pool.stock(), (0, 0));
        bridge.flush();
        assert_eq!(dump(), empty);
        // Still usable, made on the spot.
        pool.take(&request).unwrap();
        drop(pool);
        bridge.remove().unwrap();
    });
}

#[test]
fn an_address_in_stock_is_given_to_who_asks_for_it() {
    on_a_host(|| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let pool = Pool::start(bridge.clone(), small()).unwrap();
        wait_for_stock(&pool, (3, 2));
        let request = |last: u8, mac: Option<&str>| EndpointRequest {
            address: Some([172, 17, 0, last].into()),
            mac: mac.map(|m| m.parse().unwrap()),
            netns: small().netns,
            ..EndpointRequest::default()
        };
        assert_eq!(
            pool.take(&request(3, None)).unwrap().record.address.to_string(),
            "172.17.0.3"
        );
        let other = pool.take(&request(4, Some("02:00:00:00:00:04"))).unwrap();
        assert_eq!(other.record.address.to_string(), "172.17.0.4");
        assert!(
            other
                .netns
                .run(|| sh("ip link show eth0"))
                .unwrap()
                .contains("02:00:00:00:00:04")
        );
        drop(pool);
        bridge.remove().unwrap();
    });
}

#[test]
fn what_was_in_stock_dies_with_its_holder() {
    on_a_host(|| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let endpoint = bridge.attach(&plain()).unwrap();
        // As when the process is killed: the descriptor is closed, nobody tidies up.
        drop(endpoint.netns);
        let end = Instant::now() + Duration::from_secs(10);
        while !Bridge::inventory(&config()).unwrap().interfaces.is_empty() {
            assert!(Instant::now() < end, "the interface outlived its namespace");
            std::thread::sleep(Duration::from_millis(5));
        }
        bridge.remove().unwrap();
    });
}
