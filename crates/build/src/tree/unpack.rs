//! `ADD` of archives: recognized by their first bytes, unpacked into the root.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::OFlags;

use super::{Making, make_dirs, open_in, resolve};
use crate::error::{Error, Result};

/// Whether a file is an archive that `ADD` unpacks: a tar, plain or compressed with gzip, bzip2, xz or zstd.
pub(crate) fn is_archive(source: BorrowedFd<'_>, path: &[u8]) -> Result<bool> {
    let Some(place) = resolve(source, path)? else {
        return Ok(false);
    };
    let Some(stat) = place.stat else { return Ok(false) };
    if super::kind(&stat) != rustix::fs::FileType::RegularFile {
        return Ok(false);
    }
    let fd = super::open_at(place.parent.as_fd(), &place.name, OFlags::RDONLY)
        .map_err(|error| Error::io(format!("cannot open {}", super::show(path)), error))?;
    let mut file = File::from(fd);
    let mut start = [0; 512];
    let read = read_up_to(&mut file, &mut start).map_err(|error| Error::io("cannot read a source", error))?;
    Ok(looks_like_archive(&start[..read], &mut file))
}

fn looks_like_archive(start: &[u8], file: &mut File) -> bool {
    let compressed = start.starts_with(&[0x1f, 0x8b])
        || start.starts_with(b"BZh")
        || start.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0])
        || start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    if !compressed {
        return is_tar(start);
    }
    // A compressed file that is no tar is copied as it is.
    if file.rewind().is_err() {
        return false;
    }
    let Ok(copy) = file.try_clone() else { return false };
    let Ok(mut plain) = vessel_image::decompressed(copy) else {
        return false;
    };
    let mut block = [0; 512];
    read_up_to(&mut plain, &mut block).is_ok_and(|read| is_tar(&block[..read]))
}

/// Whether a block is the header of a tar: its checksum is right. It may lack a name.
fn is_tar(block: &[u8]) -> bool {
    if block.len() < 512 {
        return false;
    }
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                u64::from(*byte)
            }
        })
        .sum();
    let digits: String = block[148..156]
        .iter()
        .map(|&byte| char::from(byte))
        .filter(|c| c.is_digit(8))
        .collect();
    u64::from_str_radix(&digits, 8) == Ok(sum)
}

fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// Unpacks an archive of a tree into a directory of the root, which is made if it is missing.
pub(crate) fn unpack(
    source: BorrowedFd<'_>,
    path: &[u8],
    root: BorrowedFd<'_>,
    destination: &[u8],
    making: &Making,
    owner: Option<(u32, u32)>,
) -> Result<()> {
    let fd = open_in(source, path, OFlags::RDONLY)
        .map_err(|error| Error::io(format!("cannot open {}", super::show(path)), error))?;
    let plain = vessel_image::decompressed(File::from(fd))?;
    make_dirs(root, destination, making)?;
    let into = open_in(root, destination, OFlags::RDONLY | OFlags::DIRECTORY)
        .map_err(|error| Error::io(format!("cannot open {}", super::show(destination)), error))?;
    let options = vessel_image::ExtractOptions {
        ownership: match owner {
            Some((uid, gid)) => vessel_image::Ownership::Fixed { uid, gid },
            None => vessel_image::Ownership::Archive,
        },
        ..vessel_image::ExtractOptions::default()
    };
    vessel_image::unpack_into(into.as_fd(), plain, &options)
        .map_err(|error| Error::from(error).context(format!("cannot unpack {}", super::show(path))))
}
