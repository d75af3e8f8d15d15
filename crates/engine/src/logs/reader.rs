//! Reading a log's files in order: from the end backward to find where to begin, then forward, across rotations.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::LogsOptions;
use super::entry::{self, Entry};
use crate::Result;
use crate::error::Context;

/// How much is read at once.
const BLOCK: usize = 128 << 10;
/// A line longer than this is damage: the shim splits what programs write.
const LONGEST_LINE: usize = 4 << 20;
/// How many rotated files are looked for.
const MOST_FILES: u32 = 1000;
/// How often files are looked through that are being renamed meanwhile.
const ATTEMPTS: u32 = 100;

/// Where a reader is in a log.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    options: LogsOptions,
    tty: bool,
    /// The file being read; none when there is none yet.
    file: Option<File>,
    inode: u64,
    offset: u64,
    /// What was read of a line whose end is not there yet.
    partial: Vec<u8>,
    /// Whether everything that is wanted was read.
    done: bool,
}

/// What a step of reading came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// There may be more at once.
    More,
    /// Everything written so far was read.
    End,
    /// Nothing that comes is wanted.
    Done,
}

impl Reader {
    /// A reader at the place where what is wanted begins.
    pub fn open(path: &Path, options: LogsOptions, tty: bool) -> Result<Self> {
        let mut reader = Self {
            path: path.to_owned(),
            tty,
            file: None,
            inode: 0,
            offset: 0,
            partial: Vec::new(),
            done: options.tail == Some(0) && !options.follow,
            options,
        };
        match reader.options.tail {
            Some(lines) => reader.seek_tail(lines)?,
            None => reader.open_oldest()?,
        }
        Ok(reader)
    }

    fn rotated(&self, number: u32) -> PathBuf {
        match number {
            0 => self.path.clone(),
            number => {
                let mut name = self.path.clone().into_os_string();
                name.push(format!(".{number}"));
                name.into()
            }
        }
    }

    fn open_file(&self, number: u32) -> Result<Option<File>> {
        match File::open(self.rotated(number)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(|| format!("open the log {}", self.rotated(number).display())),
        }
    }

    fn begin(&mut self, file: File, offset: u64) -> Result<()> {
        self.inode = file.metadata().context(|| "look at the log")?.ino();
        self.offset = offset;
        self.partial.clear();
        self.file = Some(file);
        Ok(())
    }

    fn open_oldest(&mut self) -> Result<()> {
        let mut oldest = None;
        let mut holes = 0;
        for number in 0..MOST_FILES {
            match self.open_file(number)? {
                Some(file) => oldest = Some(file),
                // Between two renames of a rotation one number is missing.
                None if holes == 0 => holes = 1,
                None => break,
            }
        }
        match oldest {
            Some(file) => self.begin(file, 0),
            None => Ok(()),
        }
    }

