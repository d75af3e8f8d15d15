//! The server behind a real kernel: mounted through `/dev/fuse`, which speaks the same protocol as a virtio-fs queue. Random operations go to the
//! mounted directory and to a plain one; results and trees must be the same.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use rustix::fs::{
    Access, AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, SeekFrom, Timespec,
    Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use super::tests::exchange;
use super::*;
use crate::memory::Memory;

/// Answers requests of the kernel until the file system is unmounted.
fn serve(server: &Server, device: &OwnedFd) {
    let worker = Worker::enter(&Descriptors::open().unwrap()).unwrap();
    let mut request = vec![0; (1 << 20) + 8192];
    let memory = Memory::new(4 << 20).unwrap();
    loop {
        let length = match rustix::io::read(device, &mut request) {
            Ok(length) => length,
            Err(Errno::NODEV) => return,
            Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => continue,
            Err(error) => panic!("/dev/fuse: {error}"),
        };
        let reply = exchange(server, &worker, &memory, &request[..length], (1 << 20) + 8192);
        if !reply.is_empty() {
            match rustix::io::write(device, &reply) {
                // The one who asked was interrupted.
                Ok(_) | Err(Errno::NOENT) => {}
                Err(error) => panic!("/dev/fuse: {error}"),
            }
        }
    }
}

/// Mounts `shared` where `test` sees it, in a mount namespace of its own.
fn mounted(shared: &Path, options: Options, test: impl FnOnce(&Path) + Send) {
    let device = match rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(device) => Arc::new(device),
        // A kernel without FUSE cannot tell.
        Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) => return,
        Err(error) => panic!("/dev/fuse: {error}"),
    };
    let root: OwnedFd = std::fs::File::open(shared).unwrap().into();
    let server = Arc::new(Server::new(root, options).unwrap());
    let point = tempfile::tempdir().unwrap();
    let result = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: only this thread's mounts, directory and mask.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
            rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
                .unwrap();
            let data = format!(
                "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
                device.as_fd().as_raw_fd()
            );
            let data = CString::new(data).unwrap();
            rustix::mount::mount(
                "vessel",
                point.path(),
                "fuse",
                MountFlags::empty(),
                Some(data.as_c_str()),
            )
            .unwrap();
            // Not before: a device without a mount refuses to be read.
            let servers: Vec<_> = (0..2)
                .map(|_| {
                    let (server, device) = (server.clone(), device.clone());
                    std::thread::spawn(move || serve(&server, &device))
                })
                .collect();
            rustix::process::umask(Mode::from_raw_mode(0o022));
            rustix::thread::set_thread_groups(&[]).unwrap();
            // However the test ends, the servers must.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(point.path())));
            rustix::mount::unmount(point.path(), UnmountFlags::DETACH).unwrap();
            for server in servers {
                server.join().unwrap();
            }
            outcome
        });
        thread.join()
    });
    if let Err(panic) | Ok(Err(panic)) = result {
        std::panic::resume_unwind(panic);
    }
}

/// One operation on paths below a directory.
#[derive(Clone, Debug)]
enum Op {
    Write {
        path: usize,
        at: u64,
        size: usize,
        append: bool,
        create: bool,
        truncate: bool,
    },
    Read {
        path: usize,
        at: u64,
        size: usize,
    },
    Truncate {
        path: usize,
        size: u64,
    },
    Mkdir {
        path: usize,
        mode: u32,
    },
    Mknod {
        path: usize,
        pipe: bool,
        mode: u32,
    },
    Remove {
        path: usize,
        directory: bool,
    },
    Rename {
        from: usize,
        to: usize,
        flags: u32,
    },
    Link {
        from: usize,
        to: usize,
    },
    Symlink {
        path: usize,
        target: usize,
    },
    Readlink {
        path: usize,
    },
    Chmod {
        path: usize,
        mode: u32,
    },
    Chown {
        path: usize,
        uid: u32,
        gid: u32,
    },
    Utimes {
        path: usize,
        seconds: i64,
    },
    Setxattr {
        path: usize,
        value: usize,
        flags: u32,
    },
    Getxattr {
        path: usize,
    },
    List {
        path: usize,
    },
    Stat {
        path: usize,
    },
    Access {
        path: usize,
        mode: u32,
    },
    Fallocate {
        path: usize,
        at: u64,
        size: u64,
        mode: u32,
    },
    Tmpfile {
        directory: usize,
        to: usize,
    },
    Copy {
        from: usize,
        to: usize,
        at: u64,
        size: usize,
    },
    Hole {
        path: usize,
        at: u64,
        hole: bool,
    },
    Unlinked {
        path: usize,
    },
}

const PATHS: &[&str] = &[
    "a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "e", "e/a", "e/d", "e/d/a",
];
const MODES: &[u32] = &[
    0o644, 0o600, 0o777, 0o4755, 0o2755, 0o6777, 0o1777, 0o2750, 0o000, 0o2700,
];

