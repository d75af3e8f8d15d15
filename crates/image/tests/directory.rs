//! Layers out of directories: the archive each stands for, unpacked elsewhere, gives the same files.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use common::{leftovers, store};
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use vessel_image::{
    ChainId, DiffId, Digest, DirectoryLayerOptions, ErrorKind, LayerDirectory, LayerInfo, Limits, Result,
    Store,
};

/// All there is to say about a file: what it is, whose, from when, with which content, which other names it has.
#[derive(Debug, PartialEq, Clone)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    device: u64,
    content: Vec<u8>,
    xattrs: Vec<(String, Vec<u8>)>,
    /// The first name of the same file.
    first: String,
}

fn tree(root: &Path) -> BTreeMap<String, Seen> {
    let mut out = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    walk(root, "", &mut out);
    for (path, seen) in &mut out {
        let meta = fs::symlink_metadata(root.join(path)).unwrap();
        if !meta.is_dir() && !is_whiteout(&meta) {
            seen.first = inodes.entry(meta.ino()).or_insert_with(|| path.clone()).clone();
        }
    }
    out
}

fn is_whiteout(meta: &fs::Metadata) -> bool {
    meta.mode() & libc::S_IFMT == libc::S_IFCHR && meta.rdev() == 0
}

fn walk(root: &Path, path: &str, out: &mut BTreeMap<String, Seen>) {
    for item in fs::read_dir(root.join(path)).unwrap() {
        let name = item.unwrap().file_name().into_string().unwrap();
        let child = format!("{path}{}{name}", if path.is_empty() { "" } else { "/" });
        let full = root.join(&child);
        let meta = fs::symlink_metadata(&full).unwrap();
        let whiteout = is_whiteout(&meta);
        let content = if meta.is_file() {
            fs::read(&full).unwrap()
        } else if meta.is_symlink() {
            fs::read_link(&full)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes()
        } else {
            Vec::new()
        };
        let mut list = vec![0u8; 4096];
        let n = rustix::fs::llistxattr(&full, &mut list[..]).unwrap();
        let mut xattrs: Vec<_> = list[..n]
            .split(|&b| b == 0)
            .filter(|name| !name.is_empty())
            .map(|name| {
                let mut value = vec![0u8; 4096];
                let n = rustix::fs::lgetxattr(&full, name, &mut value[..]).unwrap();
                value.truncate(n);
                (String::from_utf8(name.to_vec()).unwrap(), value)
            })
            .collect();
        xattrs.sort();
        out.insert(
            child.clone(),
            Seen {
                // Of a whiteout, nothing else counts.
                mode: if whiteout { libc::S_IFCHR } else { meta.mode() },
                owner: (meta.uid(), meta.gid()),
                mtime: if whiteout {
                    (0, 0)
                } else {
                    (meta.mtime(), meta.mtime_nsec())
                },
                device: meta.rdev(),
                content,
                xattrs,
                first: String::new(),
            },
        );
        if meta.is_dir() {
            walk(root, &child, out);
        }
    }
}

fn archive(store: &Store, layer: &LayerInfo) -> Vec<u8> {
    let mut out = Vec::new();
    store
        .layer_archive(&layer.chain_id)
        .unwrap()
        .read_to_end(&mut out)
        .unwrap();
    out
}

fn put(store: &Store, path: &Path, take: bool, clamp: Option<i64>) -> Result<LayerInfo> {
    let directory = LayerDirectory {
        path: path.to_owned(),
        take,
    };
    let options = DirectoryLayerOptions {
        clamp,
        ..DirectoryLayerOptions::default()
    };
    store.put_directory(directory, None, &options, &mut store.lease())
}

fn set_time(path: &Path, secs: i64, nanos: i64) {
    let time = Timespec {
        tv_sec: secs,
        tv_nsec: nanos,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn node(path: &Path, kind: FileType, device: u64) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device).unwrap();
}

