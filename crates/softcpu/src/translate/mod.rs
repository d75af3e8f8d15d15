//! Binary translation: blocks that are executed often become code of the host.
//!
//! Guest and host are the same architecture, so most instructions are copied. Rewritten are memory accesses (through the translation buffer of
//! `mmu`), control flow, and the registers that the translation needs for itself. What is privileged or rare is left to the interpreter, called from the middle of the
//! code ([`enter::fallback_entry`]).
//!
//! # Registers
//! RAX, RCX, RDX, RBX, RBP, RSI, RDI, R8 to R11 of the guest are in the host's. The guest's RSP is in R12; its R12 to R15 stay in `Cpu::regs`. R13 and R14 are free for the code, R15 points to
//! the `Cpu`, RSP is the host's. In code of user programs the XMM registers and MXCSR are the guest's. Between blocks the guest's flags are in `Cpu::status`; inside of one they are in the host's as long as nothing disturbs them.
//!
//! What is not to the letter: where an instruction in the middle of a block faults, arithmetic flags that the instructions after it replace without
//! reading them may be older ones in what is pushed. Nothing but a debugger can see it.
//!
//! # What a translation is valid for
//! One linear address, mode and privilege, and one generation of its page. It is entered through the cache by linear address, which checks all of
//! that, or by a jump out of a block of the same page and the same generation.
//!
//! Code is written through one mapping and executed through another (`arena`); none is both writable and executable.

mod arena;
mod emit;
mod enter;
mod lower;

pub(crate) use arena::Arena;
pub(crate) use enter::{Left, enter};

use std::ptr::NonNull;

use crate::block::Block;
use crate::op::Op;
use crate::state::{Cpu, mode};

/// Executions after which a block is translated.
pub(crate) const HOT: u32 = 16;

/// A translation of a block for one linear address and mode.
pub(crate) struct Code {
    pub rip: u64,
    pub mode: u8,
    /// Where it begins.
    pub entry: *const u8,
    /// What its calls into the interpreter are for.
    #[expect(clippy::vec_box, reason = "the code points to them")]
    _infos: Vec<Box<Info>>,
    /// Its jumps that can be linked.
    #[expect(clippy::vec_box, reason = "the code points to them")]
    _links: Vec<Box<Link>>,
}

/// A call of the interpreter for one instruction.
#[repr(C)]
pub(crate) struct Info {
    pub op: Op,
    /// The linear address of the block's first instruction.
    pub rip: u64,
    /// The physical page the block is in.
    pub page: u64,
}

/// A jump to a block of the same page, which leaves translated code until it is linked.
#[repr(C)]
pub(crate) struct Link {
    /// Where in the arena its displacement is.
    pub at: usize,
    pub page: u64,
    pub generation: u32,
}

/// What translated code finds through R15.
#[repr(C)]
pub(crate) struct Runtime {
    /// [`enter::fallback_entry`].
    pub fallback: u64,
    /// [`enter::leave`].
    pub leave: u64,
    /// The same for user programs' code.
    pub fallback_user: u64,
    pub leave_user: u64,
    pub reload_user: u64,
    /// The attention word.
    pub attention: *const u32,
    /// The cache by linear address.
    pub recent: *const crate::block::Recent,
}

impl Runtime {
    pub(crate) fn new(attention: &crate::environment::Attention) -> Self {
        Self {
            fallback: enter::fallback_entry as *const () as u64,
            leave: enter::leave as *const () as u64,
            fallback_user: enter::fallback_user as *const () as u64,
            leave_user: enter::leave_user as *const () as u64,
            reload_user: enter::reload_user as *const () as u64,
            attention: attention.word(),
            recent: std::ptr::null(),
        }
    }
}

impl Cpu {
    /// The translation of `block` at the current address, made now if there is none and it is worth it.
    pub(crate) fn code(&mut self, block: NonNull<Block>) -> Option<*const u8> {
        if self.mode & mode::CODE64 == 0 || !self.translates {
            return None;
        }
        if self.mode & mode::USER != 0 && !self.masks_exceptions() {
            return None;
        }
        let mut pointer = block;
        // SAFETY: blocks live until `BlockCache` frees them, which nothing does here; no other reference to this one exists now.
        let block = unsafe { pointer.as_mut() };
        if let Some(code) = block.translation(self.rip, self.mode) {
            return Some(code);
        }
        if block.crosses() {
            return None;
        }
        block.executions = block.executions.saturating_add(1);
        if block.executions <= self.hot || block.codes.len() >= 4 {
            return None;
        }
        block.executions = 0;
        let code = lower::translate(self, block)?;
        let entry = code.entry;
        block.codes.push(code);
        Some(entry)
    }

    /// Whether MXCSR masks all exceptions: then no vector instruction can fault for its values.
    pub(crate) fn masks_exceptions(&self) -> bool {
        self.extended.mxcsr() & 0x1f80 == 0x1f80
    }

    /// Executes translated code until it is left.
    pub(crate) fn run_code(&mut self, code: *const u8) -> Left {
        // SAFETY: the code was made by `lower` for this processor in its present mode and at its present address.
        unsafe { enter(self, code) }
    }

    /// Links the jump that was left by to the translation of `block`, if both are of one page and time.
    pub(crate) fn link(&mut self, link: *const Link, block: NonNull<Block>, code: *const u8) {
        // SAFETY: links live as long as their code, which was just executed and has not been thrown away since (`find_block` frees blocks, so the caller calls this
        // only when it freed none).
        let link = unsafe { &*link };
        // SAFETY: as in `code`.
        let block = unsafe { block.as_ref() };
        if link.page == block.page && link.generation == block.generation() {
            self.blocks.arena.patch(link.at, code);
        }
    }
}
