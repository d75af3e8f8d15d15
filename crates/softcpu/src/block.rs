//! Blocks of decoded instructions, and how they are found again.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

use crate::exception::{Fault, vector};
use crate::memory::{PAGE, Snapshot};
use crate::mmu::{Access, Mmu};
use crate::op::Op;
use crate::state::{Cpu, Segment, gpr, mode, seg};
use crate::translate::{Arena, Code};

/// Instructions of a block at most.
const LENGTH: usize = 64;

/// Entries of the cache by linear address, a power of two.
pub(crate) const RECENT: usize = 16384;

/// Decoded instructions beyond which everything is forgotten: at 64 bytes each, 32 MB.
const OPS_MAX: usize = 500_000;

/// Blocks that are kept although they are wrong, before all pointers to them are removed.
const RETIRED_MAX: usize = 4096;

/// Parts of `Cpu::mode` that decoding depends on.
const DECODED: u8 =
    mode::CODE64 | mode::CODE32 | mode::STACK32 | mode::REAL | mode::LONG | mode::NO_FPU | mode::NO_SSE;

/// Consecutive instructions of one page that are executed from the first on.
pub(crate) struct Block {
    pub ops: Vec<Op>,
    pub bytes: u32,
    /// The page's physical address.
    pub page: u64,
    /// Where its first byte is in this process; `_memory` keeps it.
    host: *const u8,
    /// What [`Block::current`] was when it was decoded.
    generation: u32,
    /// The page's generation; `_memory` keeps it.
    current: NonNull<AtomicU32>,
    _memory: Arc<Snapshot>,
    /// It is one instruction that goes on in the next page: where that is in this process, and the page's generation, then and now.
    rest: Option<Rest>,
    /// Times it was executed by the interpreter.
    pub executions: u32,
    /// Its translations.
    pub codes: Vec<Code>,
}

/// The second page of an instruction.
struct Rest {
    host: *const u8,
    generation: u32,
    current: NonNull<AtomicU32>,
}

impl Rest {
    fn valid(&self) -> bool {
        // SAFETY: as in `Block::valid`.
        unsafe { self.current.as_ref() }.load(Ordering::Relaxed) == self.generation
    }
}

impl Block {
    /// The generation of the page it was decoded from.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// It is an instruction that lies in two pages.
    pub(crate) fn crosses(&self) -> bool {
        self.rest.is_some()
    }

    /// Its translation for an address and mode, if there is one.
    pub(crate) fn translation(&self, rip: u64, mode: u8) -> Option<*const u8> {
        self.codes
            .iter()
            .find(|code| code.rip == rip && code.mode == mode)
            .map(|code| code.entry)
    }

    /// The bytes it was decoded from, if it is still [`Block::valid`] afterwards.
    pub(crate) fn source(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes as usize];
        // SAFETY: inside of one page of RAM, which the snapshot keeps.
        unsafe { crate::access::copy(self.host, bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    pub(crate) fn valid(&self) -> bool {
        // SAFETY: the snapshot is kept for as long as the block.
        unsafe { self.current.as_ref() }.load(Ordering::Relaxed) == self.generation
    }
}

/// What was found for a linear address. Translated code reads it.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Recent {
    pub linear: u64,
    /// Of `Mmu::epochs`, when it was found.
    pub epoch: u32,
    pub mode: u8,
    block: Option<NonNull<Block>>,
    /// The translation, or null.
    pub code: *const u8,
    /// The block's page's generation: what it is, and what it must be.
    pub current: *const AtomicU32,
    pub generation: u32,
}

/// For [`Recent::current`] of entries without a block.
static NO_GENERATION: AtomicU32 = AtomicU32::new(0);

impl Recent {
    const EMPTY: Self = Self {
        linear: 0,
        epoch: 0,
        mode: 0,
        block: None,
        code: std::ptr::null(),
        current: &raw const NO_GENERATION,
        generation: 1,
    };
}

/// A hash for keys that are addresses.
#[derive(Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(26);
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }
}

type Blocks = HashMap<(u64, u8), Box<Block>, BuildHasherDefault<AddressHasher>>;