fn xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// Every archive's promise, and that nothing is left where it came from.
fn check(store: &Store, elsewhere: &Store, layer: &LayerInfo) -> BTreeMap<String, Seen> {
    let archive = archive(store, layer);
    assert_eq!(Digest::sha256(&archive), *layer.diff_id.digest());
    assert_eq!(archive.len() as u64, layer.archive_size);
    let again = elsewhere
        .put_layer(
            &archive[..],
            None,
            &layer.diff_id,
            &Limits::default(),
            &mut elsewhere.lease(),
        )
        .unwrap();
    assert_eq!((again.size, again.entries), (layer.size, layer.entries));
    let here = tree(&store.layer_path(&layer.chain_id));
    assert_eq!(here, tree(&elsewhere.layer_path(&again.chain_id)));
    here
}

#[test]
fn the_name_of_a_layer_is_no_digest_of_one() {
    let (directory, store) = store();
    let options = DirectoryLayerOptions::default();
    let mut lease = store.lease();
    let mut put = |name: &str, parent: Option<&ChainId>| {
        let path = directory.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join(name), name).unwrap();
        let from = LayerDirectory { path, take: false };
        store.put_directory(from, parent, &options, &mut lease).unwrap()
    };
    let lower = put("lower", None);
    let upper = put("upper", Some(&lower.chain_id));
    // A layer of no parent has its digest for a name: here is one of that name, which is another.
    let claimed = DiffId(upper.chain_id.0.clone());
    let limits = Limits::default();
    let refused = store.put_layer(&b"x"[..], None, &claimed, &limits, &mut store.lease());
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Digest);
    let again = store.put_layer(
        &b"x"[..],
        Some(&lower.chain_id),
        &upper.diff_id,
        &limits,
        &mut store.lease(),
    );
    assert_eq!(again.unwrap().chain_id, upper.chain_id);
}

#[derive(Debug, Clone)]
enum Item {
    File(String, Vec<u8>),
    Sparse(String, u32, u32),
    Directory(String, bool),
    Symlink(String, String),
    HardLink(String, String),
    Device(String),
    Fifo(String),
    Socket(String),
    Whiteout(String),
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "[ab]{1,2}(/[abc]){0,2}",
        1 => "[ab]/é{1,3}x{90,120}(/[a-z]{70,80}){0,1}",
    ]
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        5 => (path(), proptest::collection::vec(any::<u8>(), 0..1200)).prop_map(|(p, d)| Item::File(p, d)),
        1 => (path(), 0u32..600_000, 0u32..600_000).prop_map(|(p, at, end)| Item::Sparse(p, at, end)),
        3 => (path(), any::<bool>()).prop_map(|(p, opaque)| Item::Directory(p, opaque)),
        2 => (path(), "[abx/.]{1,150}").prop_map(|(p, to)| Item::Symlink(p, to)),
        2 => (path(), path()).prop_map(|(p, to)| Item::HardLink(p, to)),
        1 => path().prop_map(Item::Device),
        1 => path().prop_map(Item::Fifo),
        1 => path().prop_map(Item::Socket),
        2 => path().prop_map(Item::Whiteout),
    ]
}

#[derive(Debug, Clone)]
struct Dress {
    mode: u32,
    owner: (u32, u32),
    time: (i64, i64),
    xattr: Option<Vec<u8>>,
    stray: bool,
}

fn dress() -> impl Strategy<Value = Dress> {
    let time = (-5_000_000_000i64..5_000_000_000, 0i64..1_000_000_000);
    let owner = (
        prop_oneof![Just(0u32), any::<u32>().prop_map(|n| n % u32::MAX)],
        0u32..5_000_000,
    );
    let xattr = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40));
    (0u32..0o10000, owner, time, xattr, any::<bool>()).prop_map(|(mode, owner, time, xattr, stray)| Dress {
        mode,
        owner,
        time,
        xattr,
        stray,
    })
}

