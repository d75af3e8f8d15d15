//! The byte protocol, told things that are right and things that are not.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::super::abi::*;
use super::*;
use crate::memory::Memory;

/// Puts a request into a guest's memory, cut in two, and takes the answer out of it.
pub(super) fn exchange(
    server: &Server,
    worker: &Worker,
    memory: &Memory,
    request: &[u8],
    room: usize,
) -> Vec<u8> {
    let ram = memory.ram();
    let cut = |at: u64, length: usize, first: usize| {
        let first = first.min(length);
        let mut buffers = Buffers::new(ram.clone());
        buffers.push(at, first as u32).unwrap();
        buffers.push(at + first as u64, (length - first) as u32).unwrap();
        buffers
    };
    ram.write_slice(request, GuestAddress(0)).unwrap();
    let answer = 2 << 20;
    let mut request = cut(0, request.len(), request.len() / 3);
    let mut reply = cut(answer, room, 20);
    let length = server.handle(worker, &mut request, &mut reply);
    assert!(length <= room);
    let mut bytes = vec![0; length];
    ram.read_slice(&mut bytes, GuestAddress(answer)).unwrap();
    bytes
}

/// A guest of one directory.
pub(super) struct Guest {
    server: Server,
    worker: Worker,
    memory: Memory,
    uid: u32,
    gid: u32,
}

impl Guest {
    pub(super) fn new(root: &Path, options: Options) -> Self {
        let root: OwnedFd = std::fs::File::open(root).unwrap().into();
        let guest = Self {
            server: Server::new(root, options).unwrap(),
            worker: Worker::enter(&Descriptors::open().unwrap()).unwrap(),
            memory: Memory::new(4 << 20).unwrap(),
            uid: 0,
            gid: 0,
        };
        let (error, _) = guest.call(
            INIT,
            0,
            init(INIT_EXT | HANDLE_KILLPRIV_V2 | SETXATTR_EXT).as_slice(),
        );
        assert_eq!(error, 0);
        guest
    }

    /// Sends bytes as they are; answers with all that came back.
    pub(super) fn send(&self, request: &[u8], room: usize) -> Vec<u8> {
        exchange(&self.server, &self.worker, &self.memory, request, room)
    }

    /// One request and the parts of its answer.
    pub(super) fn call(&self, opcode: u32, nodeid: u64, body: &[u8]) -> (i32, Vec<u8>) {
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode,
            unique: 77,
            nodeid,
            uid: self.uid,
            gid: self.gid,
            ..Default::default()
        };
        let request = [header.as_slice(), body].concat();
        let reply = self.send(&request, 64 << 10);
        if reply.is_empty() {
            return (0, reply);
        }
        let head: OutHeader = object(&reply);
        assert_eq!(head.unique, 77);
        assert_eq!(head.len as usize, reply.len());
        assert!(head.error <= 0);
        assert!(head.error == 0 || reply.len() == 16);
        (-head.error, reply[16..].to_vec())
    }

    fn lookup(&self, parent: u64, name: &str) -> Result<EntryOut, i32> {
        match self.call(LOOKUP, parent, &zero(name)) {
            (0, body) => Ok(object(&body)),
            (error, _) => Err(error),
        }
    }

    fn create(&self, parent: u64, name: &str, flags: i32, mode: u32) -> Result<(EntryOut, u64), i32> {
        let arguments = CreateIn {
            flags: flags as u32,
            mode,
            ..Default::default()
        };
        match self.call(CREATE, parent, &[arguments.as_slice(), &zero(name)].concat()) {
            (0, body) => Ok((
                object(&body),
                object::<OpenOut>(&body[size_of::<EntryOut>()..]).fh,
            )),
            (error, _) => Err(error),
        }
    }

    fn open(&self, node: u64, flags: i32) -> Result<u64, i32> {
        let arguments = OpenIn {
            flags: flags as u32,
            open_flags: 0,
        };
        match self.call(OPEN, node, arguments.as_slice()) {
            (0, body) => Ok(object::<OpenOut>(&body).fh),
            (error, _) => Err(error),
        }
    }

    fn write(&self, fh: u64, offset: u64, text: &[u8], write_flags: u32, flags: i32) -> i32 {
        let arguments = WriteIn {
            fh,
            offset,
            size: text.len() as u32,
            write_flags,
            flags: flags as u32,
            ..Default::default()
        };
        self.call(WRITE, 0, &[arguments.as_slice(), text].concat()).0
    }
}

