//! How the guests' own kernel is made: the script and the configuration of `images/kernel`, to be carried by the program.

use std::fs::File;
use std::io;

use sha2::{Digest, Sha256};

use crate::Result;
use crate::error::Context;

/// The script: `build LINUX-SOURCE.tar.xz OUTPUT-DIRECTORY`; it wants [`FRAGMENT`] as `guest.config` beside it.
pub const SCRIPT: &str = include_str!("../../../images/kernel/build");

/// The configuration.
pub const FRAGMENT: &str = include_str!("../../../images/kernel/guest.config");

/// What identifies a kernel made of this source: the same script, configuration and source make the same kernel.
///
/// # Errors
/// When the source cannot be read.
pub fn key(mut source: &File) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update((SCRIPT.len() as u64).to_le_bytes());
    hash.update(SCRIPT);
    hash.update((FRAGMENT.len() as u64).to_le_bytes());
    hash.update(FRAGMENT);
    io::copy(&mut source, &mut HashWriter(&mut hash)).context(|| "read the kernel's source".into())?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    #[test]
    fn another_source_is_another_kernel() {
        let keys = ["a", "b", "a"].map(|text| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.rewind().unwrap();
            key(&file).unwrap()
        });
        assert_eq!(keys[0], keys[2]);
        assert_ne!(keys[0], keys[1]);
    }

    #[test]
    fn the_script_uses_the_configuration_by_its_name() {
        assert!(SCRIPT.starts_with("#!/bin/sh\n") && SCRIPT.contains("/guest.config"));
        for option in [
            "CONFIG_PVH=y",
            "CONFIG_VIRTIO_FS=y",
            "CONFIG_VIRTIO_VSOCKETS=y",
            "CONFIG_EROFS_FS=y",
        ] {
            assert!(FRAGMENT.lines().any(|line| line == option), "{option}");
        }
    }
}
