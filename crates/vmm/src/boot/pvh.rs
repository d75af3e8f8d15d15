//! What a kernel entered by PVH is told: `hvm_start_info` version 1 (Xen's `public/arch-x86/hvm/start_info.h`).

use vm_memory::{Bytes, GuestAddress};

use super::error::Result;
use super::{Layout, MemoryKind};
use crate::memory::layout;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const MODULE_SIZE: u64 = 32;

pub(super) fn write_start_info(layout: &Layout<'_>) -> Result<()> {
    let module = layout.initramfs.map(|_| layout::PVH_TABLES).unwrap_or_default();
    let map_at = layout::PVH_TABLES + MODULE_SIZE;
    let map = layout.memory_map();
    let mut info = Vec::new();
    let mut put = |bytes: &[u8]| info.extend_from_slice(bytes);
    put(&MAGIC.to_le_bytes());
    put(&VERSION.to_le_bytes());
    put(&0_u32.to_le_bytes());
    put(&u32::from(module != 0).to_le_bytes());
    put(&module.to_le_bytes());
    put(&layout::COMMAND_LINE.to_le_bytes());
    put(&layout::ACPI_START.to_le_bytes());
    put(&map_at.to_le_bytes());
    put(&u32::try_from(map.len()).unwrap_or(0).to_le_bytes());
    put(&0_u32.to_le_bytes());
    layout
        .memory
        .write_slice(&info, GuestAddress(layout::PVH_START_INFO))?;

    let mut tables = Vec::new();
    let (start, size) = layout.initramfs.unwrap_or_default();
    for word in [start, size, 0, 0] {
        tables.extend(word.to_le_bytes());
    }
    for (start, size, kind) in map {
        let kind: u32 = match kind {
            MemoryKind::Ram => 1,
            MemoryKind::Reserved => 2,
            MemoryKind::Acpi => 3,
        };
        tables.extend(start.to_le_bytes());
        tables.extend(size.to_le_bytes());
        tables.extend(kind.to_le_bytes());
        tables.extend(0_u32.to_le_bytes());
    }
    layout
        .memory
        .write_slice(&tables, GuestAddress(layout::PVH_TABLES))?;
    Ok(())
}
