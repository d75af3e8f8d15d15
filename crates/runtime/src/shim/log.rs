//! The container's log: Docker's json-file format, bounded in size; what goes elsewhere goes there, too (see `remote`).
//!
//! One JSON object a line: `{"log":"…\n","stream":"stdout","time":"2006-01-02T15:04:05.999999999Z"}`. Lines longer than
//! [`LONGEST_LINE`] are split, the parts but the last without the trailing `\n`, as Docker does. Bytes that are not
//! UTF-8 become U+FFFD. A full disk costs log lines, never the container.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::protocol::LogConfig;
use super::remote::Remote;
use crate::Result;
use crate::error::Context;

/// Docker's buffer size for one line.
pub const LONGEST_LINE: usize = 16 << 10;

/// Which stream a piece of output came from, as Docker numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output (and all output of a terminal).
    Output = 1,
    /// Standard error.
    Errors = 2,
}

/// A log being written.
#[derive(Debug)]
pub struct Log {
    config: LogConfig,
    file: File,
    size: u64,
    attrs: Vec<u8>,
    pending: [Vec<u8>; 2],
    text: Vec<u8>,
    clock: Clock,
    remote: Option<Remote>,
}

impl Log {
    /// Opens the log, going on where an earlier run of the container ended.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(config: LogConfig) -> Result<Self> {
        let file = open_file(&config.path).context(|| format!("open the log {}", config.path.display()))?;
        let size = file.metadata().map(|metadata| metadata.len()).unwrap_or(0);
        let mut attrs = Vec::new();
        if !config.attrs.is_empty() {
            attrs.extend_from_slice(b",\"attrs\":{");
            for (index, (name, value)) in config.attrs.iter().enumerate() {
                if index > 0 {
                    attrs.push(b',');
                }
                attrs.push(b'"');
                escape(name.as_bytes(), &mut attrs);
                attrs.extend_from_slice(b"\":\"");
                escape(value.as_bytes(), &mut attrs);
                attrs.push(b'"');
            }
            attrs.push(b'}');
        }
        Ok(Self {
            remote: config.target.clone().map(Remote::new),
            config,
            file,
            size,
            attrs,
            pending: [Vec::new(), Vec::new()],
            text: Vec::new(),
            clock: Clock::default(),
        })
    }

    /// Logs a piece of output. What comes after the last newline waits for the rest of its line.
    pub fn write(&mut self, stream: Stream, mut bytes: &[u8], now: i64) {
        let mut pending = std::mem::take(&mut self.pending[stream as usize - 1]);
        while let Some(end) = memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end + 1);
            bytes = rest;
            if pending.is_empty() {
                self.long_line(stream, line, now);
            } else {
                pending.extend_from_slice(line);
                self.long_line(stream, &pending, now);
                pending.clear();
            }
        }
        pending.extend_from_slice(bytes);
        while pending.len() > LONGEST_LINE {
            let cut = boundary(&pending, LONGEST_LINE);
            self.entry(stream, &pending[..cut], now);
            pending.drain(..cut);
        }
        self.pending[stream as usize - 1] = pending;
        self.flush();
    }

    /// Logs what waited for a newline that will not come.
    pub fn finish(&mut self, stream: Stream, now: i64) {
        let pending = std::mem::take(&mut self.pending[stream as usize - 1]);
        if !pending.is_empty() {
            self.entry(stream, &pending, now);
            self.flush();
        }
    }

    fn long_line(&mut self, stream: Stream, mut line: &[u8], now: i64) {
        while line.len() > LONGEST_LINE + 1 {
            let cut = boundary(line, LONGEST_LINE);
            self.entry(stream, &line[..cut], now);
            line = &line[cut..];
        }
        self.entry(stream, line, now);
    }

    fn entry(&mut self, stream: Stream, line: &[u8], now: i64) {
        if let Some(remote) = &mut self.remote {
            remote.send(stream, line, now);
        }
        let text = &mut self.text;
        text.extend_from_slice(b"{\"log\":\"");
        escape(line, text);
        text.extend_from_slice(match stream {
            Stream::Output => b"\",\"stream\":\"stdout\"",
            Stream::Errors => b"\",\"stream\":\"stderr\"",
        });
        text.extend_from_slice(&self.attrs);
        text.extend_from_slice(b",\"time\":\"");
        self.clock.format(now, text);
        text.extend_from_slice(b"\"}\n");
        // Written in good pieces, and so that a file never grows far beyond its bound.
        if self.text.len() >= 64 << 10
            || (self.config.max_size > 0 && self.size + self.text.len() as u64 >= self.config.max_size)
        {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.text.is_empty() {
            return;
        }
        if self.file.write_all(&self.text).is_ok() {
            self.size += self.text.len() as u64;
        } else {
            // Half a line would swallow the next one that fits again.
            let _ = self.file.set_len(self.size);
        }
        self.text.clear();
        if self.text.capacity() > 128 << 10 {
            self.text.shrink_to(64 << 10);
        }
        if self.config.max_size > 0 && self.size >= self.config.max_size {
            self.rotate();
        }
    }

    fn rotate(&mut self) {
        // The new file first: without it, every line from here on would push an older file out.
        let next = self.name("next");
        let Ok(file) = open_file(&next) else {
            return;
        };
        let name = |number: u32| self.name(&number.to_string());
        if self.config.max_files > 1 {
            for number in (1..self.config.max_files - 1).rev() {
                let _ = std::fs::rename(name(number), name(number + 1));
            }
            let _ = std::fs::rename(&self.config.path, name(1));
        }
        if std::fs::rename(&next, &self.config.path).is_ok() {
            self.file = file;
            self.size = 0;
        }
    }

    /// An older file, or one to be.
    fn name(&self, end: &str) -> PathBuf {
        let mut name = self.config.path.clone().into_os_string();
        name.push(format!(".{end}"));
        name.into()
    }
}

