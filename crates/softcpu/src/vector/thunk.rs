//! Pieces of code that execute one vector or floating-point instruction on registers and memory that the handler names.
//!
//! A piece is a function of the System V ABI, [`Thunk`]: first operand, second operand (pointers), [`Frame`]. General registers become RAX, vector registers
//! XMM0 or MM0 (first operand) and XMM1 or MM1 (second), memory `[rdi]` or `[rsi]`; instructions with XMM0 as a hidden operand have one register more each.

use iced_x86::{Encoder, Instruction, Mnemonic, OpKind, Register};

use super::arena;

/// MXCSR of Rust code.
const HOST_MXCSR: u32 = 0x1f80;

/// What a piece needs and gives beyond its operands.
#[repr(C, align(16))]
pub(crate) struct Frame {
    /// What the first operand becomes.
    pub result: [u8; 16],
    pub flags: u64,
    pub rax: u64,
    pub rdx: u64,
    pub rcx: u64,
    /// MXCSR before, with all exceptions masked.
    pub before: u32,
    /// MXCSR after.
    pub after: u32,
    host: u32,
}

impl Frame {
    pub(crate) fn new() -> Self {
        Self {
            result: [0; 16],
            flags: 0,
            rax: 0,
            rdx: 0,
            rcx: 0,
            before: HOST_MXCSR,
            after: 0,
            host: HOST_MXCSR,
        }
    }
}

/// Offsets in [`Frame`].
mod at {
    pub const RESULT: u8 = 0;
    pub const FLAGS: u8 = 16;
    pub const RAX: u8 = 24;
    pub const RDX: u8 = 32;
    pub const RCX: u8 = 40;
    pub const BEFORE: u8 = 48;
    pub const AFTER: u8 = 52;
    pub const HOST: u8 = 56;
}

/// What is in the arena. `blendvps` and its like have a pointer to XMM0 in place of the frame.
pub(crate) type Thunk = unsafe extern "sysv64" fn(*mut u8, *const u8, *mut u8);

/// What an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    /// A register of 16 bytes, its number.
    Xmm(u8),
    /// A register of 8 bytes.
    Mm(u8),
    /// A general register of so many bytes.
    General(u8, u8),
    Memory,
    /// There is none (or an immediate, which is part of the code).
    None,
}

impl Operand {
    pub(crate) fn of(instruction: &Instruction, operand: u32) -> Option<Self> {
        if operand >= instruction.op_count() {
            return Some(Self::None);
        }
        Some(match instruction.op_kind(operand) {
            OpKind::Register => {
                let register = instruction.op_register(operand);
                if register.is_xmm() {
                    Self::Xmm((register as u32 - Register::XMM0 as u32) as u8)
                } else if register.is_mm() {
                    Self::Mm((register as u32 - Register::MM0 as u32) as u8)
                } else if register.is_gpr() {
                    Self::General(crate::decode::number(register), register.size() as u8)
                } else {
                    return None;
                }
            }
            OpKind::Memory => Self::Memory,
            OpKind::Immediate8 => Self::None,
            _ => return None,
        })
    }
}

/// What else an instruction does.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traits {
    /// It depends on MXCSR and sets its flags.
    pub mxcsr: bool,
    /// It sets RFLAGS.
    pub flags: bool,
    /// XMM0 is a third operand.
    pub blend: bool,
    /// RAX and RDX go in, RCX or XMM0 and RFLAGS come out.
    pub text: bool,
}

impl Traits {
    /// Whether the result goes to the frame, because the instruction may come to nothing or has several results.
    pub(crate) fn framed(self) -> bool {
        self.mxcsr || self.flags || self.text
    }
}

/// An instruction's encoding with its operands replaced.
fn encode(instruction: &Instruction, registers: [Option<Register>; 2], base: Register) -> Option<Vec<u8>> {
    let mut changed = *instruction;
    for (operand, register) in (0_u32..).zip(registers) {
        if let Some(register) = register {
            changed.set_op_register(operand, register);
        }
    }
    if (0..changed.op_count()).any(|operand| changed.op_kind(operand) == OpKind::Memory) {
        changed.set_memory_base(base);
        changed.set_memory_index(Register::None);
        changed.set_memory_index_scale(1);
        changed.set_memory_displ_size(0);
        changed.set_memory_displacement64(0);
    }
    changed.set_segment_prefix(Register::None);
    let mut encoder = Encoder::new(64);
    encoder.encode(&changed, 0).ok()?;
    Some(encoder.take_buffer())
}

