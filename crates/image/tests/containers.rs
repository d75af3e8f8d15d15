//! `cp`, `export` and `diff`.

mod common;

use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use common::Tar;
use vessel_image::{
    ChangeKind, ErrorKind, ExtractOptions, Ownership, PackOptions, changes, pack, unpack_into,
};

fn unpack(root: &Path, archive: &[u8], options: &ExtractOptions) -> vessel_image::Result<()> {
    unpack_into(std::fs::File::open(root).unwrap().as_fd(), archive, options)
}

fn pack_to_vec(root: &Path, path: &str, options: &PackOptions) -> vessel_image::Result<Vec<u8>> {
    let mut out = Vec::new();
    pack(
        std::fs::File::open(root).unwrap().as_fd(),
        path.as_bytes(),
        options,
        &mut out,
    )?;
    Ok(out)
}

fn names(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    archive
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().display().to_string())
        .collect()
}

#[test]
fn copies_in_and_out() {
    let source = tempfile::tempdir().unwrap();
    let root = source.path();
    std::fs::create_dir_all(root.join("d/sub")).unwrap();
    std::fs::write(root.join("d/file"), vec![1; 700_000]).unwrap();
    std::fs::hard_link(root.join("d/file"), root.join("d/same")).unwrap();
    symlink("/etc/passwd", root.join("d/link")).unwrap();
    rustix::fs::setxattr(
        root.join("d/file"),
        "user.a",
        b"b",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    std::os::unix::fs::chown(root.join("d/sub"), Some(5), Some(6)).unwrap();
    let options = PackOptions {
        name: b"renamed".to_vec(),
        ..PackOptions::default()
    };
    let archive = pack_to_vec(root, "/d", &options).unwrap();
    assert_eq!(
        names(&archive),
        [
            "renamed/",
            "renamed/file",
            "renamed/link",
            "renamed/same",
            "renamed/sub/"
        ]
    );

    let target = tempfile::tempdir().unwrap();
    unpack(target.path(), &archive, &ExtractOptions::default()).unwrap();
    let copy = target.path().join("renamed");
    assert!(std::fs::read(copy.join("file")).unwrap() == vec![1; 700_000]);
    let (a, b) = (
        std::fs::metadata(copy.join("file")).unwrap(),
        std::fs::metadata(copy.join("same")).unwrap(),
    );
    assert_eq!(a.ino(), b.ino());
    let original = std::fs::metadata(root.join("d/file")).unwrap();
    assert_eq!(
        (a.mtime(), a.mtime_nsec()),
        (original.mtime(), original.mtime_nsec())
    );
    assert_eq!(
        std::fs::read_link(copy.join("link")).unwrap(),
        Path::new("/etc/passwd")
    );
    assert_eq!(std::fs::metadata(copy.join("sub")).unwrap().uid(), 5);
    let mut value = [0u8; 4];
    assert_eq!(
        rustix::fs::getxattr(copy.join("file"), "user.a", &mut value[..]),
        Ok(1)
    );

    let fixed = ExtractOptions {
        ownership: Ownership::Fixed { uid: 11, gid: 12 },
        ..ExtractOptions::default()
    };
    unpack(target.path(), &archive, &fixed).unwrap();
    assert_eq!(std::fs::metadata(copy.join("file")).unwrap().gid(), 12);
    assert_eq!(std::fs::symlink_metadata(copy.join("link")).unwrap().uid(), 11);
}

#[test]
fn paths_stay_in_the_container() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir_all(root.join("etc")).unwrap();
    std::fs::write(root.join("etc/passwd"), "inside").unwrap();
    std::fs::write(dir.path().join("secret"), "outside").unwrap();
    symlink("/etc/passwd", root.join("link")).unwrap();
    symlink("../../../../../../../../secret", root.join("up")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    let follow = PackOptions {
        follow: true,
        ..PackOptions::default()
    };
    let archive = pack_to_vec(&root, "/link", &follow).unwrap();
    let mut archive = tar::Archive::new(&archive[..]);
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
    assert_eq!(text, "inside");
    for path in ["/up", "/magic", "/../secret", "/etc/../../secret"] {
        let error = pack_to_vec(&root, path, &follow).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{path}: {error}");
    }
    // Writing through the container's links stays inside as well.
    symlink(dir.path(), root.join("out")).unwrap();
    assert!(
        unpack(
            &root,
            &Tar::new().file("out/x", b"").end(),
            &ExtractOptions::default()
        )
        .is_err()
    );
    assert!(!dir.path().join("x").exists());
}

#[test]
fn types_are_kept_if_asked() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    std::fs::write(dir.path().join("d/x"), "x").unwrap();
    std::fs::write(dir.path().join("f"), "f").unwrap();
    let keep = ExtractOptions {
        keep_types: true,
        ..ExtractOptions::default()
    };
    let over_directory = Tar::new().file("d", b"new").end();
    let over_file = Tar::new().dir("f/").end();
    for archive in [&over_directory, &over_file] {
        let error = unpack(dir.path(), archive, &keep).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains("cannot overwrite"), "{error}");
    }
    unpack(dir.path(), &over_directory, &ExtractOptions::default()).unwrap();
    unpack(dir.path(), &over_file, &ExtractOptions::default()).unwrap();
    assert!(dir.path().join("d").is_file() && dir.path().join("f").is_dir());
    // Whiteouts are plain files here.
    unpack(
        dir.path(),
        &Tar::new().file(".wh.x", b"").end(),
        &ExtractOptions::default(),
    )
    .unwrap();
    assert!(dir.path().join(".wh.x").is_file());
}

