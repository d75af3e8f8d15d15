//! ELF kernels: segments into memory, and the entry that a note names for PVH.

use vm_memory::{Bytes, GuestAddress};

use super::Layout;
use super::error::{Error, Result};
use crate::memory::layout;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Kernels have about five.
const PROGRAM_HEADERS_MAX: usize = 64;
const NOTES_MAX: usize = 64 << 10;

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_DYNAMIC: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PVH_ENTRY: u32 = 18;

/// A kernel in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Elf {
    /// Where it wants to be entered in long mode.
    pub(super) entry: u64,
    /// Where it wants to be entered by PVH, in protected mode.
    pub(super) pvh_entry: Option<u64>,
    /// Its end, with what it has no bytes for in the file.
    pub(super) end: u64,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<u64> {
    let bytes = bytes
        .get(at..at + N)
        .ok_or(Error::Damaged("its headers are cut off"))?;
    let mut word = [0; 8];
    word[..N].copy_from_slice(bytes);
    Ok(u64::from_le_bytes(word))
}

/// A piece of the file.
fn piece<'a>(image: &'a [u8], offset: u64, length: u64, what: &'static str) -> Result<&'a [u8]> {
    let range = usize::try_from(offset).ok().zip(usize::try_from(length).ok());
    let piece = range.and_then(|(offset, length)| image.get(offset..offset.checked_add(length)?));
    piece.ok_or(Error::Damaged(what))
}

/// Loads a kernel to the physical addresses it names.
pub(super) fn load(layout: &Layout<'_>, image: &[u8]) -> Result<Elf> {
    let header = image.get(..HEADER).ok_or(Error::NotAKernel)?;
    if !header.starts_with(b"\x7fELF") {
        return Err(Error::NotAKernel);
    }
    let kind = number::<2>(header, 16)?;
    if header[4] != CLASS_64
        || header[5] != LITTLE_ENDIAN
        || number::<2>(header, 18)? != u64::from(MACHINE_X86_64)
        || ![TYPE_EXECUTABLE, TYPE_DYNAMIC].map(u64::from).contains(&kind)
    {
        return Err(Error::Unsupported("it is an ELF file, but no x86-64 program"));
    }
    let count = number::<2>(header, 56)?;
    if number::<2>(header, 54)? != PROGRAM_HEADER as u64 || count == 0 || count > PROGRAM_HEADERS_MAX as u64 {
        return Err(Error::Damaged("its program headers make no sense"));
    }
    let table = piece(
        image,
        number::<8>(header, 32)?,
        count * PROGRAM_HEADER as u64,
        "its program headers are not all there",
    )?;
    let mut elf = Elf {
        entry: number::<8>(header, 24)?,
        pvh_entry: None,
        end: 0,
    };
    let mut loaded = Vec::new();
    for segment in table.chunks_exact(PROGRAM_HEADER) {
        let offset = number::<8>(segment, 8)?;
        let in_file = number::<8>(segment, 32)?;
        let bytes = || piece(image, offset, in_file, "a segment of it is not all there");
        let kind = number::<4>(segment, 0)?;
        if kind == u64::from(SEGMENT_LOAD) {
            let start = number::<8>(segment, 24)?;
            let size = number::<8>(segment, 40)?;
            if in_file > size || start < layout::HIGH_MEMORY_START {
                return Err(Error::Damaged("a segment of it has no sensible place in memory"));
            }
            let end = layout.take("the kernel", start, size)?;
            layout.memory.write_slice(bytes()?, GuestAddress(start))?;
            elf.end = elf.end.max(end);
            loaded.push(start..end);
        } else if kind == u64::from(SEGMENT_NOTE) && in_file <= NOTES_MAX as u64 {
            elf.pvh_entry = elf.pvh_entry.or(pvh_note(bytes()?));
        }
    }
    let is_loaded = |address: u64| loaded.iter().any(|range| range.contains(&address));
    if elf.pvh_entry.is_some_and(|entry| !is_loaded(entry)) || loaded.is_empty() {
        return Err(Error::Damaged("its entry is in no segment"));
    }
    if elf.pvh_entry.is_none() && !is_loaded(elf.entry) {
        return Err(Error::Unsupported(
            "it has no PVH entry, and its own entry is no physical address",
        ));
    }
    Ok(elf)
}

