//! Exits with status 0: the cheapest program there is, for tests and benchmarks.

#![no_std]
#![no_main]

mod sys;

#[unsafe(no_mangle)]
fn main(_: sys::Args) -> i32 {
    0
}