pub(super) fn init(flags: u64) -> InitIn {
    InitIn {
        major: 7,
        minor: 38,
        max_readahead: 65536,
        flags: (flags & !INIT_EXT) as u32,
    }
}

pub(super) fn object<T: ByteValued + Default>(bytes: &[u8]) -> T {
    let mut value = T::default();
    let size = size_of::<T>();
    value.as_mut_slice().copy_from_slice(&bytes[..size]);
    value
}

fn zero(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// Workers change their thread for good: each test has its own, and so must the closure.
pub(super) fn on_a_thread(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| scope.spawn(test).join().unwrap());
}

#[test]
fn nothing_outside_the_directory_has_a_name() {
    on_a_thread(|| {
        let outer = tempfile::tempdir().unwrap();
        std::fs::write(outer.path().join("secret"), "x").unwrap();
        let shared = outer.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        std::os::unix::fs::symlink("../secret", shared.join("out")).unwrap();
        std::os::unix::fs::symlink("/", shared.join("top")).unwrap();
        let guest = Guest::new(&shared, Options::default());
        let long = "n".repeat(256);
        for (name, error) in [
            ("..", libc::EINVAL),
            (".", libc::EINVAL),
            ("", libc::EINVAL),
            ("../secret", libc::EINVAL),
            ("/etc", libc::EINVAL),
            (long.as_str(), libc::ENAMETOOLONG),
        ] {
            assert_eq!(guest.lookup(ROOT_ID, name), Err(error), "{name}");
            assert_eq!(
                guest.create(ROOT_ID, name, libc::O_RDWR, 0o644).unwrap_err(),
                error,
                "{name}"
            );
            for opcode in [UNLINK, RMDIR] {
                assert_eq!(guest.call(opcode, ROOT_ID, &zero(name)).0, error, "{name}");
            }
            let names = [RenameIn { newdir: ROOT_ID }.as_slice(), &zero("out"), &zero(name)].concat();
            assert_eq!(guest.call(RENAME, ROOT_ID, &names).0, error, "{name}");
        }
        // Links are text: neither looked through nor opened.
        for link in ["out", "top"] {
            let entry = guest.lookup(ROOT_ID, link).unwrap();
            assert_eq!(entry.attr.mode & libc::S_IFMT, libc::S_IFLNK);
            assert_eq!(guest.lookup(entry.nodeid, "etc"), Err(libc::ENOTDIR));
            assert_eq!(guest.open(entry.nodeid, libc::O_RDONLY), Err(libc::ENXIO));
            // O_CREAT goes to the link itself.
            assert_eq!(
                guest.create(ROOT_ID, link, libc::O_RDWR, 0o644).unwrap_err(),
                libc::ENXIO
            );
        }
        let entry = guest.lookup(ROOT_ID, "out").unwrap();
        assert_eq!(guest.call(READLINK, entry.nodeid, &[]).1, b"../secret");
        assert_eq!(std::fs::read_to_string(outer.path().join("secret")).unwrap(), "x");
    });
}

