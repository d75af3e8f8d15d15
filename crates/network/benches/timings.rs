//! Median times of what a start and an end of an endpoint cost: `cargo bench -p vessel-network`. Needs root; runs in a
//! network namespace of its own.
#![allow(missing_docs, clippy::print_stdout)]

use std::time::{Duration, Instant};

use vessel_network::*;

const ROUNDS: usize = 100;

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_micros();
    println!(
        "{what:<34} median {:>6} µs   p90 {:>6} µs   max {:>6} µs",
        at(50),
        at(90),
        at(100)
    );
}

fn timed<T>(times: &mut Vec<Duration>, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let value = work();
    times.push(start.elapsed());
    value
}

fn main() {
    Netns::new_isolated(&NetnsConfig::default())
        .unwrap()
        .run(measure)
        .unwrap();
}

fn measure() {
    let bridge = Bridge::ensure(&BridgeConfig {
        name: "vbench0".into(),
        table: "vbench".into(),
        ..BridgeConfig::default()
    })
    .unwrap();
    let plain = EndpointRequest::default();
    let spec = |port| PortSpec {
        host_ip: Some("0.0.0.0".parse().unwrap()),
        host_ports: port..=port,
        target_port: 80,
        protocol: Protocol::Tcp,
    };

    let (mut isolated, mut attach, mut publish, mut unpublish, mut release, mut close, mut stats) =
        Default::default();
    let mut kept = Vec::new();
    let mut endpoints = Vec::new();
    let mut reader = StatsReader::open().unwrap();
    for n in 0..ROUNDS {
        drop(timed(&mut isolated, || {
            Netns::new_isolated(&plain.netns).unwrap()
        }));
        let mut e = timed(&mut attach, || bridge.attach(&plain).unwrap());
        kept.push(timed(&mut publish, || {
            bridge.publish(&mut e.record, &[spec(10_000 + n as u16)]).unwrap()
        }));
        timed(&mut stats, || reader.endpoint(&e.record.ifname).unwrap());
        endpoints.push(e);
    }
    drop(kept);
    for (n, mut e) in endpoints.into_iter().enumerate() {
        if n % 2 == 0 {
            timed(&mut unpublish, || bridge.unpublish(&mut e.record).unwrap());
        }
        timed(&mut release, || bridge.release(&e.record).unwrap());
        timed(&mut close, || drop(e.netns));
    }
    let mut flush = Vec::new();
    timed(&mut flush, || bridge.flush());

    let mut take = Vec::new();
    let mut take_isolated = Vec::new();
    let config = PoolConfig {
        endpoints: 8,
        isolated: 4,
        ..PoolConfig::default()
    };
    let pool = Pool::start(bridge.clone(), config).unwrap();
    for _ in 0..ROUNDS / 8 {
        while pool.stock() != (8, 4) {
            std::thread::sleep(Duration::from_millis(1));
        }
        for n in 0..4 {
            let e = timed(&mut take, || pool.take(&plain).unwrap());
            bridge.release(&e.record).unwrap();
            if n == 0 {
                timed(&mut take_isolated, || pool.take_isolated(&plain.netns).unwrap());
            }
        }
    }
    drop(pool);
    bridge.flush();

    let mut burst = Vec::new();
    let together = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..100)
            .map(|_| {
                scope.spawn(|| {
                    let start = Instant::now();
                    let e = bridge.attach(&plain).unwrap();
                    (start.elapsed(), e)
                })
            })
            .collect();
        for thread in threads {
            let (time, e) = thread.join().unwrap();
            burst.push(time);
            bridge.release(&e.record).unwrap();
        }
    });
    let together = together.elapsed();

    report("isolated namespace, cold", isolated);
    report("attach, cold", attach);
    report("publish one port", publish);
    report("statistics", stats);
    report("unpublish", unpublish);
    report("release (caller's part)", release);
    report("close of the namespace", close);
    report("removal of 100, in the background", flush);
    report("take from the pool", take);
    report("take isolated from the pool", take_isolated);
    report("attach, 100 at once", burst);
    println!("100 attached at once in {} ms", together.as_millis());
    bridge.remove().unwrap();
}
