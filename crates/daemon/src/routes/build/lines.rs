//! The words of the classic builder: `Step 1/3 : FROM …`, ` ---> …`, `Successfully built …`.
//!
//! Steps are told in the order of the Dockerfile, although several may be under way: what a later one says waits until
//! it is its turn.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;
use vessel_api::JsonMessage;
use vessel_build::Error;
use vessel_build::progress::{Event, Step as Named, Vertex};
use vessel_build::request::BuildResult;
use vessel_image::Digest;

/// Output that waits for its turn, of one step.
const MAX_WAITING: usize = 1 << 20;

/// A step of the Dockerfile.
#[derive(Debug, Default)]
struct Step {
    vertex: Option<Vertex>,
    /// The instruction, when it has no vertex.
    plain: Option<Named>,
    waiting: Vec<u8>,
    begun: bool,
}

/// Tells a build's client how it gets on.
#[derive(Debug)]
pub struct Lines {
    sender: mpsc::Sender<Bytes>,
    quiet: bool,
    steps: BTreeMap<usize, Step>,
    numbers: BTreeMap<Digest, usize>,
    /// The step whose turn it is.
    turn: usize,
}

impl Lines {
    /// To a client that wants to hear everything, or the end only.
    pub fn new(sender: mpsc::Sender<Bytes>, quiet: bool) -> Self {
        Self {
            sender,
            quiet,
            steps: BTreeMap::new(),
            numbers: BTreeMap::new(),
            turn: 1,
        }
    }

    async fn send(&self, message: &JsonMessage) {
        if let Ok(mut line) = serde_json::to_vec(message) {
            line.extend_from_slice(b"\r\n");
            // A client that is gone cancels the build by that.
            let _ = self.sender.send(line.into()).await;
        }
    }

    async fn text(&self, text: impl Into<String>) {
        if !self.quiet {
            self.send(&JsonMessage::stream(text)).await;
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
                    self.text(String::from_utf8_lossy(&log.data)).await;
                } else if let Some(step) = self.steps.get_mut(&number)
                    && step.waiting.len() < MAX_WAITING
                {
                    step.waiting.extend_from_slice(&log.data);
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
            if !waiting.is_empty() {
                self.text(String::from_utf8_lossy(&waiting)).await;
            }
            if vertex.completed.is_none() {
                return;
            }
            let base = vertex.step.as_ref().is_some_and(|step| is_from(&step.text));
            if vertex.cached && !base {
                self.text(" ---> Using cache\n").await;
            }
            if let Some(result) = &vertex.result {
                self.text(format!(" ---> {}\n", result.short())).await;
            }
            self.turn += 1;
        }
    }

    /// Tells how it ended.
    pub async fn end(&self, result: Result<BuildResult, Error>, tags: &[String]) {
        let result = match result {
            Ok(result) => result,
            Err(error) => {
                let mut message = JsonMessage::error(error.to_string());
                if let (Some(detail), Some(code)) = (&mut message.error_detail, error.exit_code()) {
                    detail.code = code.into();
                }
                return self.send(&message).await;
            }
        };
        let Some(image) = result.images.first() else {
            return;
        };
        if self.quiet {
            return self.send(&JsonMessage::stream(format!("{}\n", image.id))).await;
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
    use vessel_build::progress::Log;

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
        Event::Log(Log {
            vertex: digest(of),
            stream: 1,
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
        let mut lines = Lines::new(sender, quiet);
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

    #[tokio::test]
    async fn what_broke_off_is_told() {
        let text = told(vec![vertex(2, "RUN b", false, false), log("RUN b", "x\n")], false).await;
        assert_eq!(text, "Step 2/2 : RUN b\nx\n");
        assert_eq!(told(vec![vertex(1, "FROM a", true, false)], true).await, "");
    }

    #[test]
    fn tags() {
        assert_eq!(tagged("a"), "a:latest");
        assert_eq!(tagged("h:5000/a"), "h:5000/a:latest");
        assert_eq!(tagged("a:1"), "a:1");
    }
}
