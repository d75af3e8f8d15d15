//! Both sides against each other, and a receiver against senders that lie.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use tokio::sync::mpsc;
use vessel_filesync::{
    Everything, Filter, Owner, Packet, ReceiveOptions, Received, SendOptions, Sent, Stat, Verdict, receive,
    send,
};

const STAT: i32 = 0;
const DATA: i32 = 2;
const FIN: i32 = 3;
const DIR: u32 = 1 << 31 | 0o755;
const LINK: u32 = 1 << 27 | 0o777;
const MIRROR: ReceiveOptions = ReceiveOptions {
    mirror: true,
    owner: None,
};

fn transfer(
    from: &Path,
    to: &Path,
    filter: &mut (dyn Filter + Send),
    options: ReceiveOptions,
) -> (Sent, Received) {
    let (batches, mut batched) = mpsc::channel::<Vec<Packet>>(16);
    let (packets, mut incoming) = mpsc::channel(16);
    let (requests, mut wanted) = mpsc::unbounded_channel();
    let (source, target) = (fs::File::open(from).unwrap(), fs::File::open(to).unwrap());
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let send_options = SendOptions {
                owner: Owner::Keep,
                prefix: String::new(),
                latest: None,
            };
            send(source.as_fd(), filter, &send_options, &mut wanted, &batches).unwrap()
        });
        scope.spawn(move || {
            while let Some(batch) = batched.blocking_recv() {
                for packet in batch {
                    if packets.blocking_send(packet).is_err() {
                        return;
                    }
                }
            }
        });
        let received = receive(target.as_fd(), options, &mut incoming, &requests, &mut |_| {}).unwrap();
        drop(requests);
        (sender.join().unwrap(), received)
    })
}

/// Everything below a directory: path, mode, time, contents or target.
fn look(root: &Path) -> Vec<String> {
    fn walk(root: &Path, dir: &Path, out: &mut Vec<String>) {
        let mut entries: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        entries.sort();
        for path in entries {
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let what = if meta.is_symlink() {
                fs::read_link(&path).unwrap().display().to_string()
            } else if meta.is_file() {
                format!("{:?}", fs::read(&path).unwrap())
            } else {
                String::new()
            };
            out.push(format!(
                "{name} {:o} {}.{} {what}",
                meta.mode(),
                meta.mtime(),
                meta.mtime_nsec()
            ));
            if meta.is_dir() {
                walk(root, &path, out);
            }
        }
    }
    let mut out = Vec::new();
    walk(root, root, &mut out);
    out
}

fn tree(root: &Path) {
    fs::create_dir_all(root.join("a/deep")).unwrap();
    fs::write(root.join("a/deep/file"), vec![1; 300_000]).unwrap();
    fs::write(root.join("a.txt"), "text").unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::hard_link(root.join("a.txt"), root.join("second name")).unwrap();
    symlink("../nowhere", root.join("a/link")).unwrap();
    fs::set_permissions(root.join("a/deep"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o4711)).unwrap();
    let (dir, kind) = (fs::File::open(root).unwrap(), rustix::fs::FileType::Fifo);
    rustix::fs::mknodat(dir, "fifo", kind, rustix::fs::Mode::RUSR, 0).unwrap();
}

#[test]
fn a_tree_arrives_whole_and_again_without_its_contents() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree(from.path());
    let (sent, received) = transfer(from.path(), to.path(), &mut Everything, MIRROR);
    assert_eq!(look(from.path()), look(to.path()));
    assert_eq!((sent.files, sent.bytes), (3, 300_004));
    assert!(received.changed);
    let inode = |name: &str| fs::metadata(to.path().join(name)).unwrap().ino();
    assert_eq!(inode("a.txt"), inode("second name"));
    let (sent, received) = transfer(from.path(), to.path(), &mut Everything, MIRROR);
    assert_eq!((sent.files, sent.bytes, received.changed), (0, 0, false));
    assert_eq!(look(from.path()), look(to.path()));
}

#[test]
fn only_what_changed_is_sent_and_what_is_gone_goes() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree(from.path());
    transfer(from.path(), to.path(), &mut Everything, MIRROR);
    fs::write(from.path().join("a.txt"), "TEXT!").unwrap();
    fs::remove_file(from.path().join("a/link")).unwrap();
    fs::create_dir(from.path().join("a/link")).unwrap();
    fs::remove_dir_all(from.path().join("a/deep")).unwrap();
    fs::write(from.path().join("a/deep"), "a file now").unwrap();
    fs::set_permissions(from.path().join("empty"), fs::Permissions::from_mode(0o600)).unwrap();
    let (sent, _) = transfer(from.path(), to.path(), &mut Everything, MIRROR);
    assert_eq!(sent.files, 2);
    assert_eq!(look(from.path()), look(to.path()));
}

struct Only(&'static str);

impl Filter for Only {
    fn verdict(&mut self, path: &str, directory: bool) -> Verdict {
        match (path == self.0, directory) {
            (true, _) => Verdict::Send,
            (false, true) => Verdict::Descend,
            (false, false) => Verdict::Skip,
        }
    }
}

#[test]
fn a_filter_brings_the_directories_on_the_way_and_nothing_else() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree(from.path());
    transfer(from.path(), to.path(), &mut Only("a/deep/file"), MIRROR);
    let lines = look(to.path());
    let names: Vec<&str> = lines.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["a", "a/deep", "a/deep/file"]);
}

