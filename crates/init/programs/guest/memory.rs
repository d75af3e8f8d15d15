//! The heap: size classes over brk(2), large pieces from mmap(2). One thread, so no locks.

use alloc::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};

use crate::os;

/// Classes are powers of two from 16 bytes to 64 KiB; what is larger is mapped on its own.
const SMALLEST: u32 = 4;
const LARGEST: u32 = 16;
/// How much is asked of the kernel at once.
const STEP: usize = 128 << 10;

struct State {
    /// By class, the pieces that were freed; each holds the address of the next.
    free: [Option<NonNull<Piece>>; (LARGEST - SMALLEST + 1) as usize],
    /// What is left of the heap's end.
    at: usize,
    end: usize,
}

struct Piece {
    next: Option<NonNull<Piece>>,
}

struct Heap(UnsafeCell<State>);

// SAFETY: there is one thread; after a fork each process has its own copy.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap(UnsafeCell::new(State {
    free: [None; (LARGEST - SMALLEST + 1) as usize],
    at: 0,
    end: 0,
}));

/// The class for a layout; none: it is mapped.
fn class(layout: Layout) -> Option<u32> {
    let size = layout.size().max(layout.align()).max(1 << SMALLEST);
    let class = size.checked_next_power_of_two()?.trailing_zeros();
    (class <= LARGEST).then_some(class)
}

fn pages(layout: Layout) -> usize {
    layout.size().div_ceil(4096) * 4096
}

// SAFETY: pieces are as large as their class, aligned to it because the heap's end only moves in multiples of what is
// taken after rounding up, and belong to nobody else until they are freed.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(class) = class(layout) else {
            // Alignments above a page occur nowhere here.
            if layout.align() > 4096 {
                return ptr::null_mut();
            }
            return os::map(pages(layout)).map_or(ptr::null_mut(), |at| at as *mut u8);
        };
        // SAFETY: one thread, and no call below comes back here.
        let state = unsafe { &mut *self.0.get() };
        let slot = &mut state.free[(class - SMALLEST) as usize];
        if let Some(piece) = *slot {
            // SAFETY: whoever freed it wrote the link, and nobody has it now.
            *slot = unsafe { piece.as_ref().next };
            return piece.as_ptr().cast();
        }
        let size = 1usize << class;
        let start = state.at.next_multiple_of(size);
        if start + size > state.end {
            let current = if state.end == 0 { os::brk(0) } else { state.end };
            let from = current.next_multiple_of(size);
            let wanted = from + size.max(STEP);
            if os::brk(wanted) < wanted {
                return ptr::null_mut();
            }
            // The heap is contiguous: what was left at its end is still usable when there was some.
            let start = if state.end == 0 {
                from
            } else {
                state.at.next_multiple_of(size)
            };
            state.end = wanted;
            state.at = start + size;
            return start as *mut u8;
        }
        state.at = start + size;
        start as *mut u8
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let Some(class) = class(layout) else {
            os::unmap(at as usize, pages(layout));
            return;
        };
        // SAFETY: one thread; the piece has at least 16 bytes, is aligned to them, and belongs to nobody any more.
        unsafe {
            let state = &mut *self.0.get();
            let slot = &mut state.free[(class - SMALLEST) as usize];
            let piece = at.cast::<Piece>();
            piece.write(Piece { next: *slot });
            *slot = NonNull::new(piece);
        }
    }
}
