//! Running another process in a running container.

use vessel_api::{ExecCreateRequest, ExecCreateResponse, ExecInspect, ExecStartRequest};

use super::attach::Attached;
use crate::{Engine, Error, Result};

impl Engine {
    /// Prepares an exec.
    ///
    /// # Errors
    /// No such container; not running; paused.
    pub async fn exec_create(&self, _container: &str, _request: ExecCreateRequest) -> Result<ExecCreateResponse> {
        Err(Error::unsupported("not written yet"))
    }

    /// Starts an exec; its streams, unless it is detached.
    ///
    /// # Errors
    /// No such exec; it has run; its program cannot be executed.
    pub async fn exec_start(&self, _id: &str, _request: ExecStartRequest) -> Result<Option<Attached>> {
        Err(Error::unsupported("not written yet"))
    }

    /// What is known of an exec.
    ///
    /// # Errors
    /// No such exec.
    pub async fn exec_inspect(&self, _id: &str) -> Result<ExecInspect> {
        Err(Error::unsupported("not written yet"))
    }

    /// Changes the size of an exec's terminal.
    ///
    /// # Errors
    /// No such exec; not running.
    pub async fn exec_resize(&self, _id: &str, _height: u16, _width: u16) -> Result<()> {
        Err(Error::unsupported("not written yet"))
    }
}
