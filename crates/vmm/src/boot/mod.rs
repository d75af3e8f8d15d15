//! From a kernel's file to a vCPU that is about to execute its first instruction.
//!
//! There is no firmware. A kernel is loaded where it wants to be, finds ACPI tables, a memory map, its command line and its initramfs, and is
//! entered in one of three ways, the first that it has:
//!
//! 1. PVH (`Documentation/arch/x86/xen.rst` of Xen: "x86/HVM direct boot ABI"): an ELF file with Xen's note, in 32-bit protected mode. Kernels in a bzImage are
//!    unpacked here first ([`extract_vmlinux`]).
//! 2. An ELF file without it, whose entry is a physical address: in long mode, with the zero page of the Linux boot protocol.
//! 3. A bzImage we cannot unpack: by its 64-bit entry; it unpacks itself.

pub mod acpi;
mod bzimage;
mod elf;
mod entry;
mod error;
mod extract;
mod lz4;
mod pvh;

use std::fs::File;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress};

pub use entry::Entry;
pub use error::{Error, Result};
pub use extract::extract_vmlinux;

use crate::devices::power::{RESET_PORT, RESET_VALUE};
use crate::memory::{Memory, Ram, layout};

/// Bytes of a command line kernels for x86 take, with the zero at its end.
const COMMAND_LINE_MAX: usize = 2048;
/// Kernels believe an initramfs only below 2 GiB.
const INITRAMFS_END: u64 = 0x8000_0000;
/// Bytes copied at once.
const COPY: usize = 1 << 20;

/// What to boot.
pub struct Boot<'a> {
    /// A bzImage or an ELF file.
    pub kernel: &'a [u8],
    /// Its initial file system.
    pub initramfs: Option<&'a File>,
    /// Its command line.
    pub command_line: &'a str,
    /// What the ACPI tables say.
    pub acpi: acpi::Machine,
}

/// Loads everything into memory that holds nothing but zeroes, and says where the first vCPU begins.
pub fn load(memory: &Memory, boot: &Boot<'_>) -> Result<Entry> {
    let mut layout = Layout::new(memory.ram(), memory.size());
    if let Some(file) = boot.initramfs {
        layout.initramfs = Some(load_initramfs(&layout, file)?);
    }
    write_command_line(memory.ram(), boot.command_line)?;
    acpi::write(memory, &boot.acpi)?;
    let entry = match extract_vmlinux(boot.kernel) {
        Ok(image) => {
            let kernel = elf::load(&layout, &image)?;
            if let Some(address) = kernel.pvh_entry {
                pvh::write_start_info(&layout)?;
                Entry::Pvh(address)
            } else {
                bzimage::write_zero_page(&layout, None)?;
                Entry::Long(kernel.entry)
            }
        }
        Err(unpack @ Error::Payload(_)) => {
            let (address, _) = bzimage::load(&layout, boot.kernel).map_err(|error| match error {
                Error::Unsupported(_) => unpack,
                other => other,
            })?;
            bzimage::write_zero_page(&layout, Some(boot.kernel))?;
            Entry::Long(address)
        }
        Err(error) => return Err(error),
    };
    entry::write_tables(memory.ram())?;
    write_reset_vector(memory.ram())?;
    Ok(entry)
}

/// What a piece of the physical address space is, for a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MemoryKind {
    Ram,
    Reserved,
    Acpi,
}

/// A machine's memory while it is filled.
struct Layout<'a> {
    memory: &'a Ram,
    size: u64,
    /// Where the initramfs is.
    initramfs: Option<(u64, u64)>,
}

impl<'a> Layout<'a> {
    fn new(memory: &'a Ram, size: u64) -> Self {
        Self {
            memory,
            size,
            initramfs: None,
        }
    }

    /// Checks that a piece of the kernel lies in low RAM and not in the initramfs. Returns its end.
    fn take(&self, what: &'static str, start: u64, size: u64) -> Result<u64> {
        let low_end = self.size.min(layout::LOW_RAM_END);
        let limit = self.initramfs.map_or(low_end, |(start, _)| start);
        let end = start.checked_add(size).filter(|end| *end <= limit);
        end.ok_or(Error::TooSmall {
            what,
            end: start.saturating_add(size),
            memory: self.size >> 20,
        })
    }

