//! Random archives of few names, so that everything gets into everything's way: whatever is accepted must give
//! the archive back byte for byte, and nothing may appear outside the store.

mod common;

use common::{Tar, archive_of, leftovers, load_layers, store};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Item {
    File(String, Vec<u8>),
    Directory(String),
    Symlink(String, String),
    HardLink(String, String),
    Device(String),
    Pax(String),
}

fn path() -> impl Strategy<Value = String> {
    "(\\./)?[ab](/[ab]){0,2}"
}

fn target() -> impl Strategy<Value = String> {
    "(/|\\.\\./|\\.\\./\\.\\./)?[abx](/[ab]){0,2}"
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        4 => (path(), proptest::collection::vec(any::<u8>(), 0..700)).prop_map(|(path, data)| Item::File(path, data)),
        3 => path().prop_map(Item::Directory),
        2 => (path(), target()).prop_map(|(path, to)| Item::Symlink(path, to)),
        2 => (path(), path()).prop_map(|(path, to)| Item::HardLink(path, to)),
        1 => path().prop_map(Item::Device),
        1 => "(a/)?\\.wh\\.[ab]".prop_map(|path| Item::File(path, Vec::new())),
        1 => "([ab]/)?\\.wh\\.\\.wh\\.\\.opq".prop_map(|path| Item::File(path, Vec::new())),
        1 => path().prop_map(Item::Pax),
    ]
}

fn archive(items: &[Item]) -> Vec<u8> {
    items
        .iter()
        .fold(Tar::new(), |tar, item| match item {
            Item::File(path, data) => tar.file(path, data),
            Item::Directory(path) => tar.dir(path),
            Item::Symlink(path, to) => tar.symlink(path, to),
            Item::HardLink(path, to) => tar.hard_link(path, to),
            Item::Device(path) => tar.char_device(path, 1, 3),
            Item::Pax(path) => tar.pax(&[("path", path.as_bytes())]).file("other", b"renamed"),
        })
        .end()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn accepted_archives_come_back_exactly(items in proptest::collection::vec(item(), 0..14)) {
        let (dir, store) = store();
        let layer = archive(&items);
        match load_layers(&store, std::slice::from_ref(&layer)) {
            Ok(image) => prop_assert!(archive_of(&store, &image, 0) == layer),
            Err(error) => {
                prop_assert!(leftovers(&store).is_empty(), "{error}");
                prop_assert!(!error.to_string().contains("os error"), "{error}");
            }
        }
        prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn damaged_bytes_never_break_anything(
        items in proptest::collection::vec(item(), 1..5),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (dir, store) = store();
        let mut layer = archive(&items);
        for (at, value) in damage {
            let at = at.index(layer.len());
            layer[at] = value;
            // With a right checksum, it is the field that is looked at.
            let header = at / 512 * 512;
            let block = &mut layer[header..header + 512];
            if block[257..262] == *b"ustar" {
                let sum: u32 = block.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { b.into() }).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        match load_layers(&store, std::slice::from_ref(&layer)) {
            Ok(image) => prop_assert!(archive_of(&store, &image, 0) == layer),
            Err(error) => prop_assert!(leftovers(&store).is_empty(), "{error}"),
        }
        prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
