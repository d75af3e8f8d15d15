//! gzip (RFC 1952) on several threads, one member.
//!
//! The input is cut into blocks of a fixed size. Each is deflated by itself, with the end of the block before it as
//! dictionary, and ends at a byte boundary (a sync flush); one after the other they are one deflate stream, as pigz makes
//! it. The output depends on the input only, not on the number of threads.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

use crate::error::{Error, Result};

/// Bytes of input per block.
const BLOCK: usize = 512 << 10;
/// What deflate looks back at most.
const WINDOW: usize = 32 << 10;
/// The usual level here: a little less than the common 6, and half of its time.
pub(crate) const LEVEL: u32 = 5;
/// No name, no time, an unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// What became of a block.
type Done = io::Result<(Vec<u8>, Crc)>;

struct Job {
    block: Arc<Vec<u8>>,
    before: Option<Arc<Vec<u8>>>,
    last: bool,
    done: SyncSender<io::Result<(Vec<u8>, Crc)>>,
}

/// Compresses all of `input` on `threads` threads beside this one, which reads and gives what comes out to `output`.
pub(crate) fn compress(
    mut input: impl Read,
    threads: usize,
    level: u32,
    output: &mut dyn FnMut(Vec<u8>) -> io::Result<()>,
) -> Result<()> {
    let threads = threads.max(1);
    let read_failed = |e| Error::input("cannot read what is to be compressed", e);
    let write_failed = |e| Error::input("cannot pass on what was compressed", e);
    output(HEADER.to_vec()).map_err(write_failed)?;
    let (jobs, queue) = sync_channel::<Job>(threads);
    let queue = Mutex::new(queue);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            std::thread::Builder::new()
                .name("gzip".into())
                .spawn_scoped(scope, || work(&queue, level))
                .map_err(|e| Error::io("cannot start a thread to compress", e))?;
        }
        // Moved in, so that the threads end with it.
        let jobs = jobs;
        let mut waiting: VecDeque<Receiver<Done>> = VecDeque::new();
        let mut crc = Crc::new();
        let mut take = |result: Receiver<Done>| -> Result<()> {
            let (bytes, part) = result
                .recv()
                .unwrap_or_else(|_| Err(io::Error::other("a thread that compresses has died")))
                .map_err(|e| Error::io("cannot compress", e))?;
            crc.combine(&part);
            output(bytes).map_err(write_failed)
        };
        let mut before: Option<Arc<Vec<u8>>> = None;
        let mut block = read_block(&mut input).map_err(read_failed)?;
        loop {
            let next = match block.len() {
                BLOCK => read_block(&mut input).map_err(read_failed)?,
                _ => Vec::new(),
            };
            let last = next.is_empty();
            let current = Arc::new(block);
            let (done, result) = sync_channel(1);
            let job = Job {
                block: Arc::clone(&current),
                before: before.replace(current),
                last,
                done,
            };
            jobs.send(job)
                .map_err(|_| Error::io("cannot compress", io::Error::other("the threads have died")))?;
            waiting.push_back(result);
            if waiting.len() > threads * 2
                && let Some(result) = waiting.pop_front()
            {
                take(result)?;
            }
            if last {
                break;
            }
            block = next;
        }
        drop(jobs);
        for result in waiting {
            take(result)?;
        }
        let mut trailer = crc.sum().to_le_bytes().to_vec();
        trailer.extend_from_slice(&crc.amount().to_le_bytes());
        output(trailer).map_err(write_failed)
    })
}

fn read_block(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut block = Vec::with_capacity(BLOCK);
    input.take(BLOCK as u64).read_to_end(&mut block)?;
    Ok(block)
}

fn work(queue: &Mutex<Receiver<Job>>, level: u32) {
    let mut deflate = Compress::new(Compression::new(level), false);
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        deflate.reset();
        // Whoever asked may be gone.
        let _ = job.done.send(deflated(&mut deflate, &job));
    }
}

fn deflated(deflate: &mut Compress, job: &Job) -> io::Result<(Vec<u8>, Crc)> {
    if let Some(before) = &job.before {
        let start = before.len().saturating_sub(WINDOW);
        deflate
            .set_dictionary(&before[start..])
            .map_err(io::Error::other)?;
    }
    // More than stored blocks would need: one call does it.
    let mut out = Vec::with_capacity(job.block.len() + job.block.len() / 8 + 1024);
    let flush = if job.last {
        FlushCompress::Finish
    } else {
        FlushCompress::Sync
    };
    let status = deflate
        .compress_vec(&job.block, &mut out, flush)
        .map_err(io::Error::other)?;
    let complete = deflate.total_in() == job.block.len() as u64
        && match status {
            Status::StreamEnd => job.last,
            Status::Ok => !job.last && out.len() < out.capacity(),
            Status::BufError => false,
        };
    if !complete {
        return Err(io::Error::other("deflate did not finish a block"));
    }
    let mut crc = Crc::new();
    crc.update(&job.block);
    Ok((out, crc))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compressed(data: &[u8], threads: usize) -> Vec<u8> {
        let mut out = Vec::new();
        compress(data, threads, LEVEL, &mut |piece| {
            out.extend_from_slice(&piece);
            Ok(())
        })
        .unwrap();
        out
    }

    #[test]
    fn reads_back_and_does_not_depend_on_threads() {
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK * 5 + 77] {
            // Some of it repeats across blocks, some does not compress at all.
            let mut state = 1u64;
            let data: Vec<u8> = (0..length)
                .map(|i| {
                    state = state
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    if i % 3000 < 1000 {
                        (state >> 56) as u8
                    } else {
                        (i % 251) as u8
                    }
                })
                .collect();
            let one = compressed(&data, 1);
            assert!(one == compressed(&data, 3), "{length}");
            let mut back = Vec::new();
            // A decoder of a single member: there must be no more than one.
            flate2::read::GzDecoder::new(&one[..])
                .read_to_end(&mut back)
                .unwrap();
            assert!(back == data, "{length}");
        }
    }

    #[test]
    fn what_compresses_gets_small() {
        assert!(compressed(&vec![7; BLOCK * 4], 2).len() < BLOCK / 50);
    }

    #[test]
    fn a_failure_ends_it() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        assert!(compress(Broken, 2, LEVEL, &mut |_| Ok(())).is_err());
        let endless = io::repeat(1).take(100 << 20);
        let refused = compress(endless, 2, LEVEL, &mut |_| Err(io::Error::other("gone")));
        assert!(refused.is_err());
    }
}
