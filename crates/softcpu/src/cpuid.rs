//! What the processor says it is (SDM volume 2, "CPUID").
//!
//! Vendor, family and model are the host's: programs see one processor, whether they are executed by software or directly. Features are those that
//! this crate executes. The hypervisor's leaves are KVM's, because guests know them best: they bring the paravirtual clock.

use std::arch::x86_64::__cpuid_count;

use crate::state::{Cpu, cr4};

/// State components that XCR0 can have: x87, SSE.
pub(crate) const XCR0: u64 = 3;

mod feature {
    /// Leaf 1, EDX: FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT CLFSH MMX FXSR SSE SSE2.
    pub const ONE_EDX: u32 = 1
        | 1 << 2
        | 1 << 3
        | 1 << 4
        | 1 << 5
        | 1 << 6
        | 1 << 7
        | 1 << 8
        | 1 << 9
        | 1 << 11
        | 1 << 12
        | 1 << 13
        | 1 << 14
        | 1 << 15
        | 1 << 16
        | 1 << 19
        | 1 << 23
        | 1 << 24
        | 1 << 25
        | 1 << 26;
    /// Leaf 1, ECX: CX16 x2APIC MOVBE POPCNT TSC-deadline XSAVE RDRAND hypervisor; then what the host has of SSE.
    pub const ONE_ECX: u32 = 1 << 13 | 1 << 21 | 1 << 22 | 1 << 23 | 1 << 24 | 1 << 26 | 1 << 30 | 1 << 31;
    /// Leaf 7, EBX: FSGSBASE, FDP_EXCPTN_ONLY, SMEP, ERMS, FCS and FDS deprecated, RDSEED.
    pub const SEVEN_EBX: u32 = 1 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 13 | 1 << 18;
    /// Leaf 7, ECX: RDPID.
    pub const SEVEN_ECX: u32 = 1 << 22;
    /// Leaf 7, EDX: FSRM, ARCH_CAPABILITIES.
    pub const SEVEN_EDX: u32 = 1 << 4 | 1 << 29;
    /// Leaf 0x8000_0001, EDX: SYSCALL NX RDTSCP LM, pages of 1 GiB.
    pub const EXTENDED_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;
    /// Leaf 0x8000_0001, ECX: LAHF in 64-bit code, LZCNT.
    pub const EXTENDED_ECX: u32 = 1 | 1 << 5;
}

/// The last leaf of the first range.
const LAST_BASIC: u32 = 0x16;

/// KVM_FEATURE_CLOCKSOURCE2 (bit 3) and KVM_FEATURE_CLOCKSOURCE_STABLE_BIT (bit 24), as Linux' documentation of KVM's CPUID bits has them.
const KVM_FEATURES: u32 = 1 << 3 | 1 << 24;

impl Cpu {
    /// EAX, EBX, ECX, EDX of a leaf.
    pub(crate) fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let host = |leaf| {
            let value = __cpuid_count(leaf, 0);
            [value.eax, value.ebx, value.ecx, value.edx]
        };
        let khz = self.tsc_khz;
        match leaf {
            0 => {
                let [_, ebx, ecx, edx] = host(0);
                [LAST_BASIC, ebx, ecx, edx]
            }
            1 => {
                let [eax, ..] = host(1);
                let mut ecx = feature::ONE_ECX | crate::vector::features();
                if self.cr4 & cr4::OSXSAVE != 0 {
                    ecx |= 1 << 27;
                }
                // One thread per package, CLFLUSH of 64 bytes.
                let ebx = self.index << 24 | 1 << 16 | 8 << 8;
                [eax, ebx, ecx, feature::ONE_EDX]
            }
            // Caches: none described.
            2 => [0x00ff_ff01, 0, 0, 0],
            4 => [0; 4],
            7 if subleaf == 0 => [0, feature::SEVEN_EBX, feature::SEVEN_ECX, feature::SEVEN_EDX],
            // Topology: each processor is a package of its own.
            0xb => match subleaf {
                0 => [0, 1, 0x100, self.index],
                1 => [0, 1, 0x201, self.index],
                _ => [0, 0, subleaf & 0xff, self.index],
            },
            0xd => match subleaf {
                0 => [XCR0 as u32, 576, 576, 0],
                // XSAVEOPT.
                1 => [1, 0, 0, 0],
                _ => [0; 4],
            },
            // The time-stamp counter runs at EBX / EAX times a crystal of ECX hertz.
            0x15 => [1000, khz as u32, 1_000_000, 0],
            0x16 => [(khz / 1000) as u32, (khz / 1000) as u32, 100, 0],
            0x4000_0000 => [
                0x4000_0010,
                u32::from_le_bytes(*b"KVMK"),
                u32::from_le_bytes(*b"VMKV"),
                u32::from_le_bytes(*b"M\0\0\0"),
            ],
            0x4000_0001 => [KVM_FEATURES, 0, 0, 0],
            0x4000_0010 => [khz as u32, 1_000_000, 0, 0],
            0x8000_0000 => {
                let [_, ebx, ecx, edx] = host(0x8000_0000);
                [0x8000_0008, ebx, ecx, edx]
            }
            0x8000_0001 => [0, 0, feature::EXTENDED_ECX, feature::EXTENDED_EDX],
            0x8000_0002..=0x8000_0004 => brand(leaf),
            // The time-stamp counter does not stop or change.
            0x8000_0007 => [0, 0, 0, 1 << 8],
            0x8000_0008 => [crate::mmu::PHYSICAL_BITS | 48 << 8, 0, 0, 0],
            _ => [0; 4],
        }
    }
}

fn brand(leaf: u32) -> [u32; 4] {
    let mut name = [0_u8; 48];
    let text = b"Vessel software processor";
    name[..text.len()].copy_from_slice(text);
    let at = (leaf - 0x8000_0002) as usize * 16;
    std::array::from_fn(|word| {
        let at = at + word * 4;
        u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]])
    })
}
