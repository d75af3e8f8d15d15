//! Memory for translated code: written through one mapping, executed through another.

use std::ptr;

/// Bytes of code a processor keeps at most.
const SIZE: usize = 32 << 20;

/// Where code lies.
pub(crate) struct Arena {
    write: *mut u8,
    execute: *const u8,
    used: usize,
}

impl Arena {
    /// Without memory when the host gives none that can be executed.
    pub(crate) fn new() -> Self {
        Self::map().unwrap_or(Self {
            write: ptr::null_mut(),
            execute: ptr::null(),
            used: SIZE,
        })
    }

    /// Whether there is memory for code.
    pub(crate) fn works(&self) -> bool {
        !self.write.is_null()
    }

    fn map() -> Option<Self> {
        // SAFETY: plain system calls; the mappings are owned by the arena from here on.
        unsafe {
            let file = libc::memfd_create(c"code".as_ptr(), libc::MFD_CLOEXEC);
            if file < 0 {
                return None;
            }
            let map = |protection| libc::mmap(ptr::null_mut(), SIZE, protection, libc::MAP_SHARED, file, 0);
            let mapped = libc::ftruncate(file, SIZE as libc::off_t) == 0;
            let write = if mapped {
                map(libc::PROT_READ | libc::PROT_WRITE)
            } else {
                libc::MAP_FAILED
            };
            let execute = if write != libc::MAP_FAILED {
                map(libc::PROT_READ | libc::PROT_EXEC)
            } else {
                libc::MAP_FAILED
            };
            libc::close(file);
            if execute == libc::MAP_FAILED {
                if write != libc::MAP_FAILED {
                    libc::munmap(write, SIZE);
                }
                return None;
            }
            Some(Self {
                write: write.cast(),
                execute: execute.cast(),
                used: 0,
            })
        }
    }

    /// Where the next code will be executed.
    pub(crate) fn next(&self) -> u64 {
        self.execute as u64 + self.used as u64
    }

    /// Whether it is so full that everything should be forgotten.
    pub(crate) fn full(&self) -> bool {
        self.works() && self.used + (1 << 20) > SIZE
    }

    /// Puts code at [`Arena::next`]: where it is, and its offset. `None`: there is no room.
    pub(crate) fn put(&mut self, code: &[u8]) -> Option<(*const u8, usize)> {
        let at = self.used;
        if code.len() > SIZE - at {
            return None;
        }
        // SAFETY: the range is inside of the mapping, checked above.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.write.add(at), code.len()) };
        self.used = (at + code.len()).next_multiple_of(16).min(SIZE);
        Some((self.execute.wrapping_add(at), at))
    }

    /// Makes the jump whose displacement is at `at` go to `target`.
    pub(crate) fn patch(&mut self, at: usize, target: *const u8) {
        debug_assert!(at + 4 <= self.used);
        let after = self.execute as u64 + at as u64 + 4;
        let displacement = (target as u64).wrapping_sub(after) as i32;
        // SAFETY: `at` is inside of code that was put here. Only this processor's thread executes it, and not now.
        unsafe { self.write.add(at).cast::<i32>().write_unaligned(displacement) };
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        if self.works() {
            self.used = 0;
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if !self.works() {
            return;
        }
        // SAFETY: the mappings of `map`; no code is executing.
        unsafe {
            libc::munmap(self.write.cast(), SIZE);
            libc::munmap(self.execute.cast_mut().cast(), SIZE);
        }
    }
}
