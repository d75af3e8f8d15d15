//! What must be the same.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, FastFormatter, Instruction, Mnemonic};

use crate::case::{Case, Outcome};

/// Where the kernel's half begins, as Linux sees it.
const USER_END: u64 = 0x7fff_ffff_f000;

/// RFLAGS: RF is the kernel's business when a signal is delivered.
const IGNORED_FLAGS: u64 = 1 << 16;

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// The case, to be read.
pub fn text(case: &Case) -> String {
    let mut out = String::new();
    let code = &case.code[..case.code_bytes as usize];
    let mut decoder = Decoder::with_ip(64, code, case.rip, DecoderOptions::NONE);
    let mut formatter = FastFormatter::new();
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        let at = (instruction.ip() - case.rip) as usize;
        let bytes = &code[at..at + instruction.len()];
        let _ = writeln!(out, "  {:x}: {bytes:02x?} {line}", instruction.ip());
    }
    for (name, value) in NAMES.iter().zip(case.gpr) {
        let _ = write!(out, "  {name}={value:x}");
    }
    let _ = writeln!(out, "  rflags={:x}", case.rflags);
    let _ = writeln!(out, "  fx head {:02x?}", &case.fx[..32]);
    out
}

fn bytes(out: &mut String, name: &str, native: &[u8], software: &[u8]) {
    if native == software {
        return;
    }
    let first = native.iter().zip(software).position(|(a, b)| a != b).unwrap_or(0);
    let last = native
        .iter()
        .zip(software)
        .rposition(|(a, b)| a != b)
        .unwrap_or(0);
    let range = first..(last + 1).min(first + 32);
    let _ = writeln!(
        out,
        "  {name} from {first:#x}: native {:02x?}, software {:02x?}",
        &native[range.clone()],
        &software[range]
    );
}

/// The instruction at `rip`.
fn instruction(case: &Case, rip: u64) -> Instruction {
    let code = case
        .code
        .get(rip.wrapping_sub(case.rip) as usize..)
        .unwrap_or(&[]);
    Decoder::with_ip(64, code, rip, DecoderOptions::NONE).decode()
}

/// Arithmetic flags.
const STATUS: u64 = 0x8d5;

/// How the outcomes differ. Empty: not at all. `translated`: where an exception ends it, arithmetic flags that the instructions after it replace unread may be old ones.
pub fn differences(case: &Case, native: &Outcome, software: &Outcome, translated: bool) -> String {
    let mut out = String::new();
    let last = instruction(case, native.rip);
    let bytes_of_last = last.memory_size().size();
    let mut word = |name: &str, native: u64, software: u64| {
        if native != software {
            let _ = writeln!(out, "  {name}: native {native:#x}, software {software:#x}");
        }
    };
    // A non-canonical address of the stack segment is #GP in software, whichever segment it was.
    let stack = native.vector == 12 && software.vector == 13 && native.error == 0 && software.error == 0;
    if !stack {
        word("vector", native.vector, software.vector);
    }
    word("rip", native.rip, software.rip);
    for (index, name) in NAMES.iter().enumerate() {
        word(name, native.gpr[index], software.gpr[index]);
    }
    let ignored = IGNORED_FLAGS
        | if native.vector == 3 {
            case.undefined
        } else {
            case.undefined_before
        };
    let ignored = ignored
        | if translated && native.vector != 3 {
            STATUS
        } else {
            0
        };
    word("rflags", native.rflags & !ignored, software.rflags & !ignored);
    if native.vector == 14 && software.vector == 14 {
        // Of a large operand, processors do not begin with the first byte.
        let ignored_cr2 = if bytes_of_last > 16 { 0xfff } else { 0 };
        word("cr2", native.cr2 & !ignored_cr2, software.cr2 & !ignored_cr2);
        // Of the kernel's half it is not told whether it is present.
        let ignored = u64::from(native.cr2 >= USER_END);
        word("error", native.error & !ignored, software.error & !ignored);
    } else if native.vector == software.vector {
        word("error", native.error, software.error);
    }
    bytes(&mut out, "x87 words", &native.fx[..5], &software.fx[..5]);
    // The products of these may end them before there are sums. Whether a result that is too large or too small for its format, unmasked, is inexact, too, software does not
    // find out.
    if native.vector != 19 || !matches!(last.mnemonic(), Mnemonic::Dpps | Mnemonic::Dppd) {
        let mxcsr = |outcome: &Outcome| {
            let value = u32::from_le_bytes([outcome.fx[24], outcome.fx[25], outcome.fx[26], outcome.fx[27]]);
            if native.vector == 19 && native.fx[24] & 0x18 != 0 {
                value & !0x20
            } else {
                value
            }
        };
        bytes(
            &mut out,
            "mxcsr",
            &mxcsr(native).to_le_bytes(),
            &mxcsr(software).to_le_bytes(),
        );
    }
    for register in 0..8 {
        let at = 32 + register * 16;
        bytes(
            &mut out,
            &format!("st{register}"),
            &native.fx[at..at + 10],
            &software.fx[at..at + 10],
        );
    }
    for register in 0..16 {
        let at = 160 + register * 16;
        bytes(
            &mut out,
            &format!("xmm{register}"),
            &native.fx[at..at + 16],
            &software.fx[at..at + 16],
        );
    }
    // Processors store large operands in parts, the first of which may be there when the second faults.
    if native.vector != 14 || !(bytes_of_last == 10 || bytes_of_last > 16) {
        bytes(&mut out, "data", &native.data, &software.data);
        bytes(&mut out, "stack", &native.stack, &software.stack);
    }
    out
}