#[test]
fn pipes_sockets_and_devices_are_not_opened() {
    on_a_thread(|| {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("pipe"), 0o666.into()).unwrap();
        let guest = Guest::new(dir.path(), Options::default());
        // It would wait for a writer for ever.
        let pipe = guest.lookup(ROOT_ID, "pipe").unwrap();
        assert_eq!(guest.open(pipe.nodeid, libc::O_RDONLY), Err(libc::ENXIO));
        assert_eq!(
            guest.create(ROOT_ID, "pipe", libc::O_RDONLY, 0o600).unwrap_err(),
            libc::ENXIO
        );
        // Device files are made only where that was asked for.
        let mknod = MknodIn {
            mode: libc::S_IFCHR | 0o666,
            rdev: 0x103,
            ..Default::default()
        };
        let body = [mknod.as_slice(), &zero("null")].concat();
        assert_eq!(guest.call(MKNOD, ROOT_ID, &body).0, libc::EPERM);
        let guest = Guest::new(
            dir.path(),
            Options {
                devices: true,
                ..Options::default()
            },
        );
        let (error, body) = guest.call(MKNOD, ROOT_ID, &body);
        assert_eq!(error, 0);
        assert_eq!(object::<EntryOut>(&body).attr.rdev, 0x103);
        let made = std::fs::symlink_metadata(dir.path().join("null")).unwrap();
        assert_eq!(made.rdev(), rustix::fs::makedev(1, 3));
        let node = object::<EntryOut>(&body).nodeid;
        assert_eq!(guest.open(node, libc::O_RDWR), Err(libc::ENXIO));
    });
}

#[test]
fn a_read_only_directory_stays_as_it_is() {
    on_a_thread(|| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "text").unwrap();
        let guest = Guest::new(
            dir.path(),
            Options {
                read_only: true,
                ..Options::default()
            },
        );
        let file = guest.lookup(ROOT_ID, "file").unwrap();
        let node = file.nodeid;
        assert_eq!(guest.open(node, libc::O_WRONLY), Err(libc::EROFS));
        assert_eq!(guest.open(node, libc::O_RDONLY | libc::O_TRUNC), Err(libc::EROFS));
        let fh = guest.open(node, libc::O_RDONLY).unwrap();
        assert_eq!(guest.write(fh, 0, b"x", 0, 0), libc::EROFS);
        let setattr = SetattrIn {
            valid: FATTR_SIZE | FATTR_MODE,
            mode: 0o777,
            ..Default::default()
        };
        let two = [
            RenameIn { newdir: ROOT_ID }.as_slice(),
            &zero("file"),
            &zero("other"),
        ]
        .concat();
        for (opcode, id, body) in [
            (SETATTR, node, setattr.as_slice().to_vec()),
            (UNLINK, ROOT_ID, zero("file")),
            (RENAME, ROOT_ID, two),
            (
                MKDIR,
                ROOT_ID,
                [MkdirIn::default().as_slice(), &zero("d")].concat(),
            ),
            (SYMLINK, ROOT_ID, [zero("l"), zero("t")].concat()),
            (
                LINK,
                ROOT_ID,
                [LinkIn { oldnodeid: node }.as_slice(), &zero("l")].concat(),
            ),
            (
                MKNOD,
                ROOT_ID,
                [
                    MknodIn {
                        mode: libc::S_IFREG,
                        ..Default::default()
                    }
                    .as_slice(),
                    &zero("n"),
                ]
                .concat(),
            ),
            (
                CREATE,
                ROOT_ID,
                [CreateIn::default().as_slice(), &zero("c")].concat(),
            ),
            (
                TMPFILE,
                ROOT_ID,
                [CreateIn::default().as_slice(), &zero("c")].concat(),
            ),
            (REMOVEXATTR, node, zero("user.x")),
            (
                SETXATTR,
                node,
                [
                    SetxattrIn {
                        size: 1,
                        ..Default::default()
                    }
                    .as_slice(),
                    &zero("user.x"),
                    b"1",
                ]
                .concat(),
            ),
            (
                FALLOCATE,
                node,
                FallocateIn {
                    fh,
                    length: 10,
                    ..Default::default()
                }
                .as_slice()
                .to_vec(),
            ),
            (
                COPY_FILE_RANGE,
                node,
                CopyFileRangeIn {
                    fh_in: fh,
                    fh_out: fh,
                    len: 1,
                    ..Default::default()
                }
                .as_slice()
                .to_vec(),
            ),
        ] {
            assert_eq!(guest.call(opcode, id, &body).0, libc::EROFS, "{opcode}");
        }
        assert_eq!(std::fs::read_to_string(dir.path().join("file")).unwrap(), "text");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    });
}

