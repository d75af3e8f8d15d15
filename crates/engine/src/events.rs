//! What happens, told to all who listen, and the recent past.
//!
//! A listener that does not read loses nothing at first: it has a queue of its own. One that lets its queue fill up is
//! dropped, its stream ends, rather than everything waiting for it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use vessel_api::{EventActor, EventMessage, Map};

use crate::filters::Filters;
use crate::time;

/// How many past events `--since` can reach; Docker keeps 256.
const HISTORY: usize = 1024;
/// How far a listener may fall behind.
const QUEUE: usize = 4096;

/// What to hear of.
#[derive(Debug, Clone, Default)]
pub struct EventsOptions {
    /// Nothing before this, nanoseconds since the epoch; none: nothing of the past.
    pub since: Option<i64>,
    /// Nothing after this; the stream ends then.
    pub until: Option<i64>,
    /// What must match.
    pub filters: Filters,
}

/// What happened, bounded, and who listens.
#[derive(Debug, Default)]
pub struct Events {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    history: VecDeque<EventMessage>,
    listeners: Vec<Listener>,
}

#[derive(Debug)]
struct Listener {
    filters: Filters,
    until: Option<i64>,
    queue: mpsc::Sender<EventMessage>,
}

impl Events {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everyone who listens. `kind`: `container`, `image`, `volume`, `network`, `daemon`.
    pub fn publish(&self, kind: &str, action: &str, id: &str, attributes: Map<String>) {
        let now = time::now();
        let old_shape = matches!(kind, "container" | "image");
        let old = |text: &str| if old_shape { text.to_owned() } else { String::new() };
        let event = EventMessage {
            status: old(action),
            id: old(id),
            from: if kind == "container" {
                attributes.get("image").cloned().unwrap_or_default()
            } else {
                String::new()
            },
            kind: kind.to_owned(),
            action: action.to_owned(),
            actor: EventActor {
                id: id.to_owned(),
                attributes,
            },
            scope: "local".into(),
            time: now / 1_000_000_000,
            time_nano: now,
        };
        let mut inner = self.inner();
        inner.listeners.retain(|listener| {
            if listener.until.is_some_and(|until| until < now) {
                return false;
            }
            !matches(&listener.filters, &event) || listener.queue.try_send(event.clone()).is_ok()
        });
        if inner.history.len() == HISTORY {
            inner.history.pop_front();
        }
        inner.history.push_back(event);
    }

    /// Past and coming events. The stream ends at `until`, and when the listener falls too far behind.
    pub fn subscribe(&self, options: EventsOptions) -> mpsc::Receiver<EventMessage> {
        let EventsOptions {
            since,
            until,
            filters,
        } = options;
        let now = time::now();
        let mut inner = self.inner();
        let past: Vec<EventMessage> = match since {
            Some(since) => inner
                .history
                .iter()
                .filter(|event| {
                    event.time_nano >= since && until.is_none_or(|until| event.time_nano <= until)
                })
                .filter(|event| matches(&filters, event))
                .cloned()
                .collect(),
            None => Vec::new(),
        };
        let (queue, receiver) = mpsc::channel(QUEUE.max(past.len()));
        for event in past {
            // There is room: the queue was made for them.
            let _ = queue.try_send(event);
        }
        match until {
            Some(until) if until <= now => {}
            _ => {
                inner.listeners.retain(|listener| !listener.queue.is_closed());
                inner.listeners.push(Listener {
                    filters,
                    until,
                    queue,
                });
            }
        }
        drop(inner);
        match until.filter(|until| *until > now) {
            Some(until) => end_at(receiver, Duration::from_nanos((until - now) as u64)),
            None => receiver,
        }
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.inner()
            .listeners
            .iter()
            .filter(|listener| !listener.queue.is_closed())
            .count()
    }
}

/// The same stream, ended after a time even when nothing happens.
fn end_at(mut events: mpsc::Receiver<EventMessage>, after: Duration) -> mpsc::Receiver<EventMessage> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        let end = tokio::time::sleep(after);
        tokio::pin!(end);
        loop {
            tokio::select! {
                biased;
                event = events.recv() => match event {
                    Some(event) => if sender.send(event).await.is_err() { return },
                    None => return,
                },
                () = &mut end => return,
                () = sender.closed() => return,
            }
        }
    });
    receiver
}

