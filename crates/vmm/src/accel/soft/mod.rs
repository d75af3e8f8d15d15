//! The accelerator for every x86-64 host: instructions are executed by [`vessel_softcpu`], what a processor has around it is here.
//!
//! [`interrupts`] are the local APICs, the I/O APIC and how messages find their way; [`clock`] is the time-stamp counter and the
//! paravirtual clock; [`environment`] is how a processor reaches them and the machine's bus.

mod clock;
mod environment;
mod interrupts;