#[test]
fn what_is_made_belongs_to_who_asked() {
    on_a_thread(|| {
        let dir = tempfile::tempdir().unwrap();
        // Root's alone, and it hands down its group: that the user may write there the guest has decided.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o2700)).unwrap();
        std::os::unix::fs::chown(dir.path(), Some(0), Some(4321)).unwrap();
        let mut guest = Guest::new(dir.path(), Options::default());
        (guest.uid, guest.gid) = (1234, 567);
        let (_, fh) = guest
            .create(ROOT_ID, "file", libc::O_RDWR | libc::O_EXCL, 0o4755)
            .unwrap();
        assert_eq!(guest.write(fh, 0, b"x", 0, 0), 0);
        let made = std::fs::metadata(dir.path().join("file")).unwrap();
        assert_eq!(
            (made.uid(), made.gid(), made.mode() & 0o7777),
            (1234, 4321, 0o4755)
        );
        // A writer without CAP_FSETID takes the bit away.
        assert_eq!(guest.write(fh, 0, b"y", WRITE_KILL_SUIDGID, 0), 0);
        let made = std::fs::metadata(dir.path().join("file")).unwrap();
        assert_eq!(made.mode() & 0o7777, 0o755);
        guest.call(
            MKDIR,
            ROOT_ID,
            &[
                MkdirIn {
                    mode: 0o700,
                    umask: 0,
                }
                .as_slice(),
                &zero("d"),
            ]
            .concat(),
        );
        let made = std::fs::metadata(dir.path().join("d")).unwrap();
        assert_eq!(
            (made.uid(), made.gid(), made.mode() & 0o7777),
            (1234, 4321, 0o2700)
        );
        (guest.uid, guest.gid) = (u32::MAX, u32::MAX);
        assert_eq!(
            guest.create(ROOT_ID, "nobody", libc::O_RDWR, 0o644).unwrap_err(),
            libc::EPERM
        );
    });
}

#[test]
fn appending_is_left_to_the_page_cache_when_it_writes() {
    on_a_thread(|| {
        let dir = tempfile::tempdir().unwrap();
        let guest = Guest::new(dir.path(), Options::default());
        let flags = libc::O_WRONLY | libc::O_APPEND;
        let (_, fh) = guest.create(ROOT_ID, "log", flags, 0o644).unwrap();
        assert_eq!(guest.write(fh, 0, b"one", 0, flags), 0);
        // The host has written meanwhile: what is appended goes behind it.
        std::fs::write(dir.path().join("log"), "three").unwrap();
        assert_eq!(guest.write(fh, 3, b"four", 0, flags), 0);
        // A page of a mapping has its place.
        assert_eq!(guest.write(fh, 0, b"T", WRITE_CACHE, flags), 0);
        assert_eq!(
            std::fs::read_to_string(dir.path().join("log")).unwrap(),
            "Threefour"
        );
    });
}

