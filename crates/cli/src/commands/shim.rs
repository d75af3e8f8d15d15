//! `vessel shim`: not for people. The daemon executes it once per container; see `vessel_runtime::shim`.

/// Runs the shim and ends the process with its exit code.
pub fn main() -> ! {
    let code = vessel_runtime::shim::run();
    // SAFETY: ends the process; everything that must survive it was written already.
    unsafe { libc::_exit(code) }
}