/// The blocks of one processor.
pub(crate) struct BlockCache {
    /// By linear address and mode; an entry counts while its half's epoch is the same.
    recent: Box<[Recent; RECENT]>,
    /// By the first byte's place in this process, and the mode.
    blocks: Blocks,
    ops: usize,
    /// Blocks whose page was written since, which `recent` may still point to.
    #[expect(clippy::vec_box, reason = "pointers to them stay valid when this grows")]
    retired: Vec<Box<Block>>,
    pub arena: Arena,
    /// How often blocks were freed: what pointed to them then is wrong.
    pub cleared: u64,
}

/// An empty cache by linear address, made where it stays: it is too large for the stack.
fn recents() -> Box<[Recent; RECENT]> {
    match vec![Recent::EMPTY; RECENT].into_boxed_slice().try_into() {
        Ok(recents) => recents,
        Err(_) => unreachable!("it has RECENT entries"),
    }
}

impl BlockCache {
    pub(crate) fn new(arena: Arena) -> Self {
        Self {
            recent: recents(),
            blocks: Blocks::default(),
            ops: 0,
            retired: vec![],
            arena,
            cleared: 0,
        }
    }

    fn slot(linear: u64) -> usize {
        (linear ^ linear >> 12) as usize & (RECENT - 1)
    }

    /// Forgets everything. No block may be executing.
    pub(crate) fn clear(&mut self) {
        self.recent.fill(Recent::EMPTY);
        self.blocks.clear();
        self.retired.clear();
        self.ops = 0;
        self.arena.clear();
        self.cleared += 1;
    }
}

impl Cpu {
    /// The linear address of the next instruction; #GP where it cannot be.
    fn fetch_address(&mut self) -> Result<u64, Fault> {
        if self.long_code() {
            if !self.canonical(self.rip) {
                return Err(self.protection());
            }
            return Ok(self.rip);
        }
        let code = &self.segments[seg::CS];
        if self.rip > u64::from(code.limit) {
            return Err(self.protection());
        }
        Ok(code.base.wrapping_add(self.rip) & 0xffff_ffff)
    }

    /// The block that begins at the next instruction. `None`: that instruction must be executed alone.
    #[inline(always)]
    pub(crate) fn find_block(&mut self) -> Result<Option<NonNull<Block>>, Fault> {
        let linear = if self.long_code() {
            self.rip
        } else {
            self.fetch_address()?
        };
        let recent = &mut self.blocks.recent[BlockCache::slot(linear)];
        if recent.linear == linear
            && recent.mode == self.mode
            && let Some(block) = recent.block
            // SAFETY: what is freed is removed from `recent`.
            && unsafe { block.as_ref() }.valid()
        {
            let epoch = self.mmu.epochs[(linear >> 63) as usize];
            if recent.epoch == epoch {
                return Ok(Some(block));
            }
            let user = usize::from(self.mode & mode::USER != 0);
            let entry = &self.mmu.entries[user][Mmu::index(linear)];
            // SAFETY: as above.
            let host = unsafe { block.as_ref() }.host as u64;
            if entry.execute == linear & !(PAGE - 1) && entry.host + (linear & (PAGE - 1)) == host {
                // Translations were forgotten since, and this one is the same again.
                recent.epoch = epoch;
                self.mmu.note_code(linear);
                return Ok(Some(block));
            }
        }
        self.find_block_slow()
    }

    #[cold]
    #[inline(never)]
    fn find_block_slow(&mut self) -> Result<Option<NonNull<Block>>, Fault> {
        let linear = self.fetch_address()?;
        let host = self.fetch_host(linear)?;
        let key = (host, self.mode & DECODED);
        let found = self
            .blocks
            .blocks
            .get(&key)
            .map(|block| (NonNull::from(&**block), block.valid()));
        let block = match found {
            Some((block, true)) => block,
            _ => match self.decode_block(linear, key)? {
                Some(block) => block,
                None => return self.decode_crossing(linear, key),
            },
        };
        // SAFETY: found or made just now.
        if let Some(rest) = &unsafe { block.as_ref() }.rest {
            // The second page may be another one by now: looked at every time.
            let next = (linear & !(PAGE - 1)).wrapping_add(PAGE);
            if !rest.valid() || self.fetch_host(next)? != rest.host as u64 {
                return self.decode_crossing(linear, key);
            }
            return Ok(Some(block));
        }
        self.mmu.note_code(linear);
        // SAFETY: found or made just now.
        let code = unsafe { block.as_ref() }.translation(self.rip, self.mode);
        self.blocks.recent[BlockCache::slot(linear)] = Recent {
            linear,
            epoch: self.mmu.epochs[(linear >> 63) as usize],
            mode: self.mode,
            block: Some(block),
            code: code.unwrap_or(std::ptr::null()),
            // SAFETY: found or made just now.
            current: unsafe { block.as_ref() }.current.as_ptr(),
            // SAFETY: as above.
            generation: unsafe { block.as_ref() }.generation,
        };
        Ok(Some(block))
    }

