//! The same small guests on every accelerator: real mode, protected mode, long mode; ports and devices, interrupts, dirty tracking, state.
//!
//! KVM is tested where `/dev/kvm` can be opened. One that emulates a processor without virtualization runs those guests that need no more than
//! it has; what it does not run is said. `docs/kvm.md` has the command for a machine with the real thing.

#![allow(clippy::print_stderr, reason = "a test says what it does not run")]

mod guest;
mod interrupts;
mod memory;
mod modes;
mod processors;
mod state;
