//! Execution: blocks, and what happens between them.

use crate::block::Block;
use crate::environment::{Attention, Environment, Reset};
use crate::exception::{Exception, Fault, Source, TripleFault, vector};
use crate::flags::{IF, TF};
use crate::memory::Memory;
use crate::op::Flow;
use crate::state::{Cpu, gpr};
use crate::translate::Left;
use std::ptr::NonNull;
use std::sync::Arc;

/// Why [`Cpu::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It waits: for an interrupt after `hlt`, or to be started. Call again when something was raised.
    Halted,
    /// Somebody raised [`Attention::KICK`].
    Kicked,
    /// A triple fault.
    Shutdown,
}

impl Cpu {
    /// The word through which other threads reach this processor.
    pub fn attention(&self) -> Arc<Attention> {
        self.attention.clone()
    }

    /// The memory it executes out of.
    pub fn memory(&self) -> Arc<Memory> {
        self.memory.clone()
    }

    /// Instructions executed so far, about.
    pub fn instructions(&self) -> u64 {
        self.instructions
    }

    /// Executes until something happens that only the caller can decide.
    pub fn run(&mut self, environment: &mut (dyn Environment + 'static)) -> Stop {
        self.environment = Some(NonNull::from(environment));
        self.interrupt_waits = true;
        self.mmu.membership.running(true);
        self.answer_flush();
        let stop = self.execute();
        self.mmu.membership.running(false);
        self.environment = None;
        stop
    }

    /// Calls the environment. Meanwhile this processor executes nothing, so nobody has to wait for it.
    pub(crate) fn with_environment<T>(&mut self, call: impl FnOnce(&mut dyn Environment) -> T) -> T {
        let Some(mut environment) = self.environment else {
            unreachable!("instructions are executed by `run` only, which sets it")
        };
        self.mmu.membership.running(false);
        // SAFETY: `run` holds the exclusive borrow this came from until it takes it away again, and the call happens on its thread.
        let result = call(unsafe { environment.as_mut() });
        self.mmu.membership.running(true);
        if self.mmu.membership.wanted().is_some() {
            // The translation that led here is used no more once the instruction is over; what it does until then is as if it had been over before the flush. But
            // its writes must not use old entries.
            self.answer_flush();
        }
        result
    }

    /// Forgets translations if another processor wants that.
    pub(crate) fn answer_flush(&mut self) {
        if let Some(wanted) = self.mmu.membership.wanted() {
            self.snapshot = self.memory.current();
            self.mmu.flush();
            self.mmu.membership.done(wanted);
        }
    }

    fn execute(&mut self) -> Stop {
        if let Some(exception) = self.pending.take()
            && self.deliver(exception).is_err()
        {
            return Stop::Shutdown;
        }
        loop {
            if self.attention.any() && self.attention.take_one(Attention::KICK) {
                return Stop::Kicked;
            }
            match self.between() {
                Ok(true) => {}
                Ok(false) => {
                    // What arrives from here on is seen by the next call: bits stay set until `between` takes them.
                    if self.attention.take_one(Attention::KICK) {
                        return Stop::Kicked;
                    }
                    return Stop::Halted;
                }
                Err(TripleFault) => return Stop::Shutdown,
            }
            if self.blocks().is_err() {
                return Stop::Shutdown;
            }
        }
    }

    /// What is looked at between blocks when attention is wanted. False: the processor waits.
    fn between(&mut self) -> Result<bool, TripleFault> {
        if self.attention.take_one(Attention::FLUSH) {
            self.answer_flush();
        }
        if self.attention.take_one(Attention::INTERRUPT) {
            self.interrupt_waits = true;
        }
        if self.interrupt_waits {
            match self.with_environment(|environment| environment.take_reset()) {
                Some(Reset::Init) => self.initialize(),
                Some(Reset::Start(page)) if self.waits_for_start => self.start_at(page),
                _ => {}
            }
        }
        if self.waits_for_start {
            return Ok(false);
        }
        if self.interrupt_waits && !self.shadow {
            if !self.nmi_masked && self.with_environment(|environment| environment.take_nmi()) {
                self.nmi_masked = true;
                self.deliver(Exception::external(2))?;
            } else if self.control & IF != 0 {
                match self.with_environment(|environment| environment.take_interrupt()) {
                    Some(vector) => self.deliver(Exception::external(vector))?,
                    None => self.interrupt_waits = false,
                }
            }
        }
        Ok(!self.halted)
    }

    /// Executes blocks until something wants to be looked at.
    fn blocks(&mut self) -> Result<(), TripleFault> {
        loop {
            if self.control & TF != 0 {
                self.single_step()?;
            } else {
                let held_up =
                    self.shadow && self.control & IF != 0 && (self.interrupt_waits || self.attention.any());
                self.shadow = false;
                match self.find_block() {
                    // An interrupt is to be looked at after exactly one instruction: the next may be `cli`.
                    Ok(Some(_)) if held_up => self.alone()?,
                    Ok(Some(block)) => self.run_hot(block)?,
                    Ok(None) => self.alone()?,
                    Err(Fault) => self.after_fault()?,
                }
            }
            if !self.shadow && (self.attention.any() || (self.interrupt_waits && self.control & IF != 0)) {
                return Ok(());
            }
            if self.halted {
                return Ok(());
            }
        }
    }

    /// Executes a block: its translation, and what is linked to that, or else in the interpreter.
    fn run_hot(&mut self, block: NonNull<Block>) -> Result<(), TripleFault> {
        let Some(code) = self.code(block) else {
            return self.run_block(block);
        };
        self.remember_code(block, code);
        match self.run_code(code) {
            Left::Jump => Ok(()),
            Left::Fault => self.after_fault(),
            Left::Link(link) => {
                let cleared = self.blocks.cleared;
                if self.attention.any() {
                    return Ok(());
                }
                if let Ok(Some(next)) = self.find_block()
                    && self.blocks.cleared == cleared
                    && let Some(code) = self.code(next)
                {
                    self.link(link, next, code);
                }
                Ok(())
            }
        }
    }

    fn run_block(&mut self, block: NonNull<Block>) -> Result<(), TripleFault> {
        // SAFETY: blocks are freed only by `BlockCache::clear`, which is called when none is executed.
        let block = unsafe { block.as_ref() };
        self.block_page = block.page;
        self.regs[gpr::BLOCK] = self.rip;
        self.instructions += block.ops.len() as u64;
        for op in &block.ops {
            // SAFETY: the decoder made the operands that this handler expects.
            match unsafe { (op.run)(self, op) } {
                Flow::Next => {}
                Flow::Jump => return Ok(()),
                Flow::Leave => {
                    self.rip = op.next(self);
                    self.cut_rip();
                    return Ok(());
                }
                Flow::Fault => {
                    self.rip = self.regs[gpr::BLOCK].wrapping_add(u64::from(op.start));
                    return self.after_fault();
                }
            }
        }
        self.rip = self.regs[gpr::BLOCK].wrapping_add(u64::from(block.bytes));
        self.cut_rip();
        Ok(())
    }

    /// Delivers `Cpu::fault`, or executes the instruction alone.
    #[cold]
    fn after_fault(&mut self) -> Result<(), TripleFault> {
        if self.fault.vector == vector::ALONE {
            return self.alone();
        }
        if self.fault.source == Source::Fault {
            // Faults are restarted after their handler: RF is set in what is pushed (SDM volume 3, "Restarting Program").
            self.control |= crate::flags::RF;
        }
        self.deliver(self.fault)
    }

    /// Executes one instruction without keeping what was decoded.
    #[cold]
    fn alone(&mut self) -> Result<(), TripleFault> {
        self.block_page = u64::MAX;
        let op = match self.decode_one() {
            Ok(op) => op,
            Err(_) => return self.after_fault(),
        };
        self.regs[gpr::BLOCK] = self.rip;
        self.instructions += 1;
        // SAFETY: as in `run_block`.
        match unsafe { (op.run)(self, &op) } {
            Flow::Next | Flow::Leave => {
                self.rip = op.next(self);
                self.cut_rip();
                Ok(())
            }
            Flow::Jump => Ok(()),
            Flow::Fault => {
                self.rip = self.regs[gpr::BLOCK];
                self.after_fault()
            }
        }
    }

    /// One instruction with TF set: #DB after it.
    #[cold]
    fn single_step(&mut self) -> Result<(), TripleFault> {
        self.shadow = false;
        self.trap_flag_was_set = false;
        let before = self.instructions;
        self.alone()?;
        // `mov ss` holds the trap up; a fault has cleared TF.
        if (self.control & TF != 0 || self.trap_flag_was_set) && self.instructions != before && !self.shadow {
            self.debug[6] |= 1 << 14;
            self.deliver(Exception {
                vector: vector::DB,
                source: Source::External,
                ..Exception::default()
            })?;
        }
        Ok(())
    }

    /// Cuts the instruction pointer to what the mode has.
    pub(crate) fn cut_rip(&mut self) {
        if self.mode & crate::state::mode::CODE64 == 0 {
            self.rip &= 0xffff_ffff;
        }
    }
}
