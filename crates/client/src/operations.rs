//! What goes beyond Docker's API: below `/vessel`.

use vessel_api::{BinEmptied, BinList, Explanation, Operation, UndoReport, UndoRequest};

use crate::request::Method;
use crate::{Client, JsonStream, Query, Result};

/// What `GET /vessel/log` shows.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// From a time on.
    pub since: String,
    /// Until a time.
    pub until: String,
    /// Only so many of the newest; empty: all.
    pub tail: String,
    /// What comes later, too.
    pub follow: bool,
}

impl Client {
    /// `GET /vessel/explain`
    pub fn explain(&self) -> Result<Explanation> {
        self.get("/vessel/explain", &Query::new())
    }

    /// `GET /vessel/log`
    pub fn operation_log(&self, options: &LogOptions) -> Result<JsonStream<Operation>> {
        let query = Query::new()
            .text("since", &options.since)
            .text("until", &options.until)
            .text("tail", &options.tail)
            .flag("follow", options.follow);
        Ok(JsonStream::new(self.request(
            Method::Get,
            "/vessel/log",
            &query,
        )?))
    }

    /// `GET /vessel/bin`
    pub fn bin(&self) -> Result<BinList> {
        self.get("/vessel/bin", &Query::new())
    }

    /// `POST /vessel/bin/empty`
    pub fn empty_bin(&self) -> Result<BinEmptied> {
        self.request(Method::Post, "/vessel/bin/empty", &Query::new())?
            .json()
    }

    /// `POST /vessel/undo`; empty words mean the last command
    pub fn undo(&self, operation: &str) -> Result<UndoReport> {
        let request = UndoRequest {
            operation: operation.to_owned(),
        };
        self.post_json("/vessel/undo", &Query::new(), &request)
    }
}
