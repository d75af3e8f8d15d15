//! Arithmetic as the host's processor does it, with the flags it leaves.
//!
//! Every operation is the instruction itself, followed by `pushfq`: what it defines, what it leaves alone and even what is documented as undefined
//! is what a processor does.

use std::arch::asm;

pub(crate) const CF: u64 = 1;
pub(crate) const PF: u64 = 1 << 2;
pub(crate) const AF: u64 = 1 << 4;
pub(crate) const ZF: u64 = 1 << 6;
pub(crate) const SF: u64 = 1 << 7;
pub(crate) const TF: u64 = 1 << 8;
pub(crate) const IF: u64 = 1 << 9;
pub(crate) const DF: u64 = 1 << 10;
pub(crate) const OF: u64 = 1 << 11;
pub(crate) const IOPL: u64 = 3 << 12;
pub(crate) const NT: u64 = 1 << 14;
pub(crate) const RF: u64 = 1 << 16;
/// Virtual-8086 mode: not offered, so it can never be set.
pub(crate) const VM: u64 = 1 << 17;
pub(crate) const AC: u64 = 1 << 18;
pub(crate) const ID: u64 = 1 << 21;

/// The bits that arithmetic sets.
pub(crate) const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// An operand of 1, 2, 4 or 8 bytes.
pub(crate) trait Width: Copy + 'static {
    const BYTES: u64;
    const BITS: u32 = Self::BYTES as u32 * 8;

    fn from_u64(value: u64) -> Self;
    /// Extended with zeroes.
    fn to_u64(self) -> u64;
    /// Extended with the sign.
    fn to_i64(self) -> i64;
    /// One load, which other threads see as the guest's processor would make it.
    ///
    /// # Safety
    /// `BYTES` bytes at `pointer` are mapped.
    unsafe fn load(pointer: *const u8) -> Self;
    /// One store.
    ///
    /// # Safety
    /// `BYTES` bytes at `pointer` are mapped and writable.
    unsafe fn store(pointer: *mut u8, value: Self);

    fn add(self, other: Self, status: &mut u64) -> Self;
    fn sub(self, other: Self, status: &mut u64) -> Self;
    fn adc(self, other: Self, status: &mut u64) -> Self;
    fn sbb(self, other: Self, status: &mut u64) -> Self;
    fn and(self, other: Self, status: &mut u64) -> Self;
    fn or(self, other: Self, status: &mut u64) -> Self;
    fn xor(self, other: Self, status: &mut u64) -> Self;
    fn cmp(self, other: Self, status: &mut u64);
    fn test(self, other: Self, status: &mut u64);
    fn neg(self, status: &mut u64) -> Self;
    fn not(self) -> Self;
    /// `inc` and `dec` leave CF alone.
    fn inc(self, status: &mut u64) -> Self;
    fn dec(self, status: &mut u64) -> Self;
    /// Shifts and rotates by `count` (any value: it is masked as the processor does).
    fn shl(self, count: u8, status: &mut u64) -> Self;
    fn shr(self, count: u8, status: &mut u64) -> Self;
    fn sar(self, count: u8, status: &mut u64) -> Self;
    fn rol(self, count: u8, status: &mut u64) -> Self;
    fn ror(self, count: u8, status: &mut u64) -> Self;
    fn rcl(self, count: u8, status: &mut u64) -> Self;
    fn rcr(self, count: u8, status: &mut u64) -> Self;

    /// Locked forms: `*pointer op= value`, the old value and the flags of the operation.
    ///
    /// # Safety
    /// As [`Width::store`].
    unsafe fn lock_xadd(pointer: *mut u8, value: Self, status: &mut u64) -> Self;
    /// # Safety
    /// As [`Width::store`].
    unsafe fn lock_xchg(pointer: *mut u8, value: Self) -> Self;
    /// `cmpxchg`: what was there; ZF and the rest as of the comparison with `expected`.
    ///
    /// # Safety
    /// As [`Width::store`].
    unsafe fn lock_cmpxchg(pointer: *mut u8, expected: Self, value: Self, status: &mut u64) -> Self;
}

