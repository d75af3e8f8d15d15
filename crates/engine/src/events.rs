//! Events: what happens, told to everyone who listens, and a bounded past.
//!
//! A listener that does not keep up with [`BACKLOG`] events is cut off rather than slowing the engine down: it sees its
//! stream end.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use vessel_api::{EventActor, EventMessage, Map};

use crate::filters::Filters;

/// How many past events are kept (Docker keeps 256).
const HISTORY: usize = 1024;

/// How many events may wait for a listener.
const BACKLOG: usize = 8192;

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
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    history: VecDeque<EventMessage>,
    listeners: Vec<(EventsOptions, mpsc::Sender<EventMessage>)>,
}

impl Events {
    /// Tells everyone who listens. `kind`: `container`, `image`, `volume`, `network`, `daemon`.
    pub fn publish(&self, kind: &str, action: &str, id: &str, attributes: Map<String>) {
        let message = message(kind, action, id, attributes);
        let mut state = self.lock();
        if state.history.len() == HISTORY {
            state.history.pop_front();
        }
        state.listeners.retain(|(options, listener)| {
            if !matches(options, &message) {
                return !listener.is_closed();
            }
            listener.try_send(message.clone()).is_ok()
        });
        state.history.push_back(message);
    }

    /// Past and coming events. Nothing is missed or told twice between the two.
    pub fn subscribe(&self, options: EventsOptions) -> mpsc::Receiver<EventMessage> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let mut state = self.lock();
        if let Some(since) = options.since {
            for message in state.history.iter().filter(|message| message.time_nano >= since) {
                if options.until.is_none_or(|until| message.time_nano <= until) && matches(&options, message) {
                    // There is room: the past is shorter than the backlog.
                    let _ = sender.try_send(message.clone());
                }
            }
        }
        // With an end in the past there is nothing to wait for: dropping the sender ends the stream.
        if options.until.is_none_or(|until| until > crate::time::now()) {
            state.listeners.push((options, sender));
        }
        receiver
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        let mut state = self.lock();
        state.listeners.retain(|(_, listener)| !listener.is_closed());
        state.listeners.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves whole messages behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An event in Docker's shape, as of now. For containers and images it also has the oldest shape's members.
fn message(kind: &str, action: &str, id: &str, attributes: Map<String>) -> EventMessage {
    let time_nano = crate::time::now();
    let old = matches!(kind, "container" | "image");
    let from = match kind {
        "container" => attributes.get("image").cloned().unwrap_or_default(),
        _ => String::new(),
    };
    EventMessage {
        status: if old { action.to_owned() } else { String::new() },
        id: if old { id.to_owned() } else { String::new() },
        from,
        kind: kind.to_owned(),
        action: action.to_owned(),
        actor: EventActor { id: id.to_owned(), attributes },
        scope: "local".to_owned(),
        time: time_nano.div_euclid(1_000_000_000),
        time_nano,
    }
}

/// Whether a listener wants to hear of it.
fn matches(options: &EventsOptions, message: &EventMessage) -> bool {
    let filters = &options.filters;
    let attributes = &message.actor.attributes;
    let name = attributes.get("name").map_or("", String::as_str);
    let id = &message.actor.id;
    // An object is meant by its ID, the beginning of one, or its name.
    let is = |kind: &str, wanted: &str| {
        message.kind == kind && (id.starts_with(wanted) || name == wanted) && !wanted.is_empty()
    };
    let labels = attributes.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    options.until.is_none_or(|until| message.time_nano <= until)
        && filters.matches("type", &message.kind)
        // `exec_start: sh` is found by `exec_start`, `health_status: healthy` by `health_status`.
        && filters.any("event", |wanted| {
            message.action == wanted || message.action.split_once(':').is_some_and(|(action, _)| action == wanted)
        })
        && filters.matches("scope", &message.scope)
        && filters.any("container", |wanted| is("container", wanted))
        && filters.any("volume", |wanted| is("volume", wanted))
        && filters.any("network", |wanted| is("network", wanted))
        && filters.any("daemon", |wanted| is("daemon", wanted))
        && filters.any("image", |wanted| {
            let image = attributes.get("image").map_or("", String::as_str);
            let repository = |reference: &str| reference.rsplit_once(':').map_or(reference.to_owned(), |(name, _)| name.to_owned());
            is("image", wanted) || image == wanted || repository(image) == wanted || message.kind == "image" && repository(name) == wanted
        })
        && filters.labels(&labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(events: &Events, filters: &str, since: Option<i64>) -> mpsc::Receiver<EventMessage> {
        let filters = Filters::parse(filters).unwrap();
        events.subscribe(EventsOptions { since, until: None, filters })
    }

    fn attributes(pairs: &[(&str, &str)]) -> Map<String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_past_and_the_future_once_each() {
        let events = Events::default();
        events.publish("container", "create", "c1", attributes(&[("image", "busybox:latest"), ("name", "web")]));
        let mut all = listen(&events, "", Some(0));
        let mut coming = listen(&events, "", None);
        events.publish("container", "start", "c1", Map::default());
        assert_eq!(all.try_recv().unwrap().action, "create");
        assert_eq!(all.try_recv().unwrap().action, "start");
        assert!(all.try_recv().is_err());
        assert_eq!(coming.try_recv().unwrap().action, "start");
        drop(coming);
        assert_eq!(events.listeners(), 1);
    }

    #[test]
    fn filters_choose() {
        let events = Events::default();
        let heard = |filters: &str| {
            let mut listener = listen(&events, filters, None);
            events.publish(
                "container",
                "exec_start: sh",
                "0123",
                attributes(&[("image", "busybox:latest"), ("name", "web"), ("tier", "front")]),
            );
            listener.try_recv().is_ok()
        };
        for filters in [
            r#"{"container":["web"]}"#,
            r#"{"container":["01"]}"#,
            r#"{"event":["exec_start"]}"#,
            r#"{"type":["container","image"]}"#,
            r#"{"image":["busybox"]}"#,
            r#"{"label":["tier=front"]}"#,
        ] {
            assert!(heard(filters), "{filters}");
        }
        for filters in [r#"{"container":["db"]}"#, r#"{"event":["die"]}"#, r#"{"type":["image"]}"#, r#"{"label":["tier=back"]}"#] {
            assert!(!heard(filters), "{filters}");
        }
    }

    #[test]
    fn a_listener_that_sleeps_is_cut_off() {
        let events = Events::default();
        let mut sleeper = listen(&events, "", None);
        for _ in 0..=BACKLOG {
            events.publish("container", "start", "c", Map::default());
        }
        assert_eq!(events.listeners(), 0);
        let mut heard = 0;
        while sleeper.try_recv().is_ok() {
            heard += 1;
        }
        assert_eq!(heard, BACKLOG);
    }
}
