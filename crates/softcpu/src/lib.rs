//! An x86-64 processor in software, for hosts whose processor cannot run guests.
//!
//! It knows nothing of devices or machines: a [`Cpu`] executes instructions out of [`Memory`] and asks its
//! [`Environment`] for everything else (ports, memory-mapped devices, interrupts, model-specific registers of
//! the platform). References as "SDM" mean Intel's Software Developer's Manual, as "APM" AMD's Programmer's Manual.
//!
//! # How it executes
//! Guest and host are the same architecture, and that is used wherever it can be: an addition of the guest is an addition of the host whose
//! flags are kept, a locked access is a locked access, an SSE instruction is executed as itself on the guest's registers. What is in software
//! is what a program may not do: address translation (`mmu`), privileged instructions, exceptions, interrupts.
//!
//! Instructions are decoded once into `Op`s, in blocks that end at a jump or a page's end (`block`); a block is found again by its physical
//! address and is thrown away when its page is written. Interrupts are taken between blocks.
//!
//! Only hosts of the same architecture can have it.

#![cfg(target_arch = "x86_64")]

mod access;
mod block;
mod cpuid;
mod decode;
mod environment;
mod exception;
mod exec;
mod flags;
mod memory;
mod mmu;
mod msr;
mod op;
mod reset;
mod run;
mod save;
mod segment;
mod state;
mod translate;
mod vector;

pub use environment::{Attention, Environment, Reset};
pub use memory::{Memory, MemoryRegion};
pub use run::Stop;
pub use save::{Events, State};
pub use state::{Cpu, DescriptorTable, Segment};

/// Makes what processors need of this process: executable memory for vector instructions. Otherwise the first that is executed does it, which needs the system
/// calls `memfd_create`, `ftruncate` and `mmap` with `PROT_EXEC`; where they are refused then, such instructions are undefined.
pub fn prepare() -> std::io::Result<()> {
    vector::prepare()
}
