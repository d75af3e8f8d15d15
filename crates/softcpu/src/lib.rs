//! An x86-64 processor in software, for hosts whose processor cannot run guests.
//!
//! It knows nothing of devices or machines: a [`Cpu`] executes instructions out of [`Memory`] and asks its
//! [`Environment`] for everything else (ports, memory-mapped devices, interrupts, model-specific registers of
//! the platform). References as "SDM" mean Intel's Software Developer's Manual, as "APM" AMD's Programmer's Manual.

mod environment;

pub use environment::{Attention, Environment, Reset};
