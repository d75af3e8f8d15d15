//! Containers.

use serde::Serialize;
use vessel_api::{
    Change, ContainerCreateRequest, ContainerCreateResponse, ContainerInspect, ContainerSummary,
    ContainersPruneReport, Stats, TopResponse, UpdateRequest, UpdateResponse, WaitResponse,
};

use crate::request::{Method, Pending, Response};
use crate::{Client, Error, Filters, Hijacked, JsonStream, Query, Result, encode};

/// What `GET /containers/json` shows.
#[derive(Debug, Clone, Default)]
pub struct ContainerListOptions {
    /// Those that do not run as well.
    pub all: bool,
    /// So many of the newest, running or not.
    pub limit: Option<i64>,
    /// Their sizes too, which takes time.
    pub size: bool,
    /// Only some.
    pub filters: Filters,
}

/// Which streams to attach to, and from when.
#[derive(Debug, Clone, Default)]
pub struct AttachOptions {
    /// Send input.
    pub stdin: bool,
    /// Receive output.
    pub stdout: bool,
    /// Receive errors.
    pub stderr: bool,
    /// What was written before, first.
    pub logs: bool,
    /// The keys that detach; empty for the default.
    pub detach_keys: String,
}

/// What `GET /containers/{id}/logs` shows.
#[derive(Debug, Clone, Default)]
pub struct LogsOptions {
    /// Output.
    pub stdout: bool,
    /// Errors.
    pub stderr: bool,
    /// Go on as more is written.
    pub follow: bool,
    /// Each line with its time.
    pub timestamps: bool,
    /// Each line with what the log driver knows about it.
    pub details: bool,
    /// Lines from the end; empty or `all` for all.
    pub tail: String,
    /// From a time on; seconds since the epoch, or RFC 3339.
    pub since: String,
    /// Until a time.
    pub until: String,
}

/// How a container is removed.
#[derive(Debug, Clone, Copy, Default)]
pub struct RemoveOptions {
    /// Its anonymous volumes too.
    pub volumes: bool,
    /// The link of that name, not the container.
    pub link: bool,
    /// Kill it when it runs.
    pub force: bool,
}

/// What to wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WaitCondition {
    /// Until it does not run; at once when it does not.
    #[default]
    NotRunning,
    /// Until it exits the next time.
    NextExit,
    /// Until it is removed.
    Removed,
}

impl WaitCondition {
    fn name(self) -> &'static str {
        match self {
            Self::NotRunning => "not-running",
            Self::NextExit => "next-exit",
            Self::Removed => "removed",
        }
    }
}

fn path(id: &str, what: &str) -> String {
    format!("/containers/{}/{what}", encode(id))
}

impl Client {
    /// `GET /containers/json`
    pub fn container_list(&self, options: &ContainerListOptions) -> Result<Vec<ContainerSummary>> {
        let query = Query::new()
            .flag("all", options.all)
            .opt("limit", options.limit)
            .flag("size", options.size)
            .filters(&options.filters);
        self.get("/containers/json", &query)
    }

    /// `POST /containers/create`. Platform is `os[/arch[/variant]]` or empty.
    pub fn container_create(
        &self,
        name: &str,
        platform: &str,
        request: &ContainerCreateRequest,
    ) -> Result<ContainerCreateResponse> {
        let query = Query::new().text("name", name).text("platform", platform);
        self.post_json("/containers/create", &query, request)
    }

    /// `GET /containers/{id}/json`
    pub fn container_inspect(&self, id: &str, size: bool) -> Result<ContainerInspect> {
        self.get(&path(id, "json"), &Query::new().flag("size", size))
    }

    /// `GET /containers/{id}/json`, as the daemon wrote it.
    pub fn container_inspect_raw(&self, id: &str, size: bool) -> Result<serde_json::Value> {
        self.get(&path(id, "json"), &Query::new().flag("size", size))
    }

    /// `POST /containers/{id}/start`
    pub fn container_start(&self, id: &str, detach_keys: &str) -> Result<()> {
        self.post(&path(id, "start"), &Query::new().text("detachKeys", detach_keys))
    }

    /// `POST /containers/{id}/stop`: an empty signal is the container's own, no timeout its own too.
    pub fn container_stop(&self, id: &str, signal: &str, timeout: Option<i64>) -> Result<()> {
        self.post(
            &path(id, "stop"),
            &Query::new().text("signal", signal).opt("t", timeout),
        )
    }

    /// `POST /containers/{id}/restart`
    pub fn container_restart(&self, id: &str, signal: &str, timeout: Option<i64>) -> Result<()> {
        self.post(
            &path(id, "restart"),
            &Query::new().text("signal", signal).opt("t", timeout),
        )
    }

    /// `POST /containers/{id}/kill`
    pub fn container_kill(&self, id: &str, signal: &str) -> Result<()> {
        self.post(&path(id, "kill"), &Query::new().text("signal", signal))
    }

