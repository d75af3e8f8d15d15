use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::devices::virtio::rate::Limit;
use crate::devices::virtio::testing::{Buffer, FakeDriver};

const SECTORS: u64 = 256;

fn image() -> File {
    let mut file = tempfile::tempfile().unwrap();
    for sector in 0..SECTORS {
        file.write_all(&[u8::try_from(sector).unwrap(); 512]).unwrap();
    }
    file
}

fn both() -> [BlockOptions; 2] {
    [Engine::Auto, Engine::Plain].map(|engine| BlockOptions {
        serial: "disk-0".to_owned(),
        engine,
        ..BlockOptions::default()
    })
}

fn device(file: &File, options: BlockOptions) -> Box<Block> {
    let disk = RawDisk::new(file.try_clone().unwrap()).unwrap();
    Box::new(Block::new(Arc::new(disk), options).unwrap())
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}

/// Sends a request: the status, how much was written, what was read.
fn ask(driver: &mut FakeDriver, kind: u32, sector: u64, data: &[Buffer<'_>]) -> (u8, u32, Vec<u8>) {
    let header = header(kind, sector);
    let mut buffers = vec![Buffer::Out(&header)];
    buffers.extend(data);
    buffers.push(Buffer::In(1));
    let (length, mut input) = driver.request(0, &buffers);
    (input.pop().unwrap(), length, input)
}

#[test]
fn a_driver_reads_and_writes() {
    for options in both() {
        let file = image();
        let mut driver = FakeDriver::started(device(&file, options));
        assert_eq!(u64::from_le_bytes(driver.config(0)), SECTORS);
        let (status, length, data) = ask(&mut driver, 0, 7, &[Buffer::In(100), Buffer::In(924)]);
        assert_eq!((status, length), (0, 1025));
        assert_eq!(data, [[7; 512], [8; 512]].concat());
        let text = [[b'a'; 512], [b'b'; 512]].concat();
        let (status, length, _) = ask(
            &mut driver,
            1,
            254,
            &[Buffer::Out(&text[..700]), Buffer::Out(&text[700..])],
        );
        assert_eq!((status, length), (0, 1));
        assert_eq!(ask(&mut driver, 4, 0, &[]).0, 0);
        let mut seen = vec![0; 1024];
        file.read_exact_at(&mut seen, 254 * 512).unwrap();
        assert_eq!(seen, text);
        let (status, length, serial) = ask(&mut driver, 8, 0, &[Buffer::In(20)]);
        assert_eq!((status, length, &serial[..7]), (0, 21, &b"disk-0\0"[..]));
        let metrics = driver.device.metrics().snapshot();
        assert_eq!((metrics.read, metrics.written), (1024 + 20, 1024));
    }
}

#[test]
fn what_is_not_on_the_disk_is_refused() {
    for options in both() {
        let file = image();
        let mut driver = FakeDriver::started(device(&file, options));
        let data = [0; 1024];
        for sector in [SECTORS - 1, SECTORS, u64::MAX, u64::MAX / 512, 1 << 55] {
            assert_eq!(ask(&mut driver, 0, sector, &[Buffer::In(1024)]).0, 1, "{sector}");
            assert_eq!(
                ask(&mut driver, 1, sector, &[Buffer::Out(&data)]).0,
                1,
                "{sector}"
            );
        }
        assert_eq!(ask(&mut driver, 0, 0, &[Buffer::In(100)]).0, 1, "no whole sector");
        assert_eq!(ask(&mut driver, 77, 0, &[]).0, 2);
        // Without a header, without a status, without anything.
        assert_eq!(driver.request(0, &[Buffer::Out(b"short"), Buffer::In(1)]).1, [1]);
        assert_eq!(driver.request(0, &[Buffer::Out(&header(0, 0))]).0, 0);
        assert_eq!(driver.request(0, &[Buffer::In(0)]).0, 0);
        assert_eq!(driver.device.metrics().snapshot().errors, 15);
    }
}

#[test]
fn a_file_that_has_become_shorter_is_an_error() {
    for options in both() {
        let file = image();
        let mut driver = FakeDriver::started(device(&file, options));
        file.set_len(10 * 512 + 100).unwrap();
        assert_eq!(ask(&mut driver, 0, 9, &[Buffer::In(1024)]).0, 1);
        assert_eq!(ask(&mut driver, 0, 9, &[Buffer::In(512)]).0, 0);
    }
}

#[test]
fn discarded_and_zeroed_sectors_are_zeroes() {
    let file = image();
    let mut driver = FakeDriver::started(device(&file, BlockOptions::default()));
    let two = [range(8, 8, 0), range(100, 1, 0)].concat();
    assert_eq!(ask(&mut driver, 11, 0, &[Buffer::Out(&two)]).0, 0);
    assert_eq!(ask(&mut driver, 13, 0, &[Buffer::Out(&range(16, 8, 1))]).0, 0);
    assert_eq!(ask(&mut driver, 13, 0, &[Buffer::Out(&range(24, 8, 0))]).0, 0);
    let mut seen = [0xff; 24 * 512];
    file.read_exact_at(&mut seen, 8 * 512).unwrap();
    assert_eq!(seen, [0; 24 * 512]);
    file.read_exact_at(&mut seen[..512], 7 * 512).unwrap();
    assert_eq!(seen[..512], [7; 512]);
    for (kind, data, status) in [
        (11, range(8, 8, 1), 2),
        (13, range(8, 8, 2), 2),
        (11, range(SECTORS, 1, 0), 1),
        (13, range(0, RANGE_SECTORS_MAX + 1, 0), 1),
        (11, vec![0; 15], 1),
        (11, vec![0; 16 * 33], 1),
    ] {
        assert_eq!(ask(&mut driver, kind, 0, &[Buffer::Out(&data)]).0, status);
    }
}

#[test]
fn nothing_is_written_to_a_disk_to_read() {
    let file = image();
    let options = BlockOptions {
        read_only: true,
        ..BlockOptions::default()
    };
    let mut driver = FakeDriver::started(device(&file, options));
    assert_eq!(driver.offered() & F_RO, F_RO);
    assert_eq!(ask(&mut driver, 1, 0, &[Buffer::Out(&[9; 512])]).0, 1);
    assert_eq!(ask(&mut driver, 11, 0, &[Buffer::Out(&range(0, 1, 0))]).0, 1);
    assert_eq!(ask(&mut driver, 0, 1, &[Buffer::In(512)]).2, [1; 512]);
}

#[test]
fn many_requests_at_once_all_end() {
    for options in both() {
        let file = image();
        let mut driver = FakeDriver::started(device(&file, options));
        for _ in 0..5 {
            let heads: Vec<_> = (0..80_u64)
                .map(|sector| {
                    let header = header(0, sector);
                    driver.offer(0, &[Buffer::Out(&header), Buffer::In(512), Buffer::In(1)])
                })
                .collect();
            driver.ring(0);
            let mut ended: Vec<u16> = heads.iter().map(|_| driver.wait(0).0).collect();
            ended.sort_unstable();
            let mut sent: Vec<u16> = heads.iter().map(|sent| sent.head).collect();
            sent.sort_unstable();
            assert_eq!(ended, sent);
            for (sector, sent) in (0..).zip(&heads) {
                assert_eq!(driver.inputs(sent), [&[sector; 512][..], &[0]].concat());
            }
            driver.free_buffers();
        }
    }
}

#[test]
fn a_reset_in_the_middle_waits_for_what_is_in_flight() {
    let file = image();
    let mut driver = FakeDriver::started(device(&file, BlockOptions::default()));
    for _ in 0..20 {
        for sector in 0..60 {
            let header = header(0, sector);
            driver.offer(0, &[Buffer::Out(&header), Buffer::In(512), Buffer::In(1)]);
        }
        driver.ring(0);
        let features = driver.offered();
        assert!(driver.negotiate(features));
        driver.set_up();
        driver.free_buffers();
        assert_eq!(ask(&mut driver, 0, 3, &[Buffer::In(512)]).2, [3; 512]);
    }
}

#[test]
fn limits_are_kept() {
    let file = image();
    let options = BlockOptions {
        limits: RateLimits {
            operations: Some(Limit {
                per_second: 100,
                burst: Some(1),
            }),
            bytes: None,
        },
        ..BlockOptions::default()
    };
    let mut driver = FakeDriver::started(device(&file, options));
    let start = Instant::now();
    for sector in 0..21 {
        let header = header(0, sector);
        driver.offer(0, &[Buffer::Out(&header), Buffer::In(512), Buffer::In(1)]);
    }
    driver.ring(0);
    for _ in 0..21 {
        driver.wait(0);
    }
    assert!(
        start.elapsed() >= Duration::from_millis(190),
        "{:?}",
        start.elapsed()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_request(requests in prop::collection::vec((
        prop::sample::select(vec![0_u32, 1, 4, 8, 11, 13, 99]),
        prop_oneof![0..2 * SECTORS, any::<u64>()],
        prop::collection::vec(any::<u8>(), 0..600),
        prop::collection::vec(0_usize..1100, 0..4),
        0_usize..20,
    ), 1..30), plain in any::<bool>()) {
        let file = image();
        let options = BlockOptions { engine: if plain { Engine::Plain } else { Engine::Auto }, ..BlockOptions::default() };
        let mut driver = FakeDriver::started(device(&file, options));
        for (kind, sector, out, inputs, cut) in requests {
            let header = header(kind, sector);
            let mut buffers = vec![Buffer::Out(&header[..16 - cut.min(16)]), Buffer::Out(&out)];
            buffers.extend(inputs.iter().map(|length| Buffer::In(*length)));
            let (length, input) = driver.request(0, &buffers);
            prop_assert!(length as usize <= input.len());
        }
        prop_assert_eq!(driver.status(), 15);
    }
}
