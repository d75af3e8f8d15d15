//! Events.

use tokio::sync::mpsc;
use vessel_api::{EventMessage, Map};

use crate::filters::Filters;

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
pub struct Events {}

impl Events {
    /// Tells everyone who listens. `kind`: `container`, `image`, `volume`, `network`, `daemon`.
    pub fn publish(&self, kind: &str, action: &str, id: &str, attributes: Map<String>) {
        let _ = (kind, action, id, attributes);
    }

    /// Past and coming events.
    pub fn subscribe(&self, _options: EventsOptions) -> mpsc::Receiver<EventMessage> {
        mpsc::channel(1).1
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        0
    }
}
