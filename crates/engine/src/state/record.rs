//! One record of the journal: a put or a delete, framed and checksummed.
//!
//! ```text
//!   magic "VREC" | u32 length of the body | u32 CRC-32 of length and body | body
//!   body: u8 operation | u8 length of the table's name | u16 length of the key | table | key | value (a put's)
//! ```
//! Integers are little-endian. The magic makes it cheap to find the next record behind a damaged one.

/// The start of every record.
pub(super) const MAGIC: [u8; 4] = *b"VREC";
/// Magic, length, checksum.
pub(super) const HEADER: usize = 12;
/// The largest body: records are kilobytes; a length beyond this is damage.
pub(super) const MAX_BODY: usize = 16 << 20;

const PUT: u8 = 1;
const DELETE: u8 = 2;

/// A change of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Operation<'a> {
    pub table: &'a str,
    pub key: &'a str,
    /// None: delete.
    pub value: Option<&'a [u8]>,
}

/// Bytes a put of these takes in the journal.
pub(super) fn size(table: &str, key: &str, value: usize) -> u64 {
    (HEADER + 4 + table.len() + key.len() + value) as u64
}

/// Appends a record to `out`. `None` when a name or the value is too long to be written.
pub(super) fn encode(out: &mut Vec<u8>, operation: Operation<'_>) -> Option<()> {
    let table = u8::try_from(operation.table.len()).ok()?;
    let key = u16::try_from(operation.key.len()).ok()?;
    let value = operation.value.unwrap_or_default();
    let length = 4 + operation.table.len() + operation.key.len() + value.len();
    if length > MAX_BODY {
        return None;
    }
    let start = out.len();
    out.reserve(HEADER + length);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.push(if operation.value.is_some() { PUT } else { DELETE });
    out.push(table);
    out.extend_from_slice(&key.to_le_bytes());
    out.extend_from_slice(operation.table.as_bytes());
    out.extend_from_slice(operation.key.as_bytes());
    out.extend_from_slice(value);
    let sum = crc32(crc32(0, &out[start + 4..start + 8]), &out[start + HEADER..]);
    out[start + 8..start + HEADER].copy_from_slice(&sum.to_le_bytes());
    Some(())
}

/// The record `data` begins with and how long it is; `None` when it is cut or damaged.
pub(super) fn decode(data: &[u8]) -> Option<(Operation<'_>, usize)> {
    let header = data.get(..HEADER)?;
    if header[..4] != MAGIC {
        return None;
    }
    let length = u32::from_le_bytes(header[4..8].try_into().ok()?) as usize;
    if length > MAX_BODY {
        return None;
    }
    let body = data.get(HEADER..HEADER + length)?;
    let sum = u32::from_le_bytes(header[8..12].try_into().ok()?);
    if crc32(crc32(0, &header[4..8]), body) != sum {
        return None;
    }
    let (&operation, &table, key) = (body.first()?, body.get(1)?, body.get(2..4)?);
    let key = usize::from(u16::from_le_bytes(key.try_into().ok()?));
    let names = 4 + usize::from(table);
    let operation = Operation {
        table: std::str::from_utf8(body.get(4..names)?).ok()?,
        key: std::str::from_utf8(body.get(names..names + key)?).ok()?,
        value: match operation {
            PUT => Some(&body[names + key..]),
            DELETE => None,
            _ => return None,
        },
    };
    Some((operation, HEADER + length))
}

/// CRC-32 (IEEE 802.3), continued from `sum`; eight bytes a step.
fn crc32(sum: u32, data: &[u8]) -> u32 {
    const TABLES: [[u32; 256]; 8] = tables();
    let mut crc = !sum;
    let mut chunks = data.chunks_exact(8);
    for chunk in &mut chunks {
        let low = crc ^ u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        crc = TABLES[7][(low & 0xff) as usize]
            ^ TABLES[6][(low >> 8 & 0xff) as usize]
            ^ TABLES[5][(low >> 16 & 0xff) as usize]
            ^ TABLES[4][(low >> 24) as usize]
            ^ TABLES[3][usize::from(chunk[4])]
            ^ TABLES[2][usize::from(chunk[5])]
            ^ TABLES[1][usize::from(chunk[6])]
            ^ TABLES[0][usize::from(chunk[7])];
    }
    for &byte in chunks.remainder() {
        crc = TABLES[0][((crc ^ u32::from(byte)) & 0xff) as usize] ^ (crc >> 8);
    }
    !crc
}

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                0xedb8_8320 ^ (crc >> 1)
            } else {
                crc >> 1
            };
            bit += 1;
        }
        tables[0][index] = crc;
        index += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut index = 0;
        while index < 256 {
            let previous = tables[table - 1][index];
            tables[table][index] = tables[0][(previous & 0xff) as usize] ^ (previous >> 8);
            index += 1;
        }
        table += 1;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_standard_one() {
        assert_eq!(crc32(0, b"123456789"), 0xcbf4_3926);
        assert_eq!(
            crc32(crc32(0, b"1234"), b"56789abcdefghijk"),
            crc32(0, b"123456789abcdefghijk")
        );
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut record = Vec::new();
        let operation = Operation {
            table: "t",
            key: "key",
            value: Some(b"{\"a\":1}"),
        };
        encode(&mut record, operation).unwrap();
        assert_eq!(decode(&record), Some((operation, record.len())));
        for bit in 0..record.len() * 8 {
            record[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&record), None, "bit {bit}");
            record[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
