//! Kernels come, are booted with, and go.

use std::io::Read;

use super::*;
use crate::cpio::tests::read;
use crate::image::tests::{bzimage, elf};
use crate::modinfo::tests::module;
use crate::package::tests::package;

fn none(_: &[u8]) -> Option<Vec<u8>> {
    None
}

fn from(source: &Path) -> Import<'_> {
    Import {
        source,
        described: None,
        modules: None,
        name: None,
        replace: false,
    }
}

fn text(depends: &str) -> Vec<u8> {
    module(format!("depends={depends}\0vermagic=6.1 SMP \0").as_bytes())
}

fn names(kernel: &Kernel) -> Vec<&str> {
    kernel.modules.iter().map(|(name, _)| name.as_str()).collect()
}

fn all(mut file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

struct Place {
    directory: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("kernels"));
        Self { directory, store }
    }

    fn write(&self, path: &str, content: &[u8]) -> PathBuf {
        let path = self.directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }
}

#[test]
fn a_tree_is_imported_booted_and_removed() {
    let place = Place::new();
    let store = &place.store;
    assert!(store.list().unwrap().is_empty());
    assert!(
        store
            .default_kernel()
            .unwrap_err()
            .to_string()
            .contains("kernel import")
    );

    place.write("tree/boot/vmlinuz-6.1", &bzimage("6.1"));
    for (name, depends) in [
        ("virtio_pci", "virtio"),
        ("virtio", ""),
        ("virtiofs", "fuse"),
        ("other", ""),
    ] {
        place.write(&format!("tree/lib/modules/6.1/kernel/{name}.ko"), &text(depends));
    }
    place.write("tree/lib/modules/6.1/modules.builtin", b"kernel/fs/fuse.ko\n");
    let source = place.directory.path().join("tree");
    let kernel = store.import(&from(&source), &|_| Some(elf("6.1"))).unwrap();
    assert_eq!((kernel.name.as_str(), kernel.file.as_str()), ("6.1", "vmlinux"));
    assert_eq!(names(&kernel), ["virtio", "virtio_pci", "virtiofs"]);
    assert_eq!(kernel.early, 3);
    assert_eq!(kernel.missing, ["vmw_vsock_virtio_transport", "virtio_net"]);
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&kernel));
    assert_eq!(store.default_kernel().unwrap(), kernel);

    let boot = store.boot(&kernel, b"init 1").unwrap();
    assert_eq!(all(boot.kernel), elf("6.1"));
    let first = all(boot.initramfs);
    assert_eq!(read(&first)[2].3, b"init 1");
    // Made once; and again only for another init, when the old one goes.
    let made = store.root.join("6.1/initramfs");
    let only = || {
        fs::read_dir(&made)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect::<Vec<_>>()
    };
    let path = only().remove(0);
    fs::write(&path, b"changed").unwrap();
    assert_eq!(all(store.boot(&kernel, b"init 1").unwrap().initramfs), b"changed");
    assert_ne!(all(store.boot(&kernel, b"init 2").unwrap().initramfs), first);
    assert_eq!(only().len(), 1);

    // A module that is not what was imported is not given to a guest.
    fs::write(store.root.join("6.1/modules/virtio.ko"), b"x").unwrap();
    assert!(
        store
            .boot(&kernel, b"init 3")
            .unwrap_err()
            .to_string()
            .contains("--force")
    );

    store.remove("6.1").unwrap();
    assert_eq!(store.remove("6.1").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.default_name(), None);
    let mut left: Vec<_> = fs::read_dir(&store.root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.retain(|name| name != LOCK);
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn names_defaults_and_replacement() {
    let place = Place::new();
    let store = &place.store;
    let one = place.write("one", &elf("6.1"));
    let two = place.write("two", &bzimage("6.2"));
    store.import(&from(&one), &none).unwrap();
    let error = store.import(&from(&one), &none).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    let mut named = from(&two);
    named.name = Some("mine");
    assert_eq!(store.import(&named, &none).unwrap().file, "bzImage");
    assert_eq!(store.default_kernel().unwrap().name, "6.1");
    store.set_default("mine").unwrap();
    assert_eq!(store.default_kernel().unwrap().release, "6.2");
    assert!(store.set_default("missing").is_err());

    named.source = &one;
    named.replace = true;
    assert_eq!(store.import(&named, &none).unwrap().release, "6.1");
    assert_eq!(store.get("mine").unwrap().file, "vmlinux");
    assert!(!store.root.join("mine/bzImage").exists());
    assert_eq!(store.list().unwrap().len(), 2);
    for bad in [
        "",
        "..",
        "a/b",
        "default",
        ".new-1",
        "-x",
        "a b",
        &"x".repeat(129),
    ] {
        named.name = Some(bad);
        assert_eq!(
            store.import(&named, &none).unwrap_err().kind(),
            ErrorKind::Invalid,
            "{bad}"
        );
        assert!(store.get(bad).is_err() && store.remove(bad).is_err());
    }
    store.remove("mine").unwrap();
    assert_eq!(store.default_kernel().unwrap().name, "6.1");
}

#[test]
fn packages_compressed_modules_and_what_is_no_kernel() {
    let place = Place::new();
    let store = &place.store;
    let packed = zstd::encode_all(&text("")[..], 1).unwrap();
    let package = place.write(
        "x.deb",
        &package(&[
            ("./boot/vmlinuz-6.1", &bzimage("6.1")),
            ("./usr/lib/modules/6.1/kernel/virtio_pci.ko.zst", &packed),
        ]),
    );
    let kernel = store.import(&from(&package), &none).unwrap();
    assert_eq!(names(&kernel), ["virtio_pci"]);
    assert_eq!(
        fs::read(store.root.join("6.1/modules/virtio_pci.ko")).unwrap(),
        text("")
    );

    let wrong = place.write("no", b"#!/bin/sh\n");
    let error = store.import(&from(&wrong), &none).unwrap_err();
    assert!(
        error.to_string().contains("no kernel") && error.to_string().contains("/no"),
        "{error}"
    );
    let error = store.import(&from(Path::new("/nonexistent")), &none).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    // Modules of another kernel are not loaded into this one.
    let mut mixed = from(&wrong);
    let kernel = place.write("k", &elf("6.2"));
    place.write("m/virtio_pci.ko", &text(""));
    let modules = place.directory.path().join("m");
    mixed.source = &kernel;
    mixed.modules = Some(&modules);
    assert!(
        store
            .import(&mixed, &none)
            .unwrap_err()
            .to_string()
            .contains("6.2")
    );
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn what_was_killed_leaves_nothing_and_what_is_damaged_can_be_removed() {
    let place = Place::new();
    let store = &place.store;
    let one = place.write("one", &elf("6.1"));
    fs::create_dir_all(store.root.join(".new-77/package")).unwrap();
    store.import(&from(&one), &none).unwrap();
    assert!(!store.root.join(".new-77").exists());
    let config = store.root.join("6.1").join(CONFIG);
    for bad in [
        "{".to_owned(),
        fs::read_to_string(&config)
            .unwrap()
            .replace("\"vmlinux\"", "\"../../etc/shadow\""),
    ] {
        fs::write(&config, bad).unwrap();
        assert!(store.get("6.1").unwrap_err().to_string().contains("damaged"));
        assert!(store.list().unwrap().is_empty());
    }
    store.remove("6.1").unwrap();
}
