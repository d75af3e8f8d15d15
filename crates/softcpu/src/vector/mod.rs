//! x87, MMX and SSE instructions: each is executed as itself, on the guest's registers.
//!
//! The guest's registers are an `fxsave` image ([`crate::state::ExtendedState`]). An instruction is encoded once more with fixed registers (`thunk`) into
//! executable memory (`arena`); its handler (`sse`, `x87`) finds the operands, calls it, and looks at what came of it: exceptions are masked on the host and
//! raised here where the guest has not masked them. Loads, stores and moves have handlers without such a call (`moves`). `save` has the
//! instructions that store and load the whole state.
//!
//! What is not offered (VEX and EVEX encodings, SSE4A, 3DNow!, SHA, whatever the host does not have) is #UD.

mod arena;
mod moves;
mod save;
mod sse;
mod thunk;
mod x87;

use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic};

use crate::exception::{Fault, vector};
use crate::op::{Handler, Op};
use crate::state::{Cpu, ExtendedState, cr0, mode};

pub(crate) use arena::prepare;
pub(crate) use x87::wait;

/// Whether this host executes what a feature means. Those without an entry are never offered.
fn on_host(feature: CpuidFeature) -> bool {
    use std::arch::is_x86_feature_detected as detected;
    match feature {
        // Part of the 64-bit architecture.
        CpuidFeature::FPU
        | CpuidFeature::FPU287
        | CpuidFeature::FPU287XL_ONLY
        | CpuidFeature::FPU387
        | CpuidFeature::CMOV
        | CpuidFeature::MMX
        | CpuidFeature::SSE
        | CpuidFeature::SSE2
        | CpuidFeature::FXSR => true,
        // Done in software.
        CpuidFeature::XSAVE | CpuidFeature::XSAVEOPT => true,
        CpuidFeature::SSE3 => detected!("sse3"),
        CpuidFeature::SSSE3 => detected!("ssse3"),
        CpuidFeature::SSE4_1 => detected!("sse4.1"),
        CpuidFeature::SSE4_2 => detected!("sse4.2"),
        CpuidFeature::PCLMULQDQ => detected!("pclmulqdq"),
        CpuidFeature::AES => detected!("aes"),
        _ => false,
    }
}

/// The bits of CPUID leaf 1, ECX that depend on the host: SSE3, PCLMULQDQ, SSSE3, SSE4.1, SSE4.2, AES.
pub(crate) fn features() -> u32 {
    [
        (0, CpuidFeature::SSE3),
        (1, CpuidFeature::PCLMULQDQ),
        (9, CpuidFeature::SSSE3),
        (19, CpuidFeature::SSE4_1),
        (20, CpuidFeature::SSE4_2),
        (25, CpuidFeature::AES),
    ]
    .into_iter()
    .filter(|&(_, feature)| on_host(feature))
    .fold(0, |bits, (bit, _)| bits | 1 << bit)
}

/// What must be so for an instruction to be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    X87,
    /// MMX, also together with SSE registers.
    Mmx,
    Sse,
}