#[test]
fn without_mirroring_what_is_there_stays() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(from.path().join("new"), "1").unwrap();
    fs::write(to.path().join("old"), "2").unwrap();
    transfer(from.path(), to.path(), &mut Everything, ReceiveOptions::default());
    assert!(to.path().join("old").exists() && to.path().join("new").exists());
}

/// What a receiver makes of packets.
fn receives(to: &Path, packets: Vec<Packet>) -> Result<Received, vessel_filesync::Error> {
    let (sender, mut incoming) = mpsc::channel(packets.len().max(1));
    let (requests, _wanted) = mpsc::unbounded_channel();
    for packet in packets {
        sender.try_send(packet).unwrap();
    }
    drop(sender);
    let target = fs::File::open(to).unwrap();
    receive(target.as_fd(), MIRROR, &mut incoming, &requests, &mut |_| {})
}

fn stat(path: &str, mode: u32, linkname: &str, size: i64) -> Packet {
    Packet {
        r#type: STAT,
        stat: Some(Stat {
            path: path.into(),
            mode,
            linkname: linkname.into(),
            size,
            ..Stat::default()
        }),
        ..Packet::default()
    }
}

fn data(id: u32, bytes: &[u8]) -> Packet {
    Packet {
        r#type: DATA,
        id,
        data: bytes.to_vec(),
        ..Packet::default()
    }
}

fn bare(kind: i32) -> Packet {
    Packet {
        r#type: kind,
        ..Packet::default()
    }
}

#[test]
fn nothing_is_written_through_links_or_outside() {
    let base = tempfile::tempdir().unwrap();
    let (outside, to) = (base.path().join("outside"), base.path().join("to"));
    fs::create_dir(&outside).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(outside.join("precious"), "1").unwrap();
    for packets in [
        vec![stat("../outside/x", 0o644, "", 0)],
        vec![stat("/outside/x", 0o644, "", 0)],
        vec![stat("link", LINK, "../outside", 0), stat("link/x", 0o644, "", 0)],
        vec![stat("hard", 0o644, "../outside/precious", 0), bare(STAT)],
        vec![
            stat("a", LINK, "../outside/precious", 0),
            stat("b", 0o644, "a", 0),
            bare(STAT),
        ],
        vec![stat("..", DIR, "", 0)],
        vec![stat("x", 1 << 24, "", 0)],
        vec![stat("x", 0o644, "", -1)],
        vec![stat(".vessel-sync", DIR, "", 0)],
        vec![data(0, b"x")],
        vec![stat("x", 0o644, "", 1), data(1, b"x")],
        vec![bare(FIN)],
        vec![bare(99)],
        vec![],
    ] {
        assert!(receives(&to, packets.clone()).is_err(), "{packets:?}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{packets:?}");
        assert!(!to.join(".vessel-sync").exists());
    }
}

#[test]
fn a_link_in_the_way_is_replaced_and_not_followed() {
    let base = tempfile::tempdir().unwrap();
    let (outside, to) = (base.path().join("outside"), base.path().join("to"));
    fs::create_dir(&outside).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(outside.join("x"), "1").unwrap();
    symlink("../outside", to.join("d")).unwrap();
    let packets = vec![
        stat("d", DIR, "", 0),
        stat("d/x", 0o644, "", 3),
        bare(STAT),
        // More than it was said to have.
        data(1, b"new and longer"),
        data(1, b""),
    ];
    receives(&to, packets).unwrap();
    assert_eq!(fs::read_to_string(to.join("d/x")).unwrap(), "new");
    assert_eq!(fs::read_to_string(outside.join("x")).unwrap(), "1");
}

fn packet() -> impl Strategy<Value = Packet> {
    let path = prop::sample::select(vec![
        "a",
        "a/b",
        "a/b/c",
        "b",
        "..",
        "a/..",
        "",
        "a/../../x",
        "c\0",
        "/etc",
        "l",
        "l/x",
    ]);
    let mode = prop::sample::select(vec![DIR, LINK, 0o644, 0o4755, 1 << 25, u32::MAX, 1 << 24]);
    let link = prop::sample::select(vec!["", "a", "..", "/etc/passwd", "a/b"]);
    prop_oneof![
        5 => (path, mode, link, -1i64..10).prop_map(|(path, mode, link, size)| stat(path, mode, link, size)),
        2 => (0u32..4, prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(id, bytes)| data(id, &bytes)),
        1 => Just(bare(STAT)),
        1 => (-1i32..6).prop_map(bare),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_sequence_of_packets_leaves_the_directory(packets in prop::collection::vec(packet(), 0..12)) {
        let base = tempfile::tempdir().unwrap();
        let to = base.path().join("to");
        fs::create_dir(&to).unwrap();
        let _ = receives(&to, packets);
        let names: Vec<_> = fs::read_dir(base.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        prop_assert_eq!(names, ["to"]);
        prop_assert!(!to.join(".vessel-sync").exists());
    }
}
