//! Random instruction sequences.

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, EncodingKind, Instruction, Mnemonic, OpKind, RflagsBits,
};

use crate::case::{CODE, Case, DATA, DATA_BYTES, STACK, STACK_BYTES};
use crate::opcode::{opcode, range};

/// Kinds of instructions that are tested together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Arithmetic,
    Moves,
    Shifts,
    Bits,
    Strings,
    Stack,
    Jumps,
    Locked,
    Sse,
    SseFloat,
    Mmx,
    X87,
    /// Anything of one-byte opcodes and of the two-byte map.
    Any,
}

pub const GROUPS: [Group; 13] = [
    Group::Arithmetic,
    Group::Moves,
    Group::Shifts,
    Group::Bits,
    Group::Strings,
    Group::Stack,
    Group::Jumps,
    Group::Locked,
    Group::Sse,
    Group::SseFloat,
    Group::Mmx,
    Group::X87,
    Group::Any,
];

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A number of the kind that arithmetic finds interesting.
    pub fn value(&mut self) -> u64 {
        let random = self.next();
        match self.below(10) {
            0 => 0,
            1 => u64::MAX,
            2 => self.below(256),
            3 => 1 << self.below(64),
            4 => (1_u64 << self.below(64)).wrapping_sub(1),
            5 => (self.below(256)).wrapping_neg(),
            6 => random & 0xffff_ffff,
            7 => self.pick(&[
                0x80,
                0x7f,
                0x8000,
                0x7fff,
                0x8000_0000,
                0x7fff_ffff,
                1 << 63,
                (1 << 63) - 1,
            ]),
            _ => random,
        }
    }

    /// Eight bytes that are likely to be floating-point numbers.
    pub fn number(&mut self) -> u64 {
        let single = |random: &mut Self| -> u64 {
            let value = match random.below(12) {
                0 => 0_u32,
                1 => 0x8000_0000,
                2 => 0x7f80_0000,
                3 => 0xff80_0000,
                4 => 0x7fc0_0000 | random.next() as u32 & 0x3f_ffff,
                5 => 0x7f80_0001,
                6 => random.next() as u32 & 0x807f_ffff,
                7 => ((random.below(200) as f32) - 100.0).to_bits(),
                8 => 0x7f7f_ffff,
                9 => ((random.next() as i32) as f32).to_bits(),
                10 => (1.0 / (random.below(1000) as f32 + 1.0)).to_bits(),
                _ => random.next() as u32,
            };
            u64::from(value)
        };
        if self.one_in(2) {
            return single(self) | single(self) << 32;
        }
        match self.below(12) {
            0 => 0,
            1 => 1 << 63,
            2 => 0x7ff0_0000_0000_0000,
            3 => 0xfff0_0000_0000_0000,
            4 => 0x7ff8_0000_0000_0000 | self.next() & 0xffff,
            5 => 0x7ff0_0000_0000_0001,
            6 => self.next() & 0x800f_ffff_ffff_ffff,
            7 => ((self.below(200) as f64) - 100.0).to_bits(),
            8 => 0x7fef_ffff_ffff_ffff,
            9 => ((self.next() as i64) as f64).to_bits(),
            10 => (1.0 / (self.below(1000) as f64 + 1.0)).to_bits(),
            _ => self.next(),
        }
    }

    /// An extended-precision number.
    fn extended(&mut self) -> [u8; 10] {
        let sign = (self.below(2) as u16) << 15;
        let integer = 1_u64 << 63;
        let (exponent, mantissa): (u16, u64) = match self.below(12) {
            0 => (0, 0),
            1 => (0x7fff, integer),
            2 => (0x7fff, integer | 1 << 62 | self.next() >> 2),
            3 => (0x7fff, integer | 1),
            4 => (0, self.next() >> 1),
            5 => (0, integer | self.next()),
            6 => (0x3fff, integer),
            7 => (0x3fff + self.below(70) as u16, integer | self.next()),
            8 => (0x3fff - self.below(70) as u16, integer | self.next()),
            9 => (0x3fff + self.below(10) as u16, integer | self.next() << 50),
            10 => (self.below(0x8000) as u16, self.next()),
            _ => (self.below(0x7fff) as u16, integer | self.next()),
        };
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
        bytes[8..].copy_from_slice(&(exponent | sign).to_le_bytes());
        bytes
    }
}