    /// Goes to the last lines: backward from the end, as many blocks as it takes.
    fn seek_tail(&mut self, lines: u64) -> Result<()> {
        let mut missing = lines;
        for number in 0..MOST_FILES {
            let Some(file) = self.open_file(number)? else {
                if number == 0 {
                    continue;
                }
                break;
            };
            let length = file.metadata().context(|| "look at the log")?.len();
            let (offset, found) = tail_offset(&file, length, missing).context(|| "read the log")?;
            self.begin(file, offset)?;
            missing -= found;
            if missing == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Reads a piece and appends what is wanted of it to `out`, ready to be sent.
    pub fn step(&mut self, out: &mut Vec<u8>) -> Result<Step> {
        if self.done {
            return Ok(Step::Done);
        }
        if self.file.is_none() {
            match self.open_file(0)? {
                Some(file) => self.begin(file, 0)?,
                None => return Ok(Step::End),
            }
        }
        let Some(file) = &self.file else {
            return Ok(Step::End);
        };
        let start = self.partial.len();
        let mut buffer = std::mem::take(&mut self.partial);
        buffer.resize(start + BLOCK, 0);
        let count = file
            .read_at(&mut buffer[start..], self.offset)
            .context(|| "read the log")?;
        buffer.truncate(start + count);
        self.offset += count as u64;
        let mut consumed = 0;
        while let Some(length) = memchr(&buffer[consumed..]) {
            let line = &buffer[consumed..consumed + length];
            consumed += length + 1;
            if let Some(entry) = entry::parse(line)
                && !self.emit(&entry, out)
            {
                self.done = true;
                return Ok(Step::Done);
            }
        }
        buffer.drain(..consumed);
        if buffer.len() > LONGEST_LINE {
            buffer.clear();
        }
        self.partial = buffer;
        if count > 0 {
            Ok(Step::More)
        } else {
            self.next_file()
        }
    }

    /// At the end of a file: the one written after it, if there is one.
    fn next_file(&mut self) -> Result<Step> {
        // A rotation renames one file after the other; what was seen of it may be true no longer.
        for _ in 0..ATTEMPTS {
            if self.is_at(0) {
                return Ok(Step::End);
            }
            let Some(meta) = self.file.as_ref().and_then(|file| file.metadata().ok()) else {
                break;
            };
            if let Some(number) = self.number() {
                // Something may have been written between the last read and the rotation.
                if meta.len() > self.offset {
                    return Ok(Step::More);
                }
                let next = self.open_file(number - 1)?;
                if !self.is_at(number) {
                    continue;
                }
                return match next {
                    Some(next) => self.begin(next, 0).map(|()| Step::More),
                    None => Ok(Step::End),
                };
            }
            if meta.nlink() == 0 {
                // Rotated away: what comes next is the oldest that is left.
                self.open_oldest()?;
                return Ok(if self.inode == meta.ino() {
                    Step::End
                } else {
                    Step::More
                });
            }
        }
        Ok(Step::End)
    }

    /// Whether the file being read is the one of this number.
    fn is_at(&self, number: u32) -> bool {
        std::fs::metadata(self.rotated(number)).is_ok_and(|meta| meta.ino() == self.inode)
    }

    /// The number of the file being read, when it was rotated. Between two renames one number is missing.
    fn number(&self) -> Option<u32> {
        let mut holes = 0;
        for number in 1..MOST_FILES {
            match std::fs::metadata(self.rotated(number)) {
                Ok(meta) if meta.ino() == self.inode => return Some(number),
                Ok(_) => {}
                Err(_) if holes == 0 => holes = 1,
                Err(_) => break,
            }
        }
        None
    }

    /// Appends an entry as it is sent. False when it is later than what is wanted.
    fn emit(&self, entry: &Entry<'_>, out: &mut Vec<u8>) -> bool {
        let options = &self.options;
        if options.since.is_some() || options.until.is_some() {
            let at = entry::nanos(&entry.time).unwrap_or(0);
            if options.until.is_some_and(|until| at > until) {
                return false;
            }
            if options.since.is_some_and(|since| at < since) {
                return true;
            }
        }
        if !(entry.stream == 1 && options.stdout || entry.stream == 2 && options.stderr) {
            return true;
        }
        let head = out.len();
        if !self.tty {
            out.extend_from_slice(&[entry.stream, 0, 0, 0, 0, 0, 0, 0]);
        }
        if options.timestamps {
            out.extend_from_slice(entry::fixed(&entry.time).as_bytes());
            out.push(b' ');
        }
        if options.details {
            let attrs: Vec<String> = entry
                .attrs
                .iter()
                .map(|(key, value)| format!("{}={}", escape(key), escape(value)))
                .collect();
            out.extend_from_slice(attrs.join(",").as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(&entry.text);
        if !self.tty {
            // An entry is at most LONGEST_LINE bytes long.
            let length = (out.len() - head - 8) as u32;
            out[head + 4..head + 8].copy_from_slice(&length.to_be_bytes());
        }
        true
    }
}

/// Query escaping, as Docker writes details.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn memchr(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n')
}

/// Where the last `lines` lines of a file begin, and how many of them it has.
fn tail_offset(file: &File, length: u64, lines: u64) -> std::io::Result<(u64, u64)> {
    if lines == 0 {
        return Ok((length, 0));
    }
    let mut found = 0;
    let mut end = length;
    let mut block = vec![0; BLOCK];
    // The newline that ends the last line begins no other.
    let mut last = true;
    while end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let piece = &mut block[..(end - start) as usize];
        file.read_exact_at(piece, start)?;
        for (index, _) in piece.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let at = start + index as u64;
            if std::mem::take(&mut last) && at + 1 == length {
                continue;
            }
            found += 1;
            if found == lines {
                return Ok((at + 1, found));
            }
        }
        last = false;
        end = start;
    }
    // The first line has no newline before it.
    Ok((0, if length > 0 { found + 1 } else { 0 }))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn write(path: &Path, numbers: std::ops::Range<usize>) {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        for number in numbers {
            let stream = if number % 2 == 0 { "stdout" } else { "stderr" };
            writeln!(
                file,
                "{{\"log\":\"line {number}\\n\",\"stream\":\"{stream}\",\"time\":\"2026-01-01T00:00:{:02}Z\"}}",
                number % 60
            )
            .unwrap();
        }
    }

    fn both() -> LogsOptions {
        LogsOptions {
            stdout: true,
            stderr: true,
            ..LogsOptions::default()
        }
    }

    /// Reads to the end, as with a terminal.
    fn read(reader: &mut Reader) -> Vec<usize> {
        let mut out = Vec::new();
        while reader.step(&mut out).unwrap() == Step::More {}
        let text = String::from_utf8(out).unwrap();
        text.lines()
            .map(|line| line.strip_prefix("line ").unwrap().parse().unwrap())
            .collect()
    }

    fn all(path: &Path, options: LogsOptions) -> Vec<usize> {
        read(&mut Reader::open(path, options, true).unwrap())
    }

    #[test]
    fn files_are_read_in_order_and_tails_reach_across_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        write(&directory.path().join("log.2"), 0..10);
        write(&directory.path().join("log.1"), 10..20);
        write(&path, 20..25);
        assert_eq!(all(&path, both()), (0..25).collect::<Vec<_>>());
        for tail in [0_usize, 1, 5, 6, 15, 24, 25, 26, 99] {
            let options = LogsOptions {
                tail: Some(tail as u64),
                ..both()
            };
            assert_eq!(
                all(&path, options),
                (25_usize.saturating_sub(tail)..25).collect::<Vec<_>>(),
                "tail {tail}"
            );
        }
        let options = LogsOptions {
            stdout: false,
            ..both()
        };
        assert!(all(&path, options).iter().all(|number| number % 2 == 1));
    }

