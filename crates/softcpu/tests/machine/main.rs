//! What programs in user mode cannot compare with a real processor: paging, exceptions, privilege, modes, interrupts, several processors.

mod atomics;
mod exceptions;
mod floating;
mod instructions;
mod interrupts;
mod machine;
mod modes;
mod paging;
mod speed;
