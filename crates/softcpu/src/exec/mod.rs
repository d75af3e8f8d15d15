//! What executes instructions, by group.

pub(crate) mod arith;
pub(crate) mod bits;
pub(crate) mod branch;
pub(crate) mod far;
pub(crate) mod moves;
pub(crate) mod string;
pub(crate) mod system;

use crate::exception::Fault;
use crate::flags::Width;
use crate::mmu::Access;
use crate::op::{Flow, Op};
use crate::state::Cpu;

/// Goes on with the value, or leaves the handler with the fault.
macro_rules! attempt {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err($crate::exception::Fault) => return $crate::op::Flow::Fault,
        }
    };
}
pub(crate) use attempt;

/// A handler by operand size: `by_width!(bytes, function, A, B)` is `function::<W, A, B>`.
macro_rules! by_width {
    ($bytes:expr, $function:ident, $($generic:ty),* $(,)?) => {
        match $bytes {
            1 => $function::<u8 $(, $generic)*> as $crate::op::Handler,
            2 => $function::<u16 $(, $generic)*> as $crate::op::Handler,
            4 => $function::<u32 $(, $generic)*> as $crate::op::Handler,
            _ => $function::<u64 $(, $generic)*> as $crate::op::Handler,
        }
    };
}
pub(crate) use by_width;

/// Where a source operand comes from.
pub(crate) trait Source: 'static {
    fn get<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<W, Fault>;
}

/// The register `Op::src`.
pub(crate) struct Reg;
/// `Op::imm`.
pub(crate) struct Imm;
/// `Op::mem`.
pub(crate) struct Memory;

impl Source for Reg {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<W, Fault> {
        Ok(cpu.reg(op.src))
    }
}

impl Source for Imm {
    #[inline(always)]
    fn get<W: Width>(_: &mut Cpu, op: &Op) -> Result<W, Fault> {
        Ok(W::from_u64(op.imm))
    }
}

impl Source for Memory {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<W, Fault> {
        let address = cpu.address(&op.mem, W::BYTES, Access::Read)?;
        cpu.load(address)
    }
}

/// A destination that is written without being read.
pub(crate) trait Destination: 'static {
    fn set<W: Width>(cpu: &mut Cpu, op: &Op, value: W) -> Result<(), Fault>;
}

impl Destination for Reg {
    #[inline(always)]
    fn set<W: Width>(cpu: &mut Cpu, op: &Op, value: W) -> Result<(), Fault> {
        cpu.set_reg(op.dst, value);
        Ok(())
    }
}

impl Destination for Memory {
    #[inline(always)]
    fn set<W: Width>(cpu: &mut Cpu, op: &Op, value: W) -> Result<(), Fault> {
        let address = cpu.address(&op.mem, W::BYTES, Access::Write)?;
        cpu.store(address, value)
    }
}

/// Changes a memory operand by `change`, not atomically: what it was, and what is to be. `None`: it stays.
#[inline(always)]
pub(crate) fn modify<W: Width>(
    cpu: &mut Cpu,
    op: &Op,
    change: impl FnOnce(&mut Cpu, W) -> W,
) -> Result<(), Fault> {
    let address = cpu.address(&op.mem, W::BYTES, Access::Write)?;
    modify_at(cpu, address, change)
}

#[inline(always)]
pub(crate) fn modify_at<W: Width>(
    cpu: &mut Cpu,
    address: u64,
    change: impl FnOnce(&mut Cpu, W) -> W,
) -> Result<(), Fault> {
    match cpu.place::<W>(address)? {
        crate::access::Place::Host(host) => {
            // SAFETY: `place` found writable RAM of the guest with room for a `W`.
            let old = unsafe { W::load(host) };
            let new = change(cpu, old);
            // SAFETY: as above.
            unsafe { W::store(host, new) };
        }
        crate::access::Place::Elsewhere => {
            let old = cpu.load::<W>(address)?;
            let new = change(cpu, old);
            cpu.store(address, new)?;
        }
    }
    Ok(())
}

/// The same atomically (`lock`). `change` may be called several times.
#[inline(always)]
pub(crate) fn modify_locked<W: Width>(
    cpu: &mut Cpu,
    op: &Op,
    change: impl FnMut(&mut Cpu, W) -> W,
) -> Result<(), Fault> {
    let address = cpu.address(&op.mem, W::BYTES, Access::Write)?;
    modify_locked_at(cpu, address, change)
}

#[inline(always)]
pub(crate) fn modify_locked_at<W: Width>(
    cpu: &mut Cpu,
    address: u64,
    mut change: impl FnMut(&mut Cpu, W) -> W,
) -> Result<(), Fault> {
    match cpu.place::<W>(address)? {
        crate::access::Place::Host(host) => loop {
            // SAFETY: `place` found writable RAM of the guest with room for a `W`.
            let old = unsafe { W::load(host) };
            let status = cpu.status;
            let new = change(cpu, old);
            let mut ignored = 0;
            // SAFETY: as above.
            let found = unsafe { W::lock_cmpxchg(host, old, new, &mut ignored) };
            if found.to_u64() == old.to_u64() {
                return Ok(());
            }
            cpu.status = status;
        },
        crate::access::Place::Elsewhere => {
            // Across two pages, or on a device. Alone among processors that do the same.
            let memory = cpu.memory.clone();
            let _alone = memory
                .exclusive
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let old = cpu.load::<W>(address)?;
            let new = change(cpu, old);
            cpu.store(address, new)
        }
    }
}

/// #UD.
pub(crate) unsafe fn undefined(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.undefined();
    Flow::Fault
}

/// #GP(0).
pub(crate) unsafe fn protection(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.protection();
    Flow::Fault
}

/// #NM.
pub(crate) unsafe fn no_device(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.raise(crate::exception::vector::NM);
    Flow::Fault
}

/// Nothing: `nop`, fences (the host's stores and loads are in the guest's order already; `mfence` has a handler of its own), prefetches.
pub(crate) unsafe fn nothing(_: &mut Cpu, _: &Op) -> Flow {
    Flow::Next
}
