//! What is executed by both processors, and what came of it.

/// Where instructions, data and the stack are, in both.
pub const CODE: u64 = 0x1000_0000;
pub const CODE_BYTES: usize = 0x2000;
pub const DATA: u64 = 0x2000_0000;
pub const DATA_BYTES: usize = 0x2000;
pub const STACK: u64 = 0x3000_0000;
pub const STACK_BYTES: usize = 0x1000;

/// A sequence of instructions and the registers they begin with.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Case {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
    pub gpr: [u64; 16],
    pub rflags: u64,
    /// Where the instructions are put.
    pub rip: u64,
    pub code_bytes: u64,
    pub code: [u8; 232],
    /// The `fxsave` image.
    pub fx: [u8; 512],
    /// Arithmetic flags that nothing says what they are at the end.
    pub undefined: u64,
    /// The same at any place before: where an exception ends it.
    pub undefined_before: u64,
}

#[repr(C)]
pub struct Outcome {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// The exception that ended it.
    pub vector: u64,
    pub error: u64,
    pub cr2: u64,
    pub done: u64,
    pub fx: [u8; 512],
    pub data: [u8; DATA_BYTES],
    pub stack: [u8; STACK_BYTES],
}

impl Outcome {
    pub fn new() -> Box<Self> {
        // SAFETY: integers only.
        unsafe { Box::<Self>::new_zeroed().assume_init() }
    }
}
