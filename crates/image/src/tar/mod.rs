//! Reading and writing tar archives: POSIX ustar and pax (IEEE Std 1003.1), GNU extensions.
//!
//! The reader is our own because a layer's exact bytes must be recoverable: every byte that is not payload
//! of a file is shown to a tap. It accepts what Go's `archive/tar` and GNU tar write, including old GNU and
//! pax sparse files, and it bounds everything that it keeps in memory.

mod header;
mod pax;
mod reader;
mod writer;

pub(crate) use header::{BLOCK, is_header};
pub(crate) use header::{Entry, Kind, Timestamp};
pub(crate) use reader::TarReader;
pub(crate) use writer::{TarWriter, plain};