macro_rules! binary {
    ($name:ident, $mnemonic:literal, $type:ty, $class:ident, $format:literal) => {
        #[inline(always)]
        fn $name(self, other: Self, status: &mut u64) -> Self {
            let mut value = self;
            // SAFETY: arithmetic on registers; the stack is used as declared by the absence of `nostack`.
            unsafe {
                asm!(
                    concat!($mnemonic, " {a", $format, "}, {b", $format, "}"),
                    "pushfq",
                    "pop {f}",
                    a = inout($class) value,
                    b = in($class) other,
                    f = lateout(reg) *status,
                    options(nomem)
                );
            }
            value
        }
    };
}

macro_rules! with_carry {
    ($name:ident, $mnemonic:literal, $type:ty, $class:ident, $format:literal) => {
        #[inline(always)]
        fn $name(self, other: Self, status: &mut u64) -> Self {
            let mut value = self;
            // SAFETY: as above.
            unsafe {
                asm!(
                    "bt {f}, 0",
                    concat!($mnemonic, " {a", $format, "}, {b", $format, "}"),
                    "pushfq",
                    "pop {f}",
                    a = inout($class) value,
                    b = in($class) other,
                    f = inout(reg) *status,
                    options(nomem)
                );
            }
            value
        }
    };
}

macro_rules! compare {
    ($name:ident, $mnemonic:literal, $type:ty, $class:ident, $format:literal) => {
        #[inline(always)]
        fn $name(self, other: Self, status: &mut u64) {
            // SAFETY: as above.
            unsafe {
                asm!(
                    concat!($mnemonic, " {a", $format, "}, {b", $format, "}"),
                    "pushfq",
                    "pop {f}",
                    a = in($class) self,
                    b = in($class) other,
                    f = lateout(reg) *status,
                    options(nomem)
                );
            }
        }
    };
}

macro_rules! keeps_carry {
    ($name:ident, $mnemonic:literal, $type:ty, $class:ident, $format:literal) => {
        #[inline(always)]
        fn $name(self, status: &mut u64) -> Self {
            let mut value = self;
            // SAFETY: as above.
            unsafe {
                asm!(
                    "bt {f}, 0",
                    concat!($mnemonic, " {a", $format, "}"),
                    "pushfq",
                    "pop {f}",
                    a = inout($class) value,
                    f = inout(reg) *status,
                    options(nomem)
                );
            }
            value
        }
    };
}

macro_rules! shift {
    ($name:ident, $mnemonic:literal, $type:ty, $class:ident, $format:literal) => {
        #[inline(always)]
        fn $name(self, count: u8, status: &mut u64) -> Self {
            let count = count & if Self::BYTES == 8 { 63 } else { 31 };
            if count == 0 {
                return self;
            }
            let mut value = self;
            // SAFETY: as above.
            unsafe {
                asm!(
                    concat!($mnemonic, " {a", $format, "}, cl"),
                    "pushfq",
                    "pop {f}",
                    a = inout($class) value,
                    in("cl") count,
                    f = lateout(reg) *status,
                    options(nomem)
                );
            }
            value
        }
    };
}

macro_rules! rotate {
    ($name:ident, $mnemonic:literal, $type:ty, $class:ident, $format:literal) => {
        #[inline(always)]
        fn $name(self, count: u8, status: &mut u64) -> Self {
            let count = count & if Self::BYTES == 8 { 63 } else { 31 };
            if count == 0 {
                return self;
            }
            if Self::BITS < 32 && $mnemonic.as_bytes()[1] == b'c' && u32::from(count).is_multiple_of(Self::BITS + 1) {
                // Once round through the carry, or more often: nothing changes.
                return self;
            }
            let mut value = self;
            let mut flags = *status;
            // SAFETY: as above.
            unsafe {
                asm!(
                    "bt {f}, 0",
                    concat!($mnemonic, " {a", $format, "}, cl"),
                    "pushfq",
                    "pop {f}",
                    a = inout($class) value,
                    in("cl") count,
                    f = inout(reg) flags,
                    options(nomem)
                );
            }
            *status = *status & !(CF | OF) | flags & (CF | OF);
            value
        }
    };
}