    #[test]
    fn rotation_while_reading_loses_and_repeats_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let rotate = || {
            for number in (0..5).rev() {
                let name = |n: usize| {
                    if n == 0 {
                        path.clone()
                    } else {
                        directory.path().join(format!("log.{n}"))
                    }
                };
                let _ = std::fs::rename(name(number), name(number + 1));
            }
        };
        write(&path, 0..3);
        let mut reader = Reader::open(
            &path,
            LogsOptions {
                follow: true,
                ..both()
            },
            true,
        )
        .unwrap();
        assert_eq!(read(&mut reader), [0, 1, 2]);
        write(&path, 3..5);
        rotate();
        write(&path, 5..7);
        rotate();
        assert_eq!(read(&mut reader), [3, 4, 5, 6]);
        write(&path, 7..9);
        assert_eq!(read(&mut reader), [7, 8]);
    }

    /// A follower that is always at the end of a file meets rotations at every point.
    #[test]
    fn rotations_while_reading_lose_and_repeat_nothing() {
        const FILES: usize = 300;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let name = |number: usize| match number {
            0 => path.clone(),
            number => directory.path().join(format!("log.{number}")),
        };
        write(&path, 0..3);
        let options = LogsOptions {
            follow: true,
            ..both()
        };
        let mut reader = Reader::open(&path, options, true).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for file in 1..FILES {
                    for number in (0..file).rev() {
                        std::fs::rename(name(number), name(number + 1)).unwrap();
                    }
                    write(&path, 3 * file..3 * file + 3);
                }
            });
            let begin = std::time::Instant::now();
            let mut next = 0;
            while next < 3 * FILES {
                assert!(begin.elapsed().as_secs() < 60, "nothing came after line {next}");
                for line in read(&mut reader) {
                    assert_eq!(line, next);
                    next += 1;
                }
            }
        });
    }

    #[test]
    fn a_line_that_is_not_finished_waits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let whole = b"{\"log\":\"line 7\\n\",\"stream\":\"stdout\",\"time\":\"2026-01-01T00:00:00Z\"}\n";
        std::fs::write(&path, &whole[..20]).unwrap();
        let mut reader = Reader::open(&path, both(), true).unwrap();
        assert!(read(&mut reader).is_empty());
        std::fs::write(&path, whole).unwrap();
        assert_eq!(read(&mut reader), [7]);
    }

    #[test]
    fn times_bound_what_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        write(&path, 0..20);
        let at = |second: i64| entry::nanos("2026-01-01T00:00:00Z").unwrap() + second * 1_000_000_000;
        let options = LogsOptions {
            since: Some(at(5)),
            until: Some(at(8)),
            ..both()
        };
        assert_eq!(all(&path, options), [5, 6, 7, 8]);
    }

    #[test]
    fn frames_carry_stream_and_length() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        write(&path, 1..2);
        let options = LogsOptions {
            timestamps: true,
            details: true,
            ..both()
        };
        let mut reader = Reader::open(&path, options, false).unwrap();
        let mut out = Vec::new();
        while reader.step(&mut out).unwrap() == Step::More {}
        let text = b"2026-01-01T00:00:01.000000000Z  line 1\n";
        assert_eq!(out[..8], [2, 0, 0, 0, 0, 0, 0, text.len() as u8]);
        assert_eq!(&out[8..], text);
    }
}