/// Does it below `root`; what came out, in words.
fn run(root: &Path, op: &Op) -> Result<String, Errno> {
    let at = |index: usize| -> PathBuf { root.join(PATHS[index]) };
    let open = |index: usize, flags: OFlags| {
        rustix::fs::open(at(index), flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o666))
    };
    Ok(match *op {
        Op::Write {
            path,
            at: offset,
            size,
            append,
            create,
            truncate,
        } => {
            let mut flags = OFlags::WRONLY | OFlags::NONBLOCK;
            flags.set(OFlags::APPEND, append);
            flags.set(OFlags::CREATE, create);
            flags.set(OFlags::TRUNC, truncate);
            let file = open(path, flags)?;
            let bytes: Vec<u8> = (0..size).map(|byte| (byte as u64 + offset) as u8 | 1).collect();
            if append {
                rustix::io::write(file, &bytes)?.to_string()
            } else {
                rustix::io::pwrite(file, &bytes, offset)?.to_string()
            }
        }
        Op::Read {
            path,
            at: offset,
            size,
        } => {
            let file = open(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
            let mut bytes = vec![0; size];
            let read = rustix::io::pread(file, &mut bytes, offset)?;
            format!("{:?}", &bytes[..read])
        }
        Op::Truncate { path, size } => {
            // Of the path, not of an open file.
            let path = CString::new(at(path).as_os_str().as_bytes()).unwrap();
            // SAFETY: a text with a zero at its end.
            match unsafe { libc::truncate(path.as_ptr(), size as i64) } {
                0 => String::new(),
                _ => return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()),
            }
        }
        Op::Mkdir { path, mode } => format!(
            "{:?}",
            rustix::fs::mkdirat(CWD, at(path), Mode::from_raw_mode(mode))?
        ),
        Op::Mknod { path, pipe, mode } => {
            let kind = if pipe {
                FileType::Fifo
            } else {
                FileType::RegularFile
            };
            format!(
                "{:?}",
                rustix::fs::mknodat(CWD, at(path), kind, Mode::from_raw_mode(mode), 0)?
            )
        }
        Op::Remove { path, directory } => {
            let flags = if directory {
                AtFlags::REMOVEDIR
            } else {
                AtFlags::empty()
            };
            format!("{:?}", rustix::fs::unlinkat(CWD, at(path), flags)?)
        }
        Op::Rename { from, to, flags } => {
            let flags = RenameFlags::from_bits_retain(flags);
            format!(
                "{:?}",
                rustix::fs::renameat_with(CWD, at(from), CWD, at(to), flags)?
            )
        }
        Op::Link { from, to } => format!(
            "{:?}",
            rustix::fs::linkat(CWD, at(from), CWD, at(to), AtFlags::empty())?
        ),
        Op::Symlink { path, target } => format!("{:?}", rustix::fs::symlinkat(PATHS[target], CWD, at(path))?),
        Op::Readlink { path } => format!("{:?}", rustix::fs::readlinkat(CWD, at(path), Vec::new())?),
        Op::Chmod { path, mode } => format!("{:?}", rustix::fs::chmod(at(path), Mode::from_raw_mode(mode))?),
        Op::Chown { path, uid, gid } => format!(
            "{:?}",
            rustix::fs::chownat(
                CWD,
                at(path),
                Some(Uid::from_raw(uid)),
                Some(Gid::from_raw(gid)),
                AtFlags::SYMLINK_NOFOLLOW
            )?
        ),
        Op::Utimes { path, seconds } => {
            let time = |tv_sec| Timespec {
                tv_sec,
                tv_nsec: 123_456_789,
            };
            let times = Timestamps {
                last_access: time(seconds),
                last_modification: time(seconds + 1),
            };
            rustix::fs::utimensat(CWD, at(path), &times, AtFlags::SYMLINK_NOFOLLOW)?;
            let stat = rustix::fs::lstat(at(path))?;
            format!("{} {}", stat.st_mtime, stat.st_mtime_nsec)
        }
        Op::Setxattr { path, value, flags } => {
            let value = vec![b'v'; value];
            format!(
                "{:?}",
                rustix::fs::setxattr(at(path), "user.test", &value, XattrFlags::from_bits_retain(flags))?
            )
        }
        Op::Getxattr { path } => {
            let mut value = [0; 100];
            let size = rustix::fs::getxattr(at(path), "user.test", &mut value)?;
            let list = rustix::fs::listxattr_query(at(path))?;
            format!("{size} {list}")
        }
        Op::List { path } => {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(at(path)).map_err(|error| Errno::from_io_error(&error).unwrap())? {
                let entry = entry.map_err(|error| Errno::from_io_error(&error).unwrap())?;
                names.push((entry.file_name(), format!("{:?}", entry.file_type())));
            }
            names.sort();
            format!("{names:?}")
        }
        Op::Stat { path } => describe(&at(path))?,
        Op::Access { path, mode } => format!(
            "{:?}",
            rustix::fs::access(at(path), Access::from_bits_retain(mode))?
        ),
        Op::Fallocate {
            path,
            at: offset,
            size,
            mode,
        } => {
            let file = open(path, OFlags::RDWR | OFlags::NONBLOCK)?;
            format!(
                "{:?}",
                rustix::fs::fallocate(file, FallocateFlags::from_bits_retain(mode), offset, size)?
            )
        }
        Op::Tmpfile { directory, to } => {
            let file = rustix::fs::open(
                at(directory),
                OFlags::RDWR | OFlags::TMPFILE,
                Mode::from_raw_mode(0o640),
            )?;
            rustix::io::write(&file, b"temporary")?;
            let name = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(CWD, name, CWD, at(to), AtFlags::SYMLINK_FOLLOW)?;
            describe(&at(to))?
        }
        Op::Copy {
            from,
            to,
            at: offset,
            size,
        } => {
            let source = open(from, OFlags::RDONLY | OFlags::NONBLOCK)?;
            let target = open(to, OFlags::WRONLY | OFlags::NONBLOCK)?;
            let (mut from, mut to) = (0, offset);
            rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), size)?.to_string()
        }
        Op::Hole {
            path,
            at: offset,
            hole,
        } => {
            let file = open(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
            if rustix::fs::fstat(&file)?.st_mode & libc::S_IFMT != libc::S_IFREG {
                // Where a directory's holes are is the file system's fancy.
                return Err(Errno::ISDIR);
            }
            let position = if hole {
                SeekFrom::Hole(offset)
            } else {
                SeekFrom::Data(offset)
            };
            rustix::fs::seek(file, position)?.to_string()
        }
        Op::Unlinked { path } => {
            // A file that is open and has no name any more is still a file.
            let file = open(path, OFlags::RDWR | OFlags::NONBLOCK)?;
            rustix::fs::unlinkat(CWD, at(path), AtFlags::empty())?;
            rustix::io::pwrite(&file, b"still", 3)?;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(0o640))?;
            let mut bytes = [0; 64];
            let read = rustix::io::pread(&file, &mut bytes, 0)?;
            let stat = rustix::fs::fstat(&file)?;
            format!("{:?} {:o} {}", &bytes[..read], stat.st_mode, stat.st_size)
        }
    })
}

