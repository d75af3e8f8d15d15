//! Reading the operation log: what is there, then what comes.
//!
//! Whoever follows has the newest file open and reads on where it was; when a new file is begun the old one is read to
//! its end first. So no line is lost or told twice however slowly somebody reads, as long as fewer files are begun meanwhile
//! than are kept.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::sync::watch;
use tokio::time::Instant;
use vessel_api::Operation;
use vessel_engine::time;

use super::file::OperationLog;

/// Read at a time.
const PIECE: usize = 256 << 10;
/// A line that is longer is none of ours.
const MAX_LINE: usize = 64 << 10;

/// What is read.
pub struct Reading {
    log: Arc<OperationLog>,
    /// Nanoseconds since the epoch.
    since: Option<i64>,
    until: Option<i64>,
    /// Only so many of the newest; then those that come.
    tail: Option<usize>,
    follow: bool,
    files: VecDeque<File>,
    generation: u64,
    changed: watch::Receiver<u64>,
    /// A line that has not ended yet.
    torn: Vec<u8>,
    lines: VecDeque<Bytes>,
    /// Whether everything that was there at first was read.
    caught_up: bool,
}

impl Reading {
    /// Begins to read.
    ///
    /// # Errors
    /// The disk.
    pub fn begin(
        log: &Arc<OperationLog>,
        since: Option<i64>,
        until: Option<i64>,
        tail: Option<usize>,
        follow: bool,
    ) -> io::Result<Self> {
        let view = log.view()?;
        Ok(Self {
            log: Arc::clone(log),
            since,
            until,
            tail,
            follow,
            files: view.files.into(),
            generation: view.generation,
            changed: view.changed,
            torn: Vec::new(),
            lines: VecDeque::new(),
            caught_up: false,
        })
    }

    /// Reads one piece. Returns false when there is none now.
    fn piece(&mut self) -> io::Result<bool> {
        let mut piece = vec![0; PIECE];
        while let Some(file) = self.files.front_mut() {
            let read = file.read(&mut piece)?;
            if read == 0 && self.files.len() > 1 {
                self.files.pop_front();
                self.torn.clear();
                continue;
            }
            if read == 0 {
                let (newer, generation) = self.log.since(self.generation)?;
                self.generation = generation;
                if newer.is_empty() {
                    return Ok(false);
                }
                // What was written to it between the two is read before them.
                self.files.extend(newer);
                let last = match self.files.front_mut() {
                    Some(file) => file.read(&mut piece)?,
                    None => 0,
                };
                self.split(&piece[..last]);
                continue;
            }
            self.split(&piece[..read]);
            return Ok(true);
        }
        Ok(false)
    }

    fn split(&mut self, piece: &[u8]) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.torn.extend_from_slice(part);
            if self.torn.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.torn);
                if self.wants(&line) {
                    self.lines.push_back(line.into());
                }
            } else if self.torn.len() > MAX_LINE {
                self.torn.clear();
            }
        }
        if !self.caught_up
            && let Some(tail) = self.tail
        {
            let surplus = self.lines.len().saturating_sub(tail);
            self.lines.drain(..surplus);
        }
    }

    fn wants(&self, line: &[u8]) -> bool {
        let Ok(operation) = serde_json::from_slice::<Operation>(line) else {
            return false;
        };
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let time = time::parse(&operation.time).unwrap_or_default();
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time <= until)
    }

    fn over(&self) -> bool {
        !self.follow || self.until.is_some_and(|until| time::now() >= until)
    }

    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            let ready = self.caught_up || self.tail.is_none();
            if ready && let Some(line) = self.lines.pop_front() {
                return Ok(Some((line, self)));
            }
            // Nothing that is written after this is missed.
            self.changed.borrow_and_update();
            let (read, reading) = tokio::task::spawn_blocking(move || (self.piece(), self))
                .await
                .map_err(io::Error::other)?;
            self = reading;
            if read? {
                continue;
            }
            self.caught_up = true;
            if !self.lines.is_empty() {
                continue;
            }
            if self.over() {
                return Ok(None);
            }
            let until = self
                .until
                .and_then(|until| u64::try_from(until - time::now()).ok());
            let end = until.map(|left| Instant::now() + std::time::Duration::from_nanos(left));
            let ended = async {
                match end {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.changed.changed() => if changed.is_err() { return Ok(None) },
                () = ended => {}
            }
        }
    }
}

/// The lines, one after the other.
pub fn follow(reading: Reading) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold(Some(reading), |reading| async move {
        match reading?.next().await {
            Ok(Some((line, reading))) => Some((Ok(line), Some(reading))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    fn operation(id: usize) -> Operation {
        Operation {
            id: id.to_string(),
            time: time::rfc3339(1_000_000_000 * id as i64),
            ..Operation::default()
        }
    }

    fn id(line: &io::Result<Bytes>) -> usize {
        let line: Operation = serde_json::from_slice(line.as_ref().unwrap()).unwrap();
        line.id.parse().unwrap()
    }

    async fn all(reading: Reading) -> Vec<usize> {
        follow(reading).map(|line| id(&line)).collect().await
    }

    #[tokio::test]
    async fn times_and_tail_choose() {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(OperationLog::open(directory.path(), 1 << 20).unwrap());
        for number in 0..10 {
            log.append(&operation(number));
        }
        let begin = |since, until, tail| Reading::begin(&log, since, until, tail, false).unwrap();
        assert_eq!(all(begin(None, None, None)).await, (0..10).collect::<Vec<_>>());
        let second = 1_000_000_000;
        assert_eq!(
            all(begin(Some(3 * second), Some(5 * second), None)).await,
            [3, 4, 5]
        );
        assert_eq!(all(begin(None, None, Some(2))).await, [8, 9]);
        assert_eq!(all(begin(None, None, Some(0))).await, Vec::<usize>::new());
    }

    #[tokio::test]
    async fn who_follows_misses_nothing_across_new_files() {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(OperationLog::open(directory.path(), 8_000).unwrap());
        log.append(&operation(0));
        let mut lines = Box::pin(follow(Reading::begin(&log, None, None, None, true).unwrap()));
        let writer = Arc::clone(&log);
        // Who reads may be as far behind as the older files reach, which is more than this.
        let ahead = Arc::new(tokio::sync::Semaphore::new(30));
        let room = Arc::clone(&ahead);
        let writing = tokio::spawn(async move {
            for number in 1..200 {
                room.acquire().await.unwrap().forget();
                writer.append(&operation(number));
            }
        });
        for expected in 0..200 {
            assert_eq!(id(&lines.next().await.unwrap()), expected);
            ahead.add_permits(1);
        }
        writing.await.unwrap();
        assert!(directory.path().join("operations.log.3").exists());
    }
}
