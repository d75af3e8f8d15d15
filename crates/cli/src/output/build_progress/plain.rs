//! Lines as they come: one vertex at a time, with its number in front, the others in turn.

use super::trace::{Time, Trace, Vertex, amount, now, seconds};
use std::collections::HashMap;

/// A vertex keeps the word for so many seconds, others with as much to say considered.
const FAIR: f64 = 5.0;
/// A vertex that had something to say for so long gets the word.
const LONGEST: f64 = 10.0;
/// A part is shown again after so much of it, or so many seconds.
const STEP: f64 = 0.05;
const STEP_TIME: f64 = 5.0;

/// What was shown.
#[derive(Debug, Default)]
pub struct Plain {
    current: Option<usize>,
    numbers: usize,
    begun: bool,
    /// What was shown of parts that are not complete.
    parts: HashMap<(usize, String), (i64, Time)>,
}

impl Plain {
    /// Writes what is new.
    pub fn draw(&mut self, trace: &mut Trace, out: &mut Vec<u8>) {
        let (mut completed, rest): (Vec<usize>, Vec<usize>) = trace
            .updates
            .iter()
            .copied()
            .partition(|index| trace.vertices.get(*index).is_some_and(Vertex::is_completed));
        completed.sort_by_key(|index| trace.vertices.get(*index).and_then(|vertex| vertex.completed));
        let current = self.current;
        if let Some(current) = current.filter(|current| completed.contains(current)) {
            self.vertex(trace, current, out);
        }
        for index in &completed {
            if Some(*index) != current {
                self.vertex(trace, *index, out);
            }
        }
        let runs = |index: &usize| {
            trace
                .vertices
                .get(*index)
                .is_some_and(|vertex| vertex.is_started() && !vertex.is_completed())
        };
        if rest.is_empty() {
            if current.as_ref().is_some_and(runs) {
                return;
            }
            let open = trace.begun.iter().copied().find(runs);
            if let Some(open) = open {
                self.vertex(trace, open, out);
            }
            return;
        }
        if let Some(current) = current.filter(|current| rest.contains(current)) {
            self.vertex(trace, current, out);
        }
        self.others(trace, current, &completed, rest, out);
    }

    /// Gives the word to another vertex if it is its turn.
    fn others(
        &mut self,
        trace: &mut Trace,
        current: Option<usize>,
        completed: &[usize],
        mut rest: Vec<usize>,
        out: &mut Vec<u8>,
    ) {
        if let Some(current) = current.filter(|current| !rest.contains(current)) {
            rest.push(current);
        }
        let now = now();
        let mut stats = Vec::new();
        for index in rest {
            if let Some(vertex) = trace.vertices.get(index)
                && let Some(since) = vertex.since
            {
                let waited = seconds(now - since).max(1e-9);
                stats.push((index, vertex.count as f64 / waited, waited));
            }
        }
        let over = |(index, _, waited): &&(usize, f64, f64)| *waited > LONGEST && Some(*index) != current;
        let fastest = stats.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
        let chosen = stats.iter().find(over).copied().or(fastest);
        let Some((chosen, ..)) = chosen else { return };
        let ended = current.is_none_or(|current| completed.contains(&current));
        if ended || stats.iter().any(|stat| over(&stat)) {
            return self.vertex(trace, chosen, out);
        }
        let sum: f64 = stats.iter().map(|stat| stat.1).sum();
        if let Some((_, speed, waited)) = stats.iter().find(|stat| Some(stat.0) == current) {
            let share = if sum > 0.0 { speed / sum } else { 1.0 };
            if FAIR / (1.0 - share) < *waited {
                self.vertex(trace, chosen, out);
            }
        }
    }

    fn vertex(&mut self, trace: &mut Trace, index: usize, out: &mut Vec<u8>) {
        if self.current != Some(index) {
            let old = self.current.and_then(|current| trace.vertices.get_mut(current));
            if let Some(old) = old {
                if old.partial {
                    out.push(b'\n');
                }
                old.shown = 0;
                old.count = 0;
                out.extend_from_slice(format!("#{} ...\n", old.number).as_bytes());
            }
            if self.begun {
                out.push(b'\n');
            }
            self.begun = true;
        }
        let Some(vertex) = trace.vertices.get_mut(index) else {
            return;
        };
        if vertex.number == 0 {
            self.numbers += 1;
            vertex.number = self.numbers;
        }
        let number = vertex.number;
        if self.current != Some(index) {
            out.extend_from_slice(format!("#{number} {}\n", vertex.name).as_bytes());
        }
        let open = self.parts(vertex, index, out);
        for warning in vertex.warnings.iter().skip(vertex.warned) {
            out.extend_from_slice(format!("#{number} WARN: {warning}\n").as_bytes());
        }
        vertex.warned = vertex.warnings.len();
        lines(vertex, out);
        self.current = Some(index);
        if vertex.is_completed() && !open {
            self.current = None;
            vertex.count = 0;
            if vertex.partial {
                out.push(b'\n');
                vertex.partial = false;
                vertex.lines.clear();
            }
            let end = if vertex.is_cancelled() {
                "CANCELED".to_owned()
            } else if !vertex.error.is_empty() {
                format!("ERROR: {}", vertex.error)
            } else if vertex.cached {
                "CACHED".to_owned()
            } else {
                format!("DONE {:.1}s", vertex.seconds(now()))
            };
            out.extend_from_slice(format!("#{number} {end}\n").as_bytes());
        }
        trace.updates.remove(&index);
    }

