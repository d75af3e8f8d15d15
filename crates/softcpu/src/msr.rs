//! Model-specific registers (SDM volume 4).

use crate::exception::Fault;
use crate::state::{Cpu, cr0, efer, seg};

pub(crate) mod number {
    pub const PLATFORM_ID: u32 = 0x17;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const BIOS_SIGN: u32 = 0x8b;
    pub const MTRR_CAP: u32 = 0xfe;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const PERF_STATUS: u32 = 0x198;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const MTRR_FIRST: u32 = 0x200;
    pub const MTRR_LAST: u32 = 0x26f;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEFAULT: u32 = 0x2ff;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

/// Those that are part of a saved state and that the environment does not keep.
pub(crate) const SAVED: [u32; 17] = [
    number::SYSENTER_CS,
    number::SYSENTER_ESP,
    number::SYSENTER_EIP,
    number::MISC_ENABLE,
    number::PAT,
    number::MTRR_DEFAULT,
    number::EFER,
    number::STAR,
    number::LSTAR,
    number::CSTAR,
    number::SFMASK,
    number::FS_BASE,
    number::GS_BASE,
    number::KERNEL_GS_BASE,
    number::TSC_AUX,
    number::BIOS_SIGN,
    number::MCG_STATUS,
];

/// What the speculative faults of real processors are not: a software processor has none of them, and a guest need not work around them (RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY,
/// SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO).
const CAPABILITIES: u64 = 1
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27;

impl Cpu {
    /// Reads a register; #GP(0) when there is none.
    pub(crate) fn rdmsr(&mut self, register: u32) -> Result<u64, Fault> {
        match self.own_msr(register) {
            Some(value) => Ok(value),
            None => match self.with_environment(|environment| environment.read_msr(register)) {
                Some(value) => Ok(value),
                None => Err(self.protection()),
            },
        }
    }

    /// The value of a register that the processor keeps itself.
    pub(crate) fn own_msr(&self, register: u32) -> Option<u64> {
        Some(match register {
            number::EFER => self.efer,
            number::STAR => self.msrs.star,
            number::LSTAR => self.msrs.lstar,
            number::CSTAR => self.msrs.cstar,
            number::SFMASK => self.msrs.sfmask,
            number::FS_BASE => self.segments[seg::FS].base,
            number::GS_BASE => self.segments[seg::GS].base,
            number::KERNEL_GS_BASE => self.msrs.kernel_gs_base,
            number::TSC_AUX => self.msrs.tsc_aux,
            number::SYSENTER_CS => self.msrs.sysenter_cs,
            number::SYSENTER_ESP => self.msrs.sysenter_esp,
            number::SYSENTER_EIP => self.msrs.sysenter_eip,
            number::PAT => self.msrs.pat,
            number::MISC_ENABLE => self.msrs.misc_enable,
            number::MTRR_DEFAULT => self.msrs.mtrr_default,
            number::ARCH_CAPABILITIES => CAPABILITIES,
            // A microcode new enough for whatever a guest asks of it.
            number::BIOS_SIGN => 0xffff_ffff_0000_0000,
            // Locked, nothing enabled.
            number::FEATURE_CONTROL => 1,
            // MTRRs are there and hold nothing.
            number::MTRR_CAP => 0x500,
            number::MTRR_FIRST..=number::MTRR_LAST => 0,
            number::SPEC_CTRL
            | number::PLATFORM_ID
            | number::MCG_CAP
            | number::MCG_STATUS
            | number::PERF_STATUS => 0,
            _ => return None,
        })
    }

    /// Writes a register; #GP(0) when there is none or the value is wrong.
    pub(crate) fn wrmsr(&mut self, register: u32, value: u64) -> Result<(), Fault> {
        match self.set_own_msr(register, value) {
            Some(true) => Ok(()),
            Some(false) => Err(self.protection()),
            None => {
                // A write to the local APIC can let an interrupt through.
                self.interrupt_waits = true;
                if self.with_environment(|environment| environment.write_msr(register, value)) {
                    Ok(())
                } else {
                    Err(self.protection())
                }
            }
        }
    }

    /// Writes a register that the processor keeps itself: whether the value is right.
    pub(crate) fn set_own_msr(&mut self, register: u32, value: u64) -> Option<bool> {
        let address = matches!(
            register,
            number::LSTAR
                | number::CSTAR
                | number::FS_BASE
                | number::GS_BASE
                | number::KERNEL_GS_BASE
                | number::SYSENTER_ESP
                | number::SYSENTER_EIP
        );
        if address && !self.canonical(value) {
            return Some(false);
        }
        match register {
            number::EFER => {
                const KNOWN: u64 = efer::SCE | efer::LME | efer::LMA | efer::NXE;
                if value & !KNOWN != 0 || (self.cr0 & cr0::PG != 0 && (value ^ self.efer) & efer::LME != 0) {
                    return Some(false);
                }
                let was = self.efer;
                self.efer = value & !efer::LMA | was & efer::LMA;
                if (was ^ value) & efer::NXE != 0 {
                    self.mmu.flush();
                }
                self.update_mode();
            }
            number::STAR => self.msrs.star = value,
            number::LSTAR => self.msrs.lstar = value,
            number::CSTAR => self.msrs.cstar = value,
            number::SFMASK => self.msrs.sfmask = value & 0xffff_ffff,
            number::FS_BASE => self.segments[seg::FS].base = value,
            number::GS_BASE => self.segments[seg::GS].base = value,
            number::KERNEL_GS_BASE => self.msrs.kernel_gs_base = value,
            number::TSC_AUX => self.msrs.tsc_aux = value & 0xffff_ffff,
            number::SYSENTER_CS => self.msrs.sysenter_cs = value & 0xffff_ffff,
            number::SYSENTER_ESP => self.msrs.sysenter_esp = value,
            number::SYSENTER_EIP => self.msrs.sysenter_eip = value,
            number::PAT => {
                let wrong = value
                    .to_le_bytes()
                    .iter()
                    .any(|kind| !matches!(kind, 0 | 1 | 4..=7));
                if wrong {
                    return Some(false);
                }
                self.msrs.pat = value;
            }
            number::MISC_ENABLE => self.msrs.misc_enable = value,
            number::MTRR_DEFAULT => self.msrs.mtrr_default = value & 0xcff,
            number::MTRR_FIRST..=number::MTRR_LAST
            | number::BIOS_SIGN
            | number::SPEC_CTRL
            | number::MCG_STATUS => {}
            number::ARCH_CAPABILITIES
            | number::MTRR_CAP
            | number::MCG_CAP
            | number::PLATFORM_ID
            | number::FEATURE_CONTROL
            | number::PERF_STATUS => return Some(false),
            _ => return None,
        }
        Some(true)
    }
}
