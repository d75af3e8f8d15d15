//! cpio archives as the kernel unpacks them: "newc" (`Documentation/driver-api/early-userspace/buffer-format.rst`).

/// Writes an archive into memory.
#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
    inode: u32,
}

const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;

/// The kernel reads whole blocks.
const BLOCK: usize = 512;

impl Writer {
    /// A directory, before what is in it.
    pub fn directory(&mut self, name: &str) {
        self.entry(name, S_IFDIR | 0o755, 2, (0, 0), &[]);
    }

    /// A file.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) {
        self.entry(name, S_IFREG | permissions, 1, (0, 0), content);
    }

    /// A character device.
    pub fn device(&mut self, name: &str, permissions: u32, major: u32, minor: u32) {
        self.entry(name, S_IFCHR | permissions, 1, (major, minor), &[]);
    }

    /// The archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, 1, (0, 0), &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, links: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let fields = [
            self.inode,
            mode,
            0,
            0,
            links,
            0,
            // What is larger than the format can say never comes here: modules are bounded.
            content.len() as u32,
            0,
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Name, mode, device and content.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// What the kernel would find.
    pub fn read(bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |index: usize| {
                let start = at + 6 + 8 * index;
                u32::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16).unwrap()
            };
            let name_end = at + 110 + field(11) as usize;
            let name = std::str::from_utf8(&bytes[at + 110..name_end - 1])
                .unwrap()
                .to_owned();
            assert_eq!(bytes[name_end - 1], 0);
            let start = name_end.next_multiple_of(4);
            let end = start + field(6) as usize;
            let entry = (name, field(1), (field(9), field(10)), bytes[start..end].to_vec());
            at = end.next_multiple_of(4);
            if entry.0 == "TRAILER!!!" {
                assert!(bytes[at..].iter().all(|byte| *byte == 0) && bytes.len().is_multiple_of(BLOCK));
                return entries;
            }
            entries.push(entry);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(files in prop::collection::vec(("[a-z/.]{1,40}", 0u32..0o1000, prop::collection::vec(any::<u8>(), 0..600)), 0..8)) {
            let mut writer = Writer::default();
            writer.directory("dev");
            writer.device("dev/console", 0o600, 5, 1);
            for (name, permissions, content) in &files {
                writer.file(name, *permissions, content);
            }
            let entries = read(&writer.finish());
            prop_assert_eq!(&entries[0], &("dev".to_owned(), 0o040_755, (0, 0), vec![]));
            prop_assert_eq!(&entries[1], &("dev/console".to_owned(), 0o020_600, (5, 1), vec![]));
            prop_assert_eq!(entries.len(), files.len() + 2);
            for (entry, (name, permissions, content)) in entries[2..].iter().zip(&files) {
                prop_assert_eq!(&entry.0, name);
                prop_assert_eq!(entry.1, 0o100_000 | permissions);
                prop_assert_eq!(&entry.3, content);
            }
        }
    }
}
