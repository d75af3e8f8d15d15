//! What a kernel module says about itself: the `.modinfo` section of its ELF file (System V gABI, chapter 4; the kernel's
//! `include/linux/module.h`).

use std::collections::BTreeSet;

use crate::{Error, Result};

/// A module needs no more than that, and the closure of what it needs stays small.
const MAX_NAMES: usize = 256;

/// What loading a module takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    /// Modules whose symbols it uses.
    pub depends: Vec<String>,
    /// Modules it works better after (`softdep=pre:`).
    pub before: Vec<String>,
    /// The kernel it was built for: the release, then options.
    pub vermagic: String,
}

/// A module's name from that of its file: the kernel does not tell `-` from `_`.
pub fn module_name(name: &str) -> String {
    name.replace('-', "_")
}

/// Reads a module.
///
/// # Errors
/// When it is no x86-64 module.
pub fn read(file: &[u8]) -> Result<Info> {
    let section = find(file).ok_or_else(|| Error::invalid("this is no kernel module for x86-64"))?;
    let mut info = Info::default();
    for entry in section.split(|byte| *byte == 0) {
        let Ok(entry) = std::str::from_utf8(entry) else {
            continue;
        };
        match entry.split_once('=') {
            Some(("depends", names)) => info.depends = list(names.split(',')),
            Some(("softdep", text)) => {
                let mut words = text.split_ascii_whitespace();
                if words.next() == Some("pre:") {
                    let pre = list(words.take_while(|word| *word != "post:"));
                    info.before.extend(pre);
                    info.before.truncate(MAX_NAMES);
                }
            }
            Some(("vermagic", text)) => info.vermagic = text.to_owned(),
            _ => {}
        }
    }
    Ok(info)
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    names
        .filter(|name| !name.is_empty())
        .take(MAX_NAMES)
        .map(module_name)
        .filter(|name| seen.insert(name.clone()))
        .collect()
}

fn word(file: &[u8], at: u64, length: usize) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let bytes = file.get(at..at.checked_add(length)?)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)),
    )
}

/// The contents of section `.modinfo`.
fn find(file: &[u8]) -> Option<&[u8]> {
    // 64 bits, little-endian, relocatable, x86-64.
    if !file.starts_with(b"\x7fELF\x02\x01\x01") || word(file, 16, 2)? != 1 || word(file, 18, 2)? != 62 {
        return None;
    }
    let (table, size, count, names) = (
        word(file, 40, 8)?,
        word(file, 58, 2)?,
        word(file, 60, 2)?,
        word(file, 62, 2)?,
    );
    if size != 64 || names >= count {
        return None;
    }
    let header = |index: u64| table.checked_add(index * size);
    let content = |header: u64| {
        let (offset, length) = (
            word(file, header.checked_add(24)?, 8)?,
            word(file, header.checked_add(32)?, 8)?,
        );
        let (offset, length) = (usize::try_from(offset).ok()?, usize::try_from(length).ok()?);
        file.get(offset..offset.checked_add(length)?)
    };
    let names = content(header(names)?)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let name = names.get(usize::try_from(word(file, header, 4)?).ok()?..)?;
        (name.starts_with(b".modinfo\0"))
            .then(|| content(header))
            .flatten()
    })
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The smallest file with a `.modinfo`.
    pub fn module(text: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16] = 1;
        file[18] = 62;
        let names = b"\0.modinfo\0.shstrtab\0";
        let (text_at, names_at) = (64, 64 + text.len());
        file.extend_from_slice(text);
        file.extend_from_slice(names);
        let table = file.len();
        file[40..48].copy_from_slice(&(table as u64).to_le_bytes());
        file[58] = 64;
        file[60] = 3;
        file[62] = 2;
        let mut section = |name: u32, offset: usize, length: usize| {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(length as u64).to_le_bytes());
            file.extend_from_slice(&header);
        };
        section(0, 0, 0);
        section(1, text_at, text.len());
        section(10, names_at, names.len());
        file
    }

    #[test]
    fn a_module_says_what_it_needs() {
        let text = b"license=GPL\0depends=virtio,virtio-ring,\0softdep=pre: crc32c crypto-x post: late\0softdep=post: y\0vermagic=6.1.0-x SMP mod_unload \0";
        let info = read(&module(text)).unwrap();
        assert_eq!(info.depends, ["virtio", "virtio_ring"]);
        assert_eq!(info.before, ["crc32c", "crypto_x"]);
        assert_eq!(info.vermagic, "6.1.0-x SMP mod_unload ");
        assert_eq!(
            read(&module(b"depends=\0")).unwrap().depends,
            Vec::<String>::new()
        );
    }

    #[test]
    fn what_is_no_module_is_refused() {
        assert!(read(b"").is_err());
        assert!(read(b"\x7fELF\x02\x01\x01").is_err());
        let mut other = module(b"depends=x\0");
        other[18] = 183;
        assert!(read(&other).is_err());
    }

    proptest! {
        #[test]
        fn damage_is_an_error_or_other_names(text in prop::collection::vec(any::<u8>(), 0..100), at in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut file = module(&text);
            let index = at.index(file.len());
            file[index] = value;
            let _ = read(&file);
            file.truncate(cut.index(file.len()));
            let _ = read(&file);
        }
    }
}
