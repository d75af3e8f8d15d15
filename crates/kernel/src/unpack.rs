//! Compressed files, recognized by content: gzip, xz and zstd, as distributions compress modules and packages.

use std::io::{BufRead, Read};

use crate::error::Context;
use crate::{Error, Result};

/// Memory an xz stream may ask for; its strongest preset needs 65 MiB.
const XZ_MEMORY_KIB: u32 = 256 << 10;
/// The largest window of a zstd frame that is accepted (128 MiB, the default of the zstd program).
const ZSTD_WINDOW_LOG: u32 = 27;

/// A reader of the uncompressed stream.
pub fn reader<'a>(mut input: impl BufRead + 'a) -> Result<Box<dyn Read + 'a>> {
    let start = input.fill_buf().context(|| "read what was given".into())?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, XZ_MEMORY_KIB))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(input).context(|| "set up zstd".into())?;
            decoder
                .window_log_max(ZSTD_WINDOW_LOG)
                .context(|| "set up zstd".into())?;
            Box::new(decoder)
        }
        _ => Box::new(input),
    })
}

/// The whole of it, which must not be larger than `limit`.
pub fn whole(input: impl BufRead, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader(input)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .context(|| "uncompress it".into())?;
    if bytes.len() as u64 > limit {
        return Err(Error::limit(format!("it is larger than {} MiB", limit >> 20)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn all_kinds_and_the_limit() {
        let data = vec![7; 100_000];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&data).unwrap();
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
        xz.write_all(&data).unwrap();
        for packed in [
            data.clone(),
            gzip.finish().unwrap(),
            xz.finish().unwrap(),
            zstd::encode_all(&data[..], 1).unwrap(),
        ] {
            assert_eq!(whole(&packed[..], 100_000).unwrap(), data);
            assert_eq!(
                whole(&packed[..], 99_999).unwrap_err().kind(),
                crate::ErrorKind::Limit
            );
            if packed.len() < data.len() {
                assert!(whole(&packed[..packed.len() / 2], 100_000).is_err());
            }
        }
    }
}
