//! What pulls and pushes tell, as a build tells it.

use std::collections::HashMap;
use std::time::SystemTime;

use tokio::sync::mpsc::UnboundedReceiver;
use vessel_api::JsonMessage;
use vessel_build::progress::{Event, Progress, Status};
use vessel_image::Digest;
use vessel_image::registry::PushEvent;

/// States after which nothing more comes of a part.
const LAST: [&str; 5] = [
    "Pull complete",
    "Already exists",
    "Pushed",
    "Layer already exists",
    "Download complete",
];

/// Tells the messages of a pull or push as progress of a vertex, until they end.
pub(super) async fn tell(mut messages: UnboundedReceiver<JsonMessage>, progress: Progress, vertex: Digest) {
    let mut started: HashMap<String, SystemTime> = HashMap::new();
    while let Some(message) = messages.recv().await {
        if message.id.is_empty() || message.status.starts_with("Pulling from") {
            continue;
        }
        let now = SystemTime::now();
        let begun = *started.entry(message.id.clone()).or_insert(now);
        let (current, total) = message
            .progress_detail
            .map_or((0, 0), |detail| (detail.current, detail.total));
        let number = |value: i64| u64::try_from(value).unwrap_or(0);
        let done = LAST.iter().any(|last| message.status.starts_with(last));
        let status = Status {
            vertex: vertex.clone(),
            name: format!("{} {}", message.status.to_lowercase(), message.id),
            id: message.id,
            current: number(current),
            total: number(total),
            started: begun,
            completed: done.then_some(now),
            time: now,
        };
        // The newest says all; a reader that is slow misses some.
        progress.try_send(Event::Status(status));
    }
}

/// Tells how a push gets on.
pub(super) fn pushing(progress: &Progress, vertex: &Digest, event: PushEvent) {
    let now = SystemTime::now();
    let (layer, what, current, total) = match event {
        PushEvent::Pushing(layer, sent, total) => (layer, "pushing", sent, total),
        PushEvent::Pushed(layer) => (layer, "pushed", 0, 0),
        PushEvent::Exists(layer) | PushEvent::Mounted(layer, _) => (layer, "exists", 0, 0),
        PushEvent::Preparing(_) => return,
    };
    let id = layer.to_string();
    progress.try_send(Event::Status(Status {
        vertex: vertex.clone(),
        name: format!("{what} {id}"),
        id,
        current,
        total,
        started: now,
        completed: (what != "pushing").then_some(now),
        time: now,
    }));
}

/// Tells how a download gets on.
pub(super) fn downloading(progress: &Progress, vertex: &Digest, url: &str, current: u64, total: u64) {
    let now = SystemTime::now();
    progress.try_send(Event::Status(Status {
        vertex: vertex.clone(),
        id: url.to_owned(),
        name: format!("downloading {url}"),
        current,
        total,
        started: now,
        completed: (total > 0 && current == total).then_some(now),
        time: now,
    }));
}
