//! Reading a json-file log: rotated files in their order, the end in constant time, what comes as it comes.

use std::fs::File;
use std::future::Future;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::LogsOptions;
use super::entry::{Entry, nanoseconds};
use crate::{Context, Result, blocking};

/// How much is read and sent at once.
const PIECE: usize = 64 << 10;

/// The longest line that is put together: entries are at most 16 KiB of text, escaped.
const LONGEST: usize = 1 << 20;

/// Sends the log at `path` (its older files beside it as `path.1`, …) to `chunks`, and with `follow` what is written until
/// `ended` is done. Ends early when nobody listens any more.
///
/// # Errors
/// When the log cannot be read.
pub async fn send(
    path: PathBuf,
    tty: bool,
    options: LogsOptions,
    ended: impl Future<Output = ()>,
    chunks: mpsc::Sender<Result<Bytes>>,
) -> Result<()> {
    // Watched before anything is read, so that nothing is missed between.
    let watch = if options.follow { Some(Watch::new(&path)?) } else { None };
    let follow = options.follow;
    let sender = chunks.clone();
    let mut reader = blocking(move || {
        let mut reader = Reader::new(path, tty, options);
        reader.history(&sender)?;
        Ok(reader)
    })
    .await?;
    let Some(watch) = watch else { return Ok(()) };
    let mut ended = std::pin::pin!(ended);
    while follow && !reader.done && !chunks.is_closed() {
        let last = tokio::select! {
            biased;
            changed = watch.changed() => { changed?; false }
            () = &mut ended => true,
            () = chunks.closed() => return Ok(()),
        };
        reader.catch_up(&chunks).await?;
        if last {
            break;
        }
    }
    Ok(())
}

/// inotify(7) on the log's directory: writes, and the rotation's renames.
struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    fn new(path: &Path) -> Result<Self> {
        let failed = || format!("watch the log {}", path.display());
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).context(failed)?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        let what = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, dir, what).context(failed)?;
        // SAFETY: an OwnedFd answers as_raw_fd with the same open descriptor for as long as it lives, and the AsyncFd
        // owns it.
        let registered = unsafe { AsyncFd::register(fd) };
        Ok(Self(registered.map_err(std::io::Error::from).context(failed)?))
    }

    async fn changed(&self) -> Result<()> {
        let mut ready = self.0.readable().await.context(|| "watch a log")?;
        // What happened does not matter, only that something did.
        let mut events = [0; 4096];
        while rustix::io::read(self.0.get_ref(), &mut events).is_ok() {}
        ready.clear_ready();
        Ok(())
    }
}

struct Reader {
    path: PathBuf,
    tty: bool,
    options: LogsOptions,
    /// The file being read, and its inode.
    current: Option<(File, u64)>,
    /// A line that is not complete.
    partial: Vec<u8>,
    out: BytesMut,
    /// An entry after `until` was seen.
    done: bool,
}

impl Reader {
    fn new(path: PathBuf, tty: bool, options: LogsOptions) -> Self {
        Self { path, tty, options, current: None, partial: Vec::new(), out: BytesMut::new(), done: false }
    }

