//! LZ4 as kernels are packed with it: the legacy frame (`lz4 -l`), blocks of at most 8 MiB, after the LZ4 frame and block formats 1.6.
//!
//! No crate of the workspace reads it, and it is what Debian's and Ubuntu's kernels come in.

use super::error::{Error, Result};

pub(super) const MAGIC: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
/// What a block holds at most once it is unpacked.
const BLOCK_MAX: usize = 8 << 20;
const MATCH_MIN: usize = 4;

/// Unpacks frames; `limit` bounds the result.
pub(super) fn unpack(mut input: &[u8], limit: usize) -> Result<Vec<u8>> {
    let mut output = Vec::new();
    while !input.is_empty() {
        let word = take(&mut input, 4)?;
        if word == MAGIC {
            continue;
        }
        let length = u32::from_le_bytes([word[0], word[1], word[2], word[3]]) as usize;
        let block = take(&mut input, length)?;
        let most = (output.len() + BLOCK_MAX).min(limit);
        unpack_block(block, &mut output, most)?;
    }
    Ok(output)
}

fn damaged() -> Error {
    Error::Damaged("its LZ4 payload makes no sense")
}

fn take<'a>(input: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (front, rest) = input.split_at_checked(length).ok_or_else(damaged)?;
    *input = rest;
    Ok(front)
}

/// A length: four bits of the token, and bytes that are added while they are 255.
fn length(nibble: u8, input: &mut &[u8]) -> Result<usize> {
    let mut length = usize::from(nibble);
    if nibble == 15 {
        loop {
            let byte = take(input, 1)?[0];
            length += usize::from(byte);
            if byte != 255 {
                break;
            }
        }
    }
    Ok(length)
}

/// Unpacks one block behind `output`, which it may refer to only from its own start; `most` is the longest `output` may become.
fn unpack_block(mut input: &[u8], output: &mut Vec<u8>, most: usize) -> Result<()> {
    let start = output.len();
    while !input.is_empty() {
        let token = take(&mut input, 1)?[0];
        let count = length(token >> 4, &mut input)?;
        let literals = take(&mut input, count)?;
        if output.len() + count > most {
            return Err(damaged());
        }
        output.extend_from_slice(literals);
        if input.is_empty() {
            // The last sequence has no match.
            return Ok(());
        }
        let offset = take(&mut input, 2)?;
        let offset = usize::from(u16::from_le_bytes([offset[0], offset[1]]));
        let mut count = length(token & 15, &mut input)? + MATCH_MIN;
        if offset == 0 || offset > output.len() - start || output.len() + count > most {
            return Err(damaged());
        }
        // A match may reach into itself: then what it has made so far is copied, twice as much each time.
        let from = output.len() - offset;
        while count > 0 {
            let here = count.min(output.len() - from);
            output.extend_from_within(from..from + here);
            count -= here;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The simplest packer: literals only.
    fn literals(data: &[u8]) -> Vec<u8> {
        let mut block = Vec::new();
        let mut rest = data.len();
        block.push(if rest < 15 {
            u8::try_from(rest).unwrap() << 4
        } else {
            0xf0
        });
        if rest >= 15 {
            rest -= 15;
            while rest >= 255 {
                block.push(255);
                rest -= 255;
            }
            block.push(u8::try_from(rest).unwrap());
        }
        block.extend(data);
        block
    }

    fn frame(blocks: &[Vec<u8>]) -> Vec<u8> {
        let mut all = MAGIC.to_vec();
        for block in blocks {
            all.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
            all.extend(block);
        }
        all
    }

    #[test]
    fn matches_reach_back_and_into_themselves() {
        // "abcd", then 10 bytes from 3 back, then the literal "e".
        let block = vec![0x46, b'a', b'b', b'c', b'd', 3, 0, 0x10, b'e'];
        assert_eq!(unpack(&frame(&[block]), 100).unwrap(), b"abcdbcdbcdbcdbe");
    }

    #[test]
    fn blocks_follow_each_other() {
        let long = vec![7; 1000];
        let whole = frame(&[literals(b"one"), literals(&long)]);
        assert_eq!(unpack(&whole, 2000).unwrap(), [&b"one"[..], &long].concat());
        assert!(unpack(&whole, 1002).is_err(), "the result has a limit");
        for cut in 5..whole.len() {
            if let Ok(short) = unpack(&whole[..cut], 2000) {
                assert!(short == b"one", "{cut}");
            }
        }
    }

    #[test]
    fn matches_before_the_block_are_refused() {
        for offset in [0, 2] {
            assert!(unpack(&frame(&[vec![0x10, b'a', offset, 0]]), 100).is_err());
        }
        let second = frame(&[literals(b"aaaa"), vec![0x10, b'a', 2, 0]]);
        assert!(unpack(&second, 100).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            if let Ok(output) = unpack(&frame(&[bytes]), 4096) {
                prop_assert!(output.len() <= 4096);
            }
        }
    }
}
