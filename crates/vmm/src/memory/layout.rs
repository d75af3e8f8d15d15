//! Where everything is in a machine's physical address space. Every address that more than one module must know stands here.
//!
//! | from | to | what |
//! |---|---|---|
//! | `0` | `0x9_fc00` | RAM; boot structures lie here until the kernel has read them |
//! | `0xe_0000` | `0xf_fff0` | ACPI tables (RAM, reserved in the memory map) |
//! | `0xf_fff0` | `0x10_0000` | an instruction or two that reset the machine |
//! | `0x10_0000` | at most 3 GiB | RAM: kernel, initramfs |
//! | 3 GiB | `0xe000_0000` | window for 32-bit BARs |
//! | `0xe000_0000` | `0xe010_0000` | PCI configuration space of bus 0 (ECAM) |
//! | `0xfec0_0000` | | I/O APIC (the accelerator's) |
//! | `0xfee0_0000` | | local APICs (the accelerator's), messages of MSI |
//! | `0xfffb_d000` | | three pages KVM on Intel needs for itself |
//! | 4 GiB | | the rest of the RAM |
//! | next multiple of 1 GiB | | window for 64-bit BARs |

use crate::accel;

/// The smallest page.
pub const PAGE_SIZE: u64 = 4096;

/// Where a global descriptor table lies at boot.
pub const BOOT_GDT: u64 = 0x500;
/// What PVH tells the kernel (`hvm_start_info`).
pub const PVH_START_INFO: u64 = 0x6000;
/// PVH's memory map and list of modules.
pub const PVH_TABLES: u64 = 0x6100;
/// The "zero page" of the Linux boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// The stack a kernel has at its first instruction grows down from here.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page tables of the 64-bit entry: six pages.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line, ended by a zero.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes a command line can have, with the zero at its end: more than x86 kernels take (2048).
pub const COMMAND_LINE_MAX: usize = 4096;

/// Where conventional memory ends.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// ACPI tables.
pub const ACPI_START: u64 = 0xe_0000;
/// Their end.
pub const ACPI_END: u64 = RESET_VECTOR;
/// Where a processor in real mode goes to reset the machine.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Memory above the first mebibyte: kernels go here.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;

/// RAM below 4 GiB ends here at the latest.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// RAM that has no room below begins here.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;
/// The most RAM a machine can have: what 40 bits of physical address leave beside the windows.
pub const RAM_MAX: u64 = 0x80_0000_0000;

/// The window for 32-bit BARs.
pub const PCI_WINDOW32_START: u64 = LOW_RAM_END;
/// Its length.
pub const PCI_WINDOW32_SIZE: u64 = 0x2000_0000;
/// PCI configuration space of bus 0, 4 KiB for each function.
pub const PCI_ECAM_START: u64 = 0xe000_0000;
/// Its length: one bus.
pub const PCI_ECAM_SIZE: u64 = 0x10_0000;
/// The length of the window for 64-bit BARs.
pub const PCI_WINDOW64_SIZE: u64 = 0x10_0000_0000;

/// The port of the PCI configuration address (4 bytes), the data's is 4 above.
pub const PCI_CONFIG_PORT: u16 = 0xcf8;
/// The first port of the first serial line.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Its global system interrupt.
pub const SERIAL_GSI: u32 = 4;
/// ACPI's sleep control register; its sleep status register is the next port, the reset register the one after.
pub const POWER_PORT: u16 = 0x600;
/// The interrupt of ACPI's generic event device: power button, hot-plug.
pub const EVENT_GSI: u32 = 9;
/// Registers of the generic event device and of PCI hot-plug: 16 ports.
pub const EVENT_PORT: u16 = 0x610;
/// The keyboard controller's status and command port: kernels pulse the reset line there.
pub const I8042_COMMAND_PORT: u16 = 0x64;

// The windows are apart from what belongs to accelerators.
const _: () = assert!(PCI_WINDOW32_START + PCI_WINDOW32_SIZE <= PCI_ECAM_START);
const _: () = assert!(PCI_ECAM_START + PCI_ECAM_SIZE <= accel::IOAPIC_BASE);
const _: () = assert!(accel::LAPIC_BASE < accel::KVM_TSS_BASE);

/// Pieces of RAM of a machine with `size` bytes: address and length, one or two.
pub fn ram_ranges(size: u64) -> Vec<(u64, u64)> {
    if size <= LOW_RAM_END {
        vec![(0, size)]
    } else {
        vec![(0, LOW_RAM_END), (HIGH_RAM_START, size - LOW_RAM_END)]
    }
}

/// Where the window for 64-bit BARs begins in a machine with `size` bytes of RAM.
pub fn pci_window64_start(size: u64) -> u64 {
    let end = HIGH_RAM_START + size.saturating_sub(LOW_RAM_END);
    end.next_multiple_of(1 << 30)
}