/// Makes what can be made; says whether it was.
fn make(root: &Path, item: &Item) -> Option<String> {
    let whole = |path: &str| -> Option<std::path::PathBuf> {
        let full = root.join(path);
        fs::create_dir_all(full.parent()?).ok()?;
        (full.symlink_metadata().is_err()).then_some(full)
    };
    let made = match item {
        Item::File(path, data) => {
            fs::write(whole(path)?, data).unwrap();
            path
        }
        Item::Sparse(path, at, end) => {
            use std::os::unix::fs::FileExt;
            let file = File::create_new(whole(path)?).unwrap();
            file.write_all_at(b"data", (*at).into()).unwrap();
            file.set_len((*end).into()).unwrap();
            path
        }
        Item::Directory(path, opaque) => {
            let full = whole(path)?;
            fs::create_dir(&full).unwrap();
            if *opaque {
                xattr(&full, "trusted.overlay.opaque", b"y");
            }
            path
        }
        Item::Symlink(path, to) => {
            symlink(to, whole(path)?).unwrap();
            path
        }
        Item::HardLink(path, to) => {
            let meta = root.join(to).symlink_metadata().ok()?;
            if meta.is_dir() {
                return None;
            }
            fs::hard_link(root.join(to), whole(path)?).unwrap();
            return None;
        }
        Item::Device(path) => {
            node(
                &whole(path)?,
                FileType::CharacterDevice,
                rustix::fs::makedev(1, 3),
            );
            path
        }
        Item::Fifo(path) => {
            node(&whole(path)?, FileType::Fifo, 0);
            path
        }
        Item::Socket(path) => {
            node(&whole(path)?, FileType::Socket, 0);
            path
        }
        Item::Whiteout(path) => {
            node(&whole(path)?, FileType::CharacterDevice, 0);
            return None;
        }
    };
    Some(made.clone())
}

