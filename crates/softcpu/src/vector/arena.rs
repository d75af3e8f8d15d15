//! Memory for the instructions that are executed as themselves.
//!
//! One per process, shared by all processors. It is mapped twice: writable, and executable; never both in one mapping. What is in it is made by
//! `thunk` out of a bounded set (operation, form of the operands, immediate: no register numbers, no displacements), so it needs no eviction: all
//! of the set is smaller than [`SIZE`], and pages that were never written take no memory.

use std::collections::HashMap;
use std::io;
use std::ptr::NonNull;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

/// Bytes of address space: about 40,000 different pieces of at most 128 bytes can be asked for.
const SIZE: usize = 8 << 20;

/// Pieces begin at multiples of this.
const ALIGNMENT: usize = 16;

struct Arena {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    used: usize,
    /// Where each piece is, by its bytes.
    pieces: HashMap<Box<[u8]>, usize>,
}

// SAFETY: the mappings are of this process and stay until its end; `used` and `pieces` are behind a lock.
unsafe impl Send for Arena {}

static ARENA: OnceLock<Mutex<Arena>> = OnceLock::new();

impl Arena {
    fn new() -> io::Result<Self> {
        let file = rustix::fs::memfd_create(c"softcpu", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, SIZE as u64)?;
        let map = |protection| {
            // SAFETY: a new mapping at an address the kernel chooses.
            let pointer = unsafe {
                rustix::mm::mmap(std::ptr::null_mut(), SIZE, protection, MapFlags::SHARED, &file, 0)
            }?;
            NonNull::new(pointer.cast::<u8>()).ok_or(io::Error::from(io::ErrorKind::OutOfMemory))
        };
        Ok(Self {
            writable: map(ProtFlags::READ | ProtFlags::WRITE)?,
            executable: map(ProtFlags::READ | ProtFlags::EXEC)?,
            used: 0,
            pieces: HashMap::new(),
        })
    }

    fn put(&mut self, code: &[u8]) -> Option<usize> {
        if let Some(&address) = self.pieces.get(code) {
            return Some(address);
        }
        let room = code.len().next_multiple_of(ALIGNMENT);
        if room > SIZE - self.used {
            return None;
        }
        // SAFETY: `used + code.len()` bytes are mapped, and nobody executes or reads these yet.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.as_ptr().add(self.used), code.len())
        };
        // Instructions written at one address and executed at another: `cpuid` has the processor forget what it may have fetched (SDM volume 3,
        // "Handling Self- and Cross-Modifying Code").
        let _ = std::arch::x86_64::__cpuid(0);
        let address = self.executable.as_ptr() as usize + self.used;
        self.used += room;
        self.pieces.insert(code.into(), address);
        Some(address)
    }
}

/// Makes the arena, so that it is there when system calls are forbidden later. Without it, vector instructions are #UD.
pub(crate) fn prepare() -> io::Result<()> {
    if ARENA.get().is_none() {
        // Two threads may make it at the same time; the second mapping of the two stays unused.
        let _ = ARENA.set(Mutex::new(Arena::new()?));
    }
    Ok(())
}

/// The executable copy of `code`.
pub(crate) fn put(code: &[u8]) -> Option<usize> {
    prepare().ok()?;
    ARENA
        .get()?
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .put(code)
}
