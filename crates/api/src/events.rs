//! What happened: `GET /events`.

use crate::json::{Map, empty, model};

model! {
    /// One event. `status`, `id` and `from` repeat it in the oldest shape, for containers and images.
    pub struct EventMessage {
        #[serde(rename = "status", skip_serializing_if = "empty")]
        pub status: String,
        #[serde(rename = "id", skip_serializing_if = "empty")]
        pub id: String,
        #[serde(rename = "from", skip_serializing_if = "empty")]
        pub from: String,
        /// `container`, `image`, `volume`, `network`, `daemon` and so on.
        #[serde(rename = "Type")]
        pub kind: String,
        pub action: String,
        pub actor: EventActor,
        #[serde(rename = "scope", skip_serializing_if = "empty")]
        pub scope: String,
        /// Seconds since the epoch.
        #[serde(rename = "time", skip_serializing_if = "empty")]
        pub time: i64,
        /// Nanoseconds since the epoch.
        #[serde(rename = "timeNano", skip_serializing_if = "empty")]
        pub time_nano: i64,
    }

    /// What it happened to.
    pub struct EventActor {
        #[serde(rename = "ID")]
        pub id: String,
        pub attributes: Map<String>,
    }
}
