//! What a build tells while it runs: the events BuildKit's `Status` stream is made of.
//!
//! Events go through a bounded channel, so that a slow reader slows the build instead of filling memory. A reader that
//! is gone is no failure: what is sent then is dropped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::sync::mpsc;
use vessel_image::Digest;

use crate::error::Location;

/// How many events wait for a reader.
const CAPACITY: usize = 256;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A vertex began, ended or came from the cache. The newest says all.
    Vertex(Vertex),
    /// An instruction that only changes the configuration was evaluated: for the classic builder, which counts it. It has
    /// no vertex.
    Step(Step),
    /// Progress of a part of a vertex.
    Status(Status),
    /// Output of a vertex.
    Log(Log),
    /// A finding of the build checks, or another warning.
    Warning(Warning),
}

/// A step of a build.
#[derive(Debug, Clone, PartialEq)]
pub struct Vertex {
    /// What the other events name it by; unique in a build.
    pub digest: Digest,
    /// `[stage 2/5] RUN make`, `[internal] load build context`, `exporting to image`, …
    pub name: String,
    /// Which instruction it is; none for what the builder does itself.
    pub step: Option<Step>,
    /// The vertices it waits for.
    pub inputs: Vec<Digest>,
    /// When it began; none: not yet.
    pub started: Option<SystemTime>,
    /// When it ended; none: not yet.
    pub completed: Option<SystemTime>,
    /// Whether the result was there already.
    pub cached: bool,
    /// Why it failed; `context canceled` when another step's failure or the client ended it.
    pub error: Option<String>,
    /// The result, when the vertex ended: what the classic builder shows as ` ---> ID`.
    pub result: Option<Digest>,
}

/// An instruction among those of the Dockerfile, as the classic builder counts them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Counted from 1 over all stages that are built.
    pub number: usize,
    /// How many there are.
    pub total: usize,
    /// The instruction as written, continuation lines joined.
    pub text: String,
    /// Where it is.
    pub location: Option<Location>,
}

/// Progress of a part of a vertex, e.g. of one layer that is pulled.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Of which vertex.
    pub vertex: Digest,
    /// Names the part in the vertex.
    pub id: String,
    /// What is shown.
    pub name: String,
    /// How far it is.
    pub current: u64,
    /// How far it goes; 0: not known.
    pub total: u64,
    /// When it began.
    pub started: SystemTime,
    /// When it ended.
    pub completed: Option<SystemTime>,
    /// When this was.
    pub time: SystemTime,
}

/// Output of a vertex.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// Of which vertex.
    pub vertex: Digest,
    /// 1: standard output, 2: standard error.
    pub stream: u8,
    /// When.
    pub time: SystemTime,
    /// The bytes; no line is assembled.
    pub data: Vec<u8>,
}

/// A warning.
#[derive(Debug, Clone, PartialEq)]
pub struct Warning {
    /// Of which vertex.
    pub vertex: Digest,
    /// 1 for a finding of the checks.
    pub level: u8,
    /// One line.
    pub short: String,
    /// Explanations.
    pub detail: Vec<String>,
    /// A page about it.
    pub url: Option<String>,
    /// Where in the Dockerfile.
    pub location: Option<Location>,
    /// The Dockerfile's text, for a rendering with the lines; none if it is long.
    pub text: Option<std::sync::Arc<[u8]>>,
}

/// What the builder reports to.
#[derive(Debug, Clone)]
pub struct Progress(mpsc::Sender<Event>);

/// A channel for a build's events: the builder gets one end, whoever shows them the other.
pub fn channel() -> (Progress, mpsc::Receiver<Event>) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    (Progress(sender), receiver)
}

impl Progress {
    /// One that nobody listens to.
    pub fn ignored() -> Self {
        channel().0
    }

    /// Tells an event, waiting for a slow reader.
    pub async fn send(&self, event: Event) {
        let _gone = self.0.send(event).await;
    }

    /// Tells an event from a thread that may block.
    pub fn send_blocking(&self, event: Event) {
        let _gone = self.0.blocking_send(event);
    }

    /// Tells what the next event of its sort makes obsolete; dropped when the reader is slow.
    pub fn try_send(&self, event: Event) {
        let _gone_or_full = self.0.try_send(event);
    }
}

/// Makes digests for vertices that have no key of their own.
pub(crate) fn unique_digest(what: &str) -> Digest {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let time = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos());
    Digest::sha256(format!("{what}\0{number}\0{time}\0{}", std::process::id()).as_bytes())
}