/// The contents of the data pages and of the stack.
pub fn memory(random: &mut Random) -> (Vec<u8>, Vec<u8>) {
    let fill = |random: &mut Random, bytes: usize| {
        let mut out = Vec::with_capacity(bytes);
        while out.len() < bytes {
            let value = match random.below(3) {
                0 => random.value(),
                1 => random.number(),
                _ => random.next(),
            };
            out.extend_from_slice(&value.to_le_bytes());
        }
        out
    };
    (fill(random, DATA_BYTES), fill(random, STACK_BYTES))
}

const STATUS: u64 = 0x8d5;

fn image(random: &mut Random, group: Group) -> [u8; 512] {
    let mut fx = [0; 512];
    let control = match random.below(4) {
        0 => 0x037f | (random.next() as u16 & 0x0f00),
        1 if group == Group::X87 || group == Group::Mmx => 0x40 | random.next() as u16 & 0x0f3f,
        _ => 0x037f,
    };
    fx[..2].copy_from_slice(&control.to_le_bytes());
    let mut status = random.next() as u16 & 0x7f00;
    if random.one_in(4) {
        status |= random.next() as u16 & 0x7f;
        if random.one_in(2) {
            // Nothing pending.
            status &= control | 0xffc0;
        }
    }
    fx[2..4].copy_from_slice(&status.to_le_bytes());
    fx[4] = match random.below(3) {
        0 => 0xff,
        1 => 0,
        _ => random.next() as u8,
    };
    let mut mxcsr = 0x1f80 | random.next() as u32 & 0x3f;
    if group == Group::SseFloat || group == Group::Sse {
        if random.one_in(2) {
            mxcsr |= random.next() as u32 & 0xe040;
        }
        if random.one_in(4) {
            // Some exceptions unmasked.
            mxcsr &= !(random.next() as u32 & 0x1f80);
        }
    }
    fx[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    for register in 0..8 {
        let at = 32 + register * 16;
        fx[at..at + 10].copy_from_slice(&random.extended());
    }
    for word in 0..32 {
        let value = if random.one_in(2) {
            random.number()
        } else {
            random.value()
        };
        fx[160 + word * 8..168 + word * 8].copy_from_slice(&value.to_le_bytes());
    }
    fx
}

/// An address to use, mostly of data.
fn address(random: &mut Random) -> u64 {
    let inside = random.below(DATA_BYTES as u64 - 128);
    match random.below(40) {
        0..=15 => DATA + (inside & !15),
        16..=19 => DATA + (inside & !63),
        20..=29 => DATA + inside,
        // Across the two pages.
        30..=33 => DATA + 0x1000 - random.below(16),
        // Out of them.
        34..=36 => DATA + DATA_BYTES as u64 - random.below(20),
        37 => DATA - random.below(20),
        38 => STACK + random.below(STACK_BYTES as u64 - 16),
        _ => random.pick(&[
            0,
            0x8000_0000_0000_0000,
            0x0000_8000_0000_0000,
            0x7fff_ffff_ffff_fffc,
            0x4000_0000,
        ]),
    }
}

struct Builder {
    code: Vec<u8>,
    undefined: u64,
    undefined_before: u64,
    /// An x87 instruction with a memory operand, whose code the software does not keep exactly.
    x87_memory: bool,
}

fn move_immediate(code: &mut Vec<u8>, register: u8, value: u64) {
    code.extend_from_slice(&[0x48 | register >> 3, 0xb8 | register & 7]);
    code.extend_from_slice(&value.to_le_bytes());
}

/// The bits of RFLAGS that iced's numbering means.
fn flags(bits: u32) -> u64 {
    [
        (RflagsBits::OF, 11),
        (RflagsBits::SF, 7),
        (RflagsBits::ZF, 6),
        (RflagsBits::AF, 4),
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
    ]
    .into_iter()
    .filter(|&(bit, _)| bits & bit != 0)
    .fold(0, |flags, (_, bit)| flags | 1 << bit)
}

/// Whether an instruction means the same to both processors and ends.
fn comparable(instruction: &Instruction, group: Group) -> bool {
    use CpuidFeature as F;
    use Mnemonic as M;
    if instruction.is_invalid() {
        return group == Group::Locked;
    }
    if !matches!(instruction.encoding(), EncodingKind::Legacy) {
        return false;
    }
    let known = instruction.cpuid_features().iter().all(|feature| {
        matches!(
            feature,
            F::INTEL8086
                | F::INTEL186
                | F::INTEL286
                | F::INTEL386
                | F::INTEL486
                | F::X64
                | F::CMOV
                | F::CX8
                | F::CMPXCHG16B
                | F::MMX
                | F::SSE
                | F::SSE2
                | F::SSE3
                | F::SSSE3
                | F::SSE4_1
                | F::SSE4_2
                | F::FPU
                | F::FPU287
                | F::FPU387
                | F::POPCNT
                | F::LZCNT
                | F::BMI1
                | F::MOVBE
                | F::FXSR
                | F::PCLMULQDQ
                | F::AES
                | F::MULTIBYTENOP
        )
    });
    let writes_segment = matches!(instruction.mnemonic(), M::Mov | M::Pop)
        && instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().is_segment_register();
    // FS and GS are the host's own.
    let foreign = matches!(
        instruction.segment_prefix(),
        iced_x86::Register::FS | iced_x86::Register::GS
    );
    let never = matches!(
        instruction.mnemonic(),
        M::Syscall
            | M::Sysenter
            | M::Sysret
            | M::Sysretq
            | M::Sysexit
            | M::Sysexitq
            | M::Int
            | M::Int1
            | M::Int3
            | M::Into
            | M::Iret
            | M::Iretd
            | M::Iretq
            | M::Retf
            | M::Cpuid
            | M::Rdtsc
            | M::Rdpmc
            | M::Lar
            | M::Lsl
            | M::Verr
            | M::Verw
            | M::Sldt
            | M::Str
            | M::Smsw
            | M::Sgdt
            | M::Sidt
            | M::Fxsave
            | M::Fxsave64
            | M::Popf
            | M::Popfd
            | M::Popfq
            | M::Jmp
            | M::Call
            | M::Ret
            | M::Loop
            | M::Loope
            | M::Loopne
            | M::Jcxz
            | M::Jecxz
            | M::Jrcxz
            | M::Lss
            | M::Lfs
            | M::Lgs
            | M::Ud0
            | M::Ud1
            | M::Fneni
            | M::Fndisi
            | M::Fnsetpm
            | M::Wbinvd
            | M::Invd
    ) || instruction.is_jcc_short_or_near()
        || matches!(
            instruction.code(),
            Code::Nop_rm16 | Code::Nop_rm32 | Code::Nop_rm64
        );
    known && !writes_segment && !never && !foreign
}

impl Builder {
    /// Adds one instruction. False: it was not fit.
    fn add(&mut self, random: &mut Random, group: Group) -> bool {
        let opcode = opcode(random, group);
        let mut setup = vec![];
        let mut bytes = opcode.prefixes.clone();
        // Neither the stack pointer nor, where the flags' values are shown, what other instructions need, is kept from changes.
        let mut rex = if random.one_in(2) {
            0x48
        } else {
            0x40 | if random.one_in(4) { 0x40 } else { 0 }
        };
        let mut use_rex = random.one_in(2);
        let mut tail = vec![];
        let mut rip_relative = None;
        if opcode.modrm {
            let reg = opcode.reg.unwrap_or(random.below(8) as u8);
            if random.one_in(3) && opcode.reg.is_none() {
                rex |= 4;
                use_rex = true;
            }
            if !opcode.memory && random.one_in(2) {
                let rm = random.below(8) as u8;
                if random.one_in(3) {
                    rex |= 1;
                    use_rex = true;
                }
                tail.push(0xc0 | reg << 3 | rm);
            } else {
                let target = address(random);
                let bases = [3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
                match random.below(8) {
                    0 => {
                        tail.extend_from_slice(&[reg << 3 | 5, 0, 0, 0, 0]);
                        rip_relative = Some(target);
                    }
                    1 if target < 1 << 31 => {
                        tail.extend_from_slice(&[reg << 3 | 4, 0x25]);
                        tail.extend_from_slice(&(target as u32).to_le_bytes());
                    }
                    2 => {
                        // On the stack.
                        let displacement = random.below(128) as u8;
                        tail.extend_from_slice(&[0x40 | reg << 3 | 4, 0x24, displacement]);
                    }
                    form @ 3..=5 => {
                        let base = random.pick(&bases);
                        let mut index = random.pick(&bases);
                        if index == base {
                            index = 0;
                        }
                        let scale = random.below(4) as u8;
                        let factor = random.below(64);
                        let displacement = random.below(0x400) as i32 - 0x200;
                        let start = target
                            .wrapping_sub(factor << scale)
                            .wrapping_sub(i64::from(displacement) as u64);
                        let short = form == 5 && target < 1 << 31;
                        if short {
                            bytes.insert(0, 0x67);
                            move_immediate(&mut setup, base, start & 0xffff_ffff | random.next() << 32);
                            move_immediate(&mut setup, index, factor | random.next() << 32);
                        } else {
                            move_immediate(&mut setup, base, start);
                            move_immediate(&mut setup, index, factor);
                        }
                        if base >= 8 {
                            rex |= 1;
                            use_rex = true;
                        }
                        if index >= 8 {
                            rex |= 2;
                            use_rex = true;
                        }
                        tail.extend_from_slice(&[
                            0x80 | reg << 3 | 4,
                            scale << 6 | (index & 7) << 3 | base & 7,
                        ]);
                        tail.extend_from_slice(&displacement.to_le_bytes());
                    }
                    _ => {
                        let base = random.pick(&bases);
                        let displacement = random.next() as i8;
                        move_immediate(
                            &mut setup,
                            base,
                            target.wrapping_sub(i64::from(displacement) as u64),
                        );
                        if base >= 8 {
                            rex |= 1;
                            use_rex = true;
                        }
                        tail.push(0x40 | reg << 3 | base & 7);
                        if base & 7 == 4 {
                            tail.push(0x24);
                        }
                        tail.push(displacement as u8);
                    }
                }
            }
        }
        if group == Group::Strings
            || (group == Group::Any && matches!(opcode.byte, 0xa4..=0xaf | 0x6c..=0x6f))
        {
            let count = match random.below(8) {
                0 => 0,
                1..=5 => random.below(40),
                6 => random.below(3000),
                _ => random.below(20000),
            };
            let short = opcode.prefixes.contains(&0x67);
            let high = if short { random.next() << 32 } else { 0 };
            move_immediate(&mut setup, 1, count | high);
            move_immediate(&mut setup, 6, address(random) | high);
            move_immediate(&mut setup, 7, address(random) | high);
            setup.push(if random.one_in(3) { 0xfd } else { 0xfc });
            if random.one_in(3) {
                // The same bytes on both sides, or nearly.
                setup.extend_from_slice(&[0x48, 0x8d, 0x7e, random.below(20) as u8]);
            }
        }
        if use_rex {
            bytes.push(rex & !if opcode.modrm { 0 } else { 6 });
        }
        match opcode.map {
            0 => {}
            1 => bytes.push(0x0f),
            2 => bytes.extend_from_slice(&[0x0f, 0x38]),
            _ => bytes.extend_from_slice(&[0x0f, 0x3a]),
        }
        bytes.push(opcode.byte);
        let modrm_at = bytes.len();
        bytes.extend_from_slice(&tail);
        let body = bytes.len();
        // Immediates, as many as the instruction wants.
        if opcode.map == 0 && matches!(opcode.byte, 0xa0..=0xa3) {
            bytes.extend_from_slice(&address(random).to_le_bytes());
        } else if opcode.byte == 0xc8 && opcode.map == 0 {
            bytes.extend_from_slice(&[
                random.below(200) as u8,
                0,
                if random.one_in(2) {
                    0
                } else {
                    random.below(4) as u8
                },
            ]);
        } else {
            bytes.extend_from_slice(&random.value().to_le_bytes());
        }
        bytes.truncate(15);
        let mut instruction = Instruction::default();
        let mut decoder = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE);
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() && group == Group::Locked {
            bytes.truncate(body);
        } else {
            if instruction.len() < body && opcode.modrm {
                return false;
            }
            bytes.truncate(instruction.len());
        }
        if !comparable(&instruction, group) {
            return false;
        }
        if self.x87_memory && matches!(instruction.mnemonic(), Mnemonic::Fnsave | Mnemonic::Fnstenv) {
            return false;
        }
        let reads = flags(instruction.rflags_read());
        if reads & self.undefined != 0 || (reads_all_flags(&instruction) && self.undefined != 0) {
            return false;
        }
        if let Some(target) = rip_relative {
            let end = CODE + (self.code.len() + setup.len() + bytes.len()) as u64;
            let displacement = target.wrapping_sub(end) as i32;
            bytes[modrm_at + 1..modrm_at + 5].copy_from_slice(&displacement.to_le_bytes());
        }
        if self.code.len() + setup.len() + bytes.len() > 220 {
            return false;
        }
        self.code.extend_from_slice(&setup);
        self.code.extend_from_slice(&bytes);
        self.x87_memory |= opcode.map == 0 && matches!(opcode.byte, 0xd8..=0xdf) && bytes[modrm_at] < 0xc0;
        let written =
            flags(instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set());
        self.undefined = self.undefined & !written | flags(instruction.rflags_undefined());
        self.undefined_before |= self.undefined;
        true
    }

    /// A jump of some kind, forwards.
    fn jump(&mut self, random: &mut Random) {
        if self.undefined != 0 || self.code.len() > 180 {
            return;
        }
        let over = [0xff, 0xc0]; // inc eax
        match random.below(7) {
            0..=2 => {
                self.code.extend_from_slice(&[range(random, 0x70, 0x7f), 2]);
                self.code.extend_from_slice(&over);
            }
            3 => {
                self.code
                    .extend_from_slice(&[0x0f, range(random, 0x80, 0x8f), 2, 0, 0, 0]);
                self.code.extend_from_slice(&over);
            }
            4 => {
                if random.one_in(4) {
                    self.code.push(0x67);
                }
                self.code.extend_from_slice(&[range(random, 0xe0, 0xe3), 2]);
                self.code.extend_from_slice(&over);
            }
            5 => {
                // call +2; inc eax; then the return address is popped, or returned to.
                self.code.extend_from_slice(&[0xe8, 2, 0, 0, 0]);
                self.code.extend_from_slice(&over);
                self.code.push(random.pick(&[0x58, 0x5b, 0x59]));
            }
            _ => {
                // lea rax, [rip + 5]; push rax; ret n (to the next instruction).
                let release = random.below(4) as u8 * 8;
                self.code
                    .extend_from_slice(&[0x48, 0x8d, 0x05, 4, 0, 0, 0, 0x50, 0xc2, release, 0]);
            }
        }
    }
}

/// `pushf` and `lahf`, of which iced does not say it everywhere.
fn reads_all_flags(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq | Mnemonic::Lahf
    )
}

