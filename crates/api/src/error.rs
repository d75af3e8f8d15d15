//! The body of every response with a status of 400 or more.

use crate::json::model;

model! {
    /// `{"message": "..."}`: one sentence for the user.
    pub struct ErrorResponse {
        #[serde(rename = "message")]
        pub message: String,
    }
}

impl ErrorResponse {
    /// The body that carries `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
        }
    }
}
