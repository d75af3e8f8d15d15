//! What a kernel's file says about itself: its format and its release.

use crate::{Error, Result};

/// How long a release may be: `uname(2)` has 64 bytes for it.
const MAX_RELEASE: usize = 64;

/// The kinds of files kernels come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An ELF file: booted as it is.
    Elf,
    /// The compressed form in `/boot` (`Documentation/arch/x86/boot.rst`).
    BzImage,
}

/// Recognizes a kernel for x86-64 and finds its release, the name of its directory in `/lib/modules`.
///
/// # Errors
/// When it is no such kernel.
pub fn inspect(file: &[u8]) -> Result<(Format, String)> {
    let no_kernel = || {
        Error::invalid(
            "this is no kernel for x86-64: neither an ELF file nor a bzImage; is it compressed, or for another machine?",
        )
    };
    let (format, text) = if file.starts_with(b"\x7fELF\x02\x01\x01") && file.get(18..20) == Some(&[62, 0]) {
        (Format::Elf, banner(file))
    } else if file.get(0x202..0x206) == Some(b"HdrS") {
        (Format::BzImage, version(file))
    } else {
        return Err(no_kernel());
    };
    let release = text
        .and_then(|text| text.split(|byte| matches!(byte, b' ' | 0)).next())
        .filter(|release| !release.is_empty() && release.len() <= MAX_RELEASE)
        .filter(|release| {
            release
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._+-~".contains(byte))
        })
        .and_then(|release| std::str::from_utf8(release).ok());
    match release {
        Some(release) if !release.starts_with('.') => Ok((format, release.to_owned())),
        _ => Err(Error::invalid(
            "this file has a kernel's form, and no Linux release in it: is it damaged, or another program?",
        )),
    }
}

/// The text at `kernel_version` of a bzImage's header.
fn version(file: &[u8]) -> Option<&[u8]> {
    let pointer = u16::from_le_bytes(*file.get(0x20e..)?.first_chunk()?);
    file.get(usize::from(pointer).checked_add(0x200)?..)
}

/// What follows "Linux version " in the kernel's greeting; `linux_banner` is the one with a release behind it.
fn banner(file: &[u8]) -> Option<&[u8]> {
    const GREETING: &[u8] = b"Linux version ";
    let mut rest = file;
    loop {
        let at = rest.iter().position(|byte| *byte == b'L')?;
        rest = rest.get(at..)?;
        match rest.strip_prefix(GREETING) {
            Some(text) if text.first().is_some_and(u8::is_ascii_digit) => return Some(text),
            _ => rest = rest.get(1..)?,
        }
    }
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    pub fn elf(release: &str) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0".to_vec();
        file.extend_from_slice(b"LLinux version %s\0");
        file.extend_from_slice(format!("Linux version {release} (who@where) #1 SMP\n\0").as_bytes());
        file
    }

    pub fn bzimage(release: &str) -> Vec<u8> {
        let mut file = vec![0; 0x400];
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        file[0x300..0x300 + release.len()].copy_from_slice(release.as_bytes());
        file[0x300 + release.len()] = b' ';
        file
    }

    #[test]
    fn both_formats_have_a_release() {
        assert_eq!(
            inspect(&elf("6.12.1-vessel")).unwrap(),
            (Format::Elf, "6.12.1-vessel".to_owned())
        );
        assert_eq!(
            inspect(&bzimage("6.1.0-56-cloud-amd64")).unwrap(),
            (Format::BzImage, "6.1.0-56-cloud-amd64".to_owned())
        );
    }

    #[test]
    fn releases_are_names() {
        for bad in ["", "../../etc", "a/b", ".x", &"1".repeat(65), "6.1\u{e9}"] {
            assert!(inspect(&bzimage(bad)).is_err(), "{bad}");
        }
        assert!(inspect(b"#!/bin/sh\n").is_err());
        assert!(inspect(&elf("6.1")[..40]).is_err());
    }

    proptest! {
        #[test]
        fn anything_can_be_looked_at(mut bytes in prop::collection::vec(any::<u8>(), 0..800), which in 0..3) {
            match which {
                0 => bytes.splice(0..0, *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0").for_each(drop),
                1 if bytes.len() > 0x206 => bytes[0x202..0x206].copy_from_slice(b"HdrS"),
                _ => {}
            }
            if let Ok((_, release)) = inspect(&bytes) {
                prop_assert!(!release.contains('/') && !release.starts_with('.'));
            }
        }
    }
}
