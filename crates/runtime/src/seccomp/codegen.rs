//! From spans of numbers to classic BPF.
//!
//! A program looks at `arch` first, then finds the span of `nr` by binary search, then, where the profile has
//! conditions, compares arguments. Only instructions that the kernel's own emulator follows are used before an
//! argument is looked at (`seccomp_is_const_allow`): calls that are always allowed are then remembered in a bitmap when
//! the filter is installed (Linux 5.11), and their filter never runs.
//!
//! Conditional jumps reach 255 instructions forward. The code is therefore built from its end: every target exists
//! when a jump to it is made, the distance is known, and where it is too far a copy of the `ret` or a long `ja` is put
//! in between. No instruction falls through to the next, so copies can be put anywhere.

use super::lower::{Chain, Condition, Rule, Section, Span, Target};
use super::profile::Operator;
use crate::Result;
use crate::sys::seccomp::{Insn, MAX_INSNS};

// include/uapi/linux/bpf_common.h
pub(super) const LD_W_ABS: u16 = 0x20;
pub(super) const ALU_AND_K: u16 = 0x54;
pub(super) const JA: u16 = 0x05;
pub(super) const JEQ_K: u16 = 0x15;
pub(super) const JGT_K: u16 = 0x25;
pub(super) const JGE_K: u16 = 0x35;
pub(super) const RET_K: u16 = 0x06;

// Offsets in struct seccomp_data.
pub(super) const OFFSET_NR: u32 = 0;
pub(super) const OFFSET_ARCH: u32 = 4;
pub(super) const OFFSET_ARGS: u32 = 16;

/// Generates the program.
pub(super) fn generate(sections: &[Section]) -> Result<Vec<Insn>> {
    let mut code = Code::default();
    let mut entry = code.ret(libc::SECCOMP_RET_KILL_THREAD);
    // The first section is the machine's own ABI: it comes first in the program, so it is built last.
    for section in sections.iter().rev() {
        let body = code.section(section)?;
        entry = code.branch(JEQ_K, section.audit, body, entry);
    }
    code.load(OFFSET_ARCH);
    if code.reversed.len() > MAX_INSNS {
        return Err(super::too_long());
    }
    code.reversed.reverse();
    Ok(code.reversed)
}

/// Where a jump can go: how many instructions there are from there to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Label(usize);

#[derive(Default)]
struct Code {
    /// The program from its end to its beginning.
    reversed: Vec<Insn>,
    /// The nearest `ret` of each value.
    returns: Vec<(u32, Label)>,
}

