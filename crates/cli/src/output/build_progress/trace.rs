//! What is known of a build: its vertices, their parts, their output.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{SystemTime, UNIX_EPOCH};

use vessel_client::build::{StatusResponse, VertexLog, VertexStatus};

/// Lines of output that are shown again when a vertex fails.
const LAST_LINES: usize = 10;
/// Lines of output that a terminal shows of a running vertex.
const WINDOW: usize = 6;

/// Nanoseconds since 1970.
pub type Time = i128;

/// Now.
pub fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().cast_signed()
}

macro_rules! time {
    ($timestamp:expr) => {
        $timestamp
            .as_ref()
            .map(|time| Time::from(time.seconds) * 1_000_000_000 + Time::from(time.nanos))
    };
}

/// A part of a vertex.
#[derive(Debug, Default, Clone)]
pub struct Part {
    pub id: String,
    pub current: i64,
    pub total: i64,
    pub time: Time,
    pub started: Option<Time>,
    pub completed: Option<Time>,
    /// Whether something new is to be shown.
    pub updated: bool,
}

/// A vertex.
#[derive(Debug, Default)]
pub struct Vertex {
    pub name: String,
    pub cached: bool,
    pub error: String,
    pub started: Option<Time>,
    pub completed: Option<Time>,
    pub parts: Vec<Part>,
    pub warnings: Vec<String>,
    /// Warnings that were shown.
    pub warned: usize,
    /// Lines of output that are to be shown, the time in front; the last may lack its end.
    pub lines: Vec<Vec<u8>>,
    pub partial: bool,
    /// Bytes of the first of `lines` that were shown already.
    pub shown: usize,
    /// Changes since it was the current one.
    pub count: usize,
    pub since: Option<Time>,
    /// The number it is shown by, from 1; 0 until it is shown.
    pub number: usize,
    /// Its last lines.
    pub tail: VecDeque<Vec<u8>>,
    tail_open: bool,
}

impl Vertex {
    /// Whether it has begun.
    pub fn is_started(&self) -> bool {
        self.started.is_some()
    }

    /// Whether it has ended.
    pub fn is_completed(&self) -> bool {
        self.started.is_some() && self.completed.is_some()
    }

    /// Whether it ended because the build did.
    pub fn is_cancelled(&self) -> bool {
        self.error.ends_with("context canceled")
    }

    /// How long it took, or takes.
    pub fn seconds(&self, now: Time) -> f64 {
        seconds(
            self.started
                .map_or(0, |started| self.completed.unwrap_or(now) - started),
        )
    }

    fn touch(&mut self) {
        if self.count == 0 {
            self.since = Some(now());
        }
        self.count += 1;
    }

    fn log(&mut self, log: &VertexLog) {
        let since = match (time!(log.timestamp), self.started) {
            (Some(time), Some(started)) => seconds(time - started),
            _ => 0.0,
        };
        let precision = if since < 10.0 {
            3
        } else if since < 100.0 {
            2
        } else {
            1
        };
        let mut rest = log.msg.as_slice();
        while !rest.is_empty() {
            let (piece, after, ended) = match rest.iter().position(|byte| *byte == b'\n') {
                Some(at) => (&rest[..at], &rest[at + 1..], true),
                None => (rest, &rest[rest.len()..], false),
            };
            match self.lines.last_mut() {
                Some(last) if self.partial => last.extend_from_slice(piece),
                _ => {
                    let mut line = format!("{since:.precision$} ").into_bytes();
                    line.extend_from_slice(piece);
                    self.lines.push(line);
                }
            }
            match self.tail.back_mut() {
                Some(last) if self.tail_open => last.extend_from_slice(piece),
                _ => {
                    let mut line = format!("{since:.precision$} ").into_bytes();
                    line.extend_from_slice(piece);
                    self.tail.push_back(line);
                    if self.tail.len() > LAST_LINES {
                        self.tail.pop_front();
                    }
                }
            }
            self.partial = !ended;
            self.tail_open = !ended;
            rest = after;
        }
    }

    /// The lines a terminal shows while it runs.
    pub fn window(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.tail.iter().skip(self.tail.len().saturating_sub(WINDOW))
    }
}

/// A span in seconds.
pub fn seconds(span: Time) -> f64 {
    span as f64 / 1e9
}

/// A build.
#[derive(Debug, Default)]
pub struct Trace {
    /// Every vertex told of, in that order.
    pub vertices: Vec<Vertex>,
    by_digest: HashMap<String, usize>,
    /// Those that began, in that order.
    pub begun: Vec<usize>,
    /// Those with something new.
    pub updates: BTreeSet<usize>,
    /// When the first began.
    pub started: Option<Time>,
    /// Warnings of the build checks, in the order they came.
    warnings: Vec<String>,
}

