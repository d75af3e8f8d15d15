//! The daemon itself.

use vessel_api::{DiskUsage, EventMessage, Info, Version};

use crate::request::{Method, Response};
use crate::{Client, Filters, JsonStream, Query, Result};

/// What `GET /events` shows.
#[derive(Debug, Clone, Default)]
pub struct EventsOptions {
    /// From a time on, the past included.
    pub since: String,
    /// Until a time; empty for ever.
    pub until: String,
    /// Only some.
    pub filters: Filters,
}

impl Client {
    /// `GET /_ping`; the answer's headers tell the newest API version and more.
    pub fn ping(&self) -> Result<Response> {
        self.request(Method::Get, "/_ping", &Query::new())
    }

    /// Agrees with the daemon on a version of the API: the daemon's newest when that is older than `newest`.
    /// Only needed where a path without a version will not do.
    pub fn negotiate(&mut self, newest: &str) -> Result<()> {
        let mut answer = self.ping()?;
        answer.read_all()?;
        let theirs = answer.header("api-version").unwrap_or("1.24").to_string();
        self.version = Some(if version(&theirs) < version(newest) {
            theirs
        } else {
            newest.to_string()
        });
        Ok(())
    }

    /// `GET /info`
    pub fn info(&self) -> Result<Info> {
        self.get("/info", &Query::new())
    }

    /// `GET /version`
    pub fn server_version(&self) -> Result<Version> {
        self.get("/version", &Query::new())
    }

    /// `GET /system/df`; with `items`, Vessel tells everything that is on the disk, and other daemons ignore it
    pub fn disk_usage(&self, items: bool) -> Result<DiskUsage> {
        self.get("/system/df", &Query::new().flag("vessel", items))
    }

    /// `GET /events`
    pub fn events(&self, options: &EventsOptions) -> Result<JsonStream<EventMessage>> {
        let query = Query::new()
            .text("since", &options.since)
            .text("until", &options.until)
            .filters(&options.filters);
        Ok(JsonStream::new(self.request(Method::Get, "/events", &query)?))
    }
}

fn version(text: &str) -> (u32, u32) {
    let mut parts = text.splitn(2, '.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}