fn open_file(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).mode(0o640).open(path)
}

fn memchr(byte: u8, bytes: &[u8]) -> Option<usize> {
    // SAFETY: the pointer and the length describe `bytes`; memchr reads within it only.
    let found = unsafe { libc::memchr(bytes.as_ptr().cast(), byte.into(), bytes.len()) };
    (!found.is_null()).then(|| found as usize - bytes.as_ptr() as usize)
}

/// The largest cut at or below `at` that splits no UTF-8 character.
fn boundary(bytes: &[u8], at: usize) -> usize {
    (at.saturating_sub(3)..=at)
        .rev()
        .find(|cut| bytes[*cut] & 0xc0 != 0x80)
        .filter(|cut| *cut > 0)
        .unwrap_or(at)
}

/// Appends `bytes` as the inside of a JSON string.
fn escape(bytes: &[u8], text: &mut Vec<u8>) {
    let mut chunks = bytes.utf8_chunks();
    for chunk in &mut chunks {
        let valid = chunk.valid().as_bytes();
        let mut start = 0;
        for (index, &byte) in valid.iter().enumerate() {
            if byte >= 0x20 && byte != b'"' && byte != b'\\' {
                continue;
            }
            text.extend_from_slice(&valid[start..index]);
            start = index + 1;
            match byte {
                b'"' => text.extend_from_slice(b"\\\""),
                b'\\' => text.extend_from_slice(b"\\\\"),
                b'\n' => text.extend_from_slice(b"\\n"),
                b'\r' => text.extend_from_slice(b"\\r"),
                b'\t' => text.extend_from_slice(b"\\t"),
                control => {
                    const HEX: &[u8; 16] = b"0123456789abcdef";
                    text.extend_from_slice(b"\\u00");
                    text.push(HEX[usize::from(control >> 4)]);
                    text.push(HEX[usize::from(control & 15)]);
                }
            }
        }
        text.extend_from_slice(&valid[start..]);
        if !chunk.invalid().is_empty() {
            text.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

/// RFC 3339 in UTC with nanoseconds; the part down to the second is kept from one line to the next.
#[derive(Debug, Default)]
struct Clock {
    second: i64,
    prefix: Vec<u8>,
}

impl Clock {
    fn format(&mut self, nanoseconds: i64, text: &mut Vec<u8>) {
        let second = nanoseconds.div_euclid(1_000_000_000);
        let mut fraction = nanoseconds.rem_euclid(1_000_000_000);
        if self.prefix.is_empty() || second != self.second {
            self.second = second;
            self.prefix = date_time(second).into_bytes();
        }
        text.extend_from_slice(&self.prefix);
        text.push(b'.');
        let mut digits = [b'0'; 9];
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (fraction % 10) as u8;
            fraction /= 10;
        }
        text.extend_from_slice(&digits);
        text.push(b'Z');
    }
}

/// The time now, as the log has it.
pub(crate) fn rfc3339_now() -> String {
    let mut text = Vec::new();
    Clock::default().format(super::server::now(), &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// `YYYY-MM-DDTHH:MM:SS` of seconds since the epoch (proleptic Gregorian calendar).
pub(super) fn date_time(second: i64) -> String {
    let (days, time) = (second.div_euclid(86_400), second.rem_euclid(86_400));
    // Days since 0000-03-01, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}",
        time / 3600,
        time / 60 % 60,
        time % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(max_size: u64, max_files: u32) -> (tempfile::TempDir, Log) {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig {
            path: dir.path().join("json.log"),
            max_size,
            max_files,
            attrs: vec![],
            target: None,
        };
        let log = Log::open(config).unwrap();
        (dir, log)
    }

    fn lines(path: &std::path::Path) -> Vec<serde_json::Value> {
        std::fs::read_to_string(path)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn lines_are_put_together_and_escaped() {
        let (dir, mut log) = log(0, 1);
        log.write(Stream::Output, b"a\"b\\\x01\xff", 1_700_000_000_123_456_789);
        log.write(Stream::Errors, b"err\n", 1_700_000_000_123_456_789);
        log.write(Stream::Output, b"c\nrest", 1_700_000_000_123_456_789);
        log.finish(Stream::Output, 1_700_000_000_123_456_789);
        let lines = lines(&dir.path().join("json.log"));
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["log"], "err\n");
        assert_eq!(lines[0]["stream"], "stderr");
        assert_eq!(lines[1]["log"], "a\"b\\\u{1}\u{fffd}c\n");
        assert_eq!(lines[1]["time"], "2023-11-14T22:13:20.123456789Z");
        assert_eq!(lines[2]["log"], "rest");
    }

    #[test]
    fn long_lines_are_split_between_characters() {
        let (dir, mut log) = log(0, 1);
        let line = format!(
            "{}é{}\n",
            "x".repeat(LONGEST_LINE - 1),
            "y".repeat(2 * LONGEST_LINE)
        );
        log.write(Stream::Output, line.as_bytes(), 0);
        let lines = lines(&dir.path().join("json.log"));
        let whole: String = lines.iter().map(|line| line["log"].as_str().unwrap()).collect();
        assert_eq!(whole, line);
        assert!(lines.len() >= 3);
        assert!(
            lines
                .iter()
                .all(|line| line["log"].as_str().unwrap().len() <= LONGEST_LINE + 1)
        );
    }

    #[test]
    fn the_size_is_bounded() {
        let (dir, mut log) = log(1000, 3);
        for number in 0..200 {
            log.write(Stream::Output, format!("line {number}\n").as_bytes(), 0);
        }
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["json.log", "json.log.1", "json.log.2"]);
        for name in &names {
            assert!(dir.path().join(name).metadata().unwrap().len() < 1200);
        }
        let newest = lines(&dir.path().join("json.log.1"));
        let older = lines(&dir.path().join("json.log.2"));
        assert!(older.last().unwrap()["log"].as_str() < newest[0]["log"].as_str());
    }

    #[test]
    fn a_full_disk_tears_no_line() {
        // Detached: nobody sees it, and it is gone with its descriptor.
        let size = [("size".to_owned(), Some("64k".to_owned()))];
        let Ok(disk) = crate::rootfs::new_file_system("tmpfs", "tmpfs", &size, 0) else {
            return; // It takes root.
        };
        let dir = PathBuf::from(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&disk)
        ));
        let config = LogConfig {
            path: dir.join("json.log"),
            max_size: 0,
            max_files: 1,
            attrs: vec![],
            target: None,
        };
        let mut log = Log::open(config).unwrap();
        std::fs::write(dir.join("filler"), vec![0; 16 << 10]).unwrap();
        for _ in 0..100 {
            log.write(Stream::Output, format!("{}\n", "x".repeat(3000)).as_bytes(), 0);
        }
        let full = lines(&dir.join("json.log")).len();
        std::fs::remove_file(dir.join("filler")).unwrap();
        log.write(Stream::Output, b"good again\n", 0);
        let after = lines(&dir.join("json.log"));
        assert!((1..100).contains(&full) && after.len() == full + 1);
        assert_eq!(after[full]["log"], "good again\n");
    }

    #[test]
    fn a_log_that_cannot_be_rotated_loses_no_older_file() {
        let (dir, mut log) = log(1000, 3);
        let write = |log: &mut Log| {
            for number in 0..30 {
                log.write(Stream::Output, format!("line {number}\n").as_bytes(), 0);
            }
        };
        write(&mut log);
        let older = std::fs::read(dir.path().join("json.log.1")).unwrap();
        std::fs::create_dir(dir.path().join("json.log.next")).unwrap();
        write(&mut log);
        assert_eq!(std::fs::read(dir.path().join("json.log.1")).unwrap(), older);
        std::fs::remove_dir(dir.path().join("json.log.next")).unwrap();
        write(&mut log);
        assert!(dir.path().join("json.log").metadata().unwrap().len() < 1200);
    }

    #[test]
    fn dates_are_right() {
        for (second, text) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_709_251_199, "2024-02-29T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
            (-1, "1969-12-31T23:59:59"),
        ] {
            assert_eq!(date_time(second), text);
        }
    }
}
