//! Vertices: what a build tells of its steps.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use vessel_image::Digest;

use super::dispatch::Line;
use super::{Solve, location};
use crate::dockerfile::Span;
use crate::error::Result;
use crate::progress::{Event, Progress, Status, Step, Vertex, unique_digest};

/// A vertex that has begun.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub digest: Digest,
    name: String,
    step: Option<Step>,
    inputs: Vec<Digest>,
    started: SystemTime,
}

impl Pending {
    pub fn new(name: &str) -> Self {
        Self {
            digest: unique_digest(name),
            name: name.to_owned(),
            step: None,
            inputs: Vec::new(),
            started: SystemTime::now(),
        }
    }

    pub fn started(&self) -> Vertex {
        Vertex {
            digest: self.digest.clone(),
            name: self.name.clone(),
            step: self.step.clone(),
            inputs: self.inputs.clone(),
            started: Some(self.started),
            completed: None,
            cached: false,
            error: None,
            result: None,
        }
    }
}

/// Runs something as a vertex of its own.
pub(crate) async fn as_vertex<T>(
    progress: &Progress,
    vertex: &Pending,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    progress.send(Event::Vertex(vertex.started())).await;
    let result = work.await;
    let mut event = vertex.started();
    event.completed = Some(SystemTime::now());
    event.error = result.as_ref().err().map(ToString::to_string);
    progress.send(Event::Vertex(event)).await;
    result
}

/// Does a part of what a vertex does, which is shown below it by name, with BuildKit's names: clients look for them.
pub(crate) async fn as_part<T>(
    progress: &Progress,
    vertex: &Digest,
    name: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let started = SystemTime::now();
    let tell = |completed: Option<SystemTime>| {
        Event::Status(Status {
            vertex: vertex.clone(),
            id: name.to_owned(),
            name: name.to_owned(),
            current: 0,
            total: 0,
            started,
            completed,
            time: completed.unwrap_or(started),
        })
    };
    progress.send(tell(None)).await;
    let result = work.await;
    progress.send(tell(Some(SystemTime::now()))).await;
    result
}

impl Solve {
    /// The vertex of a line of a stage that makes a layer, `[stage 2/5] RUN …`.
    pub(super) fn line_vertex(&self, line: &mut Line, text: &str, place: Option<(&str, &Span)>) -> Pending {
        line.number += 1;
        let mut name = String::from("[");
        let before = line.platform.iter().chain([&line.label]);
        for part in before.filter(|part| !part.is_empty()) {
            name.push_str(part);
            name.push(' ');
        }
        let width = line.total.to_string().len();
        name.push_str(&format!("{:>width$}/{}] {text}", line.number, line.total));
        let mut vertex = Pending::new(&name);
        vertex.inputs = line.previous.clone().into_iter().collect();
        vertex.step = place.map(|(text, span)| self.step_of(text, span));
        vertex
    }

    /// Counts an instruction as the classic builder does.
    pub(super) fn step_of(&self, text: &str, span: &Span) -> Step {
        Step {
            number: self.steps.fetch_add(1, Ordering::Relaxed) + 1,
            total: self.total,
            text: text.to_owned(),
            location: Some(location(&self.plan.dockerfile.source.name, span)),
        }
    }

    pub(super) async fn tell(&self, vertex: Vertex) {
        self.plan.progress.send(Event::Vertex(vertex)).await;
    }

    /// Tells how a vertex ended, and hands the result on. `about`: whether it came from the cache, and what it is.
    pub(super) async fn told<T>(
        &self,
        vertex: Pending,
        result: Result<T>,
        about: impl FnOnce(&T) -> (bool, Option<Digest>),
    ) -> Result<T> {
        let mut event = vertex.started();
        event.completed = Some(SystemTime::now());
        match &result {
            Ok(value) => (event.cached, event.result) = about(value),
            Err(error) => event.error = Some(error.to_string()),
        }
        self.tell(event).await;
        result
    }
}
