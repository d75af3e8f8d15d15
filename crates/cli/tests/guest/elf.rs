//! The little the test needs of ELF (64-bit, little-endian): what an executable loads, what a kernel module depends on.

const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;

fn u16_at(bytes: &[u8], at: usize) -> usize {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()).into()
}

fn u64_at(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap()
}

/// Program headers as (type, offset of the end in the file).
fn segments(elf: &[u8]) -> impl Iterator<Item = (u32, usize)> {
    assert!(elf.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit ELF file");
    let (table, size, count) = (u64_at(elf, 32), u16_at(elf, 54), u16_at(elf, 56));
    (0..count).map(move |index| {
        let header = &elf[table + index * size..][..size];
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
        (kind, u64_at(header, 8) + u64_at(header, 32))
    })
}

/// Whether an executable needs a dynamic loader.
pub fn is_dynamic(elf: &[u8]) -> bool {
    segments(elf).any(|(kind, _)| kind == PT_INTERP)
}

/// An executable without what follows its last segment: symbols and debug information, by far the most of a test build.
///
/// The kernel looks only at program headers, so the section headers may end up pointing nowhere.
pub fn loaded_part(elf: &[u8]) -> &[u8] {
    assert!(
        !is_dynamic(elf),
        "the executable is not static: was it built without .cargo/config.toml?"
    );
    let end = segments(elf)
        .filter(|(kind, _)| *kind == PT_LOAD)
        .map(|(_, end)| end)
        .max();
    &elf[..end.expect("an executable that loads nothing")]
}

/// The names of the modules that a kernel module needs: the line `depends=a,b` among its NUL-separated information.
pub fn dependencies(module: &[u8]) -> Vec<String> {
    let mark = b"\0depends=";
    let Some(start) = module.windows(mark.len()).position(|window| window == mark) else {
        return Vec::new();
    };
    let list = module[start + mark.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    let list = String::from_utf8_lossy(list);
    list.split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}
