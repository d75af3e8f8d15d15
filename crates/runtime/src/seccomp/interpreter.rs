//! Classic BPF as seccomp knows it, in a few lines, to test the compiler against. Wrong programs panic.

use super::codegen::{ALU_AND_K, JA, JEQ_K, JGE_K, JGT_K, LD_W_ABS, RET_K};
use crate::sys::seccomp::Insn;

/// `struct seccomp_data`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Data {
    pub nr: u32,
    pub arch: u32,
    pub args: [u64; 6],
}

impl Data {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.nr,
            4 => self.arch,
            16.. if offset.is_multiple_of(4) => {
                let arg = self.args[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) {
                    arg as u32
                } else {
                    (arg >> 32) as u32
                }
            }
            _ => panic!("load at {offset}"),
        }
    }
}

/// Runs a program: what it returns, and after how many instructions.
pub fn run(program: &[Insn], data: &Data) -> (u32, usize) {
    let (mut pc, mut steps, mut acc) = (0usize, 0, 0u32);
    loop {
        let insn = program[pc];
        steps += 1;
        pc += 1;
        let mut jump = |condition: bool| pc += usize::from(if condition { insn.jt } else { insn.jf });
        match insn.code {
            LD_W_ABS => acc = data.word(insn.k),
            ALU_AND_K => acc &= insn.k,
            JA => pc += insn.k as usize,
            JEQ_K => jump(acc == insn.k),
            JGT_K => jump(acc > insn.k),
            JGE_K => jump(acc >= insn.k),
            RET_K => return (insn.k, steps),
            code => panic!("instruction {code:#x}"),
        }
    }
}
