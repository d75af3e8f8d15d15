//! Processes started in running containers.

use vessel_api::{ExecCreateRequest, ExecCreateResponse, ExecInspect, ExecStartRequest};

use crate::request::Method;
use crate::{Client, Hijacked, Query, Result, encode};

impl Client {
    /// `POST /containers/{id}/exec`: the ID of what will be run.
    pub fn exec_create(&self, container: &str, request: &ExecCreateRequest) -> Result<String> {
        let path = format!("/containers/{}/exec", encode(container));
        Ok(self
            .post_json::<ExecCreateResponse>(&path, &Query::new(), request)?
            .id)
    }

    /// `POST /exec/{id}/start`, detached.
    pub fn exec_start_detached(&self, id: &str, tty: bool) -> Result<()> {
        let request = ExecStartRequest {
            detach: true,
            tty,
            console_size: None,
        };
        self.begin_json(&format!("/exec/{}/start", encode(id)), &Query::new(), &request)?
            .response()?
            .discard()
    }

    /// `POST /exec/{id}/start`, with its streams.
    pub fn exec_start(&self, id: &str, request: &ExecStartRequest) -> Result<Hijacked> {
        let body = serde_json::to_vec(request)?;
        self.begin_hijack(&format!("/exec/{}/start", encode(id)), &Query::new(), Some(body))?
            .hijacked()
    }

    /// `GET /exec/{id}/json`
    pub fn exec_inspect(&self, id: &str) -> Result<ExecInspect> {
        self.get(&format!("/exec/{}/json", encode(id)), &Query::new())
    }

    /// `POST /exec/{id}/resize`
    pub fn exec_resize(&self, id: &str, height: u16, width: u16) -> Result<()> {
        let query = Query::new().add("h", height).add("w", width);
        self.begin(Method::Post, &format!("/exec/{}/resize", encode(id)), &query)?
            .response()?
            .discard()
    }
}
