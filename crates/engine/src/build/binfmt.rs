//! Which other processors' programs run here: what the kernel was told by `binfmt_misc`.
//!
//! An interpreter counts when it is enabled and was opened when it was entered (flag `F`, as Docker's and Debian's
//! packages enter QEMU's): in a container there is none by its path.

use std::path::Path;

use vessel_image::Platform;

/// Where the kernel tells.
const DIRECTORY: &str = "/proc/sys/fs/binfmt_misc";
/// Entries that are looked at.
const MAX_ENTRIES: usize = 256;

/// `e_machine` of ELF (and whether it is of 64 bits, little-endian) for a platform.
fn machine(platform: &Platform) -> Option<(u16, bool, bool)> {
    Some(match platform.architecture.as_str() {
        "386" => (3, false, true),
        "amd64" => (62, true, true),
        "arm" => (40, false, true),
        "arm64" => (183, true, true),
        "loong64" => (258, true, true),
        "mips64le" => (8, true, true),
        "ppc64le" => (21, true, true),
        "riscv64" => (243, true, true),
        "s390x" => (22, true, false),
        _ => return None,
    })
}

/// Whether an interpreter is there for a platform's programs.
pub(super) fn runs(platform: &Platform) -> bool {
    platform.os == "linux" && machine(platform).is_some_and(|wanted| any(Path::new(DIRECTORY), wanted))
}

fn any(directory: &Path, wanted: (u16, bool, bool)) -> bool {
    let is_on = |name: &str| {
        std::fs::read_to_string(directory.join(name)).is_ok_and(|text| text.starts_with("enabled"))
    };
    let Ok(entries) = std::fs::read_dir(directory) else {
        return false;
    };
    is_on("status")
        && entries
            .flatten()
            .take(MAX_ENTRIES)
            .any(|entry| std::fs::read_to_string(entry.path()).is_ok_and(|text| matches(&text, wanted)))
}

/// Whether an entry is for programs of a machine.
fn matches(text: &str, (machine, wide, little): (u16, bool, bool)) -> bool {
    let value = |name: &str| {
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix(name)).map(str::trim)
    };
    let magic: Vec<u8> = value("magic ")
        .unwrap_or_default()
        .as_bytes()
        .chunks_exact(2)
        .map_while(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    let number = match little {
        true => machine.to_le_bytes(),
        false => machine.to_be_bytes(),
    };
    text.starts_with("enabled\n")
        && value("flags:").is_some_and(|flags| flags.contains('F'))
        && value("offset ") == Some("0")
        && magic.starts_with(b"\x7fELF")
        && magic.get(4) == Some(&if wide { 2 } else { 1 })
        && magic.get(18..20) == Some(&number[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARM64: &str = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POCF\noffset 0\n\
        magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";

    #[test]
    fn an_interpreter_counts_when_it_is_enabled_and_open() {
        let wanted = machine(&Platform::parse("linux/arm64").unwrap()).unwrap();
        assert!(matches(ARM64, wanted));
        assert!(!matches(&ARM64.replace("enabled", "disabled"), wanted));
        assert!(!matches(&ARM64.replace("POCF", "POC"), wanted));
        assert!(!matches(
            ARM64,
            machine(&Platform::parse("linux/riscv64").unwrap()).unwrap()
        ));
        let directory = tempfile::tempdir().unwrap();
        assert!(!any(directory.path(), wanted));
        std::fs::write(directory.path().join("status"), "enabled\n").unwrap();
        std::fs::write(directory.path().join("qemu-aarch64"), ARM64).unwrap();
        assert!(any(directory.path(), wanted));
        std::fs::write(directory.path().join("status"), "disabled\n").unwrap();
        assert!(!any(directory.path(), wanted));
    }
}
