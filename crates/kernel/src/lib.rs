//! Kernels for virtual machines.
//!
//! A [`Store`] is a directory with one directory per kernel, imported from a file in `/boot`, a Debian package or the
//! output of `images/kernel/build`:
//!
//! ```text
//!   kernels/default              the name of the kernel that is used when none is named
//!   kernels/NAME/config.json     a [`Kernel`]
//!   kernels/NAME/vmlinux         the kernel, an ELF file where it could be unpacked; or `bzImage`
//!   kernels/NAME/modules/*.ko    the modules a guest needs, uncompressed
//!   kernels/NAME/initramfs/*     made of them and the guest's init once, named by what is in it
//! ```
//!
//! A kernel gets its directory whole or not at all: it is made aside and renamed. What is imported is untrusted: sizes are
//! bounded, and of an archive only the names of files count, never their paths. Nothing here knows what will run a kernel.

mod cpio;
mod error;
mod image;
mod import;
mod initramfs;
mod modinfo;
mod modules;
mod package;
pub mod recipe;
mod store;
mod unpack;

pub use error::{Error, ErrorKind, Result};
pub use import::{Import, Unpack};
pub use modules::WANTED;
pub use store::{Boot, Kernel, Store};

/// What every guest's command line should have: the self-tests of a stock kernel's cryptography are two thirds of its boot.
/// A kernel without them ignores it.
pub const COMMAND_LINE: &str = "cryptomgr.notests";
