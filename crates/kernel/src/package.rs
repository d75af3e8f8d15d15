//! Debian packages (deb(5)): an `ar` archive with a tar archive of the files in it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use crate::error::Context;
use crate::modules::module_of;
use crate::{Error, Result, unpack};

const MAGIC: &[u8] = b"!<arch>\n";
/// The largest file that is taken out of a package.
const MAX_FILE: u64 = 256 << 20;
/// All that is taken, and how many files.
const MAX_TOTAL: u64 = 4 << 30;
const MAX_FILES: usize = 100_000;

/// Whether a file begins like a package.
pub fn is_package(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

/// Takes the kernels (`/boot/vmlinuz-*`), the modules and the list of built-in ones out of a package, each by its file's name
/// alone, into `directory`.
///
/// # Errors
/// When it is no package, or has nothing of that, or more than any kernel's package.
pub fn extract(package: &File, directory: &Path) -> Result<()> {
    let mut input = BufReader::new(package);
    let data = find_data(&mut input)?;
    let mut archive = tar::Archive::new(unpack::reader(BufReader::new(data))?);
    let (mut taken, mut total) = (0usize, 0u64);
    let damaged = || "read the package's files".to_owned();
    for entry in archive.entries().context(damaged)? {
        let mut entry = entry.context(damaged)?;
        if entry.header().entry_type() != tar::EntryType::Regular {
            continue;
        }
        let path = entry.path_bytes().into_owned();
        let Some(name) = wanted(&path) else {
            continue;
        };
        taken += 1;
        total = total.saturating_add(entry.size());
        if entry.size() > MAX_FILE || total > MAX_TOTAL || taken > MAX_FILES {
            return Err(Error::limit("this package is larger than any kernel's"));
        }
        let path = directory.join(&name);
        let mut file = File::create(&path).context(|| format!("write {}", path.display()))?;
        io::copy(&mut entry, &mut file).context(|| format!("take {name} out of the package"))?;
    }
    if taken == 0 {
        return Err(Error::invalid(
            "there is no kernel in this package: of Debian's, it is linux-image-VERSION-amd64 and not linux-image-amd64 that has one",
        ));
    }
    Ok(())
}

/// The name of a file that is taken; a name, not a path.
fn wanted(path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let (parent, name) = path.rsplit_once('/')?;
    let boot = parent.trim_start_matches('.').trim_start_matches('/') == "boot";
    let takes =
        (boot && name.starts_with("vmlinuz-")) || name == "modules.builtin" || module_of(name).is_some();
    let plain = name.len() < 128 && name.bytes().all(|byte| byte.is_ascii_graphic());
    (takes && plain).then(|| name.to_owned())
}

/// The member `data.tar` of the package, compressed or not.
fn find_data<R: BufRead>(mut input: R) -> Result<io::Take<R>> {
    let broken = || Error::invalid("this is no Debian package, or it is damaged");
    let mut magic = [0; 8];
    input.read_exact(&mut magic).map_err(|_| broken())?;
    if magic != MAGIC {
        return Err(broken());
    }
    loop {
        // Name 16, time 12, owner 6, group 6, mode 8, size 10, end 2.
        let mut header = [0; 60];
        input.read_exact(&mut header).map_err(|_| broken())?;
        let text = |from: usize, to: usize| {
            let bytes = header.get(from..to).unwrap_or_default();
            std::str::from_utf8(bytes)
                .map(str::trim_end)
                .map_err(|_| broken())
        };
        let size: u64 = text(48, 58)?.parse().map_err(|_| broken())?;
        if header[58..] != *b"`\n" {
            return Err(broken());
        }
        if text(0, 16)?.starts_with("data.tar") {
            return Ok(input.take(size));
        }
        // Members begin at even places.
        let skipped = size + size % 2;
        if io::copy(&mut input.by_ref().take(skipped), &mut io::sink()).map_err(|_| broken())? < skipped {
            return Err(broken());
        }
    }
}

#[cfg(test)]
pub mod tests {
    use std::io::{Seek, Write};

    use proptest::prelude::*;

    use super::*;

    /// A package with these files.
    pub fn package(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut data = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            // `set_path` would refuse what an attacker would not.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            data.append(&header, *content).unwrap();
        }
        let data = zstd::encode_all(&data.into_inner().unwrap()[..], 1).unwrap();
        let mut package = MAGIC.to_vec();
        for (name, content) in [
            ("debian-binary", &b"2.0"[..]),
            ("control.tar.xz", b"xx"),
            ("data.tar.zst", &data),
        ] {
            package.extend_from_slice(
                format!(
                    "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
                    0,
                    0,
                    0,
                    100_644,
                    content.len()
                )
                .as_bytes(),
            );
            package.extend_from_slice(content);
            if content.len() % 2 == 1 {
                package.push(b'\n');
            }
        }
        package
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn only_names_count() {
        let directory = tempfile::tempdir().unwrap();
        let package = package(&[
            ("./boot/vmlinuz-6.1", b"kernel"),
            ("./boot/config-6.1", b"config"),
            ("./lib/modules/6.1/kernel/a/virtio.ko", b"module"),
            ("./lib/modules/6.1/modules.builtin", b"list"),
            ("../../../etc/evil.ko", b"inside"),
            ("/boot/vmlinuz-x/../../../tmp/y", b"no"),
            ("./etc/vmlinuz-6.1", b"no"),
        ]);
        extract(&file(&package), directory.path()).unwrap();
        let mut names: Vec<String> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["evil.ko", "modules.builtin", "virtio.ko", "vmlinuz-6.1"]);
        assert_eq!(
            std::fs::read(directory.path().join("vmlinuz-6.1")).unwrap(),
            b"kernel"
        );
    }

    #[test]
    fn other_packages_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let error = extract(&file(&package(&[("./usr/share/doc/x", b"")])), directory.path()).unwrap_err();
        assert!(error.to_string().contains("linux-image"), "{error}");
        assert!(extract(&file(b"!<arch>\nshort"), directory.path()).is_err());
        let whole = package(&[("./boot/vmlinuz-6.1", b"kernel")]);
        assert!(extract(&file(&whole[..whole.len() - 20]), directory.path()).is_err());
    }

    proptest! {
        #[test]
        fn any_damage_is_an_error_or_fewer_files(at in any::<prop::sample::Index>(), value in any::<u8>()) {
            let directory = tempfile::tempdir().unwrap();
            let mut bytes = package(&[("./boot/vmlinuz-6.1", b"kernel")]);
            let index = at.index(bytes.len());
            bytes[index] = value;
            let _ = extract(&file(&bytes), directory.path());
        }
    }
}