/// Looks for the PVH entry among notes. Notes that make no sense end the search: they are not ours.
fn pvh_note(mut notes: &[u8]) -> Option<u64> {
    loop {
        let word = |at: usize| Some(u32::from_le_bytes(notes.get(at..at + 4)?.try_into().ok()?));
        let (name_length, length, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
        let name = notes.get(12..12_usize.checked_add(name_length)?)?;
        let at = 12 + name_length.next_multiple_of(4);
        let value = notes.get(at..at.checked_add(length)?)?;
        if name == b"Xen\0" && kind == NOTE_PVH_ENTRY {
            // Four bytes or eight, as compilers write it.
            return Some(match value {
                [a, b, c, d] | [a, b, c, d, 0, 0, 0, 0] => u32::from_le_bytes([*a, *b, *c, *d]).into(),
                _ => return None,
            });
        }
        notes = notes.get(at + length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::memory::Memory;
    use proptest::prelude::*;

    /// A kernel of one segment at 1 MiB, with a PVH note or without.
    pub(crate) fn kernel(code: &[u8], pvh: bool) -> Vec<u8> {
        let mut image = vec![0; HEADER + 2 * PROGRAM_HEADER];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(16, &2_u16.to_le_bytes());
        put(18, &62_u16.to_le_bytes());
        put(24, &0x10_0000_u64.to_le_bytes());
        put(32, &64_u64.to_le_bytes());
        put(54, &56_u16.to_le_bytes());
        put(56, &2_u16.to_le_bytes());
        let mut segment = |at: usize, kind: u32, fields: [u64; 5]| {
            put(at, &kind.to_le_bytes());
            for (field, value) in [8, 16, 24, 32, 40].into_iter().zip(fields) {
                put(at + field, &value.to_le_bytes());
            }
        };
        let data = (HEADER + 2 * PROGRAM_HEADER) as u64;
        let length = code.len() as u64;
        segment(HEADER, 1, [data, 0, 0x10_0000, length, length + 0x1000]);
        let note_length = if pvh { 20 } else { 0 };
        segment(
            HEADER + PROGRAM_HEADER,
            4,
            [data + length, 0, 0, note_length, note_length],
        );
        image.extend(code);
        for word in [4_u32, 4, NOTE_PVH_ENTRY, u32::from_le_bytes(*b"Xen\0"), 0x10_0001] {
            image.extend(word.to_le_bytes());
        }
        image
    }

    fn try_load(image: &[u8]) -> Result<(Elf, Memory)> {
        let memory = Memory::new(4 << 20).unwrap();
        let elf = load(&Layout::new(memory.ram(), memory.size()), image)?;
        Ok((elf, memory))
    }

    #[test]
    fn segments_and_entries_are_found() {
        let (elf, memory) = try_load(&kernel(b"code", true)).unwrap();
        assert_eq!(elf.pvh_entry, Some(0x10_0001));
        assert_eq!(elf.end, 0x10_1004);
        let mut code = [0; 5];
        memory
            .ram()
            .read_slice(&mut code, GuestAddress(0x10_0000))
            .unwrap();
        assert_eq!(code, *b"code\0");
        let (elf, _) = try_load(&kernel(b"code", false)).unwrap();
        assert_eq!((elf.pvh_entry, elf.entry), (None, 0x10_0000));
    }

    #[test]
    fn what_cannot_be_loaded_is_told() {
        let whole = kernel(b"code", true);
        let changed = |at: usize, bytes: &[u8]| {
            let mut image = whole.clone();
            image[at..at + bytes.len()].copy_from_slice(bytes);
            try_load(&image).map(|_| ()).unwrap_err().to_string()
        };
        let far = u64::MAX.to_le_bytes();
        assert!(changed(18, &[3]).contains("no x86-64"));
        assert!(changed(32, &far).contains("program headers"));
        assert!(changed(56, &[0xff, 0xff]).contains("program headers"));
        assert!(changed(HEADER + 8, &far).contains("segment"));
        assert!(changed(HEADER + 24, &[0; 8]).contains("place"));
        assert!(changed(HEADER + 24, &far).contains("memory"));
        assert!(changed(HEADER + 40, &far).contains("memory"));
        assert!(changed(HEADER + 40, &(4_u64 << 20).to_le_bytes()).contains("more memory"));
        let entry = whole.len() - 4;
        assert!(changed(entry, &[0; 4]).contains("entry"));
        assert!(matches!(try_load(b"#!/bin/sh"), Err(Error::NotAKernel)));
    }

    proptest! {
        #[test]
        fn any_damage(changes in prop::collection::vec((0_usize..220, any::<u8>()), 1..8), cut in 0_usize..220) {
            let mut image = kernel(b"code", true);
            for (at, value) in changes {
                let at = at % image.len();
                image[at] = value;
            }
            image.truncate(cut.max(1));
            let _ = try_load(&image);
        }
    }
}