/// Docker's filters: `event`, `type`, `container`, `image`, `volume`, `network`, `daemon`, `label`, `scope`.
fn matches(filters: &Filters, event: &EventMessage) -> bool {
    let attributes = &event.actor.attributes;
    let name = attributes.get("name").map_or("", String::as_str);
    // `exec_create: sh` is found as `exec_create`, too.
    let action = event.action.split(':').next().unwrap_or_default();
    let object = |kind: &str| {
        filters.any(kind, |wanted| {
            event.kind == kind && (event.actor.id.starts_with(wanted) || name == wanted)
        })
    };
    let image = filters.any("image", |wanted| {
        let reference = match event.kind.as_str() {
            "image" => name,
            "container" => attributes.get("image").map_or("", String::as_str),
            _ => return false,
        };
        let repository = reference.split(['@']).next().unwrap_or_default();
        let bare = repository.rsplit_once(':').map_or(repository, |(bare, _)| bare);
        wanted == reference || wanted == bare || event.kind == "image" && event.actor.id.starts_with(wanted)
    });
    filters.any("event", |wanted| wanted == event.action || wanted == action)
        && filters.matches("type", &event.kind)
        && filters.matches("scope", &event.scope)
        && object("container")
        && object("volume")
        && object("network")
        && object("daemon")
        && image
        && filters.labels(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(pairs: &[(&str, &str)]) -> Map<String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn publish(events: &Events) {
        events.publish(
            "container",
            "start",
            "abc",
            attributes(&[("name", "web"), ("image", "nginx:1"), ("k", "v")]),
        );
        events.publish(
            "container",
            "exec_create: sh",
            "abc",
            attributes(&[("name", "web"), ("image", "nginx:1")]),
        );
        events.publish("volume", "create", "data", attributes(&[("driver", "local")]));
    }

    fn seen(filter: &str) -> usize {
        let events = Events::default();
        let mut stream = events.subscribe(EventsOptions {
            filters: Filters::parse(filter).unwrap(),
            ..EventsOptions::default()
        });
        publish(&events);
        let mut count = 0;
        while stream.try_recv().is_ok() {
            count += 1;
        }
        count
    }

    #[tokio::test]
    async fn filters_choose() {
        for (filter, count) in [
            ("", 3),
            (r#"{"type":["volume"]}"#, 1),
            (r#"{"container":["web"]}"#, 2),
            (r#"{"container":["ab"]}"#, 2),
            (r#"{"event":["exec_create"]}"#, 1),
            (r#"{"image":["nginx"]}"#, 2),
            (r#"{"image":["nginx:1"]}"#, 2),
            (r#"{"label":["k=v"]}"#, 1),
            (r#"{"container":["other"]}"#, 0),
        ] {
            assert_eq!(seen(filter), count, "{filter}");
        }
    }

    #[tokio::test]
    async fn the_past_is_bounded_and_ends() {
        let events = Events::default();
        for _ in 0..HISTORY {
            publish(&events);
        }
        let options = EventsOptions {
            since: Some(0),
            until: Some(time::now()),
            ..EventsOptions::default()
        };
        let mut stream = events.subscribe(options);
        let mut count = 0;
        while let Some(event) = stream.recv().await {
            assert_eq!(event.scope, "local");
            count += 1;
        }
        assert_eq!(count, HISTORY);
        assert_eq!(events.listeners(), 0);
    }

    #[tokio::test]
    async fn who_does_not_read_is_dropped() {
        let events = Events::default();
        let mut stream = events.subscribe(EventsOptions::default());
        for _ in 0..QUEUE {
            publish(&events);
        }
        assert_eq!(events.listeners(), 0);
        let mut count = 0;
        while stream.recv().await.is_some() {
            count += 1;
        }
        assert_eq!(count, QUEUE);
    }
}
