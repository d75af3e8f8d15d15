//! What unpacks to, or is read from, files. All happens below one temporary directory in memory.

use std::os::fd::AsFd;
use std::path::Path;

use tempfile::TempDir;
use vessel_engine::LogsOptions;
use vessel_engine::logs::reader::{Reader, Step};
use vessel_engine::oci_spec::user::Accounts;
use vessel_image::{DiffId, Digest, ExtractOptions, Limits, LiveSet, LoadOptions, Store};

/// Small enough for memory, large enough for every path through the code.
const LIMITS: Limits = Limits {
    max_bytes: 4 << 20,
    max_entries: 200,
};

/// A directory in memory.
pub(crate) fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() {
        memory
    } else {
        Path::new("/tmp")
    };
    tempfile::Builder::new()
        .prefix("vessel-fuzz-")
        .tempdir_in(place)
        .unwrap()
}

/// Puts the checksums of what look like tar headers right: no mutation would guess them. An odd last byte leaves the
/// archive as it is.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut archive = data.to_vec();
    if data.last().is_some_and(|last| last % 2 == 1) {
        return archive;
    }
    let mut at = 0;
    while let Some(block) = archive.get_mut(at..at + 512) {
        let size = std::str::from_utf8(&block[124..136]).ok();
        let size = size.and_then(|text| usize::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok());
        if block.iter().any(|&byte| byte != 0) {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let file = matches!(block[156], 0 | b'0' | b'7' | b'x' | b'g' | b'L' | b'K' | b'S');
        let size = size.filter(|&size| file && size < archive.len()).unwrap_or(0);
        at += 512 + size.next_multiple_of(512);
    }
    archive
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn assert_empty(store: &Store) {
    for place in ["layers", "blobs/sha256"] {
        assert_eq!(names(&store.root().join(place)), [""; 0]);
    }
}

/// A layer: unpacked, put together again, removed.
pub fn layer(data: &[u8]) {
    let archive = with_checksums(data);
    let directory = directory();
    let store = Store::open(directory.path()).unwrap();
    {
        let mut lease = store.lease();
        let diff_id = DiffId(Digest::sha256(&archive));
        // Of something compressed, the diff ID is another.
        if let Ok(layer) = store.put_layer(&archive[..], None, &diff_id, &LIMITS, &mut lease) {
            let mut again = Vec::new();
            std::io::Read::read_to_end(&mut store.layer_archive(&layer.chain_id).unwrap(), &mut again)
                .unwrap();
            assert!(again == archive);
        }
    }
    store.collect(LiveSet::default).unwrap();
    assert_empty(&store);
}

/// An image archive, `docker save`'s or an OCI layout.
pub fn load(data: &[u8]) {
    let archive = with_checksums(data);
    let directory = directory();
    let store = Store::open(directory.path()).unwrap();
    let options = LoadOptions {
        limits: LIMITS,
        ..LoadOptions::default()
    };
    match vessel_image::load(&store, &archive[..], &options, &mut |_| {}) {
        Ok(images) => {
            for layer in images.iter().flat_map(|image| &image.layers) {
                let mut reader = store.layer_archive(&layer.chain_id).unwrap();
                std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
            }
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert_empty(&store);
        }
    }
    store.collect(LiveSet::default).unwrap();
    assert_empty(&store);
}

/// An archive copied into a container's root that already has links of all kinds.
pub fn unpack(data: &[u8]) {
    let archive = with_checksums(data);
    let directory = directory();
    let (root, outside) = (directory.path().join("root"), directory.path().join("outside"));
    for place in [root.join("d/e"), outside.clone()] {
        std::fs::create_dir_all(place).unwrap();
    }
    std::fs::write(outside.join("secret"), b"secret").unwrap();
    std::fs::write(root.join("f"), b"f").unwrap();
    for (target, link) in [
        ("../outside", "out"),
        ("../../outside/secret", "d/out"),
        ("d", "in"),
        ("loop", "loop"),
    ] {
        std::os::unix::fs::symlink(target, root.join(link)).unwrap();
    }
    std::os::unix::fs::symlink(&outside, root.join("absolute")).unwrap();
    let handle = std::fs::File::open(&root).unwrap();
    for keep_types in [false, true] {
        let options = ExtractOptions {
            limits: LIMITS,
            keep_types,
            ..ExtractOptions::default()
        };
        let _ = vessel_image::unpack_into(handle.as_fd(), &archive[..], &options);
    }
    assert_eq!(names(directory.path()), ["outside", "root"]);
    assert_eq!(names(&outside), ["secret"]);
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"secret");
}

/// A user specification, `/etc/passwd` and `/etc/group`, separated by null bytes.
pub fn user(data: &[u8]) {
    let mut parts = data.splitn(3, |&byte| byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let (spec, passwd, group) = (next(), next(), next());
    let directory = directory();
    std::fs::create_dir(directory.path().join("etc")).unwrap();
    std::fs::write(directory.path().join("etc/passwd"), passwd).unwrap();
    std::fs::write(directory.path().join("etc/group"), group).unwrap();
    let root = std::fs::File::open(directory.path()).unwrap();
    let accounts = Accounts::read(root.as_fd()).unwrap();
    if let Ok(spec) = std::str::from_utf8(spec) {
        let words: Vec<String> = spec.split(',').map(str::to_owned).collect();
        let _ = accounts.identity(&words[0], &words[1..]);
    }
}

/// A container's log and one rotated file of it, separated by a null byte.
pub fn logs(data: &[u8]) {
    let directory = directory();
    let path = directory.path().join("json.log");
    let (older, newer) = data.split_at(data.iter().position(|&byte| byte == 0).unwrap_or(0));
    std::fs::write(directory.path().join("json.log.1"), older).unwrap();
    std::fs::write(&path, newer).unwrap();
    for (tail, tty) in [(None, false), (Some(2), false), (Some(1 << 40), true)] {
        let options = LogsOptions {
            stdout: true,
            stderr: true,
            timestamps: tty,
            details: tty,
            since: tail.map(|_| 1),
            tail,
            ..LogsOptions::default()
        };
        let Ok(mut reader) = Reader::open(&path, options, tty) else {
            continue;
        };
        let mut out = Vec::new();
        for steps in 0.. {
            assert!(steps <= data.len() + 10, "the reader does not come to an end");
            match reader.step(&mut out) {
                Ok(Step::More) => {}
                Ok(Step::End | Step::Done) | Err(_) => break,
            }
        }
    }
}

/// The journal of the daemon's state after a crash: it opens, says what is missing, and opens again unchanged.
pub fn journal(data: &[u8]) {
    let directory = directory();
    std::fs::write(directory.path().join("state.journal"), data).unwrap();
    let read = || {
        let (store, recovery) = vessel_engine::Store::open(directory.path()).ok()?;
        let mut all = store.table::<serde_json::Value>("containers").all().ok()?;
        all.sort_by(|one, other| one.0.cmp(&other.0));
        Some((all, format!("{recovery:?}")))
    };
    if let Some((first, _)) = read() {
        let (second, _) = read().expect("what was repaired opens again");
        assert_eq!(first, second);
    }
}
