use std::collections::HashMap;
use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::devices::virtio::block::RawDisk;

fn read_all(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(disk.size()).unwrap()];
    disk.read(&vectors::of(&mut bytes), 0).unwrap();
    bytes
}

fn put(disk: &dyn Disk, offset: u64, bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    // In two pieces, as a guest's buffers are.
    let third = bytes.len() / 3;
    let (first, second) = bytes.split_at_mut(third);
    let vectors = [vectors::of(first), vectors::of(second)].concat();
    disk.write(&vectors, offset).unwrap();
}

/// Makes an image with clusters as small as they can be: everything happens early.
fn small_image(size: u64, order: u32, version: u32) -> File {
    let file = tempfile::tempfile().unwrap();
    let l1_size = size.div_ceil(512 * 64);
    let l1_clusters = (l1_size * 8).div_ceil(512).max(1);
    let mut header = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &version.to_be_bytes());
    put(20, &9_u32.to_be_bytes());
    put(24, &size.to_be_bytes());
    put(36, &u32::try_from(l1_size).unwrap().to_be_bytes());
    put(40, &1536_u64.to_be_bytes());
    put(48, &512_u64.to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(96, &order.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    file.set_len((3 + l1_clusters) * 512).unwrap();
    file.write_all_at(&header, 0).unwrap();
    file.write_all_at(&1024_u64.to_be_bytes(), 512).unwrap();
    for cluster in 0..3 + l1_clusters {
        let width = (1 << order) / 8;
        let count = [0, 0, 0, 0, 0, 0, 0, 1_u8];
        file.write_all_at(&count[8 - width..], 1024 + cluster * width as u64)
            .unwrap();
    }
    file
}

/// Counts what points to each cluster of an image, and compares: what is used must be counted, what can be written in place must be nobody
/// else's. Clusters counted too high are allowed. Returns how many those are.
fn check(file: &File) -> usize {
    let header = Header::read(file, false).unwrap();
    let bits = header.cluster_bits;
    let cluster = 1_u64 << bits;
    let mut tables = Tables::read(file.try_clone().unwrap(), &header).unwrap();
    let mut used: HashMap<u64, u64> = HashMap::new();
    let mut use_range = |offset: u64, length: u64| {
        for cluster in offset >> bits..=(offset + length.max(1) - 1) >> bits {
            *used.entry(cluster).or_default() += 1;
        }
    };
    let table = |offset: u64, length: u64| {
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        file.read_exact_at(&mut bytes, offset).unwrap();
        let entries = bytes.chunks_exact(8);
        entries
            .map(|entry| u64::from_be_bytes(entry.try_into().unwrap()))
            .collect::<Vec<_>>()
    };
    use_range(0, cluster);
    use_range(header.l1_offset, u64::from(header.l1_size) * 8);
    let refcount_bytes = u64::from(header.refcount_table_clusters) * cluster;
    use_range(header.refcount_table_offset, refcount_bytes);
    for block in table(header.refcount_table_offset, refcount_bytes) {
        if block != 0 {
            use_range(block, 1);
        }
    }
    let mut copied = Vec::new();
    for l1 in table(header.l1_offset, u64::from(header.l1_size) * 8) {
        let offset = l1 & !COPIED;
        if offset == 0 {
            continue;
        }
        use_range(offset, 1);
        copied.extend((l1 & COPIED != 0).then_some(offset));
        for l2 in table(offset, cluster) {
            if l2 & COMPRESSED != 0 {
                let shift = 70 - bits;
                let at = l2 & ((1 << shift) - 1);
                let sectors = (l2 & (COMPRESSED - 1)) >> shift;
                use_range(at, (sectors + 1) * 512 - at % 512);
            } else if l2 & !(COPIED | ZERO) != 0 {
                let at = l2 & !(COPIED | ZERO);
                use_range(at, 1);
                copied.extend((l2 & COPIED != 0).then_some(at));
            }
        }
    }
    for offset in copied {
        assert_eq!(
            tables.count(offset >> bits).unwrap(),
            1,
            "{offset:#x} can be written in place"
        );
    }
    let end = file.metadata().unwrap().len() >> bits;
    let mut leaked = 0;
    for cluster in 0..end {
        let (is, must) = (
            tables.count(cluster).unwrap(),
            used.get(&cluster).copied().unwrap_or(0),
        );
        assert!(
            is >= must,
            "cluster {cluster} is used {must} times and counted {is} times"
        );
        leaked += usize::from(is > must);
    }
    assert!(used.keys().all(|cluster| *cluster < end));
    leaked
}

#[test]
fn a_new_image_is_zeroes_and_keeps_what_is_written() {
    let file = tempfile::tempfile().unwrap();
    create(&file, 10 << 20).unwrap();
    assert_eq!(check(&file), 0);
    let disk = Qcow2::open(file.try_clone().unwrap(), None, false).unwrap();
    assert!(read_all(&disk).iter().all(|byte| *byte == 0));
    let text: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    put(&disk, 65_536 - 512, &text);
    disk.flush().unwrap();
    assert_eq!(check(&file), 0);
    drop(disk);
    let disk = Qcow2::open(file.try_clone().unwrap(), None, true).unwrap();
    assert_eq!(read_all(&disk)[65_536 - 512..][..200_000], text);
    assert!(disk.write(&vectors::of(&mut [0; 512]), 0).is_err());
    assert!(file.metadata().unwrap().len() < 1 << 20, "it takes what it needs");
}

#[test]
fn discarded_clusters_are_used_again() {
    let file = tempfile::tempfile().unwrap();
    create(&file, 4 << 20).unwrap();
    let disk = Qcow2::open(file.try_clone().unwrap(), None, false).unwrap();
    let mut length = 0;
    for round in 0..20 {
        put(&disk, 1 << 20, &vec![7; 2 << 20]);
        disk.flush().unwrap();
        disk.discard(1 << 20, 2 << 20).unwrap();
        disk.flush().unwrap();
        assert!(read_all(&disk).iter().all(|byte| *byte == 0));
        if round == 0 {
            length = file.metadata().unwrap().len();
        }
    }
    assert_eq!(file.metadata().unwrap().len(), length);
    drop(disk);
    assert_eq!(check(&file), 0);
}

#[test]
fn reference_counts_grow_with_the_image() {
    for order in 3..=6 {
        let file = small_image(4 << 20, order, 3);
        let disk = Qcow2::open(file.try_clone().unwrap(), None, false).unwrap();
        let text: Vec<u8> = (0..4_u32 << 20).map(|n| (n / 512 % 251) as u8).collect();
        put(&disk, 0, &text);
        drop(disk);
        check(&file);
        let header = Header::read(&file, false).unwrap();
        assert!(order < 5 || header.refcount_table_clusters > 1, "{order}");
        let disk = Qcow2::open(file.try_clone().unwrap(), None, true).unwrap();
        assert!(read_all(&disk) == text);
    }
}

#[test]
fn compressed_clusters_are_read_and_written_over() {
    let file = small_image(64 << 10, 4, 3);
    let text: Vec<u8> = b"compressible ".iter().copied().cycle().take(512).collect();
    let mut packer = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    packer.write_all(&text).unwrap();
    let packed = packer.finish().unwrap();
    {
        // Two clusters of the guest in one of the file, by hand.
        let header = Header::read(&file, true).unwrap();
        let mut tables = Tables::read(file.try_clone().unwrap(), &header).unwrap();
        let (offset, _) = tables.allocate().unwrap();
        let second = offset + packed.len() as u64;
        file.write_all_at(&packed, offset).unwrap();
        file.write_all_at(&packed, second).unwrap();
        tables.set_entry(3, COMPRESSED | offset).unwrap();
        tables.set_entry(4, COMPRESSED | second).unwrap();
        tables.set_entry(5, 0).unwrap();
        tables.raise(offset >> 9).unwrap();
        tables.write().unwrap();
    }
    check(&file);
    let disk = Qcow2::open(file.try_clone().unwrap(), None, false).unwrap();
    assert_eq!(read_all(&disk)[3 * 512..5 * 512], [&text[..], &text].concat());
    disk.write(&vectors::of(&mut [9; 512]), 3 * 512).unwrap();
    disk.flush().unwrap();
    check(&file);
    let all = read_all(&disk);
    assert_eq!(all[3 * 512..4 * 512], [9; 512]);
    assert_eq!(all[4 * 512..5 * 512], text);
    disk.write(&vectors::of(&mut [8; 512]), 4 * 512).unwrap();
    drop(disk);
    assert_eq!(check(&file), 0, "nothing points to the packed cluster");
}

#[test]
fn what_cannot_be_read_is_told() {
    let told = |change: &dyn Fn(&File), writable: bool| {
        let file = tempfile::tempfile().unwrap();
        create(&file, 1 << 20).unwrap();
        change(&file);
        let opened = Qcow2::open(file, None, !writable);
        opened.map(|_| ()).unwrap_err().to_string()
    };
    let set = |at: u64, bytes: &'static [u8]| move |file: &File| file.write_all_at(bytes, at).unwrap();
    assert!(told(&set(0, b"RAW!"), false).contains("no qcow2"));
    assert!(told(&set(7, &[4]), false).contains("version 4"));
    assert!(told(&set(35, &[1]), false).contains("encrypted"));
    assert!(told(&set(15, &[1]), false).contains("another one"));
    assert!(told(&set(79, &[1]), true).contains("repair"));
    assert!(told(&set(79, &[4]), false).contains("another file"));
    assert!(told(&set(79, &[16]), false).contains("subclusters"));
    assert!(told(&set(78, &[1]), false).contains("not known"));
    assert!(told(&set(23, &[30]), false).contains("clusters"));
    assert!(told(&set(99, &[9]), false).contains("too wide"));
    assert!(told(&set(24, &[0xff]), false).contains("L1 table"));
    assert!(told(&set(47, &[1]), false).contains("no possible place"));
    assert!(told(&set(40, &[0xff]), false).contains("no possible place"));
    assert!(told(&set(59, &[0xff]), false).contains("refcount table"));
    assert!(told(&|file| file.set_len(60).unwrap(), false).contains("no qcow2"));
    assert!(Qcow2::open(small_image(512, 4, 2), None, true).is_ok());
    let raw = tempfile::tempfile().unwrap();
    let backing: Arc<dyn Disk> = Arc::new(RawDisk::new(raw).unwrap());
    assert!(Qcow2::open(small_image(512, 4, 2), Some(backing), true).is_err());
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8),
    Discard(u64, u64),
    Zero(u64, u64),
    Flush,
    Reopen,
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = (0_u64..256, 1_u64..40);
    let step = prop_oneof![
        6 => (place.clone(), 1_u8..255).prop_map(|((at, length), fill)| Step::Write(at, length, fill)),
        2 => place.clone().prop_map(|(at, length)| Step::Discard(at, length)),
        2 => place.prop_map(|(at, length)| Step::Zero(at, length)),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn an_image_is_the_disk_it_says(steps in steps(), version in 2_u32..4, with_backing in any::<bool>(), large in any::<bool>()) {
        const SIZE: usize = 256 * 512;
        let file = if large {
            let file = tempfile::tempfile().unwrap();
            create(&file, SIZE as u64).unwrap();
            file
        } else {
            small_image(SIZE as u64, 4, version)
        };
        let mut model = vec![0; SIZE];
        // The backing disk is shorter than the image.
        let mut below = tempfile::tempfile().unwrap();
        if with_backing {
            below.write_all(&[0xbb; SIZE / 2]).unwrap();
            model[..SIZE / 2].fill(0xbb);
            file.write_all_at(&104_u64.to_be_bytes(), 8).unwrap();
        }
        let open = |file: &File| {
            let backing = || Arc::new(RawDisk::new(below.try_clone().unwrap()).unwrap()) as Arc<dyn Disk>;
            Qcow2::open(file.try_clone().unwrap(), with_backing.then(backing), false).unwrap()
        };
        let mut disk = open(&file);
        let mut flushed = model.clone();
        let mut touched = vec![false; SIZE];
        for step in steps {
            let clip = |at: u64, length: u64| (at * 512, (length.min(256 - at)) * 512);
            let mut change = |at: u64, length: u64, fill: Option<u8>| {
                let range = usize::try_from(at).unwrap()..usize::try_from(at + length).unwrap();
                touched[range.clone()].fill(true);
                if let Some(fill) = fill {
                    model[range].fill(fill);
                }
            };
            match step {
                Step::Write(at, length, fill) => {
                    let (at, length) = clip(at, length);
                    put(&disk, at, &vec![fill; usize::try_from(length).unwrap()]);
                    change(at, length, Some(fill));
                }
                Step::Zero(at, length) => {
                    let (at, length) = clip(at, length);
                    disk.write_zeroes(at, length, true).unwrap();
                    change(at, length, Some(0));
                }
                Step::Discard(at, length) => {
                    let (at, length) = clip(at, length);
                    disk.discard(at, length).unwrap();
                    change(at, length, None);
                    // What was discarded is what it was, or zeroes.
                    let now = read_all(&disk);
                    let range = usize::try_from(at).unwrap()..usize::try_from(at + length).unwrap();
                    for (byte, old) in now[range.clone()].iter().zip(&model[range.clone()]) {
                        prop_assert!(byte == old || *byte == 0);
                    }
                    model[range.clone()].copy_from_slice(&now[range]);
                }
                Step::Flush => {
                    disk.flush().unwrap();
                    flushed.clone_from(&model);
                    touched.fill(false);
                }
                Step::Reopen => {
                    drop(disk);
                    check(&file);
                    disk = open(&file);
                    flushed.clone_from(&model);
                    touched.fill(false);
                }
                Step::Kill => {
                    // The file as it is when the machine is killed now: in order, with what was flushed.
                    let copy = tempfile::tempfile().unwrap();
                    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
                    file.read_exact_at(&mut bytes, 0).unwrap();
                    copy.write_all_at(&bytes, 0).unwrap();
                    check(&copy);
                    let seen = read_all(&open(&copy));
                    for at in 0..SIZE {
                        prop_assert!(touched[at] || seen[at] == flushed[at], "{at}");
                    }
                }
            }
            prop_assert!(read_all(&disk) == model);
        }
        drop(disk);
        check(&file);
    }

    #[test]
    fn any_damage(changes in prop::collection::vec((0_usize..2560, any::<u8>()), 1..20), read_only in any::<bool>()) {
        let file = small_image(64 << 10, 4, 3);
        let disk = Qcow2::open(file.try_clone().unwrap(), None, false).unwrap();
        put(&disk, 0, &[1; 4096]);
        drop(disk);
        for (at, value) in changes {
            file.write_all_at(&[value], at as u64).unwrap();
        }
        if let Ok(disk) = Qcow2::open(file, None, read_only) {
            let size = disk.size().min(64 << 10);
            let mut bytes = vec![0; usize::try_from(size).unwrap()];
            let _ = disk.read(&vectors::of(&mut bytes), 0);
            let _ = disk.write(&vectors::of(&mut bytes), 0);
            let _ = disk.discard(0, size);
            let _ = disk.write_zeroes(0, size, true);
            let _ = disk.flush();
        }
    }
}
