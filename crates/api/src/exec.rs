//! Running another process in a running container.

use crate::json::{empty, model, null_if_empty, strings};

model! {
    /// The body of `POST /containers/{id}/exec`.
    pub struct ExecCreateRequest {
        pub user: String,
        pub privileged: bool,
        pub tty: bool,
        #[serde(skip_serializing_if = "empty")]
        pub console_size: Option<[u32; 2]>,
        pub attach_stdin: bool,
        pub attach_stderr: bool,
        pub attach_stdout: bool,
        pub detach: bool,
        pub detach_keys: String,
        #[serde(serialize_with = "null_if_empty")]
        pub env: Vec<String>,
        pub working_dir: String,
    }
    raw {
        #[serde(deserialize_with = "strings")]
        pub cmd: Vec<String>,
    }

    /// The answer to a creation.
    pub struct ExecCreateResponse {
        pub id: String,
    }

    /// The body of `POST /exec/{id}/start`.
    pub struct ExecStartRequest {
        pub detach: bool,
        pub tty: bool,
        /// Height, then width.
        #[serde(skip_serializing_if = "empty")]
        pub console_size: Option<[u32; 2]>,
    }

    /// `GET /exec/{id}/json`.
    pub struct ExecInspect {
        #[serde(rename = "ID")]
        pub id: String,
        pub running: bool,
        /// `None` until it has exited.
        pub exit_code: Option<i64>,
        pub process_config: ExecProcessConfig,
        pub open_stdin: bool,
        pub open_stderr: bool,
        pub open_stdout: bool,
        pub can_remove: bool,
        #[serde(rename = "ContainerID")]
        pub container_id: String,
        pub detach_keys: String,
        pub pid: i64,
    }

    /// What an exec runs.
    pub struct ExecProcessConfig {
        #[serde(rename = "tty")]
        pub tty: bool,
        #[serde(rename = "entrypoint")]
        pub entrypoint: String,
        #[serde(rename = "arguments")]
        pub arguments: Vec<String>,
        #[serde(rename = "privileged", skip_serializing_if = "empty")]
        pub privileged: Option<bool>,
        #[serde(rename = "user", skip_serializing_if = "empty")]
        pub user: String,
    }
}