#[test]
fn few_descriptors_are_enough_for_many_inodes() {
    on_a_thread(|| {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            descriptors: 20,
            ..Options::default()
        };
        let mut deep = dir.path().to_owned();
        for _ in 0..30 {
            deep.push("d");
            std::fs::create_dir(&deep).unwrap();
        }
        std::fs::write(deep.join("bottom"), "b").unwrap();
        for number in 0..100 {
            std::fs::write(dir.path().join(number.to_string()), number.to_string()).unwrap();
        }
        let guest = Guest::new(dir.path(), options);
        let mut at = ROOT_ID;
        for _ in 0..30 {
            at = guest.lookup(at, "d").unwrap().nodeid;
        }
        let bottom = guest.lookup(at, "bottom").unwrap().nodeid;
        let files: Vec<u64> = (0..100)
            .map(|number| guest.lookup(ROOT_ID, &number.to_string()).unwrap().nodeid)
            .collect();
        let (nodes, open) = guest.server.inodes.counts();
        assert_eq!(nodes, 132);
        assert!(open <= 20, "{open} descriptors");
        // All are still what they were.
        for (number, node) in files.iter().enumerate() {
            let (error, body) = guest.call(GETATTR, *node, GetattrIn::default().as_slice());
            assert_eq!(error, 0, "file {number}");
            let there = std::fs::metadata(dir.path().join(number.to_string())).unwrap();
            assert_eq!(object::<AttrOut>(&body).attr.ino, there.ino());
        }
        assert!(guest.open(bottom, libc::O_RDONLY).is_ok());
        // What moves or goes while its descriptor is closed is found, or kept.
        let two =
            |from: &str, to: &str| [RenameIn { newdir: ROOT_ID }.as_slice(), &zero(from), &zero(to)].concat();
        assert_eq!(guest.call(RENAME, ROOT_ID, &two("d", "moved")).0, 0);
        assert_eq!(guest.call(RENAME, ROOT_ID, &two("0", "1")).0, 0);
        assert_eq!(guest.call(UNLINK, ROOT_ID, &zero("2")).0, 0);
        for node in &files[3..] {
            assert_eq!(guest.call(GETATTR, *node, GetattrIn::default().as_slice()).0, 0);
        }
        for node in [bottom, files[0], files[1], files[2]] {
            assert_eq!(guest.call(GETATTR, node, GetattrIn::default().as_slice()).0, 0);
        }
        // What the host replaces is not taken for what was there.
        std::fs::rename(dir.path().join("3"), dir.path().join("4")).unwrap();
        for node in &files[10..] {
            assert_eq!(guest.call(GETATTR, *node, GetattrIn::default().as_slice()).0, 0);
        }
        assert_eq!(
            guest.call(GETATTR, files[4], GetattrIn::default().as_slice()).0,
            libc::ESTALE
        );
        for node in files {
            guest.call(FORGET, node, ForgetIn { nlookup: 1 }.as_slice());
        }
        assert_eq!(guest.server.inodes.counts().0, 32);
        guest.server.reset();
        assert_eq!(guest.server.inodes.counts(), (1, 1));
    });
}

#[test]
fn tables_have_ends() {
    on_a_thread(|| {
        let dir = tempfile::tempdir().unwrap();
        let guest = Guest::new(
            dir.path(),
            Options {
                inodes: 16,
                handles: 4,
                ..Options::default()
            },
        );
        let mut made = 0;
        let error = loop {
            match guest.create(ROOT_ID, &made.to_string(), libc::O_RDWR, 0o644) {
                Ok(_) => made += 1,
                Err(error) => break error,
            }
        };
        assert_eq!((made, error), (4, libc::ENFILE));
        let error = (0..100).find_map(|_| {
            let name = zero(&format!("n{made}"));
            made += 1;
            let (error, _) = guest.call(
                MKDIR,
                ROOT_ID,
                &[
                    MkdirIn {
                        mode: 0o755,
                        umask: 0,
                    }
                    .as_slice(),
                    &name,
                ]
                .concat(),
            );
            (error != 0).then_some(error)
        });
        assert_eq!(error, Some(libc::ENFILE));
        assert_eq!(guest.server.inodes.counts().0, 16);
    });
}

#[test]
fn attributes_with_a_meaning_to_the_host_do_not_exist() {
    on_a_thread(|| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        rustix::fs::setxattr(
            dir.path().join("f"),
            "trusted.overlay.x",
            b"1",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
        let guest = Guest::new(dir.path(), Options::default());
        let node = guest.lookup(ROOT_ID, "f").unwrap().nodeid;
        let set = |name: &str, value: &[u8]| {
            // Without SETXATTR_EXT, which was not offered in these flags.
            let arguments = SetxattrIn {
                size: value.len() as u32,
                ..Default::default()
            };
            guest
                .call(
                    SETXATTR,
                    node,
                    &[arguments.as_slice(), &zero(name), value].concat(),
                )
                .0
        };
        for name in [
            "trusted.overlay.opaque",
            "system.posix_acl_access",
            "security.selinux",
            "user.",
            "x",
        ] {
            assert_eq!(set(name, b"1"), libc::EOPNOTSUPP, "{name}");
        }
        assert_eq!(set("user.a", b"value"), 0);
        assert_eq!(
            guest
                .call(
                    LISTXATTR,
                    node,
                    GetxattrIn {
                        size: 100,
                        padding: 0
                    }
                    .as_slice()
                )
                .1,
            b"user.a\0"
        );
        let size: GetxattrOut = object(&guest.call(LISTXATTR, node, GetxattrIn::default().as_slice()).1);
        assert_eq!(size.size, 7);
        let get = |size: u32, name: &str| {
            guest.call(
                GETXATTR,
                node,
                &[GetxattrIn { size, padding: 0 }.as_slice(), &zero(name)].concat(),
            )
        };
        assert_eq!(get(100, "user.a"), (0, b"value".to_vec()));
        assert_eq!(object::<GetxattrOut>(&get(0, "user.a").1).size, 5);
        assert_eq!(get(3, "user.a").0, libc::ERANGE);
        assert_eq!(get(100, "user.b").0, libc::ENODATA);
        assert_eq!(get(100, "trusted.overlay.x").0, libc::EOPNOTSUPP);
    });
}

