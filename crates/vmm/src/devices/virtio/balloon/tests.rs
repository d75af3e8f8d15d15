use std::time::Duration;

use proptest::prelude::*;
use vm_memory::Bytes;

use super::super::testing::{Buffer, FakeDriver};
use super::*;

/// Where tests have pages that are neither rings nor buffers.
const FREE: u64 = 16 << 20;

fn device() -> (FakeDriver, Balloon) {
    let device = VirtioBalloon::new().unwrap();
    let balloon = device.balloon();
    (FakeDriver::started(Box::new(device)), balloon)
}

fn fill(driver: &FakeDriver, pages: u64) {
    for page in 0..pages {
        let address = GuestAddress(FREE + page * PAGE);
        driver.memory.write_slice(&[7; PAGE as usize], address).unwrap();
    }
}

fn byte(driver: &FakeDriver, page: u64) -> u8 {
    driver
        .memory
        .read_obj(GuestAddress(FREE + page * PAGE + 5))
        .unwrap()
}

/// Blocks of 512 bytes the host has behind the memory.
fn blocks(driver: &FakeDriver) -> i64 {
    let region = driver.memory.iter().next().unwrap();
    rustix::fs::fstat(region.file_offset().unwrap().file())
        .unwrap()
        .st_blocks
}

#[test]
fn pages_that_are_given_up_are_the_hosts_again() {
    let (mut driver, balloon) = device();
    fill(&driver, 64);
    let before = blocks(&driver);
    let first = (FREE / PAGE) as u32;
    // Backwards, twice, and some that do not exist.
    let mut numbers: Vec<u8> = Vec::new();
    for page in [20, 12, 11, 10, 12, u32::MAX - first, 500_000] {
        numbers.extend((first + page).to_le_bytes());
    }
    driver.request(0, &[Buffer::Out(&numbers)]);
    // Looking at a page brings it back; the request's own buffers and rings are new.
    let freed = before - blocks(&driver);
    assert!(freed >= (4 - 2) * 8, "{freed}");
    for page in 0..64 {
        let expected = if [10, 11, 12, 20].contains(&page) { 0 } else { 7 };
        assert_eq!(byte(&driver, page), expected, "page {page}");
    }
    driver.request(1, &[Buffer::Out(&numbers)]);
    balloon.set_target(16 << 20);
    assert_eq!(driver.config::<4>(0), 4096u32.to_le_bytes());
    driver.wait_until("the interrupt", || driver.interrupts.count(0) == 1);
    driver.set_config(4, &4u32.to_le_bytes());
    assert_eq!(balloon.stats().inflated, 4 * PAGE);
}

#[test]
fn free_pages_are_taken_without_being_asked_for() {
    let (mut driver, _) = device();
    fill(&driver, 16);
    let before = blocks(&driver);
    // The driver of these tests chooses addresses itself: lay a request out by hand.
    let sent = driver.offer(3, &[Buffer::In(8)]);
    let queue = driver.queues[3].descriptors;
    driver.describe(queue, sent.head, FREE + 100, 9 * PAGE as u32, 2, 0);
    driver.ring(3);
    driver.wait(3);
    let freed = before - blocks(&driver);
    assert!(freed >= (8 - 2) * 8, "{freed}");
    // What lies around whole pages stays.
    let bytes: Vec<u8> = (0..11).map(|page| byte(&driver, page)).collect();
    assert_eq!(bytes, [7, 0, 0, 0, 0, 0, 0, 0, 0, 7, 7]);
}

#[test]
fn statistics_are_asked_for_again() {
    let (mut driver, balloon) = device();
    let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    let first = [entry(4, 1000), entry(5, 5000), entry(99, 1)].concat();
    driver.send(2, &[Buffer::Out(&first)]);
    let end = std::time::Instant::now() + Duration::from_secs(5);
    while balloon.0.state.lock().unwrap().stats.total.is_none() {
        assert!(std::time::Instant::now() < end);
    }
    assert!(driver.poll(2).is_none(), "the device keeps it");
    let stats = balloon.stats();
    assert_eq!(
        (stats.free, stats.total, stats.caches),
        (Some(1000), Some(5000), None)
    );
    // It was asked for again.
    driver.wait(2);
    let second = [entry(4, 2000), entry(5, 5000)].concat();
    driver.send(2, &[Buffer::Out(&second)]);
    while balloon.0.state.lock().unwrap().stats.free != Some(2000) {
        assert!(std::time::Instant::now() < end);
    }
    // A pause gives it back.
    driver.device.pause();
    driver.device.resume();
    driver.wait(2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbage_in_every_queue_is_given_back(
        requests in prop::collection::vec((0usize..2, prop::collection::vec(any::<u8>(), 1..5000)), 1..10),
        stats in prop::collection::vec(any::<u8>(), 1..2000),
    ) {
        let (mut driver, balloon) = device();
        for (queue, mut bytes) in requests {
            // Not where the rings are: those pages are the driver's, and it wants to go on.
            for number in bytes.chunks_exact_mut(4) {
                number[2] |= 0x10;
            }
            driver.request(queue, &[Buffer::Out(&bytes)]);
        }
        driver.send(2, &[Buffer::Out(&stats)]);
        driver.send(2, &[Buffer::Out(&stats)]);
        driver.wait(2);
        balloon.stats();
        driver.wait(2);
    }
}
