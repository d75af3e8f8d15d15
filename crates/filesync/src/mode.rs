//! Types and permissions as the packets have them: the bits of Go's `os.FileMode`, not of `st_mode`.

use rustix::fs::FileType;

const DIRECTORY: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;
const DEVICE: u32 = 1 << 26;
const FIFO: u32 = 1 << 25;
const SOCKET: u32 = 1 << 24;
const SETUID: u32 = 1 << 23;
const SETGID: u32 = 1 << 22;
const CHARACTER: u32 = 1 << 21;
const STICKY: u32 = 1 << 20;
const IRREGULAR: u32 = 1 << 19;
/// The bits that say what kind of thing it is.
const TYPES: u32 = DIRECTORY | SYMLINK | DEVICE | FIFO | SOCKET | CHARACTER | IRREGULAR;

/// The kind of an entry that is transferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
    Symlink,
    Fifo,
    CharacterDevice,
    BlockDevice,
}

impl Kind {
    /// The kind in `st_mode`'s terms.
    pub fn file_type(self) -> FileType {
        match self {
            Self::Directory => FileType::Directory,
            Self::File => FileType::RegularFile,
            Self::Symlink => FileType::Symlink,
            Self::Fifo => FileType::Fifo,
            Self::CharacterDevice => FileType::CharacterDevice,
            Self::BlockDevice => FileType::BlockDevice,
        }
    }
}

/// From `st_mode`; nothing for what is not transferred.
pub fn from_system(st_mode: u32) -> Option<u32> {
    let kind = match FileType::from_raw_mode(st_mode) {
        FileType::Directory => DIRECTORY,
        FileType::RegularFile => 0,
        FileType::Symlink => SYMLINK,
        FileType::Fifo => FIFO,
        FileType::CharacterDevice => DEVICE | CHARACTER,
        FileType::BlockDevice => DEVICE,
        _ => return None,
    };
    let bit = |system: u32, go: u32| if st_mode & system == 0 { 0 } else { go };
    Some(kind | (st_mode & 0o777) | bit(0o4000, SETUID) | bit(0o2000, SETGID) | bit(0o1000, STICKY))
}

/// The kind, when it is one that is transferred.
pub fn kind(mode: u32) -> Option<Kind> {
    Some(match mode & TYPES {
        0 => Kind::File,
        DIRECTORY => Kind::Directory,
        SYMLINK => Kind::Symlink,
        FIFO => Kind::Fifo,
        DEVICE => Kind::BlockDevice,
        bits if bits == DEVICE | CHARACTER => Kind::CharacterDevice,
        _ => return None,
    })
}

/// The permission bits as the system has them.
pub fn permissions(mode: u32) -> u32 {
    let bit = |go: u32, system: u32| if mode & go == 0 { 0 } else { system };
    (mode & 0o777) | bit(SETUID, 0o4000) | bit(SETGID, 0o2000) | bit(STICKY, 0o1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn permissions_survive(bits in 0u32..0o10000, kind_bits in prop::sample::select(vec![0o040000u32, 0o100000, 0o120000, 0o010000, 0o020000, 0o060000])) {
            let go = from_system(kind_bits | bits).unwrap();
            prop_assert_eq!(permissions(go), bits);
            prop_assert_eq!(kind(go).unwrap().file_type(), FileType::from_raw_mode(kind_bits));
        }

        #[test]
        fn no_bits_panic(bits in any::<u32>()) {
            let _ = (kind(bits), permissions(bits), from_system(bits));
        }
    }
}