impl Code {
    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        self.reversed.push(Insn { code, jt, jf, k });
        Label(self.reversed.len())
    }

    /// What the instruction pushed last does, if it is executed next.
    fn here(&self) -> Label {
        Label(self.reversed.len())
    }

    fn load(&mut self, offset: u32) -> Label {
        self.push(LD_W_ABS, 0, 0, offset)
    }

    /// How many instructions one pushed after `between` others skips to get to `label`.
    fn distance(&self, label: Label, between: usize) -> usize {
        self.reversed.len() + between - label.0
    }

    /// A `ret`, near enough for a jump made soon.
    fn ret(&mut self, value: u32) -> Label {
        const NEAR: usize = 240;
        let known = self.returns.iter().position(|&(known, _)| known == value);
        if let Some(at) = known
            && self.distance(self.returns[at].1, 0) < NEAR
        {
            return self.returns[at].1;
        }
        let label = self.push(RET_K, 0, 0, value);
        match known {
            Some(at) => self.returns[at].1 = label,
            None => self.returns.push((value, label)),
        }
        label
    }

    /// A label that does the same as `label` and is in reach of the instruction after `between` others.
    fn in_reach(&mut self, label: Label, between: usize) -> Label {
        if self.distance(label, between) <= usize::from(u8::MAX) {
            return label;
        }
        let target = self.reversed[label.0 - 1];
        if target.code == RET_K {
            return self.ret(target.k);
        }
        // A program has 4096 instructions at most, so the distance fits.
        let skip = self.distance(label, 0) as u32;
        self.push(JA, 0, 0, skip)
    }

    /// Compares the accumulator with `k` and goes to one of two places.
    fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        // Bringing one in reach may push an instruction, which must not put the other out of reach.
        let yes = self.in_reach(yes, 2);
        let no = self.in_reach(no, 1);
        let (jt, jf) = (self.distance(yes, 0), self.distance(no, 0));
        debug_assert!(jt <= 255 && jf <= 255);
        self.push(code, jt as u8, jf as u8, k)
    }

    fn section(&mut self, section: &Section) -> Result<Label> {
        self.search(section, &section.spans)?;
        Ok(self.load(OFFSET_NR))
    }

    /// Finds the span of the number in the accumulator. Leaves its first instruction as the last pushed.
    fn search(&mut self, section: &Section, spans: &[Span]) -> Result<()> {
        let label = self.find(section, spans)?;
        // What follows must come right before it.
        if label != self.here() {
            let skip = self.distance(label, 0) as u32;
            self.push(JA, 0, 0, skip);
        }
        Ok(())
    }

    fn find(&mut self, section: &Section, spans: &[Span]) -> Result<Label> {
        if self.reversed.len() > MAX_INSNS {
            return Err(super::too_long());
        }
        match spans {
            [] => Ok(self.ret(libc::SECCOMP_RET_KILL_THREAD)),
            [only] => Ok(self.target(section, only.target)),
            // A single number amid others that share a fate needs one comparison, not two.
            [before, one, after] if before.target == after.target && after.start == one.start + 1 => {
                let no = self.target(section, before.target);
                let yes = self.target(section, one.target);
                Ok(self.branch(JEQ_K, one.start, yes, no))
            }
            _ => {
                let middle = spans.len() / 2;
                let above = self.find(section, &spans[middle..])?;
                let below = self.find(section, &spans[..middle])?;
                Ok(self.branch(JGE_K, spans[middle].start, above, below))
            }
        }
    }

    fn target(&mut self, section: &Section, target: Target) -> Label {
        match target {
            Target::Return(value) => self.ret(value),
            Target::Chain(index) => self.chain(&section.chains[index]),
        }
    }

    fn chain(&mut self, chain: &Chain) -> Label {
        let mut next = self.ret(chain.otherwise);
        for Rule { conditions, action } in chain.rules.iter().rev() {
            if self.reversed.len() > MAX_INSNS {
                // Too long already: `find` or `generate` says so.
                break;
            }
            let mut yes = self.ret(*action);
            for condition in conditions.iter().rev() {
                yes = self.condition(condition, yes, next);
            }
            next = yes;
        }
        next
    }

    fn condition(&mut self, condition: &Condition, yes: Label, no: Label) -> Label {
        let Condition {
            arg,
            low_only,
            operator,
            mask,
            value,
        } = *condition;
        // The halves as little-endian machines lay them out; no others are supported.
        let low = OFFSET_ARGS + 8 * u32::from(arg);
        let high = low + 4;
        let (mask_high, mask_low) = ((mask >> 32) as u32, mask as u32);
        let (value_high, value_low) = ((value >> 32) as u32, value as u32);
        // Reduce seven operators to three by exchanging the outcomes.
        let (jump, yes, no) = match operator {
            Operator::Equal | Operator::MaskedEqual => (JEQ_K, yes, no),
            Operator::NotEqual => (JEQ_K, no, yes),
            Operator::Greater => (JGT_K, yes, no),
            Operator::LessOrEqual => (JGT_K, no, yes),
            Operator::GreaterOrEqual => (JGE_K, yes, no),
            Operator::Less => (JGE_K, no, yes),
        };
        self.branch(jump, value_low, yes, no);
        self.mask(mask_low);
        let start = self.load(low);
        if low_only || (mask_high, value_high) == (0, 0) {
            return start;
        }
        // Equal high halves: the low ones decide. Otherwise the high ones have.
        let equal = self.branch(JEQ_K, value_high, start, no);
        if jump != JEQ_K {
            self.branch(JGT_K, value_high, yes, equal);
        }
        self.mask(mask_high);
        self.load(high)
    }

    fn mask(&mut self, mask: u32) {
        if mask != u32::MAX {
            self.push(ALU_AND_K, 0, 0, mask);
        }
    }
}
