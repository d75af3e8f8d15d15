//! Compression of layers and archives, recognized by content.
//!
//! gzip (RFC 1952, several members), zstd (RFC 8878, several frames), xz and bzip2 (several streams) are read.
//! Nothing trusts a file name or a media type.

use std::io::{self, BufRead, Read};

use crate::error::{Error, Result};

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all (or in no recognized way).
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// xz.
    Xz,
    /// bzip2.
    Bzip2,
}

/// Bytes needed to recognize a compression.
pub(crate) const MAGIC_LEN: usize = 6;
/// The largest window of a zstd frame that is accepted (128 MiB, the default of the zstd program).
const ZSTD_WINDOW_LOG: u32 = 27;
/// Memory an xz stream may ask for; its strongest preset needs 65 MiB.
const XZ_MEMORY_KIB: u32 = 256 << 10;

impl Compression {
    /// Recognizes the compression by the first bytes.
    pub fn detect(start: &[u8]) -> Self {
        if start.starts_with(&[0x1f, 0x8b, 0x08]) {
            return Self::Gzip;
        }
        if start.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
            return Self::Xz;
        }
        // A zstd frame, or a skippable frame (0x184D2A5?) in front of one.
        match start {
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            // The size of blocks, then how the first of them begins, or the end of a stream without any.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, ..] => Self::Bzip2,
            _ => Self::None,
        }
    }

    /// A reader of the uncompressed stream.
    pub(crate) fn reader<'a, R: BufRead + Send + 'a>(self, input: R) -> Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Self::None => Box::new(input),
            Self::Gzip => Box::new(Named("gzip", flate2::bufread::MultiGzDecoder::new(input))),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)
                    .map_err(|e| Error::io("cannot set up zstd", e))?;
                decoder
                    .window_log_max(ZSTD_WINDOW_LOG)
                    .map_err(|e| Error::io("cannot set up zstd", e))?;
                Box::new(Named("zstd", decoder))
            }
            Self::Xz => Box::new(Named(
                "xz",
                lzma_rust2::XzReader::new_mem_limit(input, true, XZ_MEMORY_KIB),
            )),
            Self::Bzip2 => Box::new(Named("bzip2", bzip2::bufread::MultiBzDecoder::new(input))),
        })
    }
}

/// The plain bytes of a stream, however it is compressed.
///
/// # Errors
/// When its beginning cannot be read.
pub fn decompressed<'a>(input: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
    let (kind, input) = peek(input).map_err(|e| Error::input("cannot read the archive", e))?;
    kind.reader(io::BufReader::with_capacity(64 << 10, input))
}

/// Says which decompressor complains.
struct Named<R>(&'static str, R);

impl<R: Read> Read for Named<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.1.read(out).map_err(|error| {
            if error.kind() == io::ErrorKind::Interrupted || error.get_ref().is_some_and(|e| e.is::<Error>())
            {
                return error;
            }
            let why = if error.kind() == io::ErrorKind::UnexpectedEof {
                "it ends early".to_owned()
            } else {
                error.to_string()
            };
            Error::invalid(format!("the {} stream is damaged: {why}", self.0)).into()
        })
    }
}

/// A stream whose first bytes were read and put back.
pub(crate) type Peeked<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

/// Reads the first bytes of a stream to recognize it, and puts them back.
pub(crate) fn peek<R: Read>(mut input: R) -> io::Result<(Compression, Peeked<R>)> {
    let mut start = Vec::with_capacity(MAGIC_LEN);
    input.by_ref().take(MAGIC_LEN as u64).read_to_end(&mut start)?;
    Ok((Compression::detect(&start), io::Cursor::new(start).chain(input)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn round_trip(compressed: &[u8], expected: Compression) {
        let (kind, reader) = peek(compressed).unwrap();
        assert_eq!(kind, expected);
        let mut out = Vec::new();
        kind.reader(io::BufReader::new(reader))
            .unwrap()
            .read_to_end(&mut out)
            .unwrap();
        assert_eq!(out, b"hello hello hello");
        if kind != Compression::None {
            let (_, cut) = peek(&compressed[..compressed.len() - 3]).unwrap();
            let error = kind
                .reader(io::BufReader::new(cut))
                .unwrap()
                .read_to_end(&mut Vec::new())
                .unwrap_err();
            assert!(error.to_string().contains("damaged"), "{error}");
        }
    }

    #[test]
    fn reads_every_kind_and_notices_truncation() {
        let data = b"hello hello hello";
        round_trip(data, Compression::None);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(data).unwrap();
        round_trip(&gzip.finish().unwrap(), Compression::Gzip);
        round_trip(&zstd::encode_all(&data[..], 1).unwrap(), Compression::Zstd);
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
        xz.write_all(data).unwrap();
        round_trip(&xz.finish().unwrap(), Compression::Xz);
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(data).unwrap();
        round_trip(&bzip2.finish().unwrap(), Compression::Bzip2);
        let empty = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best())
            .finish()
            .unwrap();
        assert_eq!(Compression::detect(&empty), Compression::Bzip2);
    }
}