    /// `POST /containers/{id}/pause`
    pub fn container_pause(&self, id: &str) -> Result<()> {
        self.post(&path(id, "pause"), &Query::new())
    }

    /// `POST /containers/{id}/unpause`
    pub fn container_unpause(&self, id: &str) -> Result<()> {
        self.post(&path(id, "unpause"), &Query::new())
    }

    /// `POST /containers/{id}/rename`
    pub fn container_rename(&self, id: &str, name: &str) -> Result<()> {
        self.post(&path(id, "rename"), &Query::new().add("name", name))
    }

    /// `POST /containers/{id}/resize`
    pub fn container_resize(&self, id: &str, height: u16, width: u16) -> Result<()> {
        self.post(
            &path(id, "resize"),
            &Query::new().add("h", height).add("w", width),
        )
    }

    /// `POST /containers/{id}/update`
    pub fn container_update(&self, id: &str, request: &impl UpdateBody) -> Result<UpdateResponse> {
        self.post_json(&path(id, "update"), &Query::new(), request)
    }

    /// `DELETE /containers/{id}`
    pub fn container_remove(&self, id: &str, options: RemoveOptions) -> Result<()> {
        let query = Query::new()
            .flag("v", options.volumes)
            .flag("link", options.link)
            .flag("force", options.force);
        self.delete(&format!("/containers/{}", encode(id)), &query)
    }

    /// `POST /containers/{id}/wait`, waiting for the end.
    pub fn container_wait(&self, id: &str, condition: WaitCondition) -> Result<WaitResponse> {
        self.container_wait_begin(id, condition)?.response()?.json()
    }

    /// Asks to wait. The headers come when the daemon waits, the [`WaitResponse`] at the end.
    pub fn container_wait_begin(&self, id: &str, condition: WaitCondition) -> Result<Pending> {
        self.begin(
            Method::Post,
            &path(id, "wait"),
            &Query::new().add("condition", condition.name()),
        )
    }

    /// `POST /containers/{id}/attach`
    pub fn container_attach(&self, id: &str, options: &AttachOptions) -> Result<Hijacked> {
        self.container_attach_begin(id, options)?.hijacked()
    }

    /// Asks to attach; [`Pending::hijacked`] waits for it.
    pub fn container_attach_begin(&self, id: &str, options: &AttachOptions) -> Result<Pending> {
        let query = Query::new()
            .flag("stream", true)
            .flag("stdin", options.stdin)
            .flag("stdout", options.stdout)
            .flag("stderr", options.stderr)
            .flag("logs", options.logs)
            .text("detachKeys", &options.detach_keys);
        self.begin_hijack(&path(id, "attach"), &query, None)
    }

    /// `GET /containers/{id}/logs`: in frames, or raw when the container has a terminal.
    pub fn container_logs(&self, id: &str, options: &LogsOptions) -> Result<Response> {
        let query = Query::new()
            .flag("stdout", options.stdout)
            .flag("stderr", options.stderr)
            .flag("follow", options.follow)
            .flag("timestamps", options.timestamps)
            .flag("details", options.details)
            .text("tail", &options.tail)
            .text("since", &options.since)
            .text("until", &options.until);
        self.request(Method::Get, &path(id, "logs"), &query)
    }

    /// `GET /containers/{id}/top`
    pub fn container_top(&self, id: &str, ps_args: &str) -> Result<TopResponse> {
        self.get(&path(id, "top"), &Query::new().text("ps_args", ps_args))
    }

    /// `GET /containers/{id}/stats`, one reading after the other; without `stream` one, made from two.
    pub fn container_stats(&self, id: &str, stream: bool) -> Result<JsonStream<Stats>> {
        let query = Query::new().add("stream", u8::from(stream));
        Ok(JsonStream::new(self.request(
            Method::Get,
            &path(id, "stats"),
            &query,
        )?))
    }

    /// `GET /containers/{id}/changes`
    pub fn container_changes(&self, id: &str) -> Result<Vec<Change>> {
        Ok(self
            .get::<Option<Vec<Change>>>(&path(id, "changes"), &Query::new())?
            .unwrap_or_default())
    }

    /// `GET /containers/{id}/export`: a tar archive.
    pub fn container_export(&self, id: &str) -> Result<Response> {
        self.request(Method::Get, &path(id, "export"), &Query::new())
    }

    /// `POST /containers/prune`
    pub fn container_prune(&self, filters: &Filters) -> Result<ContainersPruneReport> {
        self.begin(Method::Post, "/containers/prune", &Query::new().filters(filters))?
            .response()?
            .json()
    }
}

/// What an update may be made of: the typed request, or JSON with only what changes.
pub trait UpdateBody: Serialize {}
impl UpdateBody for UpdateRequest {}
impl UpdateBody for serde_json::Value {}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        Self::other(error.to_string())
    }
}
