//! Compressing: what registries and archives get.

use std::io::{self, Read, Write};

use crate::compression::Compression;
use crate::error::{Error, ErrorKind, Result};
use crate::gzip;

/// Bytes read at a time.
const PIECE: usize = 256 << 10;
/// The level of zstd when none is asked for: that of the zstd program.
const ZSTD_LEVEL: i32 = 3;

/// Compresses all of `input`, and gives what comes out to `output` in pieces. The same input and level give the same
/// bytes, on however many processors. `level`: gzip has 0 to 9, zstd 1 to 22; none: one that is fast and good.
///
/// # Errors
/// What cannot be read or passed on; xz and bzip2, which are only read; a level that is none.
pub fn compress(
    mut input: impl Read,
    how: Compression,
    level: Option<i32>,
    output: &mut dyn FnMut(Vec<u8>) -> io::Result<()>,
) -> Result<()> {
    let invalid = |range: &str| Error::invalid(format!("the compression level is not one of {range}"));
    match how {
        Compression::Gzip => {
            let level = match level {
                None => gzip::LEVEL,
                Some(level) => u32::try_from(level)
                    .ok()
                    .filter(|level| *level <= 9)
                    .ok_or_else(|| invalid("gzip's, 0 to 9"))?,
            };
            let threads = std::thread::available_parallelism().map_or(2, |n| n.get().min(16));
            gzip::compress(input, threads, level, output)
        }
        Compression::Zstd => {
            let level = level.unwrap_or(ZSTD_LEVEL);
            if !(1..=22).contains(&level) {
                return Err(invalid("zstd's, 1 to 22"));
            }
            let setup = |e| Error::io("cannot set up zstd", e);
            let mut encoder = zstd::stream::write::Encoder::new(Pieces(output), level).map_err(setup)?;
            encoder.include_checksum(true).map_err(setup)?;
            copy(&mut input, &mut encoder)?;
            encoder
                .finish()
                .map(drop)
                .map_err(|e| Error::input("cannot pass on what was compressed", e))
        }
        Compression::None => copy(&mut input, &mut Pieces(output)),
        Compression::Xz | Compression::Bzip2 => Err(Error::new(
            ErrorKind::Unsupported,
            "layers are not written with xz or bzip2: gzip, zstd or no compression will do",
        )),
    }
}

fn copy(input: &mut impl Read, output: &mut impl Write) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::input("cannot read what is to be compressed", e)),
        };
        output
            .write_all(buffer.get(..count).unwrap_or_default())
            .map_err(|e| Error::input("cannot pass on what was compressed", e))?;
    }
}

/// Passes on what is written.
struct Pieces<'a>(&'a mut dyn FnMut(Vec<u8>) -> io::Result<()>);

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.0)(bytes.to_vec())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_at_every_level() {
        let data: Vec<u8> = (0..700_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
        for (how, levels) in [
            (Compression::Gzip, &[None, Some(0), Some(9)][..]),
            (Compression::Zstd, &[None, Some(1), Some(9)]),
            (Compression::None, &[None]),
        ] {
            for &level in levels {
                let mut out = Vec::new();
                compress(&data[..], how, level, &mut |piece| {
                    out.extend_from_slice(&piece);
                    Ok(())
                })
                .unwrap();
                assert_eq!(Compression::detect(&out), how);
                let mut back = Vec::new();
                crate::decompressed(&out[..])
                    .unwrap()
                    .read_to_end(&mut back)
                    .unwrap();
                assert!(back == data, "{how:?} {level:?}");
            }
        }
        for (how, level) in [
            (Compression::Gzip, 10),
            (Compression::Zstd, 0),
            (Compression::Xz, 1),
        ] {
            assert!(compress(&data[..], how, Some(level), &mut |_| Ok(())).is_err());
        }
    }
}
