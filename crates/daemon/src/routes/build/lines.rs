//! The words of the classic builder: `Step 1/3 : FROM …`, ` ---> …`, `Successfully built …`.
//!
//! Steps are told in the order of the Dockerfile, although several may be under way: what a later one says waits until
//! it is its turn.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;
use vessel_api::JsonMessage;
use vessel_build::Error;
use vessel_build::progress::{Event, Log, Step as Named, Vertex};
use vessel_build::request::BuildResult;
use vessel_image::Digest;

/// Output that waits for its turn, of one step; and what a quiet build keeps for the case that it fails.
const MAX_WAITING: usize = 1 << 20;

/// A step of the Dockerfile.
#[derive(Debug, Default)]
struct Step {
    vertex: Option<Vertex>,
    /// The instruction, when it has no vertex.
    plain: Option<Named>,
    waiting: Vec<Piece>,
    waiting_bytes: usize,
    begun: bool,
}

/// A piece of output.
#[derive(Debug)]
struct Piece {
    error: bool,
    text: String,
}

impl Piece {
    fn of(log: &Log) -> Self {
        Self {
            error: log.stream == 2,
            text: String::from_utf8_lossy(&log.data).into_owned(),
        }
    }

    /// As it is shown: what a program says on standard error in red.
    fn shown(self) -> String {
        if self.error {
            format!("\x1b[91m{}\x1b[0m", self.text)
        } else {
            self.text
        }
    }
}

/// Tells a build's client how it gets on.
#[derive(Debug)]
pub struct Lines {
    sender: mpsc::Sender<Bytes>,
    quiet: bool,
    /// Whether anything was told.
    told: bool,
    /// The last that a quiet build did not tell, and its size.
    held: VecDeque<String>,
    held_bytes: usize,
    steps: BTreeMap<usize, Step>,
    numbers: BTreeMap<Digest, usize>,
    /// The step whose turn it is.
    turn: usize,
    /// No step may come from the cache.
    anew: bool,
    /// All steps of the stage came from the cache so far. What only changes the configuration then counts as cached, too:
    /// it costs nothing.
    cached: bool,
}

impl Lines {
    /// To a client that wants to hear everything, or the end only; `anew`: of a build that takes nothing from the cache.
    pub fn new(sender: mpsc::Sender<Bytes>, quiet: bool, anew: bool) -> Self {
        Self {
            sender,
            quiet,
            told: false,
            held: VecDeque::new(),
            held_bytes: 0,
            steps: BTreeMap::new(),
            numbers: BTreeMap::new(),
            turn: 1,
            anew,
            cached: !anew,
        }
    }

    async fn send(&mut self, message: &JsonMessage) {
        self.told = true;
        if let Ok(mut line) = serde_json::to_vec(message) {
            line.extend_from_slice(b"\r\n");
            // A client that is gone cancels the build by that.
            let _ = self.sender.send(line.into()).await;
        }
    }

    async fn text(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.quiet {
            return self.send(&JsonMessage::stream(text)).await;
        }
        self.held_bytes += text.len() + size_of::<String>();
        self.held.push_back(text);
        while self.held_bytes > MAX_WAITING
            && let Some(first) = self.held.pop_front()
        {
            self.held_bytes -= first.len() + size_of::<String>();
        }
    }