    /// Start, length and kind of what the kernel is told of.
    fn memory_map(&self) -> Vec<(u64, u64, MemoryKind)> {
        let low_end = self.size.min(layout::LOW_RAM_END);
        let mut map = vec![
            (0, layout::LOW_MEMORY_END, MemoryKind::Ram),
            (
                layout::ACPI_START,
                layout::HIGH_MEMORY_START - layout::ACPI_START,
                MemoryKind::Acpi,
            ),
            (
                layout::HIGH_MEMORY_START,
                low_end - layout::HIGH_MEMORY_START,
                MemoryKind::Ram,
            ),
            (
                layout::PCI_ECAM_START,
                layout::PCI_ECAM_SIZE,
                MemoryKind::Reserved,
            ),
        ];
        if let Some((start, size)) = layout::ram_ranges(self.size).get(1) {
            map.push((*start, *size, MemoryKind::Ram));
        }
        map
    }
}

/// Puts the initramfs as high as it may be. Returns where it begins, and its length.
fn load_initramfs(layout: &Layout<'_>, file: &File) -> Result<(u64, u64)> {
    let failed = |source| Error::Read {
        what: "the initramfs",
        source,
    };
    let size = file.metadata().map_err(failed)?.len();
    let limit = layout.size.min(layout::LOW_RAM_END).min(INITRAMFS_END);
    let start = limit
        .checked_sub(size)
        .map(|start| start & !(layout::PAGE_SIZE - 1));
    let start = start
        .filter(|start| *start > layout::HIGH_MEMORY_START)
        .ok_or(Error::TooSmall {
            what: "the initramfs",
            end: layout::HIGH_MEMORY_START.saturating_add(size),
            memory: layout.size >> 20,
        })?;
    let mut buffer = vec![0; COPY];
    let mut done = 0;
    while done < size {
        let read = match file.read_at(&mut buffer, done) {
            // It has become shorter: zeroes are the end of an archive.
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        let length = usize::try_from(size - done).unwrap_or(read).min(read);
        layout
            .memory
            .write_slice(&buffer[..length], GuestAddress(start + done))?;
        done += length as u64;
    }
    Ok((start, size))
}

/// Code that resets the machine. Kernels that know no better way leave for real mode and jump to the reset vector: Linux on
/// hardware-reduced ACPI does so first of all, because it believes that such machines have EFI.
fn write_reset_vector(memory: &Ram) -> Result<()> {
    let [low, high] = RESET_PORT.to_le_bytes();
    // mov dx, RESET_PORT; mov al, RESET_VALUE; out dx, al; hlt; jmp to the hlt
    let code = [0xba, low, high, 0xb0, RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd];
    memory.write_slice(&code, GuestAddress(layout::RESET_VECTOR))?;
    Ok(())
}

fn write_command_line(memory: &Ram, line: &str) -> Result<()> {
    if line.len() >= COMMAND_LINE_MAX {
        return Err(Error::CommandLine(format!("{} bytes", line.len())));
    }
    if line.bytes().any(|byte| byte == 0) {
        return Err(Error::CommandLine("a zero in it".to_owned()));
    }
    memory.write_slice(line.as_bytes(), GuestAddress(layout::COMMAND_LINE))?;
    memory.write_obj(0_u8, GuestAddress(layout::COMMAND_LINE + line.len() as u64))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accel::VcpuState;
    use std::io::Write;

    fn boot<'a>(kernel: &'a [u8], initramfs: Option<&'a File>, command_line: &'a str) -> Boot<'a> {
        Boot {
            kernel,
            initramfs,
            command_line,
            acpi: acpi::Machine {
                vcpus: 2,
                hotplug_slots: None,
            },
        }
    }

    fn word(memory: &Memory, at: u64) -> u64 {
        memory.ram().read_obj(GuestAddress(at)).unwrap()
    }

    #[test]
    fn a_pvh_kernel_finds_what_it_needs() {
        let memory = Memory::new(8 << 20).unwrap();
        let kernel = elf::tests::kernel(b"code", true);
        let mut initramfs = tempfile::tempfile().unwrap();
        initramfs.write_all(&[5; 5000]).unwrap();
        let entry = load(&memory, &boot(&kernel, Some(&initramfs), "console=ttyS0 quiet")).unwrap();
        assert_eq!(entry, Entry::Pvh(0x10_0001));
        let info = layout::PVH_START_INFO;
        assert_eq!(word(&memory, info) & 0xffff_ffff, 0x336e_c578);
        let module = word(&memory, info + 16);
        assert_eq!(word(&memory, module), (8 << 20) - 8192);
        assert_eq!(word(&memory, module + 8), 5000);
        assert_eq!(
            memory
                .ram()
                .read_obj::<u8>(GuestAddress((8 << 20) - 8192 + 4999))
                .unwrap(),
            5
        );
        let mut line = [0; 20];
        memory
            .ram()
            .read_slice(&mut line, GuestAddress(word(&memory, info + 24)))
            .unwrap();
        assert_eq!(line, *b"console=ttyS0 quiet\0");
        assert_eq!(
            word(&memory, word(&memory, info + 32)),
            u64::from_le_bytes(*b"RSD PTR ")
        );
        let mut state = VcpuState::sample();
        entry.apply(&mut state);
        assert_eq!(state.registers.rip, 0x10_0001);
        assert_eq!(state.registers.gpr[3], info);
        assert_eq!(state.registers.cr0 & 0x8000_0001, 1);
    }

    #[test]
    fn a_kernel_without_pvh_is_entered_in_long_mode() {
        let memory = Memory::new(8 << 20).unwrap();
        let kernel = elf::tests::kernel(b"code", false);
        let entry = load(&memory, &boot(&kernel, None, "")).unwrap();
        assert_eq!(entry, Entry::Long(0x10_0000));
        let mut state = VcpuState::sample();
        entry.apply(&mut state);
        assert_eq!(state.registers.gpr[6], layout::ZERO_PAGE);
        assert_eq!(state.registers.cr0 & 0x8000_0001, 0x8000_0001);
        assert_eq!(
            state
                .msrs
                .iter()
                .filter(|(number, _)| *number == 0xc000_0080)
                .count(),
            1
        );
        let count: u8 = memory
            .ram()
            .read_obj(GuestAddress(layout::ZERO_PAGE + 0x1e8))
            .unwrap();
        assert_eq!(count, 4);
        // The page tables map the first 4 GiB onto themselves.
        let cr3 = state.registers.cr3;
        for address in [0_u64, 0x10_0000, 0x7fff_ffff, 0xffff_ffff] {
            let pdpt = word(&memory, cr3) & !0xfff;
            let pd = word(&memory, pdpt + 8 * (address >> 30)) & !0xfff;
            let entry = word(&memory, pd + 8 * (address >> 21 & 0x1ff));
            assert_eq!(entry & 0x83, 0x83);
            assert_eq!(entry & !0x1f_ffff, address & !0x1f_ffff);
        }
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let memory = Memory::new(2 << 20).unwrap();
        let kernel = elf::tests::kernel(b"code", true);
        let mut initramfs = tempfile::tempfile().unwrap();
        initramfs.write_all(&[5; 1 << 20]).unwrap();
        let told = |result: Result<Entry>| result.unwrap_err().to_string();
        assert!(told(load(&memory, &boot(&kernel, Some(&initramfs), ""))).contains("initramfs"));
        initramfs.set_len((1 << 20) - 4096).unwrap();
        assert!(told(load(&memory, &boot(&kernel, Some(&initramfs), ""))).contains("the kernel ends"));
        initramfs.set_len(100).unwrap();
        assert!(load(&memory, &boot(&kernel, Some(&initramfs), "")).is_ok());
        let long = "x".repeat(2048);
        assert!(told(load(&memory, &boot(&kernel, None, &long))).contains("2048 bytes"));
        assert!(told(load(&memory, &boot(&kernel, None, "a\0b"))).contains("zero"));
        assert!(matches!(
            load(&memory, &boot(b"", None, "")),
            Err(Error::NotAKernel)
        ));
    }

    #[test]
    fn the_memory_map_is_all_ram_but_what_is_not() {
        for size in [1 << 20, 256 << 20, layout::LOW_RAM_END + (1 << 30)] {
            let memory = Memory::new(2 << 20).unwrap();
            let map = Layout::new(memory.ram(), size).memory_map();
            for pair in map.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{map:x?}");
            }
            let ram: u64 = map
                .iter()
                .filter(|(_, _, kind)| *kind == MemoryKind::Ram)
                .map(|entry| entry.1)
                .sum();
            assert_eq!(ram, size - layout::HIGH_MEMORY_START + layout::LOW_MEMORY_END);
        }
    }
}