fn put_on(root: &Path, path: &str, dress: &Dress) {
    let full = root.join(path);
    let meta = full.symlink_metadata().unwrap();
    rustix::fs::chownat(
        CWD,
        &full,
        Some(rustix::fs::Uid::from_raw(dress.owner.0)),
        Some(rustix::fs::Gid::from_raw(dress.owner.1)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
    if !meta.is_symlink() {
        fs::set_permissions(&full, fs::Permissions::from_mode(dress.mode)).unwrap();
    }
    if let Some(value) = &dress.xattr
        && (meta.is_file() || meta.is_dir())
    {
        xattr(&full, "user.note", value);
    }
    if dress.stray {
        xattr(&full, "trusted.overlay.origin", b"something");
    }
    set_time(&full, dress.time.0, dress.time.1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn any_tree_round_trips(
        items in proptest::collection::vec((item(), dress()), 0..20),
        clamp in proptest::option::of(0i64..3_000_000_000),
    ) {
        let (dir, store) = store();
        let upper = dir.path().join("upper");
        fs::create_dir(&upper).unwrap();
        let mut made = Vec::new();
        for (item, dress) in &items {
            made.extend(make(&upper, item).map(|path| (path, dress)));
        }
        for (path, dress) in made.iter().rev() {
            put_on(&upper, path, dress);
        }
        // What is expected: the same without sockets and notes, in whole seconds, not younger than the clamp.
        let mut expected = tree(&upper);
        expected.retain(|_, seen| seen.mode & libc::S_IFMT != libc::S_IFSOCK);
        for seen in expected.values_mut() {
            seen.mtime = (clamp.map_or(seen.mtime.0, |clamp| seen.mtime.0.min(clamp)), 0);
            if seen.mode & libc::S_IFMT == libc::S_IFCHR && seen.device == 0 {
                seen.mtime = (0, 0);
                seen.owner = (0, 0);
            }
            seen.xattrs.retain(|(name, _)| name != "trusted.overlay.origin");
        }

        let copied = put(&store, &upper, false, clamp).unwrap();
        let (_other_dir, other) = common::store();
        prop_assert_eq!(&check(&store, &other, &copied), &expected);
        prop_assert!(upper.exists());

        let (taken_dir, taking) = common::store();
        let taken = put(&taking, &upper, true, clamp).unwrap();
        prop_assert!(!upper.exists());
        prop_assert_eq!(&taken.diff_id, &copied.diff_id);
        prop_assert_eq!(tree(&taking.layer_path(&taken.chain_id)), expected);
        prop_assert_eq!(fs::read_dir(taken_dir.path()).unwrap().count(), 1);
    }
}

#[test]
fn capabilities_and_set_user_id_survive() {
    let (dir, store) = store();
    let upper = dir.path().join("upper");
    fs::create_dir(&upper).unwrap();
    let ping = upper.join("ping");
    fs::write(&ping, b"ping").unwrap();
    rustix::fs::chown(&ping, Some(rustix::fs::Uid::from_raw(7)), None).unwrap();
    fs::set_permissions(&ping, fs::Permissions::from_mode(0o4755)).unwrap();
    let capability = [1u8, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr(&ping, "security.capability", &capability);
    let layer = put(&store, &upper, false, None).unwrap();
    let (_dir, other) = common::store();
    let seen = check(&store, &other, &layer).remove("ping").unwrap();
    assert_eq!((seen.mode & 0o7777, seen.owner.0), (0o4755, 7));
    assert_eq!(
        seen.xattrs,
        [("security.capability".to_owned(), capability.to_vec())]
    );
}

#[test]
fn holes_stay_holes() {
    let (dir, store) = store();
    let upper = dir.path().join("upper");
    fs::create_dir(&upper).unwrap();
    let file = File::create_new(upper.join("disk")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", 64 << 20).unwrap();
    drop(file);
    let copied = put(&store, &upper, false, None).unwrap();
    assert_eq!(copied.size, (64 << 20) + 3);
    let meta = fs::metadata(store.layer_path(&copied.chain_id).join("disk")).unwrap();
    assert!(meta.blocks() < 64, "{}", meta.blocks());
    assert_eq!(
        Digest::sha256(&archive(&store, &copied)),
        *copied.diff_id.digest()
    );
}

#[test]
fn what_no_layer_can_have_is_refused_and_leaves_nothing() {
    type Make = fn(&Path);
    let cases: [(Make, ErrorKind, &str); 4] = [
        (
            |upper| fs::write(upper.join(".wh.x"), b"").unwrap(),
            ErrorKind::Invalid,
            "\".wh.x\" cannot be in a layer",
        ),
        (
            |upper| {
                fs::create_dir(upper.join("d")).unwrap();
                xattr(&upper.join("d"), "trusted.overlay.redirect", b"/e");
            },
            ErrorKind::Unsupported,
            "redirect_dir=off",
        ),
        (
            |upper| {
                let mut deep = upper.to_owned();
                for _ in 0..300 {
                    deep.push("d");
                }
                fs::create_dir_all(deep).unwrap();
            },
            ErrorKind::Limit,
            "nested more than",
        ),
        (
            |upper| {
                File::create_new(upper.join("lastlog"))
                    .unwrap()
                    .set_len(300 << 30)
                    .unwrap();
            },
            ErrorKind::Limit,
            "lastlog",
        ),
    ];
    for (make, kind, message) in cases {
        for take in [false, true] {
            let (dir, store) = store();
            let upper = dir.path().join("upper");
            fs::create_dir(&upper).unwrap();
            make(&upper);
            let error = put(&store, &upper, take, None).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(message), "{error}");
            assert!(leftovers(&store).is_empty());
            assert_eq!(upper.exists(), !take);
        }
    }
}

#[test]
fn the_same_directory_is_the_same_layer_whenever_it_is_made() {
    let (dir, store) = store();
    let layer = |n: i64| {
        let upper = dir.path().join("upper");
        fs::create_dir_all(upper.join("d")).unwrap();
        // In another order, at another time.
        let mut names = ["b", "a", "d/c"];
        names.rotate_left(n as usize);
        for name in names {
            fs::write(upper.join(name), name).unwrap();
        }
        put(&store, &upper, true, Some(1_000_000_000)).unwrap().chain_id
    };
    assert_eq!(layer(0), layer(1));
    assert_eq!(store.layers().unwrap().len(), 1);
}

#[test]
fn what_nobody_wants_any_more_is_not_stored() {
    let (root, store) = store();
    let files = root.path().join("files");
    std::fs::create_dir(&files).unwrap();
    std::fs::write(files.join("file"), vec![7; 1 << 20]).unwrap();
    let directory = LayerDirectory {
        path: files,
        take: true,
    };
    let options = DirectoryLayerOptions {
        cancelled: Some(std::sync::Arc::new(true.into())),
        ..DirectoryLayerOptions::default()
    };
    let stored = store.put_directory(directory, None, &options, &mut store.lease());
    assert!(stored.is_err());
    assert!(store.layers().unwrap().is_empty());
}