    /// Tells everything the builder does.
    pub async fn follow(&mut self, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            self.event(event).await;
        }
        // What never got its turn because the build broke off.
        let left: Vec<usize> = self
            .steps
            .keys()
            .copied()
            .filter(|number| *number >= self.turn)
            .collect();
        for number in left {
            self.turn = number;
            if self.steps.get(&number).is_some_and(|step| {
                step.vertex
                    .as_ref()
                    .is_some_and(|vertex| vertex.started.is_some())
            }) {
                self.catch_up().await;
            }
        }
    }

    async fn event(&mut self, event: Event) {
        match event {
            Event::Vertex(vertex) => {
                let Some(number) = vertex.step.as_ref().map(|step| step.number) else {
                    return;
                };
                self.numbers.insert(vertex.digest.clone(), number);
                self.steps.entry(number).or_default().vertex = Some(vertex);
                self.catch_up().await;
            }
            // What only changes the configuration is over when it is told of.
            Event::Step(step) => {
                let number = step.number;
                self.steps.entry(number).or_default().plain = Some(step);
                self.catch_up().await;
            }
            Event::Log(log) => {
                let Some(number) = self.numbers.get(&log.vertex).copied() else {
                    return;
                };
                if number == self.turn && self.steps.get(&number).is_some_and(|step| step.begun) {
                    self.text(Piece::of(&log).shown()).await;
                } else if let Some(step) = self.steps.get_mut(&number)
                    && step.waiting_bytes < MAX_WAITING
                {
                    // What it takes up beside its text counts, too.
                    step.waiting_bytes += log.data.len() + size_of::<Piece>();
                    step.waiting.push(Piece::of(&log));
                }
            }
            Event::Warning(warning) => self.text(format!(" ---> [Warning] {}\n", warning.short)).await,
            Event::Status(_) => {}
        }
    }

    /// Tells of steps whose turn it is, until one is not over.
    async fn catch_up(&mut self) {
        loop {
            let Some(step) = self.steps.get_mut(&self.turn) else {
                return;
            };
            if let Some(plain) = step.plain.take() {
                self.turn += 1;
                self.text(head(&plain)).await;
                if self.cached {
                    self.text(" ---> Using cache\n").await;
                }
                continue;
            }
            let Some(vertex) = step.vertex.clone() else { return };
            if vertex.started.is_none() && vertex.completed.is_none() {
                return;
            }
            let first = !std::mem::replace(&mut step.begun, true);
            let waiting = std::mem::take(&mut step.waiting);
            if first && let Some(named) = &vertex.step {
                self.text(head(named)).await;
            }
            for piece in waiting {
                self.text(piece.shown()).await;
            }
            if vertex.completed.is_none() {
                return;
            }
            let base = vertex.step.as_ref().is_some_and(|step| is_from(&step.text));
            if base {
                self.cached = !self.anew;
            } else if vertex.cached {
                self.text(" ---> Using cache\n").await;
            } else {
                self.cached = false;
            }
            if let Some(result) = &vertex.result {
                self.text(format!(" ---> {}\n", result.short())).await;
            }
            self.turn += 1;
        }
    }

    /// Tells how it ended; of a quiet build that failed, all that it did not tell before.
    ///
    /// # Errors
    /// What the build failed of, when nothing was told of it yet.
    pub async fn end(&mut self, result: Result<BuildResult, Error>, tags: &[String]) -> Result<(), Error> {
        let result = match result {
            Ok(result) => result,
            Err(error) => {
                for text in std::mem::take(&mut self.held) {
                    self.send(&JsonMessage::stream(text)).await;
                }
                if !self.told {
                    return Err(error);
                }
                let message = match error.process() {
                    Some(failed) => {
                        let mut message = JsonMessage::error(format!(
                            "The command '{}' returned a non-zero code: {}",
                            failed.command, failed.code
                        ));
                        if let Some(detail) = &mut message.error_detail {
                            detail.code = failed.code.into();
                        }
                        message
                    }
                    None => JsonMessage::error(error.to_string()),
                };
                self.send(&message).await;
                return Ok(());
            }
        };
        let Some(image) = result.images.first() else {
            return Ok(());
        };
        if self.quiet {
            self.send(&JsonMessage::stream(format!("{}\n", image.id))).await;
            return Ok(());
        }
        self.send(&JsonMessage {
            aux: Some(json!({"ID": image.id.to_string()})),
            ..JsonMessage::default()
        })
        .await;
        self.text(format!("Successfully built {}\n", image.id.short()))
            .await;
        for tag in tags {
            self.text(format!("Successfully tagged {}\n", tagged(tag))).await;
        }
        Ok(())
    }
}

/// Whether a step only names what it begins with.
fn is_from(text: &str) -> bool {
    text.get(..5)
        .is_some_and(|start| start.eq_ignore_ascii_case("FROM "))
}

fn head(step: &Named) -> String {
    format!("Step {}/{} : {}\n", step.number, step.total, step.text)
}