/// What can be compared of an inode.
fn describe(path: &Path) -> Result<String, Errno> {
    let stat = rustix::fs::lstat(path)?;
    let directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
    // What a directory's size is differs between histories.
    let size = if directory { 0 } else { stat.st_size };
    Ok(format!(
        "{:o} {} {}:{} {size}",
        stat.st_mode, stat.st_nlink, stat.st_uid, stat.st_gid
    ))
}

/// Everything below a directory: attributes and contents.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let mut text = describe(&path).unwrap();
            let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                open.push(path.clone());
            } else if kind.is_file() {
                // The bytes by a sum (FNV): a failure must fit on a screen.
                let sum = std::fs::read(&path)
                    .unwrap()
                    .iter()
                    .fold(0xcbf2_9ce4_8422_2325u64, |sum, byte| {
                        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
                    });
                text += &format!(" {sum:x}");
            }
            all.insert(path.strip_prefix(root).unwrap().to_owned(), text);
        }
    }
    all
}

/// As a user without any capability, or as root.
fn as_user<T>(user: bool, what: impl FnOnce() -> T) -> T {
    if !user {
        return what();
    }
    // SAFETY: of this thread only.
    unsafe {
        libc::setfsgid(1000);
        libc::setfsuid(1000);
    }
    let result = what();
    // SAFETY: as above.
    unsafe {
        libc::setfsuid(0);
        libc::setfsgid(0);
    }
    result
}

