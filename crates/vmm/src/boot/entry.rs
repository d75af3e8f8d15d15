//! The state in which a kernel is entered.

use vm_memory::{Bytes, GuestAddress};

use super::error::Result;
use crate::accel::{DescriptorTable, Segment, VcpuState};
use crate::memory::{Ram, layout};

const MSR_EFER: u32 = 0xc000_0080;
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RSI: usize = 6;

const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;
/// Present, code, readable, accessed; 4 KiB granularity.
const ATTRIBUTES_CODE: u32 = 0x809b;
const ATTRIBUTES_DATA: u32 = 0xc093;
const ATTRIBUTES_TASK: u32 = 0x008b;
const ATTRIBUTE_LONG: u32 = 1 << 13;
const ATTRIBUTE_32BIT: u32 = 1 << 14;
const ATTRIBUTE_UNUSABLE: u32 = 1 << 16;

const PAGE_PRESENT_WRITE: u64 = 3;
const PAGE_LARGE: u64 = 1 << 7;

/// Where and how the first vCPU enters a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode without paging; `ebx` has PVH's start info.
    Pvh(u64),
    /// Long mode with the first 4 GiB mapped onto themselves; `rsi` has the zero page.
    Long(u64),
}

impl Entry {
    /// Makes a vCPU that was just reset ready to enter.
    pub fn apply(self, state: &mut VcpuState) {
        let registers = &mut state.registers;
        let (address, long) = match self {
            Self::Pvh(address) => (address, false),
            Self::Long(address) => (address, true),
        };
        registers.gpr = [0; 16];
        registers.rip = address;
        registers.rflags = RFLAGS;
        registers.gdt = DescriptorTable {
            base: layout::BOOT_GDT,
            limit: 5 * 8 - 1,
        };
        registers.idt = DescriptorTable { base: 0, limit: 0 };
        let flat = |selector, attributes| Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            attributes,
        };
        let width = if long { ATTRIBUTE_LONG } else { ATTRIBUTE_32BIT };
        registers.segments = [flat(DATA, ATTRIBUTES_DATA); 6];
        registers.segments[1] = flat(CODE, ATTRIBUTES_CODE | width);
        registers.task = Segment {
            selector: TASK,
            base: 0,
            limit: 0x67,
            attributes: ATTRIBUTES_TASK,
        };
        registers.ldt = Segment {
            attributes: ATTRIBUTE_UNUSABLE,
            ..Segment::default()
        };
        registers.cr4 = 0;
        registers.cr0 = CR0_PE | CR0_ET;
        state.msrs.retain(|(number, _)| *number != MSR_EFER);
        if long {
            registers.gpr[RSI] = layout::ZERO_PAGE;
            registers.gpr[RSP] = layout::BOOT_STACK;
            registers.cr3 = layout::BOOT_PAGE_TABLES;
            registers.cr4 = CR4_PAE;
            registers.cr0 |= CR0_PG;
            state.msrs.push((MSR_EFER, EFER_LME_LMA));
        } else {
            registers.gpr[RBX] = layout::PVH_START_INFO;
            registers.cr3 = 0;
            state.msrs.push((MSR_EFER, 0));
        }
    }
}

/// The descriptor table both ways of entry have, and the page tables of one.
pub(super) fn write_tables(memory: &Ram) -> Result<()> {
    let descriptor = |attributes: u64, limit: u64| {
        limit & 0xffff
            | (attributes & 0xff) << 40
            | (limit >> 16 & 0xf) << 48
            | (attributes >> 12 & 0xf) << 52
    };
    let code = u64::from(ATTRIBUTES_CODE);
    let table = [
        0,
        0,
        // For both ways: whoever loads it anew has a descriptor of its own.
        descriptor(code | u64::from(ATTRIBUTE_LONG), 0xf_ffff),
        descriptor(ATTRIBUTES_DATA.into(), 0xf_ffff),
        descriptor(ATTRIBUTES_TASK.into(), 0x67),
    ];
    for (at, entry) in (layout::BOOT_GDT..).step_by(8).zip(table) {
        memory.write_obj(entry, GuestAddress(at))?;
    }
    // One PML4, one PDPT, four page directories of 512 pages of 2 MiB.
    let pml4 = layout::BOOT_PAGE_TABLES;
    let pdpt = pml4 + 4096;
    memory.write_obj(pdpt | PAGE_PRESENT_WRITE, GuestAddress(pml4))?;
    for gigabyte in 0..4_u64 {
        let directory = pdpt + 4096 * (1 + gigabyte);
        memory.write_obj(directory | PAGE_PRESENT_WRITE, GuestAddress(pdpt + 8 * gigabyte))?;
        let mut page = Vec::with_capacity(4096);
        for entry in 0..512_u64 {
            let address = gigabyte << 30 | entry << 21;
            page.extend((address | PAGE_PRESENT_WRITE | PAGE_LARGE).to_le_bytes());
        }
        memory.write_slice(&page, GuestAddress(directory))?;
    }
    Ok(())
}

#[cfg(test)]
impl VcpuState {
    /// Some state, for tests.
    pub(crate) fn sample() -> Self {
        Self {
            registers: crate::accel::VcpuRegisters::default(),
            msrs: vec![(0x10, 1), (MSR_EFER, 0x501)],
            xsave: Vec::new(),
            events: crate::accel::VcpuEvents::default(),
            lapic: crate::accel::LapicState {
                registers: Vec::new(),
            },
        }
    }
}