    /// Where the instruction byte at a linear address is in this process.
    fn fetch_host(&mut self, linear: u64) -> Result<u64, Fault> {
        let user = self.user();
        let entry = &self.mmu.entries[usize::from(user)][Mmu::index(linear)];
        if entry.execute == linear & !(PAGE - 1) {
            return Ok(entry.host + (linear & (PAGE - 1)));
        }
        match self.fill(linear, Access::Execute, user)? {
            Ok(host) => Ok(host as u64),
            // Instructions in a device: nothing that is run here has them.
            Err(_) => Err(self.protection()),
        }
    }

    /// Decodes one instruction that lies in two pages, to be kept. `None`: it must be executed alone.
    fn decode_crossing(&mut self, linear: u64, key: (u64, u8)) -> Result<Option<NonNull<Block>>, Fault> {
        let next = (linear & !(PAGE - 1)).wrapping_add(PAGE);
        if !self.long_code() || next == 0 {
            return Ok(None);
        }
        let user = self.user();
        let first = self.translate(linear, Access::Execute, user)?.physical;
        let second = self.translate(next, Access::Execute, user)?.physical;
        let snapshot = self.snapshot.clone();
        let (Some(first_page), Some(second_page)) = (snapshot.page(first), snapshot.page(second)) else {
            return Ok(None);
        };
        for page in [first_page, second_page] {
            if page.mark_code() {
                self.mmu.forget_writes(page.host);
                self.flush_writers();
            }
        }
        let generations = [first_page, second_page].map(|page| page.generation().load(Ordering::SeqCst));
        if !first_page.has_code() || !second_page.has_code() {
            return Ok(None);
        }
        let op = self.decode_one()?;
        let block = Box::new(Block {
            bytes: u32::from(op.len),
            ops: vec![op],
            page: first & !(PAGE - 1),
            host: key.0 as *const u8,
            generation: generations[0],
            current: NonNull::from(first_page.generation()),
            _memory: snapshot.clone(),
            rest: Some(Rest {
                host: second_page.host,
                generation: generations[1],
                current: NonNull::from(second_page.generation()),
            }),
            executions: 0,
            codes: vec![],
        });
        Ok(Some(self.keep(key, block)))
    }

    /// Keeps a block, in place of what was kept for its place.
    fn keep(&mut self, key: (u64, u8), block: Box<Block>) -> NonNull<Block> {
        self.blocks.ops += block.ops.len();
        let pointer = NonNull::from(&*block);
        if let Some(old) = self.blocks.blocks.insert(key, block) {
            self.blocks.ops -= old.ops.len();
            // What still points to it finds that its page's generation is another.
            self.blocks.retired.push(old);
            if self.blocks.retired.len() > RETIRED_MAX {
                self.blocks.recent.fill(Recent::EMPTY);
                self.blocks.retired.clear();
                self.blocks.cleared += 1;
            }
        }
        pointer
    }

    fn decode_block(&mut self, linear: u64, key: (u64, u8)) -> Result<Option<NonNull<Block>>, Fault> {
        if self.blocks.ops > OPS_MAX || self.blocks.arena.full() {
            self.blocks.clear();
        }
        let physical = self.translate(linear, Access::Execute, self.user())?.physical;
        loop {
            let snapshot = self.snapshot.clone();
            let Some(page) = snapshot.page(physical) else {
                return Err(self.protection());
            };
            let generation = if page.mark_code() {
                self.mmu.forget_writes(page.host);
                self.flush_writers();
                page.generation().load(Ordering::SeqCst)
            } else {
                page.generation().load(Ordering::SeqCst)
            };
            if !page.has_code() {
                // Somebody wrote to it since: it must be marked again before it is read.
                continue;
            }
            let offset = physical & (PAGE - 1);
            let mut bytes = [0_u8; LENGTH * 15];
            let here = ((PAGE - offset) as usize).min(bytes.len());
            let bytes = &mut bytes[..here];
            // SAFETY: the rest of a page of RAM.
            unsafe { crate::access::copy(page.host.add(offset as usize), bytes.as_mut_ptr(), bytes.len()) };
            let Some((ops, length)) = self.decode_bytes(bytes) else {
                return Ok(None);
            };
            let block = Box::new(Block {
                ops,
                bytes: length,
                host: page.host.wrapping_add(offset as usize),
                page: physical & !(PAGE - 1),
                generation,
                current: NonNull::from(page.generation()),
                _memory: snapshot.clone(),
                rest: None,
                executions: 0,
                codes: vec![],
            });
            return Ok(Some(self.keep(key, block)));
        }
    }