impl Trace {
    /// Takes what the daemon tells.
    pub fn update(&mut self, told: StatusResponse) {
        for vertex in told.vertexes {
            let index = *self.by_digest.entry(vertex.digest).or_insert_with(|| {
                self.vertices.push(Vertex::default());
                self.vertices.len() - 1
            });
            let Some(known) = self.vertices.get_mut(index) else {
                continue;
            };
            let (started, completed) = (time!(vertex.started), time!(vertex.completed));
            if let Some(started) = started {
                self.started.get_or_insert(started);
                let changed = known.started != Some(started)
                    || known.completed != completed
                    || known.cached != vertex.cached
                    || known.error != vertex.error
                    || known.name != vertex.name;
                if !known.is_started() {
                    self.begun.push(index);
                }
                known.started = Some(started);
                known.completed = completed;
                if changed {
                    known.touch();
                    self.updates.insert(index);
                }
            } else if known.is_started() {
                // Told again without its times: nothing is taken back.
                continue;
            }
            known.name = vertex.name;
            known.cached = vertex.cached;
            known.error = vertex.error;
        }
        for status in told.statuses {
            let Some(index) = self.by_digest.get(&status.vertex).copied() else {
                continue;
            };
            if let Some(known) = self.vertices.get_mut(index) {
                part(known, status);
                known.touch();
                self.updates.insert(index);
            }
        }
        for warning in told.warnings {
            self.warnings
                .push(String::from_utf8_lossy(&warning.short).into_owned());
            let known = self.by_digest.get(&warning.vertex).copied();
            if let Some(known) = known.and_then(|index| self.vertices.get_mut(index)) {
                known
                    .warnings
                    .push(String::from_utf8_lossy(&warning.short).into_owned());
                known.touch();
            }
        }
        for log in told.logs {
            let Some(index) = self.by_digest.get(&log.vertex).copied() else {
                continue;
            };
            if let Some(known) = self.vertices.get_mut(index) {
                known.log(&log);
                known.touch();
                self.updates.insert(index);
            }
        }
    }

    /// All warnings once more, at the end, where they are seen.
    pub fn all_warnings(&self, out: &mut Vec<u8>) {
        let head = match self.warnings.len() {
            0 => return,
            1 => "1 warning".to_owned(),
            many => format!("{many} warnings"),
        };
        out.extend_from_slice(format!("\n {head} found (use --check to expand):\n").as_bytes());
        for warning in &self.warnings {
            let line = warning.replace(|c: char| c.is_control(), " ");
            out.extend_from_slice(format!(" - {line}\n").as_bytes());
        }
    }

    /// The last lines of what failed.
    pub fn last_words(&self, out: &mut Vec<u8>) {
        for vertex in self.begun.iter().filter_map(|index| self.vertices.get(*index)) {
            if vertex.error.is_empty() || vertex.is_cancelled() {
                continue;
            }
            out.extend_from_slice(format!("------\n > {}:\n", vertex.name).as_bytes());
            for line in &vertex.tail {
                out.extend_from_slice(line);
                out.push(b'\n');
            }
            out.extend_from_slice(b"------\n");
        }
    }
}

fn part(vertex: &mut Vertex, status: VertexStatus) {
    let place = vertex.parts.iter().position(|part| part.id == status.id);
    let place = place.unwrap_or_else(|| {
        vertex.parts.push(Part {
            id: status.id.clone(),
            ..Part::default()
        });
        vertex.parts.len() - 1
    });
    if let Some(part) = vertex.parts.get_mut(place) {
        part.current = status.current;
        part.total = status.total;
        part.time = time!(status.timestamp).unwrap_or_default();
        part.started = time!(status.started).or(part.started);
        part.completed = time!(status.completed);
        part.updated = true;
    }
}

/// `1.23 / 4.56MB`, as far as it is known.
pub fn amount(part: &Part) -> Option<String> {
    if part.total != 0 {
        Some(format!("{} / {}", bytes(part.current), bytes(part.total)))
    } else if part.current != 0 {
        Some(bytes(part.current))
    } else {
        None
    }
}

/// Powers of 1000, two decimals.
fn bytes(count: i64) -> String {
    let units = ["kB", "MB", "GB", "TB", "PB"];
    let mut size = count as f64;
    if size.abs() < 1000.0 {
        return format!("{count}B");
    }
    let mut unit = "B";
    for next in units {
        if size.abs() < 1000.0 {
            break;
        }
        size /= 1000.0;
        unit = next;
    }
    format!("{size:.2}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_buildkit_writes_them() {
        for (count, text) in [(0, "0B"), (71, "71B"), (1170, "1.17kB"), (3_620_000, "3.62MB")] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn output_becomes_lines() {
        let mut vertex = Vertex {
            started: Some(0),
            ..Vertex::default()
        };
        for msg in ["a", "b\nc\n", "d"] {
            vertex.log(&VertexLog {
                msg: msg.as_bytes().to_vec(),
                ..VertexLog::default()
            });
        }
        assert_eq!(vertex.lines, [&b"0.000 ab"[..], b"0.000 c", b"0.000 d"]);
        assert!(vertex.partial);
        assert_eq!(vertex.tail.len(), 3);
    }
}