fn op() -> impl Strategy<Value = Op> {
    let path = || 0..PATHS.len();
    let mode = || prop::sample::select(MODES);
    let offset = || prop_oneof![0u64..20, Just(4090), Just(5000), Just(70_000)];
    let size = || prop_oneof![0usize..30, Just(4096), Just(9000)];
    let id = || prop::sample::select(vec![0u32, 1000, 1001]);
    prop_oneof![
        6 => (path(), offset(), size(), any::<bool>(), any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(path, at, size, append, create, truncate)| Op::Write { path, at, size, append, create, truncate }),
        3 => (path(), offset(), size()).prop_map(|(path, at, size)| Op::Read { path, at, size }),
        2 => (path(), offset()).prop_map(|(path, size)| Op::Truncate { path, size }),
        5 => (path(), mode()).prop_map(|(path, mode)| Op::Mkdir { path, mode }),
        1 => (path(), any::<bool>(), mode()).prop_map(|(path, pipe, mode)| Op::Mknod { path, pipe, mode }),
        2 => (path(), any::<bool>()).prop_map(|(path, directory)| Op::Remove { path, directory }),
        3 => (path(), path(), prop::sample::select(vec![0u32, 0, 0, 1, 2, 3])).prop_map(|(from, to, flags)| Op::Rename { from, to, flags }),
        2 => (path(), path()).prop_map(|(from, to)| Op::Link { from, to }),
        2 => (path(), path()).prop_map(|(path, target)| Op::Symlink { path, target }),
        1 => path().prop_map(|path| Op::Readlink { path }),
        3 => (path(), mode()).prop_map(|(path, mode)| Op::Chmod { path, mode }),
        2 => (path(), id(), id()).prop_map(|(path, uid, gid)| Op::Chown { path, uid, gid }),
        1 => (path(), -5i64..2_000_000_000).prop_map(|(path, seconds)| Op::Utimes { path, seconds }),
        1 => (path(), 0usize..50, 0u32..3).prop_map(|(path, value, flags)| Op::Setxattr { path, value, flags }),
        1 => path().prop_map(|path| Op::Getxattr { path }),
        2 => path().prop_map(|path| Op::List { path }),
        2 => path().prop_map(|path| Op::Stat { path }),
        1 => (path(), 0u32..8).prop_map(|(path, mode)| Op::Access { path, mode }),
        1 => (path(), offset(), 1u64..9000, prop::sample::select(vec![0u32, 1, 3]))
            .prop_map(|(path, at, size, mode)| Op::Fallocate { path, at, size, mode }),
        1 => (path(), path()).prop_map(|(directory, to)| Op::Tmpfile { directory, to }),
        1 => (path(), path(), offset(), size()).prop_map(|(from, to, at, size)| Op::Copy { from, to, at, size }),
        1 => (path(), offset(), any::<bool>()).prop_map(|(path, at, hole)| Op::Hole { path, at, hole }),
        1 => path().prop_map(|path| Op::Unlinked { path }),
    ]
}

fn same_as_native(ops: &[(bool, Op)], options: Options) {
    let base = tempfile::tempdir().unwrap();
    let (native, shared) = (base.path().join("native"), base.path().join("shared"));
    for root in [&native, &shared] {
        std::fs::create_dir(root).unwrap();
        rustix::fs::chmod(root, Mode::from_raw_mode(0o777)).unwrap();
    }
    rustix::fs::chmod(base.path(), Mode::from_raw_mode(0o755)).unwrap();
    mounted(&shared, options, |point| {
        for (number, (user, op)) in ops.iter().enumerate() {
            let expected = as_user(*user, || run(&native, op));
            let got = as_user(*user, || run(point, op));
            assert_eq!(got, expected, "operation {number}: {op:?}, as a user: {user}");
        }
        assert_eq!(tree(point), tree(&native), "seen through the mount");
    });
    // And what the host has when the guest has gone.
    assert_eq!(tree(&shared), tree(&native));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_shared_directory_is_like_any_other(ops in prop::collection::vec((any::<bool>(), op()), 1..80)) {
        same_as_native(&ops, Options { descriptors: 16, ..Options::default() });
    }

    #[test]
    fn an_exclusive_directory_is_like_any_other(ops in prop::collection::vec((any::<bool>(), op()), 1..80)) {
        same_as_native(&ops, Options { sharing: Sharing::Exclusive, descriptors: 16, ..Options::default() });
    }
}

#[test]
fn large_files_pass_whole() {
    let base = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..5_000_001u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for sharing in [Sharing::Shared, Sharing::Exclusive] {
        mounted(
            base.path(),
            Options {
                sharing,
                ..Options::default()
            },
            |point| {
                std::fs::write(point.join("large"), &bytes).unwrap();
                assert!(std::fs::read(point.join("large")).unwrap() == bytes);
            },
        );
        assert!(std::fs::read(base.path().join("large")).unwrap() == bytes);
    }
}

#[test]
fn a_shared_directory_shows_what_the_host_does() {
    let base = tempfile::tempdir().unwrap();
    std::fs::write(base.path().join("file"), "before").unwrap();
    mounted(base.path(), Options::default(), |point| {
        assert_eq!(std::fs::read_to_string(point.join("file")).unwrap(), "before");
        assert!(!point.join("new").exists());
        std::fs::write(base.path().join("file"), "after all").unwrap();
        std::fs::write(base.path().join("new"), "x").unwrap();
        // No name is remembered that was not there; attributes hold for a second.
        assert!(point.join("new").exists());
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert_eq!(std::fs::read_to_string(point.join("file")).unwrap(), "after all");
    });
}