    /// Has every other processor forget translations, before a page's instructions are kept.
    fn flush_writers(&mut self) {
        let memory = self.memory.clone();
        let index = self.index;
        memory.flush_others(Some((index, &mut || self.answer_flush())));
    }

    fn bitness(&self) -> u32 {
        if self.mode & mode::CODE64 != 0 {
            64
        } else if self.mode & mode::CODE32 != 0 {
            32
        } else {
            16
        }
    }

    /// Decodes a block out of a page's rest. `None`: the first instruction goes on in the next page.
    fn decode_bytes(&self, bytes: &[u8]) -> Option<(Vec<Op>, u32)> {
        let mut decoder = Decoder::with_ip(self.bitness(), bytes, 0, DecoderOptions::NONE);
        let mut ops = Vec::with_capacity(16);
        let mut instruction = Instruction::default();
        let mut length = 0;
        while ops.len() < LENGTH && decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if decoder.last_error() == DecoderError::NoMoreBytes {
                break;
            }
            let (mut op, ends) = crate::decode::lower(&instruction, self.mode);
            op.start = length as u16;
            length += instruction.len() as u32;
            ops.push(op);
            if ends {
                break;
            }
        }
        (!ops.is_empty()).then(|| {
            ops.shrink_to_fit();
            (ops, length)
        })
    }

    /// Decodes the next instruction, which may lie in two pages.
    pub(crate) fn decode_one(&mut self) -> Result<Op, Fault> {
        let linear = self.fetch_address()?;
        let user = self.user();
        let mut bytes = [0_u8; 15];
        let here = ((PAGE - (linear & (PAGE - 1))) as usize).min(15);
        self.read_bytes_as(linear, &mut bytes[..here], Access::Execute, user)?;
        let mut instruction = Instruction::default();
        let mut decoder = Decoder::with_ip(self.bitness(), &bytes[..here], 0, DecoderOptions::NONE);
        decoder.decode_out(&mut instruction);
        if decoder.last_error() == DecoderError::NoMoreBytes && here < 15 {
            let next = linear.wrapping_add(here as u64);
            self.read_bytes_as(next, &mut bytes[here..], Access::Execute, user)?;
            let mut decoder = Decoder::with_ip(self.bitness(), &bytes, 0, DecoderOptions::NONE);
            decoder.decode_out(&mut instruction);
            if decoder.last_error() == DecoderError::NoMoreBytes {
                return Err(self.raise_code(vector::GP, 0));
            }
        }
        let code = &self.segments[seg::CS];
        let last = self.rip + instruction.len() as u64 - 1;
        if !self.long_code() && last > u64::from(code.limit) && code.has(Segment::PRESENT) {
            return Err(self.protection());
        }
        let (op, _) = crate::decode::lower(&instruction, self.mode);
        Ok(op)
    }

    /// Remembers the translation of the block at the present address.
    pub(crate) fn remember_code(&mut self, block: NonNull<Block>, code: *const u8) {
        let recent = &mut self.blocks.recent[BlockCache::slot(self.rip)];
        if recent.block == Some(block) && recent.linear == self.rip && recent.mode == self.mode {
            recent.code = code;
        }
    }

    /// The cache by linear address, for translated code.
    pub(crate) fn recent(&self) -> *const Recent {
        self.blocks.recent.as_ptr()
    }

    /// Where the block being executed begins.
    #[inline(always)]
    pub(crate) fn block_start(&self) -> u64 {
        self.regs[gpr::BLOCK]
    }
}