/// A random case.
pub fn case(random: &mut Random, group: Group) -> Case {
    let mut builder = Builder {
        code: vec![],
        undefined: 0,
        undefined_before: 0,
        x87_memory: false,
    };
    let wanted = 1 + random.below(6);
    let mut added = 0;
    for _ in 0..100 {
        if group == Group::Jumps || (group == Group::Stack && random.one_in(6)) {
            if group == Group::Stack {
                // ID, NT, DF and the arithmetic flags; not AC, and not TF.
                let flags = random.next() as u32 & (0x20_4000 | 0x400 | STATUS as u32) & 0x7fff_ffff;
                builder.code.push(0x68);
                builder.code.extend_from_slice(&flags.to_le_bytes());
                builder.code.push(0x9d);
                builder.undefined = 0;
            } else {
                builder.jump(random);
                builder.add(random, Group::Arithmetic);
            }
            added += 1;
        } else if builder.add(random, group) {
            added += 1;
        }
        if added >= wanted || builder.code.len() > 180 {
            break;
        }
    }
    let mut code = [0xcc; 232];
    code[..builder.code.len()].copy_from_slice(&builder.code);
    // RIP-relative operands were computed for the first byte of the page.
    let mut gpr = [0; 16];
    for value in &mut gpr {
        *value = random.value();
    }
    gpr[4] = STACK + (STACK_BYTES as u64 / 2) + random.below(64) * 8;
    if random.one_in(20) {
        gpr[4] = STACK + random.pick(&[0, 4, 8, STACK_BYTES as u64 - 8, STACK_BYTES as u64, 0x10]);
    }
    let mut rflags = random.next() & STATUS | 2;
    if random.one_in(8) {
        rflags |= 0x400;
    }
    let shift = if random.one_in(8) {
        0x1000 - random.below(builder.code.len() as u64 + 1)
    } else {
        0
    };
    if shift != 0 {
        shift_relative(&mut code[..builder.code.len()], shift);
    }
    Case {
        gpr,
        rflags,
        rip: CODE + shift,
        code_bytes: builder.code.len() as u64,
        code,
        fx: image(random, group),
        undefined: builder.undefined,
        undefined_before: builder.undefined_before,
    }
}

/// RIP-relative operands stay where they are when the code moves.
fn shift_relative(code: &mut [u8], by: u64) {
    let copy = code.to_vec();
    let mut decoder = Decoder::with_ip(64, &copy, CODE, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        let offsets = decoder.get_constant_offsets(&instruction);
        if instruction.is_ip_rel_memory_operand() && instruction.memory_displacement64() >= DATA - 0x1000 {
            let at = (instruction.ip() - CODE) as usize + offsets.displacement_offset();
            let old = i32::from_le_bytes([copy[at], copy[at + 1], copy[at + 2], copy[at + 3]]);
            code[at..at + 4].copy_from_slice(&(old.wrapping_sub(by as i32)).to_le_bytes());
        }
    }
}