#[test]
fn lists_end_where_the_room_ends_and_go_on_there() {
    on_a_thread(|| {
        let dir = tempfile::tempdir().unwrap();
        let names: std::collections::BTreeSet<String> =
            (0..300).map(|number| format!("{number:0>40}")).collect();
        for name in &names {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let guest = Guest::new(dir.path(), Options::default());
        let (_, body) = guest.call(OPENDIR, ROOT_ID, OpenIn::default().as_slice());
        let fh = object::<OpenOut>(&body).fh;
        for (opcode, head) in [(READDIR, 0), (READDIRPLUS, size_of::<EntryOut>())] {
            let mut seen = std::collections::BTreeSet::new();
            let mut offset = 0;
            for _ in 0..1000 {
                let arguments = ReadIn {
                    fh,
                    offset,
                    size: 700,
                    ..Default::default()
                };
                let (error, body) = guest.call(opcode, ROOT_ID, arguments.as_slice());
                assert_eq!(error, 0);
                assert!(body.len() <= 700);
                if body.is_empty() {
                    break;
                }
                let mut rest = &body[..];
                while !rest.is_empty() {
                    let entry: Dirent = object(&rest[head..]);
                    let start = head + size_of::<Dirent>();
                    let name = std::str::from_utf8(&rest[start..start + entry.namelen as usize]).unwrap();
                    if name != "." && name != ".." {
                        assert!(seen.insert(name.to_owned()), "{name} twice");
                        if head > 0 {
                            assert_eq!(object::<EntryOut>(rest).attr.ino, entry.ino);
                        }
                    }
                    offset = entry.off;
                    rest = &rest[(start + entry.namelen as usize).next_multiple_of(8)..];
                }
            }
            assert!(seen == names);
        }
        // 300 entries were looked up, and the root is there; all go when they are forgotten.
        assert_eq!(guest.server.inodes.counts().0, 301);
        let mut body = BatchForgetIn { count: 300, dummy: 0 }.as_slice().to_vec();
        for nodeid in 2..302 {
            body.extend_from_slice(ForgetOne { nodeid, nlookup: 1 }.as_slice());
        }
        guest.call(BATCH_FORGET, 0, &body);
        assert_eq!(guest.server.inodes.counts().0, 1);
    });
}

#[test]
fn versions_are_agreed_on() {
    on_a_thread(|| {
        let dir = tempfile::tempdir().unwrap();
        let root: OwnedFd = std::fs::File::open(dir.path()).unwrap().into();
        let options = Options {
            sharing: Sharing::Exclusive,
            ..Options::default()
        };
        let guest = Guest {
            server: Server::new(root, options).unwrap(),
            worker: Worker::enter(&Descriptors::open().unwrap()).unwrap(),
            memory: Memory::new(4 << 20).unwrap(),
            uid: 0,
            gid: 0,
        };
        assert_eq!(guest.lookup(ROOT_ID, "x"), Err(libc::EPROTO));
        assert_eq!(
            guest
                .call(
                    INIT,
                    0,
                    InitIn {
                        major: 7,
                        minor: 20,
                        ..init(0)
                    }
                    .as_slice()
                )
                .0,
            libc::EPROTO
        );
        let newer: InitOut = object(&guest.call(INIT, 0, InitIn { major: 8, ..init(0) }.as_slice()).1);
        assert_eq!((newer.major, newer.flags), (7, 0));
        assert_eq!(guest.lookup(ROOT_ID, "x"), Err(libc::EPROTO));
        // With the extension there must be a second word of flags.
        let extended = InitIn {
            flags: u32::MAX,
            ..init(0)
        };
        assert_eq!(guest.call(INIT, 0, extended.as_slice()).0, libc::EINVAL);
        let (_, body) = guest.call(INIT, 0, &[extended.as_slice(), &[0xff; 48]].concat());
        let out: InitOut = object(&body);
        assert_eq!(
            (out.major, out.minor, out.max_write, out.max_pages),
            (7, 38, 1 << 20, 256)
        );
        let flags = u64::from(out.flags);
        assert_ne!(flags & WRITEBACK_CACHE, 0);
        // No locks, no ACLs, no exports by handle.
        assert_eq!(flags & (1 << 1 | 1 << 4 | 1 << 10 | 1 << 20), 0);
        // A name that is not there may be remembered: number 0.
        assert_eq!(guest.lookup(ROOT_ID, "x").unwrap().nodeid, 0);
        guest.call(DESTROY, 0, &[]);
        assert_eq!(guest.lookup(ROOT_ID, "x"), Err(libc::EPROTO));
    });
}

#[test]
fn handles_and_nodes_that_are_not_there_are_refused() {
    on_a_thread(|| {
        let dir = tempfile::tempdir().unwrap();
        let guest = Guest::new(dir.path(), Options::default());
        let (entry, fh) = guest.create(ROOT_ID, "f", libc::O_RDWR, 0o644).unwrap();
        guest.call(FORGET, entry.nodeid, ForgetIn { nlookup: 5 }.as_slice());
        assert_eq!(
            guest
                .call(GETATTR, entry.nodeid, GetattrIn::default().as_slice())
                .0,
            libc::ESTALE
        );
        assert_eq!(
            guest
                .call(
                    RELEASE,
                    0,
                    ReleaseIn {
                        fh,
                        ..Default::default()
                    }
                    .as_slice()
                )
                .0,
            0
        );
        assert_eq!(
            guest
                .call(
                    RELEASE,
                    0,
                    ReleaseIn {
                        fh,
                        ..Default::default()
                    }
                    .as_slice()
                )
                .0,
            libc::EBADF
        );
        assert_eq!(guest.write(fh, 0, b"x", 0, 0), libc::EBADF);
        // The root stays whatever is forgotten.
        guest.call(FORGET, ROOT_ID, ForgetIn { nlookup: u64::MAX }.as_slice());
        assert!(guest.lookup(ROOT_ID, "f").is_ok());
        // A directory is no file and the other way round.
        let (_, body) = guest.call(OPENDIR, ROOT_ID, OpenIn::default().as_slice());
        let directory = object::<OpenOut>(&body).fh;
        assert_eq!(guest.write(directory, 0, b"x", 0, 0), libc::EISDIR);
        assert_eq!(guest.open(ROOT_ID, libc::O_RDONLY), Err(libc::EISDIR));
        for (opcode, error) in [
            (IOCTL, libc::ENOTTY),
            (31, libc::ENOSYS),
            (34, libc::ENOSYS),
            (9999, libc::ENOSYS),
        ] {
            assert_eq!(guest.call(opcode, ROOT_ID, &[0; 64]).0, error, "{opcode}");
        }
    });
}

#[test]
fn text_ends_with_a_zero() {
    assert_eq!(component(&mut &b"name"[..]), Err(Errno::INVAL));
    let mut two = &b"a\0bc\0rest"[..];
    assert_eq!(component(&mut two), Ok(c"a"));
    assert_eq!(text(&mut two), Ok::<&CStr, _>(c"bc"));
    assert_eq!(two, b"rest");
}