#[test]
fn long_and_odd_names_survive() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}/{}/{}", "a".repeat(200), "b".repeat(200), "ü".repeat(100));
    std::fs::create_dir_all(dir.path().join(&long)).unwrap();
    std::fs::write(dir.path().join(&long).join("file\nname"), "x").unwrap();
    let archive = pack_to_vec(dir.path(), "/", &PackOptions::default()).unwrap();
    let target = tempfile::tempdir().unwrap();
    unpack(target.path(), &archive, &ExtractOptions::default()).unwrap();
    assert_eq!(
        std::fs::read(target.path().join(&long).join("file\nname")).unwrap(),
        b"x"
    );
}

#[test]
fn endless_nesting_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    // Deeper than a path can be long, as a hostile container can make it.
    let mut fd: std::os::fd::OwnedFd = std::fs::File::open(dir.path()).unwrap().into();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&fd, "d", rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
        fd = rustix::fs::openat(&fd, "d", flags, rustix::fs::Mode::empty()).unwrap();
    }
    let error = pack_to_vec(dir.path(), "/", &PackOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    let empty: [&Path; 0] = [];
    assert_eq!(changes(dir.path(), &empty).unwrap_err().kind(), ErrorKind::Limit);
    let replace = Tar::new().file("d", b"").end();
    unpack(dir.path(), &replace, &ExtractOptions::default()).unwrap_err();
    // The standard library's own removal would run out of descriptors.
    while dir.path().join("d").exists() {
        let mut path = std::path::PathBuf::from(dir.path());
        let aside = dir.path().join("aside");
        for _ in 0..200 {
            path.push("d");
        }
        if path.exists() {
            std::fs::rename(&path, &aside).unwrap();
        }
        std::fs::remove_dir_all(dir.path().join("d")).unwrap();
        if aside.exists() {
            std::fs::rename(&aside, dir.path().join("d")).unwrap();
        }
    }
}

#[test]
fn lists_changes_as_docker_does() {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    for path in [
        "low/etc",
        "low/opt/old",
        "mid/etc",
        "mid/var",
        "up/etc",
        "up/var",
        "up/new",
        "up/opt",
    ] {
        std::fs::create_dir_all(at(path)).unwrap();
    }
    for path in [
        "low/etc/passwd",
        "low/etc/gone",
        "low/opt/file",
        "mid/etc/hosts",
        "up/etc/passwd",
        "up/etc/added",
        "up/opt/file",
        "up/new/x",
    ] {
        std::fs::write(at(path), "x").unwrap();
    }
    let whiteout = |path: &str| {
        let mode = rustix::fs::Mode::empty();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at(path),
            rustix::fs::FileType::CharacterDevice,
            mode,
            0,
        )
        .unwrap();
    };
    whiteout("up/etc/gone");
    whiteout("up/etc/never");
    whiteout("mid/etc/masked");
    std::fs::write(at("low/etc/masked"), "x").unwrap();
    std::fs::write(at("up/etc/masked"), "x").unwrap();
    rustix::fs::setxattr(
        at("up/opt"),
        "trusted.overlay.opaque",
        b"y",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    // /var was only copied up: same metadata.
    let time = std::fs::metadata(at("mid/var")).unwrap().modified().unwrap();
    std::fs::File::open(at("up/var"))
        .unwrap()
        .set_modified(time)
        .unwrap();
    let found = changes(&at("up"), &[at("mid"), at("low")]).unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|c| (std::str::from_utf8(&c.path).unwrap(), c.kind))
        .collect();
    use ChangeKind::{Added, Deleted, Modified};
    assert_eq!(
        found,
        [
            ("/etc", Modified),
            ("/etc/added", Added),
            ("/etc/gone", Deleted),
            ("/etc/masked", Added),
            ("/etc/passwd", Modified),
            ("/new", Added),
            ("/new/x", Added),
            ("/opt", Modified),
            ("/opt/file", Modified),
            ("/opt/old", Deleted),
        ]
    );
}
