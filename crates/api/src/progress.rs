//! The lines of JSON with which load, import and pull tell how they get on.

use crate::json::{empty, model};

model! {
    /// One line.
    pub struct JsonMessage {
        /// Text to print as it is.
        #[serde(rename = "stream", skip_serializing_if = "empty")]
        pub stream: String,
        #[serde(rename = "status", skip_serializing_if = "empty")]
        pub status: String,
        #[serde(rename = "progressDetail", skip_serializing_if = "empty")]
        pub progress_detail: Option<ProgressDetail>,
        /// The bar, drawn by the daemon; clients draw their own from the detail.
        #[serde(rename = "progress", skip_serializing_if = "empty")]
        pub progress: String,
        /// The layer this line is about.
        #[serde(rename = "id", skip_serializing_if = "empty")]
        pub id: String,
        #[serde(rename = "errorDetail", skip_serializing_if = "empty")]
        pub error_detail: Option<ErrorDetail>,
        /// The stream failed: nothing follows.
        #[serde(rename = "error", skip_serializing_if = "empty")]
        pub error: String,
        #[serde(rename = "aux", skip_serializing_if = "empty")]
        pub aux: Option<serde_json::Value>,
    }

    /// How much is done, in bytes unless `units` says otherwise.
    pub struct ProgressDetail {
        #[serde(rename = "current", skip_serializing_if = "empty")]
        pub current: i64,
        #[serde(rename = "total", skip_serializing_if = "empty")]
        pub total: i64,
        #[serde(rename = "start", skip_serializing_if = "empty")]
        pub start: i64,
        #[serde(rename = "hidecounts", skip_serializing_if = "empty")]
        pub hide_counts: bool,
        #[serde(rename = "units", skip_serializing_if = "empty")]
        pub units: String,
    }

    /// Why a stream failed.
    pub struct ErrorDetail {
        #[serde(rename = "code", skip_serializing_if = "empty")]
        pub code: i64,
        #[serde(rename = "message")]
        pub message: String,
    }
}

impl JsonMessage {
    /// A line of text.
    pub fn stream(text: impl Into<String>) -> Self {
        Self {
            stream: text.into(),
            ..Self::default()
        }
    }

    /// A status line.
    pub fn status(text: impl Into<String>) -> Self {
        Self {
            status: text.into(),
            ..Self::default()
        }
    }

    /// The line that ends a failed stream.
    pub fn error(message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            error_detail: Some(ErrorDetail {
                code: 0,
                message: message.clone(),
            }),
            error: message,
            ..Self::default()
        }
    }
}
