//! x87, MMX and SSE instructions.

use iced_x86::Instruction;

use crate::op::{Handler, Op};

/// The handler of a vector or floating-point instruction, with `op` filled in.
pub(crate) fn lower(_: &Instruction, _: &mut Op, _: u8) -> Option<Handler> {
    None
}
