//! A bzImage's kernel, unpacked by us: much faster than by the guest itself, which does it with one processor, in a software CPU
//! perhaps, and without caches.

use std::borrow::Cow;
use std::io::Read;

use super::error::{Error, Result};
use super::{bzimage, lz4};

/// What an unpacked kernel can have: several times the largest there is.
const UNPACKED_MAX: usize = 1 << 30;
/// Memory xz may use to unpack: kernels are packed with dictionaries of 32 MiB at most.
const XZ_MEMORY_KIB: u32 = 256 << 10;

const ELF: &[u8] = b"\x7fELF";
const GZIP: &[u8] = &[0x1f, 0x8b];
const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// The ELF kernel in `image`: `image` itself, if it is one, or what a bzImage has packed in it (gzip, xz, zstd, lz4, or not at all).
///
/// [`Error::Payload`] means that it is a bzImage, and packed in a way we do not unpack; it may be able to unpack itself. The result depends on the image only: it can be
/// kept and booted instead.
pub fn extract_vmlinux(image: &[u8]) -> Result<Cow<'_, [u8]>> {
    if image.starts_with(ELF) {
        return Ok(Cow::Borrowed(image));
    }
    let header = bzimage::Header::read(image)?;
    let payload = header.payload(image)?;
    let kernel = unpack(payload)?;
    if !kernel.starts_with(ELF) {
        return Err(Error::Damaged("what is packed in it is no ELF file"));
    }
    Ok(kernel)
}

fn unpack(payload: &[u8]) -> Result<Cow<'_, [u8]>> {
    if payload.starts_with(ELF) {
        return Ok(Cow::Borrowed(payload));
    }
    let known = [GZIP, XZ, ZSTD, &lz4::MAGIC];
    if !known.iter().any(|magic| payload.starts_with(magic)) {
        let magic = &payload[..payload.len().min(6)];
        return Err(Error::Payload(format!(
            "it begins with {magic:02x?}, which is neither gzip, xz, zstd nor lz4"
        )));
    }
    // gzip says how long the result is in its last word; for the others the build appends such a word.
    let (rest, size) = payload
        .split_last_chunk::<4>()
        .ok_or(Error::Damaged("nothing is packed in it"))?;
    let size = u32::from_le_bytes(*size) as usize;
    if size > UNPACKED_MAX {
        return Err(Error::Damaged(
            "what is packed in it would be more than a gibibyte",
        ));
    }
    let unpacked = if payload.starts_with(GZIP) {
        drain(flate2::bufread::GzDecoder::new(payload), size)
    } else if rest.starts_with(ZSTD) {
        zstd::stream::read::Decoder::with_buffer(rest).and_then(|decoder| {
            // One frame: what may follow is padding.
            drain(decoder.single_frame(), size)
        })
    } else if rest.starts_with(XZ) {
        drain(
            lzma_rust2::XzReader::new_mem_limit(rest, false, XZ_MEMORY_KIB),
            size,
        )
    } else {
        return sized(lz4::unpack(rest, size)?, size);
    };
    sized(unpacked.map_err(|error| Error::Payload(error.to_string()))?, size)
}

fn sized(unpacked: Vec<u8>, size: usize) -> Result<Cow<'static, [u8]>> {
    if unpacked.len() != size {
        return Err(Error::Damaged(
            "what is packed in it has another length than it says",
        ));
    }
    Ok(Cow::Owned(unpacked))
}

/// Reads everything, and one byte more than `size` at most.
fn drain(reader: impl Read, size: usize) -> std::io::Result<Vec<u8>> {
    let mut output = Vec::new();
    reader.take(size as u64 + 1).read_to_end(&mut output)?;
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    const KERNEL: &[u8] = b"\x7fELF and so on and so on and so on and so on";

    /// A bzImage with a payload.
    pub(crate) fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 64];
        image[0x1f1] = 1;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x201] = 0x66;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x236] = 1;
        image[0x248..0x24c].copy_from_slice(&64_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend(payload);
        image.extend([0; 100]);
        image
    }

    fn with_size(mut packed: Vec<u8>) -> Vec<u8> {
        packed.extend(u32::try_from(KERNEL.len()).unwrap().to_le_bytes());
        packed
    }

    fn payloads() -> Vec<Vec<u8>> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(KERNEL).unwrap();
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
        xz.write_all(KERNEL).unwrap();
        let mut lz4 = lz4::MAGIC.to_vec();
        lz4.extend(u32::try_from(KERNEL.len() + 2).unwrap().to_le_bytes());
        lz4.extend([0xf0, u8::try_from(KERNEL.len() - 15).unwrap()]);
        lz4.extend(KERNEL);
        vec![
            KERNEL.to_vec(),
            gzip.finish().unwrap(),
            with_size(xz.finish().unwrap()),
            with_size(zstd::encode_all(KERNEL, 3).unwrap()),
            with_size(lz4),
        ]
    }

    #[test]
    fn every_packing_is_unpacked() {
        for payload in payloads() {
            assert_eq!(
                *extract_vmlinux(&image(&payload)).unwrap(),
                *KERNEL,
                "{payload:02x?}"
            );
        }
        assert_eq!(*extract_vmlinux(KERNEL).unwrap(), *KERNEL);
    }

    #[test]
    fn damage_is_told() {
        for mut payload in payloads().into_iter().skip(1) {
            let last = payload.len() - 1;
            payload[last] ^= 0x10;
            assert!(extract_vmlinux(&image(&payload)).is_err());
            payload[last] ^= 0x10;
            payload.truncate(12);
            assert!(extract_vmlinux(&image(&payload)).is_err());
        }
        assert!(matches!(extract_vmlinux(b"hello"), Err(Error::NotAKernel)));
        assert!(matches!(
            extract_vmlinux(&image(b"LZO at best")),
            Err(Error::Payload(_))
        ));
        let mut far = image(KERNEL);
        far[0x248..0x24c].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(extract_vmlinux(&far), Err(Error::Damaged(_))));
    }

    proptest! {
        #[test]
        fn any_damage(which in 0_usize..5, at in 0_usize..2000, value in any::<u8>(), cut in 0_usize..2000) {
            let mut image = image(&payloads()[which]);
            let at = at % image.len();
            image[at] = value;
            image.truncate(cut.max(1));
            let _ = extract_vmlinux(&image);
        }
    }
}
