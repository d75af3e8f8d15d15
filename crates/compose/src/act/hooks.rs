//! Commands that run in a container after it started and before it stops.

use std::io::{self, Read};

use vessel_api::{ExecCreateRequest, ExecStartRequest};

use super::Engine;
use super::convert::variables;
use super::state::Container;
use crate::error::{Error, Result};
use crate::project::Hook;

/// How much of a failing hook's output is shown.
const MAX_OUTPUT: u64 = 4096;

impl Engine<'_> {
    /// Runs hooks, one after the other.
    pub(super) fn hooks(&self, container: &Container, hooks: &[Hook]) -> Result<()> {
        for hook in hooks {
            self.run_hook(&container.id, &container.name, hook)?;
        }
        Ok(())
    }

    /// Runs one command in a container and fails unless it ends well.
    pub fn run_hook(&self, id: &str, name: &str, hook: &Hook) -> Result<()> {
        let doing = || format!("cannot run a hook in container {name}");
        let request = ExecCreateRequest {
            user: hook.user.clone(),
            privileged: hook.privileged,
            env: variables(&hook.environment),
            working_dir: hook.working_dir.clone(),
            cmd: hook.command.clone().unwrap_or_default().0,
            attach_stdout: true,
            attach_stderr: true,
            ..ExecCreateRequest::default()
        };
        let exec = self
            .client
            .exec_create(id, &request)
            .map_err(Error::engine(doing()))?;
        let stream = self
            .client
            .exec_start(&exec, &ExecStartRequest::default())
            .map_err(Error::engine(doing()))?;
        let (mut reader, _writer) = stream
            .split()
            .map_err(|error| Error::project(format!("{}: {error}", doing())))?;
        let mut output = Vec::new();
        let read = reader.by_ref().take(MAX_OUTPUT).read_to_end(&mut output);
        let _ = read.and_then(|_| io::copy(&mut reader, &mut io::sink()));
        let found = self.client.exec_inspect(&exec).map_err(Error::engine(doing()))?;
        match found.exit_code.unwrap_or(0) {
            0 => Ok(()),
            code => {
                let mut text = Vec::new();
                let mut more = Vec::new();
                let _ = vessel_client::stdcopy(&output[..], &mut text, &mut more);
                text.extend(more);
                let text = String::from_utf8_lossy(&text).trim().to_owned();
                let colon = if text.is_empty() { "" } else { ": " };
                Err(Error::project(format!(
                    "a hook of container {name} exited with status {code}{colon}{text}"
                )))
            }
        }
    }
}
