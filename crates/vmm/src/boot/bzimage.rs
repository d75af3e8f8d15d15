//! The bzImage format and the Linux x86 boot protocol (`Documentation/arch/x86/boot.rst`): where the payload is, and the 64-bit entry for
//! kernels that must unpack themselves.

use vm_memory::{Bytes, GuestAddress};

use super::error::{Error, Result};
use super::{Layout, MemoryKind};
use crate::memory::layout;

const SETUP_SECTORS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const HEADER_START: usize = 0x1f1;
const HEADER_END_BYTE: usize = 0x201;
const LOADER_TYPE: u64 = 0x210;
const RAMDISK: u64 = 0x218;
const RAMDISK_SIZE: u64 = 0x21c;
const COMMAND_LINE: u64 = 0x228;
const XLOADFLAGS: usize = 0x236;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const PREFERRED_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
const RSDP: u64 = 0x070;
const E820_COUNT: u64 = 0x1e8;
const E820: u64 = 0x2d0;
const E820_ENTRY: u64 = 20;

const SECTOR: usize = 512;
/// Version 2.12 says whether there is a 64-bit entry.
const VERSION_MIN: u16 = 0x20c;
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry is this much behind the start.
const ENTRY_64: u64 = 0x200;
/// A loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// What of the setup header is needed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// Where the protected-mode part begins in the file.
    code: usize,
    version: u16,
    xloadflags: u16,
    payload_offset: u32,
    payload_length: u32,
    preferred_address: u64,
    init_size: u32,
}

fn field<const N: usize>(image: &[u8], at: usize) -> Result<[u8; N]> {
    let bytes = image.get(at..at + N).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or(Error::NotAKernel)
}

impl Header {
    pub(super) fn read(image: &[u8]) -> Result<Self> {
        if field(image, MAGIC)? != *b"HdrS" || field(image, BOOT_FLAG)? != [0x55, 0xaa] {
            return Err(Error::NotAKernel);
        }
        let sectors = match field::<1>(image, SETUP_SECTORS)?[0] {
            0 => 4,
            sectors => usize::from(sectors),
        };
        Ok(Self {
            code: (sectors + 1) * SECTOR,
            version: u16::from_le_bytes(field(image, VERSION)?),
            xloadflags: u16::from_le_bytes(field(image, XLOADFLAGS)?),
            payload_offset: u32::from_le_bytes(field(image, PAYLOAD_OFFSET)?),
            payload_length: u32::from_le_bytes(field(image, PAYLOAD_LENGTH)?),
            preferred_address: u64::from_le_bytes(field(image, PREFERRED_ADDRESS)?),
            init_size: u32::from_le_bytes(field(image, INIT_SIZE)?),
        })
    }

    /// What is packed in the kernel.
    pub(super) fn payload<'a>(&self, image: &'a [u8]) -> Result<&'a [u8]> {
        let start = self.code + self.payload_offset as usize;
        let payload = image.get(start..start + self.payload_length as usize);
        payload
            .filter(|payload| !payload.is_empty())
            .ok_or(Error::Damaged("its payload is not all there"))
    }
}

/// Loads a bzImage that unpacks itself. Returns its 64-bit entry and where it will end.
pub(super) fn load(layout: &Layout<'_>, image: &[u8]) -> Result<(u64, u64)> {
    let header = Header::read(image)?;
    if header.version < VERSION_MIN || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(Error::Unsupported(
            "it has no 64-bit entry (boot protocol 2.12 or later)",
        ));
    }
    let start = header.preferred_address;
    let code = image.get(header.code..).unwrap_or_default();
    let size = u64::from(header.init_size).max(code.len() as u64);
    if start < layout::HIGH_MEMORY_START || code.len() as u64 <= ENTRY_64 {
        return Err(Error::Damaged("its load address or its length makes no sense"));
    }
    let end = layout.take("the kernel", start, size)?;
    layout.memory.write_slice(code, GuestAddress(start))?;
    Ok((start + ENTRY_64, end))
}

/// Writes the "zero page", with the kernel's own header if it has one.
pub(super) fn write_zero_page(layout: &Layout<'_>, image: Option<&[u8]>) -> Result<()> {
    let memory = layout.memory;
    let at = |offset: u64| GuestAddress(layout::ZERO_PAGE + offset);
    memory.write_slice(&[0; 4096], at(0))?;
    if let Some(image) = image {
        let end = MAGIC + usize::from(field::<1>(image, HEADER_END_BYTE)?[0]);
        let header = image.get(HEADER_START..end).ok_or(Error::NotAKernel)?;
        memory.write_slice(header, at(HEADER_START as u64))?;
    } else {
        memory.write_slice(&[0x55, 0xaa], at(BOOT_FLAG as u64))?;
        memory.write_slice(b"HdrS", at(MAGIC as u64))?;
        memory.write_obj(0x20f_u16, at(VERSION as u64))?;
    }
    memory.write_obj(LOADER_UNDEFINED, at(LOADER_TYPE))?;
    memory.write_obj(low(layout::COMMAND_LINE), at(COMMAND_LINE))?;
    if let Some((start, size)) = layout.initramfs {
        memory.write_obj(low(start), at(RAMDISK))?;
        memory.write_obj(low(size), at(RAMDISK_SIZE))?;
    }
    memory.write_obj(layout::ACPI_START, at(RSDP))?;
    let map = layout.memory_map();
    memory.write_obj(u8::try_from(map.len()).unwrap_or(0), at(E820_COUNT))?;
    for (entry, (start, size, kind)) in (0..).zip(map) {
        let kind: u32 = match kind {
            MemoryKind::Ram => 1,
            MemoryKind::Reserved => 2,
            MemoryKind::Acpi => 3,
        };
        memory.write_obj(start, at(E820 + entry * E820_ENTRY))?;
        memory.write_obj(size, at(E820 + entry * E820_ENTRY + 8))?;
        memory.write_obj(kind, at(E820 + entry * E820_ENTRY + 16))?;
    }
    Ok(())
}

/// An address below 4 GiB.
fn low(address: u64) -> u32 {
    // Everything the zero page points to is below 3 GiB.
    #[expect(clippy::cast_possible_truncation)]
    {
        address as u32
    }
}