/// The handler of a vector or floating-point instruction, with `op` filled in.
pub(crate) fn lower(instruction: &Instruction, op: &mut Op, mode: u8) -> Option<Handler> {
    use Mnemonic as M;
    let features = instruction.cpuid_features();
    if instruction.encoding() != EncodingKind::Legacy || !features.iter().all(|&feature| on_host(feature)) {
        return None;
    }
    let x87 = instruction.mnemonic() == M::Fisttp
        || features.iter().any(|&feature| {
            matches!(
                feature,
                CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU287XL_ONLY | CpuidFeature::FPU387
            )
        });
    let (group, handler) = match instruction.mnemonic() {
        // They look at the control registers themselves.
        M::Fxsave | M::Fxsave64 => {
            op.extra = u16::from(instruction.mnemonic() == M::Fxsave64);
            return Some(save::fxsave);
        }
        M::Fxrstor | M::Fxrstor64 => {
            op.extra = u16::from(instruction.mnemonic() == M::Fxrstor64);
            return Some(save::fxrstor);
        }
        M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 => {
            op.extra = u16::from(matches!(instruction.mnemonic(), M::Xsave64 | M::Xsaveopt64));
            return Some(save::xsave);
        }
        M::Xrstor | M::Xrstor64 => {
            op.extra = u16::from(instruction.mnemonic() == M::Xrstor64);
            return Some(save::xrstor);
        }
        // No vector register: neither TS nor EM matter.
        M::Movnti => {
            let bytes = instruction.memory_size().size() as u64;
            return Some(crate::exec::moves::mov(
                true,
                crate::exec::moves::Kind::Reg,
                bytes,
            ));
        }
        M::Ldmxcsr => (Group::Sse, save::load_mxcsr as Handler),
        M::Stmxcsr => (Group::Sse, save::store_mxcsr as Handler),
        _ if x87 => (Group::X87, x87::lower(instruction, op)?),
        _ => sse::lower(instruction, op, mode)?,
    };
    Some(match group {
        _ if mode & (mode::NO_FPU | mode::NO_SSE) == 0 => handler,
        Group::Sse => sse::refused,
        _ if mode & mode::NO_FPU == 0 => handler,
        Group::X87 => crate::exec::no_device,
        Group::Mmx => sse::refused_mmx,
    })
}

/// Parts of the `fxsave` image.
impl ExtendedState {
    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.legacy[at], self.legacy[at + 1]])
    }

    fn set_word(&mut self, at: usize, value: u16) {
        self.legacy[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn control_word(&self) -> u16 {
        self.word(0)
    }

    fn status_word(&self) -> u16 {
        self.word(2)
    }

    pub(crate) fn mxcsr(&self) -> u32 {
        u32::from(self.word(24)) | u32::from(self.word(26)) << 16
    }

    /// Bits above 15 must be clear.
    fn set_mxcsr(&mut self, value: u32) {
        self.legacy[24..28].copy_from_slice(&value.to_le_bytes());
    }

    /// Whether an x87 exception is pending that is not masked.
    fn x87_pending(&self) -> bool {
        self.status_word() & !self.control_word() & 0x3f != 0
    }

    /// Makes the top of the x87 stack zero; registers stay, so that they have other numbers in the image.
    fn clear_top(&mut self) {
        let status = self.status_word();
        let top = usize::from(status >> 11 & 7);
        if top != 0 {
            // ST(i) is register (top + i) mod 8.
            self.legacy[32..160].rotate_right(16 * top);
            self.set_word(2, status & !0x3800);
        }
    }

    /// What `fninit` does: registers stay as they are, though all of them are empty.
    fn initialize_x87(&mut self) {
        self.clear_top();
        self.legacy[..24].fill(0);
        self.set_word(0, 0x037f);
    }
}

impl Cpu {
    /// #MF when an x87 exception is pending: before every x87 and MMX instruction but those that do not wait.
    #[inline(always)]
    fn check_x87(&mut self) -> Result<(), Fault> {
        if self.extended.x87_pending() {
            Err(self.raise(vector::MF))
        } else {
            Ok(())
        }
    }

    /// #NM while CR0.TS is set.
    fn check_switched(&mut self) -> Result<(), Fault> {
        if self.cr0 & cr0::TS != 0 {
            Err(self.raise(vector::NM))
        } else {
            Ok(())
        }
    }
}

/// Registers of the image: a pointer to one by its number in units of 16 bytes.
const XMM: u8 = 10;
const ST: u8 = 2;

#[inline(always)]
fn register(cpu: &mut Cpu, number: u8) -> *mut u8 {
    debug_assert!(number < 26);
    // SAFETY: `lower` puts numbers below 26 here; the image has 32 such units.
    unsafe { cpu.extended.legacy.as_mut_ptr().add(usize::from(number) * 16) }
}

/// Sixteen bytes that are aligned.
#[repr(C, align(16))]
struct Buffer([u8; 16]);