    fn name(&self, number: usize) -> PathBuf {
        if number == 0 {
            return self.path.clone();
        }
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    /// The files there are, newest first.
    fn files(&self) -> Result<Vec<(File, u64)>> {
        let mut files = Vec::new();
        loop {
            let name = self.name(files.len());
            match File::open(&name) {
                Ok(file) => {
                    let inode = file.metadata().context(|| format!("read the log {}", name.display()))?.ino();
                    files.push((file, inode));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(files),
                Err(error) => return Err(error).context(|| format!("read the log {}", name.display())),
            }
        }
    }

    /// Sends what is there. Blocking.
    fn history(&mut self, chunks: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
        let mut files = self.files()?;
        if let Some(lines) = self.options.tail {
            skip_to_tail(&mut files, lines).context(|| format!("read the log {}", self.path.display()))?;
        }
        let mut buffer = vec![0; PIECE];
        for (mut file, inode) in files.into_iter().rev() {
            loop {
                let count = file.read(&mut buffer).context(|| format!("read the log {}", self.path.display()))?;
                if count == 0 || self.done {
                    break;
                }
                self.take(&buffer[..count]);
                if self.out.len() >= PIECE && chunks.blocking_send(Ok(self.out.split().freeze())).is_err() {
                    return Ok(());
                }
            }
            self.current = Some((file, inode));
        }
        if !self.out.is_empty() {
            let _ = chunks.blocking_send(Ok(self.out.split().freeze()));
        }
        Ok(())
    }

    /// Sends what was written since.
    async fn catch_up(&mut self, chunks: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
        let mut buffer = vec![0; PIECE];
        loop {
            let failed = |path: &Path| format!("read the log {}", path.display());
            let count = match &mut self.current {
                Some((file, _)) => file.read(&mut buffer).context(|| failed(&self.path))?,
                None => 0,
            };
            if count > 0 {
                self.take(&buffer[..count]);
            } else if !self.next_file()? {
                break;
            }
            if self.out.len() >= PIECE && chunks.send(Ok(self.out.split().freeze())).await.is_err() {
                return Ok(());
            }
            if self.done {
                break;
            }
        }
        if !self.out.is_empty() {
            let _ = chunks.send(Ok(self.out.split().freeze())).await;
        }
        Ok(())
    }

    /// Goes on to the file after the current one, when the log was rotated; whether there is one.
    fn next_file(&mut self) -> Result<bool> {
        let mut files = self.files()?;
        let position = match &self.current {
            Some((_, inode)) => files.iter().position(|(_, candidate)| candidate == inode),
            None => None,
        };
        let next = match position {
            Some(0) => return Ok(false),
            Some(position) => position - 1,
            // Rotated away altogether: the oldest there is comes next.
            None if files.is_empty() => return Ok(false),
            None => files.len() - 1,
        };
        if let Some((current, _)) = &mut self.current {
            // What was written to it between the last read and the rotation.
            let mut rest = Vec::new();
            current.take(16 << 20).read_to_end(&mut rest).context(|| format!("read the log {}", self.path.display()))?;
            self.take(&rest);
        }
        self.current = Some(files.swap_remove(next));
        Ok(true)
    }

    /// Takes a piece of the file.
    fn take(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            if self.partial.is_empty() {
                self.line(line);
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.line(&whole);
            }
        }
        if self.partial.len() + bytes.len() <= LONGEST {
            self.partial.extend_from_slice(bytes);
        }
    }

    fn line(&mut self, line: &[u8]) {
        let Some(entry) = Entry::parse(line) else { return };
        let wanted = if entry.errors { self.options.stderr } else { self.options.stdout };
        if self.options.since.is_some() || self.options.until.is_some() {
            let Some(time) = nanoseconds(&entry.time) else { return };
            if self.options.until.is_some_and(|until| time > until) {
                self.done = true;
                return;
            }
            if self.options.since.is_some_and(|since| time < since) {
                return;
            }
        }
        if !wanted && !(self.tty && self.options.stderr) {
            return;
        }
        let mut prefix = String::new();
        if self.options.timestamps {
            prefix.push_str(&entry.time);
            prefix.push(' ');
        }
        if self.options.details {
            prefix.push_str(&details(entry.attrs.as_deref()));
            prefix.push(' ');
        }
        if !self.tty {
            // Entries are far below u32::MAX.
            let length = (prefix.len() + entry.log.len()) as u32;
            self.out.extend_from_slice(&[if entry.errors { 2 } else { 1 }, 0, 0, 0]);
            self.out.extend_from_slice(&length.to_be_bytes());
        }
        self.out.extend_from_slice(prefix.as_bytes());
        self.out.extend_from_slice(&entry.log);
    }
}

/// `name=value,…`, as Docker prints a log's details.
fn details(attrs: Option<&str>) -> String {
    let attrs: serde_json::Map<String, serde_json::Value> =
        attrs.and_then(|attrs| serde_json::from_str(attrs).ok()).unwrap_or_default();
    let mut pairs: Vec<String> =
        attrs.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect();
    pairs.sort();
    pairs.join(",")
}

/// Places the files (newest first) so that reading them oldest first gives the last `lines` entries, and drops those
/// that are too old. Reads backward, and no more than needed.
fn skip_to_tail(files: &mut Vec<(File, u64)>, lines: u64) -> std::io::Result<()> {
    let mut wanted = lines;
    let mut buffer = vec![0; PIECE];
    for index in 0..files.len() {
        let (file, _) = &mut files[index];
        let size = file.seek(SeekFrom::End(0))?;
        let mut start = size;
        if wanted == 0 {
            // Only what will come.
            files.truncate(index + 1);
            return Ok(());
        }
        while start > 0 {
            let piece = start.min(PIECE as u64);
            start -= piece;
            file.seek(SeekFrom::Start(start))?;
            let bytes = &mut buffer[..piece as usize];
            file.read_exact(bytes)?;
            for at in (0..bytes.len()).rev() {
                // The newline that ends the file ends the last entry; it begins none.
                if bytes[at] != b'\n' || start + at as u64 + 1 == size {
                    continue;
                }
                wanted -= 1;
                if wanted == 0 {
                    file.seek(SeekFrom::Start(start + at as u64 + 1))?;
                    files.truncate(index + 1);
                    return Ok(());
                }
            }
        }
        file.seek(SeekFrom::Start(0))?;
        // The first entry has no newline before it.
        if size > 0 {
            wanted -= 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: usize) -> String {
        let stream = if number % 2 == 0 { "stdout" } else { "stderr" };
        format!("{{\"log\":\"line {number}\\n\",\"stream\":\"{stream}\",\"time\":\"2024-01-01T00:00:{:02}.5Z\"}}\n", number % 60)
    }

    fn write(dir: &Path, files: &[std::ops::Range<usize>]) -> PathBuf {
        let path = dir.join("json.log");
        for (index, range) in files.iter().enumerate() {
            let name = if index == 0 { path.clone() } else { dir.join(format!("json.log.{index}")) };
            std::fs::write(name, range.clone().map(line).collect::<String>()).unwrap();
        }
        path
    }

    async fn read(path: PathBuf, options: LogsOptions) -> String {
        let (sender, mut receiver) = mpsc::channel(4);
        let task = tokio::spawn(send(path, true, options, std::future::ready(()), sender));
        let mut text = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            text.extend_from_slice(&chunk.unwrap());
        }
        task.await.unwrap().unwrap();
        String::from_utf8(text).unwrap()
    }

    fn all() -> LogsOptions {
        LogsOptions { stdout: true, stderr: true, ..LogsOptions::default() }
    }

    #[tokio::test]
    async fn the_end_is_found_across_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), &[20..25, 10..20, 0..10]);
        for tail in [0, 1, 4, 5, 6, 15, 16, 25, 100] {
            let text = read(path.clone(), LogsOptions { tail: Some(tail), ..all() }).await;
            let expected: String =
                (25 - (tail as usize).min(25)..25).map(|number| format!("line {number}\n")).collect();
            assert_eq!(text, expected, "tail {tail}");
        }
    }

    #[tokio::test]
    async fn streams_times_and_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), &[0..6]);
        let text = read(path.clone(), LogsOptions { stdout: true, timestamps: true, ..LogsOptions::default() }).await;
        assert!(text.starts_with("2024-01-01T00:00:00.5Z line 0\n2024-01-01T00:00:02.5Z line 2\n"), "{text}");
        let second = 1_704_067_200_000_000_000_i64;
        let options = LogsOptions { since: Some(second + 2_000_000_000), until: Some(second + 4_000_000_000), ..all() };
        assert_eq!(read(path, options).await, "line 2\nline 3\n");
    }

    #[tokio::test]
    async fn following_survives_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), &[0..2]);
        let (sender, mut receiver) = mpsc::channel(64);
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let ended = async move {
            let _ = ended.await;
        };
        let task = tokio::spawn(send(path.clone(), true, LogsOptions { follow: true, ..all() }, ended, sender));
        let mut text = receiver.recv().await.unwrap().unwrap().to_vec();
        for round in 0..5 {
            let mut file = File::options().append(true).create(true).open(&path).unwrap();
            std::io::Write::write_all(&mut file, line(2 + 2 * round).as_bytes()).unwrap();
            for number in (0..3).rev() {
                let from = if number == 0 { path.clone() } else { dir.path().join(format!("json.log.{number}")) };
                let _ = std::fs::rename(from, dir.path().join(format!("json.log.{}", number + 1)));
            }
            std::fs::write(&path, line(3 + 2 * round)).unwrap();
            // Slower than the reader, which may lose files that were rotated away.
            tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        }
        end.send(()).unwrap();
        while let Some(chunk) = receiver.recv().await {
            text.extend_from_slice(&chunk.unwrap());
        }
        task.await.unwrap().unwrap();
        let expected: String = (0..12).map(|number| format!("line {number}\n")).collect();
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }
}
