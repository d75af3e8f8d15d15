//! Writing host code: single instructions, labels, the sequences that recur.

use iced_x86::{Code, Encoder, IcedError, Instruction, MemoryOperand, Register};

use Register::{R13, R13D, R14, R14D, R15};

/// A jump whose target is not known yet: where its displacement is.
#[derive(Clone, Copy)]
pub(crate) struct Label(usize);

/// Code being written.
pub(crate) struct Emitter {
    encoder: Encoder,
    /// Where it will be executed.
    base: u64,
    length: usize,
    patches: Vec<(usize, usize)>,
}

/// What was written does not exist as an instruction: the guest's is left to the interpreter.
pub(crate) struct Unencodable;

impl From<IcedError> for Unencodable {
    fn from(_: IcedError) -> Self {
        Self
    }
}

pub(crate) type Emitted<T = ()> = Result<T, Unencodable>;

/// `[base + displacement]`.
pub(crate) fn at(base: Register, displacement: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(base, displacement as i64)
}

/// A field of the `Cpu`.
pub(crate) fn field(displacement: usize) -> MemoryOperand {
    at(R15, displacement)
}

impl Emitter {
    pub(crate) fn new(base: u64) -> Self {
        Self {
            encoder: Encoder::new(64),
            base,
            length: 0,
            patches: vec![],
        }
    }

    pub(crate) fn position(&self) -> usize {
        self.length
    }

    pub(crate) fn push(&mut self, instruction: &Instruction) -> Emitted {
        self.length += self.encoder.encode(instruction, self.base + self.length as u64)?;
        Ok(())
    }

    pub(crate) fn op0(&mut self, code: Code) -> Emitted {
        self.push(&Instruction::with(code))
    }

    pub(crate) fn mov(&mut self, to: Register, from: Register) -> Emitted {
        self.push(&Instruction::with2(Code::Mov_r64_rm64, to, from)?)
    }

    pub(crate) fn load(&mut self, to: Register, from: MemoryOperand) -> Emitted {
        self.push(&Instruction::with2(Code::Mov_r64_rm64, to, from)?)
    }

    pub(crate) fn load32(&mut self, to: Register, from: MemoryOperand) -> Emitted {
        self.push(&Instruction::with2(Code::Mov_r32_rm32, to, from)?)
    }

    pub(crate) fn store(&mut self, to: MemoryOperand, from: Register) -> Emitted {
        self.push(&Instruction::with2(Code::Mov_rm64_r64, to, from)?)
    }

    pub(crate) fn lea(&mut self, to: Register, from: MemoryOperand) -> Emitted {
        self.push(&Instruction::with2(Code::Lea_r64_m, to, from)?)
    }

    /// A constant, in as few bytes as it takes. Leaves flags alone.
    pub(crate) fn constant(&mut self, to: Register, value: u64) -> Emitted {
        if let Ok(value) = i32::try_from(value as i64) {
            return self.push(&Instruction::with2(Code::Mov_rm64_imm32, to, value)?);
        }
        self.push(&Instruction::with2(Code::Mov_r64_imm64, to, value)?)
    }

    /// Adds `value` to a 64-bit field of the `Cpu`. Clobbers flags.
    pub(crate) fn add_to_field(&mut self, displacement: usize, value: i32) -> Emitted {
        self.push(&Instruction::with2(
            Code::Add_rm64_imm32,
            field(displacement),
            value,
        )?)
    }

    /// A jump (`Jmp_rel32_64`, `Jne_rel32_64`, ...) to where [`Emitter::bind`] will say.
    pub(crate) fn jump(&mut self, code: Code) -> Emitted<Label> {
        let here = self.base + self.length as u64;
        self.push(&Instruction::with_branch(code, here)?)?;
        Ok(Label(self.length - 4))
    }

    /// The offset of the displacement of a jump.
    pub(crate) fn displacement(label: Label) -> usize {
        label.0
    }

    /// Makes a jump come here.
    pub(crate) fn bind(&mut self, label: Label) {
        self.patches.push((label.0, self.length));
    }

    /// A jump back (or forth) to a position.
    pub(crate) fn jump_to(&mut self, code: Code, position: usize) -> Emitted {
        let label = self.jump(code)?;
        self.patches.push((label.0, position));
        Ok(())
    }

    /// Calls or jumps to an address in a field of the `Cpu`.
    pub(crate) fn through(&mut self, code: Code, displacement: usize) -> Emitted {
        self.push(&Instruction::with1(code, field(displacement))?)
    }

    /// Everything written, with jumps bound.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let mut code = self.encoder.take_buffer();
        for (at, target) in self.patches {
            let displacement = (target as i64 - (at as i64 + 4)) as i32;
            code[at..at + 4].copy_from_slice(&displacement.to_le_bytes());
        }
        code
    }

    /// R13, holding a linear address, becomes the place in this process where `bytes` bytes of it are, or the code goes on at the label with `R13` as it was. Clobbers R14 and flags.
    /// `table` is the translation buffer in the `Cpu`, `tag` the wanted right's place in an entry.
    pub(crate) fn translate(&mut self, table: usize, tag: usize, bytes: u32) -> Emitted<Label> {
        const ENTRY: u32 = size_of::<crate::mmu::Entry>() as u32;
        const MASK: i32 = ((crate::mmu::ENTRIES as u32 - 1) * ENTRY) as i32;
        let shift = 12 - ENTRY.trailing_zeros();
        let entry = |offset: usize| {
            MemoryOperand::new(R15, R14, 1, (table + offset) as i64, 8, false, Register::None)
        };
        self.mov(R14, R13)?;
        self.push(&Instruction::with2(Code::Shr_rm64_imm8, R14, shift)?)?;
        self.push(&Instruction::with2(Code::And_rm32_imm32, R14D, MASK)?)?;
        self.push(&Instruction::with2(Code::Xor_r64_rm64, R13, entry(tag))?)?;
        self.push(&Instruction::with2(
            Code::Cmp_rm64_imm32,
            R13,
            (4096 - bytes) as i32,
        )?)?;
        let slow = self.jump(Code::Ja_rel32_64)?;
        let host = std::mem::offset_of!(crate::mmu::Entry, host);
        self.push(&Instruction::with2(Code::Add_r64_rm64, R13, entry(host))?)?;
        Ok(slow)
    }

    /// Saves the flags in `Cpu::status`; they stay in the host's, too.
    pub(crate) fn save_flags(&mut self, status: usize) -> Emitted {
        self.op0(Code::Pushfq)?;
        self.push(&Instruction::with1(Code::Pop_rm64, field(status))?)
    }

    /// Makes the host's flags those in `Cpu::status`. Clobbers R13 and R14.
    pub(crate) fn restore_flags(&mut self, status: usize) -> Emitted {
        use Register::{EAX, R13L, RAX};
        self.mov(R14, RAX)?;
        self.load32(R13D, field(status))?;
        self.push(&Instruction::with2(Code::Mov_r32_rm32, EAX, R13D)?)?;
        self.push(&Instruction::with2(Code::Shl_rm32_imm8, EAX, 8)?)?;
        // OF by an addition that overflows when bit 11 was set; the rest by `sahf`, which leaves OF alone.
        self.push(&Instruction::with2(Code::Shr_rm32_imm8, R13D, 11)?)?;
        self.push(&Instruction::with2(Code::And_rm32_imm8, R13D, 1)?)?;
        self.push(&Instruction::with2(Code::Add_rm8_imm8, R13L, 0x7f)?)?;
        self.op0(Code::Sahf)?;
        self.mov(RAX, R14)
    }
}
