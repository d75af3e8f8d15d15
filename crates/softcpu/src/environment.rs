//! What a processor asks for beyond RAM, and how other threads reach it.

use std::sync::atomic::{AtomicU32, Ordering};

/// What a processor asks for beyond RAM: one per processor, called on its thread.
pub trait Environment: Send {
    /// `in`: fills `data` (1, 2 or 4 bytes).
    fn read_port(&mut self, port: u16, data: &mut [u8]);
    /// `out`.
    fn write_port(&mut self, port: u16, data: &[u8]);
    /// A load of a physical address that is no RAM: devices, the pages of the interrupt controllers.
    fn read_memory(&mut self, address: u64, data: &mut [u8]);
    /// A store to one.
    fn write_memory(&mut self, address: u64, data: &[u8]);
    /// A model-specific register that the processor does not keep itself. `None`: no such register, #GP.
    fn read_msr(&mut self, number: u32) -> Option<u64>;
    /// False: #GP.
    fn write_msr(&mut self, number: u32, value: u64) -> bool;
    /// The task priority.
    fn cr8(&mut self) -> u64;
    /// Sets it (0 to 15).
    fn set_cr8(&mut self, value: u64);
    /// An interrupt that can be delivered now: its vector, acknowledged. Called only when the processor can take one.
    fn take_interrupt(&mut self) -> Option<u8>;
    /// A non-maskable interrupt that waits is taken.
    fn take_nmi(&mut self) -> bool;
    /// INIT or SIPI that arrived is taken.
    fn take_reset(&mut self) -> Option<Reset>;
    /// The guest's time-stamp counter.
    fn tsc(&mut self) -> u64;
}

/// What another processor's local APIC can send to start this one (SDM volume 3, "Multiple-Processor Initialization").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Become as after reset and wait.
    Init,
    /// Begin at page `vector` in real mode, if waiting.
    Start(u8),
}

/// A word other threads set bits in; the processor looks at it between blocks of instructions.
#[derive(Debug, Default)]
pub struct Attention(AtomicU32);

impl Attention {
    /// An interrupt, NMI, INIT or SIPI may be there.
    pub const INTERRUPT: u32 = 1;
    /// Come back from `run`.
    pub const KICK: u32 = 1 << 1;
    /// Another processor wants translations forgotten.
    pub const FLUSH: u32 = 1 << 2;

    /// Sets bits.
    pub fn raise(&self, bits: u32) {
        self.0.fetch_or(bits, Ordering::SeqCst);
    }

    /// Takes all of them.
    pub fn take(&self) -> u32 {
        self.0.swap(0, Ordering::SeqCst)
    }

    /// Takes one of them: whether it was set.
    pub fn take_one(&self, bit: u32) -> bool {
        self.0.fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    /// The word itself, for translated code.
    pub(crate) fn word(&self) -> *const u32 {
        self.0.as_ptr()
    }

    /// Whether any is set.
    #[inline(always)]
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }
}