/// A name with its tag.
fn tagged(name: &str) -> String {
    match name.rsplit_once(':') {
        Some((_, tag)) if !tag.contains('/') => name.to_owned(),
        _ => format!("{name}:latest"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn digest(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    fn vertex(number: usize, text: &str, completed: bool, cached: bool) -> Event {
        Event::Vertex(Vertex {
            digest: digest(text),
            name: text.into(),
            step: Some(Named {
                number,
                total: 2,
                text: text.into(),
                location: None,
            }),
            inputs: Vec::new(),
            started: Some(SystemTime::UNIX_EPOCH),
            completed: completed.then_some(SystemTime::UNIX_EPOCH),
            cached,
            error: None,
            result: completed.then(|| digest("result")),
        })
    }

    fn log(of: &str, text: &str) -> Event {
        said(of, 1, text)
    }

    fn said(of: &str, stream: u8, text: &str) -> Event {
        Event::Log(Log {
            vertex: digest(of),
            stream,
            time: SystemTime::UNIX_EPOCH,
            data: text.as_bytes().to_vec(),
        })
    }

    async fn told(events: Vec<Event>, quiet: bool) -> String {
        let (sender, mut receiver) = mpsc::channel(100);
        let (feed, source) = mpsc::channel(100);
        for event in events {
            feed.send(event).await.unwrap();
        }
        drop(feed);
        let mut lines = Lines::new(sender, quiet, false);
        lines.follow(source).await;
        drop(lines);
        let mut text = String::new();
        while let Some(line) = receiver.recv().await {
            let message: JsonMessage = serde_json::from_slice(&line).unwrap();
            text.push_str(&message.stream);
        }
        text
    }

    #[tokio::test]
    async fn steps_come_in_their_order() {
        let short = digest("result").short().to_owned();
        let text = told(
            vec![
                vertex(2, "RUN b", false, false),
                log("RUN b", "early\n"),
                vertex(1, "COPY a", true, true),
                log("RUN b", "late\n"),
                vertex(2, "RUN b", true, false),
            ],
            false,
        )
        .await;
        assert_eq!(
            text,
            format!(
                "Step 1/2 : COPY a\n ---> Using cache\n ---> {short}\nStep 2/2 : RUN b\nearly\nlate\n ---> {short}\n"
            )
        );
    }

    fn plain(number: usize, text: &str) -> Event {
        Event::Step(Named {
            number,
            total: 2,
            text: text.into(),
            location: None,
        })
    }

    #[tokio::test]
    async fn errors_are_red() {
        let early = said("RUN b", 2, "early\n");
        let late = said("RUN b", 2, "late\n");
        let begun = vertex(1, "FROM a", false, false);
        let text = told(
            vec![
                begun,
                vertex(2, "RUN b", false, false),
                early,
                vertex(1, "FROM a", true, false),
                late,
            ],
            false,
        )
        .await;
        assert!(
            text.ends_with("Step 2/2 : RUN b\n\x1b[91mearly\n\x1b[0m\x1b[91mlate\n\x1b[0m"),
            "{text:?}"
        );
    }

    #[tokio::test]
    async fn settings_are_cached_with_what_is_around_them() {
        let base = || vertex(1, "FROM a", true, false);
        let text = told(
            vec![
                base(),
                plain(2, "ENV a=b"),
                vertex(3, "RUN c", true, true),
                plain(4, "CMD d"),
            ],
            false,
        )
        .await;
        assert_eq!(text.matches("Using cache").count(), 3, "{text}");
        let text = told(
            vec![
                base(),
                vertex(2, "RUN c", true, false),
                plain(3, "CMD d"),
                vertex(4, "FROM e", true, false),
                plain(5, "CMD f"),
            ],
            false,
        )
        .await;
        assert_eq!(text.matches("Using cache").count(), 1, "{text}");
        assert!(text.ends_with("CMD f\n ---> Using cache\n"), "{text}");
    }

    #[tokio::test]
    async fn what_broke_off_is_told() {
        let text = told(vec![vertex(2, "RUN b", false, false), log("RUN b", "x\n")], false).await;
        assert_eq!(text, "Step 2/2 : RUN b\nx\n");
        assert_eq!(told(vec![vertex(1, "FROM a", true, false)], true).await, "");
    }

    #[tokio::test]
    async fn a_failure_is_a_status_until_something_was_told() {
        for (quiet, events, words) in [
            (false, Vec::new(), None),
            (true, Vec::new(), None),
            (
                false,
                vec![vertex(1, "FROM a", true, false)],
                Some("Step 1/2 : FROM a"),
            ),
            // What a quiet build did not tell is told when it fails.
            (
                true,
                vec![vertex(1, "FROM a", true, false)],
                Some("Step 1/2 : FROM a"),
            ),
        ] {
            let (sender, mut receiver) = mpsc::channel(100);
            let (feed, source) = mpsc::channel(100);
            for event in events {
                feed.send(event).await.unwrap();
            }
            drop(feed);
            let mut lines = Lines::new(sender, quiet, false);
            lines.follow(source).await;
            let failure = Error::new(vessel_build::ErrorKind::Invalid, "it is wrong");
            let ended = lines.end(Err(failure), &[]).await;
            drop(lines);
            let mut text = String::new();
            while let Some(line) = receiver.recv().await {
                text.push_str(std::str::from_utf8(&line).unwrap());
            }
            assert_eq!(ended.is_err(), words.is_none(), "{text}");
            match words {
                Some(words) => assert!(text.contains(words) && text.contains("it is wrong"), "{text}"),
                None => assert_eq!(text, ""),
            }
        }
    }

    #[test]
    fn tags() {
        assert_eq!(tagged("a"), "a:latest");
        assert_eq!(tagged("h:5000/a"), "h:5000/a:latest");
        assert_eq!(tagged("a:1"), "a:1");
    }
}