macro_rules! width {
    ($type:ty, $signed:ty, $bytes:literal, $class:ident, $format:literal, $accumulator:tt) => {
        impl Width for $type {
            const BYTES: u64 = $bytes;

            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as Self
            }

            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }

            #[inline(always)]
            fn to_i64(self) -> i64 {
                self as $signed as i64
            }

            #[inline(always)]
            unsafe fn load(pointer: *const u8) -> Self {
                let value;
                // SAFETY: the caller's.
                unsafe {
                    asm!(concat!("mov {v", $format, "}, [{p}]"), v = lateout($class) value, p = in(reg) pointer,
                        options(nostack, preserves_flags, readonly));
                }
                value
            }

            #[inline(always)]
            unsafe fn store(pointer: *mut u8, value: Self) {
                // SAFETY: the caller's.
                unsafe {
                    asm!(concat!("mov [{p}], {v", $format, "}"), v = in($class) value, p = in(reg) pointer,
                        options(nostack, preserves_flags));
                }
            }

            binary!(add, "add", $type, $class, $format);
            binary!(sub, "sub", $type, $class, $format);
            binary!(and, "and", $type, $class, $format);
            binary!(or, "or", $type, $class, $format);
            binary!(xor, "xor", $type, $class, $format);
            with_carry!(adc, "adc", $type, $class, $format);
            with_carry!(sbb, "sbb", $type, $class, $format);
            compare!(cmp, "cmp", $type, $class, $format);
            compare!(test, "test", $type, $class, $format);
            keeps_carry!(inc, "inc", $type, $class, $format);
            keeps_carry!(dec, "dec", $type, $class, $format);
            keeps_carry!(neg, "neg", $type, $class, $format);
            shift!(shl, "shl", $type, $class, $format);
            shift!(shr, "shr", $type, $class, $format);
            shift!(sar, "sar", $type, $class, $format);
            rotate!(rol, "rol", $type, $class, $format);
            rotate!(ror, "ror", $type, $class, $format);
            rotate!(rcl, "rcl", $type, $class, $format);
            rotate!(rcr, "rcr", $type, $class, $format);

            #[inline(always)]
            fn not(self) -> Self {
                !self
            }

            #[inline(always)]
            unsafe fn lock_xadd(pointer: *mut u8, value: Self, status: &mut u64) -> Self {
                let mut value = value;
                // SAFETY: the caller's.
                unsafe {
                    asm!(
                        concat!("lock xadd [{p}], {v", $format, "}"),
                        "pushfq",
                        "pop {f}",
                        p = in(reg) pointer,
                        v = inout($class) value,
                        f = lateout(reg) *status,
                    );
                }
                value
            }

            #[inline(always)]
            unsafe fn lock_xchg(pointer: *mut u8, value: Self) -> Self {
                let mut value = value;
                // SAFETY: the caller's.
                unsafe {
                    asm!(concat!("xchg [{p}], {v", $format, "}"), p = in(reg) pointer, v = inout($class) value,
                        options(nostack, preserves_flags));
                }
                value
            }

            #[inline(always)]
            unsafe fn lock_cmpxchg(pointer: *mut u8, expected: Self, value: Self, status: &mut u64) -> Self {
                let mut expected = expected;
                // SAFETY: the caller's.
                unsafe {
                    asm!(
                        concat!("lock cmpxchg [{p}], {v", $format, "}"),
                        "pushfq",
                        "pop {f}",
                        p = in(reg) pointer,
                        v = in($class) value,
                        inout($accumulator) expected,
                        f = lateout(reg) *status,
                    );
                }
                expected
            }
        }
    };
}

width!(u8, i8, 1, reg_byte, "", "al");
width!(u16, i16, 2, reg, ":x", "ax");
width!(u32, i32, 4, reg, ":e", "eax");
width!(u64, i64, 8, reg, ":r", "rax");

/// Whether condition `code` (as in `jcc`, 0 to 15) holds.
#[inline(always)]
pub(crate) fn condition<const CODE: u8>(status: u64) -> bool {
    let holds = match CODE >> 1 {
        0 => status & OF != 0,
        1 => status & CF != 0,
        2 => status & ZF != 0,
        3 => status & (CF | ZF) != 0,
        4 => status & SF != 0,
        5 => status & PF != 0,
        6 => (status >> 7 ^ status >> 11) & 1 != 0,
        _ => status & ZF != 0 || (status >> 7 ^ status >> 11) & 1 != 0,
    };
    holds != (CODE & 1 != 0)
}
