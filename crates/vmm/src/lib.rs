//! The virtual machine monitor: one process is one machine.
//!
//! An [accelerator](accel) executes guest instructions: `kvm` where the processor helps, `soft` where it does not.
//! Everything else is written once above it: guest memory, devices, boot, the machine itself. It knows nothing of images or
//! containers.

pub mod accel;
pub mod boot;
pub mod bus;
pub mod control;
pub mod devices;
pub mod jail;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod process;
mod sync;
