//! The guest's first file system: its init and the modules it loads.

use sha2::{Digest, Sha256};

use crate::cpio::Writer;
use crate::modules::Module;

/// Changes whenever the same parts make another archive.
const FORM: &[u8] = b"vessel initramfs 2";

/// A name for what [`build`] makes of these: everything that is in it counts.
pub fn key(init: &[u8], modules: &[(String, String)], early: usize) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(FORM);
    part(init);
    part(&(early as u64).to_le_bytes());
    for (name, digest) in modules {
        part(name.as_bytes());
        part(digest.as_bytes());
    }
    hex(&hash.finalize())
}

/// The digest of a module's file.
pub fn digest(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The archive: `/init`, `/dev/console` for its messages, and `/modules` with the order in `/modules/order`, where an empty line
/// follows the `early` ones.
pub fn build(init: &[u8], modules: &[Module], early: usize) -> Vec<u8> {
    let mut archive = Writer::default();
    archive.directory("dev");
    archive.device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, init);
    if !modules.is_empty() {
        archive.directory("modules");
        let mut order = String::new();
        for (index, module) in modules.iter().enumerate() {
            if index == early {
                order.push('\n');
            }
            let file = format!("{}.ko", module.name);
            archive.file(&format!("modules/{file}"), 0o644, &module.content);
            order.push_str(&file);
            order.push('\n');
        }
        archive.file("modules/order", 0o644, order.as_bytes());
    }
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::tests::read;

    #[test]
    fn it_has_the_init_the_modules_and_their_order() {
        let modules = ["b", "a"].map(|name| Module {
            name: name.into(),
            content: name.as_bytes().to_vec(),
        });
        let entries = read(&build(b"program", &modules, 1));
        let names: Vec<&str> = entries.iter().map(|entry| entry.0.as_str()).collect();
        assert_eq!(
            names,
            [
                "dev",
                "dev/console",
                "init",
                "modules",
                "modules/b.ko",
                "modules/a.ko",
                "modules/order"
            ]
        );
        assert_eq!(entries[2].3, b"program");
        assert_eq!(entries[6].3, b"b.ko\n\na.ko\n");
        assert_eq!(read(&build(b"program", &[], 0)).len(), 3);
    }

    #[test]
    fn every_part_has_its_share_in_the_key() {
        let module = |name: &str, content: &str| (name.to_owned(), digest(content.as_bytes()));
        let keys = [
            key(b"i", &[], 0),
            key(b"j", &[], 0),
            key(b"i", &[], 1),
            key(b"i", &[module("a", "x")], 0),
            key(b"i", &[module("a", "y")], 0),
            key(b"i", &[module("b", "x")], 0),
            key(b"i", &[module("a", "x"), module("b", "x")], 0),
            key(b"i", &[module("b", "x"), module("a", "x")], 0),
        ];
        let distinct: std::collections::BTreeSet<&String> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(key(b"i", &[module("a", "x")], 0), keys[3]);
    }
}