/// The piece for an SSE or MMX instruction.
pub(crate) fn vector(
    instruction: &Instruction,
    first: Operand,
    second: Operand,
    traits: Traits,
) -> Option<usize> {
    // XMM0 is taken by the hidden operand.
    let hidden = traits.blend || traits.text;
    let general = |size: u8| match size {
        8 => Register::RAX,
        4 => Register::EAX,
        _ => Register::AX,
    };
    let mut code = Vec::with_capacity(64);
    let one = match first {
        Operand::Xmm(_) if hidden => {
            code.extend_from_slice(&[0x0f, 0x10, 0x0f]); // movups xmm1, [rdi]
            Some(Register::XMM1)
        }
        Operand::Xmm(_) => {
            code.extend_from_slice(&[0x0f, 0x10, 0x07]); // movups xmm0, [rdi]
            Some(Register::XMM0)
        }
        Operand::Mm(_) => {
            code.extend_from_slice(&[0x0f, 0x6f, 0x07]); // movq mm0, [rdi]
            Some(Register::MM0)
        }
        // Never read.
        Operand::General(_, size) => Some(general(size)),
        Operand::Memory | Operand::None => None,
    };
    let two = match second {
        Operand::Xmm(_) if hidden => {
            code.extend_from_slice(&[0x0f, 0x10, 0x16]); // movups xmm2, [rsi]
            Some(Register::XMM2)
        }
        Operand::Xmm(_) => {
            code.extend_from_slice(&[0x0f, 0x10, 0x0e]); // movups xmm1, [rsi]
            Some(Register::XMM1)
        }
        Operand::Mm(_) => {
            code.extend_from_slice(&[0x0f, 0x6f, 0x0e]); // movq mm1, [rsi]
            Some(Register::MM1)
        }
        Operand::General(_, size) => {
            code.extend_from_slice(&[0x48, 0x8b, 0x06]); // mov rax, [rsi]
            Some(general(size))
        }
        Operand::Memory | Operand::None => None,
    };
    if traits.blend {
        code.extend_from_slice(&[0x0f, 0x10, 0x02]); // movups xmm0, [rdx]
    }
    if traits.text {
        code.extend_from_slice(&[0x49, 0x89, 0xd2]); // mov r10, rdx
        code.extend_from_slice(&[0x49, 0x8b, 0x42, at::RAX]); // mov rax, [r10 + ..]
        code.extend_from_slice(&[0x49, 0x8b, 0x52, at::RDX]); // mov rdx, [r10 + ..]
    }
    if traits.mxcsr {
        code.extend_from_slice(&[0x0f, 0xae, 0x52, at::BEFORE]); // ldmxcsr [rdx + ..]
    }
    let base = if first == Operand::Memory {
        Register::RDI
    } else {
        Register::RSI
    };
    code.extend(encode(instruction, [one, two], base)?);
    if traits.text {
        code.extend_from_slice(&[0x9c, 0x58]); // pushfq; pop rax
        code.extend_from_slice(&[0x49, 0x89, 0x42, at::FLAGS]); // mov [r10 + ..], rax
        code.extend_from_slice(&[0x49, 0x89, 0x4a, at::RCX]); // mov [r10 + ..], rcx
        code.extend_from_slice(&[0x41, 0x0f, 0x11, 0x42, at::RESULT]); // movups [r10 + ..], xmm0
        code.push(0xc3);
        return arena::put(&code);
    }
    if traits.flags {
        code.extend_from_slice(&[0x9c, 0x59]); // pushfq; pop rcx
        code.extend_from_slice(&[0x48, 0x89, 0x4a, at::FLAGS]); // mov [rdx + ..], rcx
    }
    if traits.mxcsr {
        code.extend_from_slice(&[0x0f, 0xae, 0x5a, at::AFTER]); // stmxcsr [rdx + ..]
        code.extend_from_slice(&[0x0f, 0xae, 0x52, at::HOST]); // ldmxcsr [rdx + ..]
    }
    match (first, traits.framed()) {
        (Operand::Xmm(_), false) if hidden => code.extend_from_slice(&[0x0f, 0x11, 0x0f]), // movups [rdi], xmm1
        (Operand::Xmm(_), false) => code.extend_from_slice(&[0x0f, 0x11, 0x07]), // movups [rdi], xmm0
        (Operand::Xmm(_), true) => code.extend_from_slice(&[0x0f, 0x11, 0x42, at::RESULT]), // movups [rdx + ..], xmm0
        (Operand::Mm(_), false) => code.extend_from_slice(&[0x0f, 0x7f, 0x07]),             // movq [rdi], mm0
        (Operand::Mm(_), true) => code.extend_from_slice(&[0x0f, 0x7f, 0x42, at::RESULT]), // movq [rdx + ..], mm0
        (Operand::General(..), false) => code.extend_from_slice(&[0x48, 0x89, 0x07]),      // mov [rdi], rax
        (Operand::General(..), true) => code.extend_from_slice(&[0x48, 0x89, 0x42, at::RESULT]), // mov [rdx + ..], rax
        (Operand::Memory | Operand::None, _) => {}
    }
    if matches!(first, Operand::Mm(_))
        || matches!(second, Operand::Mm(_))
        || touches_mmx(instruction.mnemonic())
    {
        code.extend_from_slice(&[0x0f, 0x77]); // emms
    }
    code.push(0xc3);
    arena::put(&code)
}

/// Instructions that may put the host's x87 into MMX mode without an MMX register among their operands.
fn touches_mmx(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd)
}

/// The piece for an x87 instruction: the first operand is the `fxsave` image, the second its memory operand.
pub(crate) fn x87(instruction: &Instruction) -> Option<usize> {
    let mut code = vec![0x48, 0x0f, 0xae, 0x0f]; // fxrstor64 [rdi]
    code.extend_from_slice(&[0xff, 0x72, at::FLAGS, 0x9d]); // push [rdx + ..]; popfq
    code.extend(encode(instruction, [None, None], Register::RSI)?);
    code.extend_from_slice(&[0x9c, 0x59]); // pushfq; pop rcx
    code.extend_from_slice(&[0x48, 0x89, 0x4a, at::FLAGS]); // mov [rdx + ..], rcx
    code.extend_from_slice(&[0x48, 0x0f, 0xae, 0x07]); // fxsave64 [rdi]
    code.extend_from_slice(&[0xdb, 0xe3]); // fninit
    code.extend_from_slice(&[0x0f, 0xae, 0x52, at::HOST]); // ldmxcsr [rdx + ..]
    code.push(0xc3);
    arena::put(&code)
}