    /// Whether a part that was shown is not complete.
    fn parts(&mut self, vertex: &mut Vertex, index: usize, out: &mut Vec<u8>) -> bool {
        let mut open = false;
        let number = vertex.number;
        for part in vertex.parts.iter_mut().filter(|part| part.updated) {
            part.updated = false;
            let key = (index, part.id.clone());
            if part.completed.is_none()
                && let Some((current, time)) = self.parts.get(&key)
            {
                let step = if part.total > 0 {
                    (part.current - current) as f64 / part.total as f64
                } else {
                    0.0
                };
                if step < STEP && seconds(part.time - time) < STEP_TIME {
                    continue;
                }
            }
            self.parts.insert(key, (part.current, part.time));
            let mut line = format!("#{number} {}", part.id);
            if let Some(amount) = amount(part) {
                line.push(' ');
                line.push_str(&amount);
            }
            if let Some(started) = part.started {
                let took = seconds(part.completed.unwrap_or(part.time) - started);
                if took > 0.01 {
                    line.push_str(&format!(" {took:.1}s"));
                }
            }
            if part.completed.is_some() {
                line.push_str(" done");
            } else {
                open = true;
            }
            line.push('\n');
            out.extend_from_slice(line.as_bytes());
        }
        open
    }
}

/// Output that was not shown yet.
fn lines(vertex: &mut Vertex, out: &mut Vec<u8>) {
    let last = vertex.lines.len().saturating_sub(1);
    for (at, line) in vertex.lines.iter().enumerate() {
        if at == 0 && vertex.shown != 0 {
            out.extend_from_slice(line.get(vertex.shown..).unwrap_or_default());
        } else {
            out.extend_from_slice(format!("#{} ", vertex.number).as_bytes());
            out.extend_from_slice(line);
        }
        if at != last || !vertex.partial {
            out.push(b'\n');
        }
    }
    if vertex.partial {
        vertex.lines.drain(..last);
        vertex.shown = vertex.lines.first().map_or(0, Vec::len);
    } else {
        vertex.lines.clear();
        vertex.shown = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vessel_client::build::{StatusResponse, Timestamp, Vertex as Told, VertexLog, VertexStatus};

    fn at(millis: i32) -> Option<Timestamp> {
        Some(Timestamp {
            seconds: 1000,
            nanos: millis * 1_000_000,
        })
    }

    fn vertex(digest: &str, name: &str, started: Option<i32>, completed: Option<i32>) -> Told {
        Told {
            digest: digest.into(),
            name: name.into(),
            started: started.and_then(at),
            completed: completed.and_then(at),
            ..Told::default()
        }
    }

    fn shown(told: Vec<StatusResponse>) -> String {
        let (mut trace, mut plain, mut out) = (Trace::default(), Plain::default(), Vec::new());
        for one in told {
            trace.update(one);
            plain.draw(&mut trace, &mut out);
        }
        trace.last_words(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn steps_as_buildkit_prints_them() {
        let text = shown(vec![
            StatusResponse {
                vertexes: vec![vertex(
                    "a",
                    "[internal] load build definition from Dockerfile",
                    Some(0),
                    None,
                )],
                ..StatusResponse::default()
            },
            StatusResponse {
                statuses: vec![VertexStatus {
                    id: "transferring dockerfile:".into(),
                    vertex: "a".into(),
                    current: 71,
                    timestamp: at(20),
                    started: at(0),
                    completed: at(20),
                    ..VertexStatus::default()
                }],
                vertexes: vec![vertex(
                    "a",
                    "[internal] load build definition from Dockerfile",
                    Some(0),
                    Some(30),
                )],
                ..StatusResponse::default()
            },
            StatusResponse {
                vertexes: vec![
                    Told {
                        cached: true,
                        ..vertex("b", "[1/2] FROM busybox", Some(40), Some(40))
                    },
                    vertex("c", "[2/2] RUN echo x", Some(50), None),
                ],
                logs: vec![VertexLog {
                    vertex: "c".into(),
                    timestamp: at(173),
                    msg: b"x\n".to_vec(),
                    ..VertexLog::default()
                }],
                ..StatusResponse::default()
            },
            StatusResponse {
                vertexes: vec![vertex("c", "[2/2] RUN echo x", Some(50), Some(250))],
                ..StatusResponse::default()
            },
        ]);
        assert_eq!(
            text,
            "#1 [internal] load build definition from Dockerfile\n\
             #1 transferring dockerfile: 71B 0.0s done\n\
             #1 DONE 0.0s\n\n\
             #2 [1/2] FROM busybox\n#2 CACHED\n\n\
             #3 [2/2] RUN echo x\n#3 0.123 x\n#3 DONE 0.2s\n"
        );
    }

    #[test]
    fn what_fails_says_so_twice() {
        let text = shown(vec![StatusResponse {
            vertexes: vec![
                Told {
                    error: "exit code: 1".into(),
                    ..vertex("a", "RUN false", Some(0), Some(10))
                },
                Told {
                    error: "x: context canceled".into(),
                    ..vertex("b", "RUN sleep", Some(0), Some(20))
                },
            ],
            logs: vec![VertexLog {
                vertex: "a".into(),
                timestamp: at(5),
                msg: b"half a line".to_vec(),
                ..VertexLog::default()
            }],
            ..StatusResponse::default()
        }]);
        assert_eq!(
            text,
            "#1 RUN false\n#1 0.005 half a line\n#1 ERROR: exit code: 1\n\n#2 RUN sleep\n#2 CANCELED\n\
             ------\n > RUN false:\n0.005 half a line\n------\n"
        );
    }
}
