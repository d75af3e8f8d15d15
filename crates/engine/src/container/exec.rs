//! Running another process in a running container.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use tokio::sync::Notify;
use vessel_api::{ExecCreateRequest, ExecCreateResponse, ExecInspect, ExecProcessConfig, ExecStartRequest};
use vessel_runtime::shim::protocol::{ExecRequest, Reply};
use vessel_runtime::shim::{Attach, Exit, Request};
use vessel_runtime::spec::{ConsoleSize, Process, Seccomp};

use super::attach::{Attached, Ended};
use super::record::{Record, Status};
use super::stop::not_running;
use super::{Container, shim};
use crate::error::Context;
use crate::oci_spec::user::Accounts;
use crate::oci_spec::{self, security};
use crate::{Engine, Error, ErrorKind, Result, blocking, ids};

/// Execs that were created, by ID. They are not kept across daemons, as with Docker; one that runs goes on.
#[derive(Debug, Default)]
pub(crate) struct Execs(RwLock<HashMap<String, Arc<Exec>>>);

/// How many ended execs of a container can still be inspected.
const ENDED_KEPT: usize = 256;

#[derive(Debug)]
pub(super) struct Exec {
    id: String,
    container: Arc<Container>,
    request: ExecCreateRequest,
    /// Whether it is a health check's: killed when its stream is dropped, forgotten when it has ended.
    probe: bool,
    state: Mutex<ExecState>,
    over: Notify,
}

#[derive(Debug, Clone, Default)]
struct ExecState {
    started: bool,
    running: bool,
    pid: i32,
    exit_code: Option<i32>,
    ended: Option<Instant>,
}

impl Exec {
    fn change<T>(&self, change: impl FnOnce(&mut ExecState) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until its process has ended; its exit code. For one waiter.
    pub(super) async fn ended(&self) -> i32 {
        loop {
            if let Some(code) = self.change(|state| state.exit_code) {
                return code;
            }
            self.over.notified().await;
        }
    }

    fn end(&self, code: i32) {
        self.change(|state| {
            state.running = false;
            state.exit_code = Some(code);
            state.ended = Some(Instant::now());
        });
        self.over.notify_one();
    }
}

impl Execs {
    fn get(&self, id: &str) -> Result<Arc<Exec>> {
        let execs = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let found = execs.get(id).cloned();
        found.ok_or_else(|| Error::not_found(format!("No such exec instance: {id}")))
    }

    fn insert(&self, exec: Arc<Exec>) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(exec.id.clone(), exec);
    }

    fn remove(&self, id: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Forgets those of a container that `keep` does not keep.
    fn retain(&self, container: &str, mut keep: impl FnMut(&Exec) -> bool) {
        let mut execs = self.0.write().unwrap_or_else(PoisonError::into_inner);
        execs.retain(|_, exec| exec.container.id != container || keep(exec));
    }
}

impl Engine {
    /// Prepares an exec.
    ///
    /// # Errors
    /// No such container; not running; paused.
    pub async fn exec_create(
        &self,
        container: &str,
        request: ExecCreateRequest,
    ) -> Result<ExecCreateResponse> {
        let container = self.container(container)?;
        let exec = self.new_exec(&container, request, false)?;
        Ok(ExecCreateResponse { id: exec.id.clone() })
    }

    /// Prepares an exec; `probe`: for a health check.
    pub(super) fn new_exec(
        &self,
        container: &Arc<Container>,
        request: ExecCreateRequest,
        probe: bool,
    ) -> Result<Arc<Exec>> {
        runs(container)?;
        if request.cmd.first().is_none_or(String::is_empty) {
            return Err(Error::invalid("No exec command specified"));
        }
        let id = ids::id();
        let command = command_text(&request);
        self.forget_ended(container);
        container.inner().execs.push(id.clone());
        let exec = Arc::new(Exec {
            id: id.clone(),
            container: Arc::clone(container),
            request,
            probe,
            state: Mutex::default(),
            over: Notify::new(),
        });
        self.execs.insert(Arc::clone(&exec));
        self.container_event(
            &container.record(),
            &format!("exec_create: {command}"),
            &[("execID", id)],
        );
        Ok(exec)
    }

    /// Starts a health check's exec; its output.
    pub(super) async fn start_probe(&self, exec: &Exec) -> Result<tokio::net::UnixStream> {
        exec.change(|state| state.started = true);
        let started = match self.start_exec(exec, &ExecStartRequest::default()).await {
            Ok(attached) => attached.and_then(|attached| attached.stream),
            Err(error) => {
                self.forget(exec);
                return Err(error);
            }
        };
        started.ok_or_else(|| Error::system("a health check was started without its output"))
    }

    /// An exec that never ran, or a probe that has ended.
    fn forget(&self, exec: &Exec) {
        exec.container.inner().execs.retain(|other| *other != exec.id);
        self.execs.remove(&exec.id);
    }

    /// Starts an exec; its streams, unless it is detached.
    ///
    /// # Errors
    /// No such exec; it has run; its program cannot be executed.
    pub async fn exec_start(&self, id: &str, request: ExecStartRequest) -> Result<Option<Attached>> {
        let exec = self.execs.get(id)?;
        runs(&exec.container)?;
        if exec.change(|state| std::mem::replace(&mut state.started, true)) {
            return Err(Error::conflict(format!(
                "Exec command {id} is already running or has run"
            )));
        }
        let started = self.start_exec(&exec, &request).await;
        let error = match started {
            Ok(attached) => {
                return Ok(attached.map(|attached| Attached {
                    ended: Some(Ended(exec)),
                    ..attached
                }));
            }
            Err(error) => error,
        };
        exec.container.inner().execs.retain(|other| *other != exec.id);
        exec.end(match error.kind() {
            ErrorKind::CommandNotFound => 127,
            _ => 126,
        });
        if request.detach {
            return Err(error);
        }
        // As with Docker, an attached client reads it as output and then asks for the exit code: of a status the docker
        // command line tells nothing but its number.
        let stream = said(error.message(), exec.request.tty).await?;
        Ok(Some(Attached {
            tty: exec.request.tty,
            logs: None,
            stream: Some(stream),
            ended: None,
        }))
    }

    async fn start_exec(&self, exec: &Exec, request: &ExecStartRequest) -> Result<Option<Attached>> {
        let asked = &exec.request;
        let record = exec.container.record();
        let pid = exec.container.state().pid;
        let attach = (!request.detach).then_some(Attach {
            stdin: asked.attach_stdin,
            stdout: asked.attach_stdout,
            stderr: asked.attach_stderr,
        });
        let size = request
            .console_size
            .or(asked.console_size)
            .map(|[height, width]| ConsoleSize {
                height: u16::try_from(height).unwrap_or(u16::MAX),
                width: u16::try_from(width).unwrap_or(u16::MAX),
            });
        let user = match asked.user.as_str() {
            "" => record.config.user.clone(),
            user => user.to_owned(),
        };
        let machine = match oci_spec::wall::is_machine(&record.host) {
            true => Some(self.machine_root(&exec.container).await?),
            false => None,
        };
        let owned = Arc::clone(&record);
        let identity = blocking(move || identity(&owned, machine, pid, &user)).await?;
        let (process, seccomp_program) = self.exec_process(exec, &record, &identity, size).await?;
        let message = Request::Exec(ExecRequest {
            id: exec.id.clone(),
            process,
            seccomp_program,
            attach: attach.clone(),
            leashed: exec.probe,
        });
        let adding = Arc::clone(&exec.container.adding).read_owned().await;
        // It may have been paused meanwhile.
        runs(&exec.container)?;
        // Before the reply: the process may end before it is read.
        exec.change(|state| state.running = true);
        let directory = self.paths.shim(&record.id);
        // The shim goes on when the client leaves.
        let reply = tokio::spawn(async move {
            let reply = shim::request(directory, &message).await;
            drop(adding);
            reply
        });
        let reply = reply.await.unwrap_or_else(|error| {
            Err(Error::system(format!(
                "asking the shim ended abnormally: {error}"
            )))
        });
        let (reply, stream) = match reply {
            Ok(answer) => answer,
            Err(error) => {
                exec.change(|state| state.running = false);
                return Err(match error.kind() {
                    ErrorKind::CommandNotFound | ErrorKind::CommandNotExecutable => Error::new(
                        error.kind(),
                        format!("OCI runtime exec failed: {}", error.message()),
                    ),
                    _ => error,
                });
            }
        };
        if let Reply::Started { pid } = reply {
            exec.change(|state| state.pid = pid);
        }
        let text = format!("exec_start: {}", command_text(asked));
        self.container_event(&record, &text, &[("execID", exec.id.clone())]);
        Ok(attach.map(|_| Attached {
            tty: asked.tty,
            logs: None,
            stream: Some(stream),
            ended: None,
        }))
    }

    async fn exec_process(
        &self,
        exec: &Exec,
        record: &Record,
        identity: &oci_spec::user::Identity,
        size: Option<ConsoleSize>,
    ) -> Result<(Process, Option<PathBuf>)> {
        let asked = &exec.request;
        let security = security::security(&record.host, self.available(&record.host))?;
        let privileged = asked.privileged || record.host.privileged;
        let bounding = if asked.privileged {
            self.available(&record.host)
        } else {
            security.capabilities
        };
        let program = if privileged {
            None
        } else {
            match security.filter {
                security::Filter::Unconfined => None,
                security::Filter::Default => Some(self.default_filter(bounding)?),
                security::Filter::Custom(profile) => Some(self.custom_filter(record, *profile).await?),
            }
        };
        let mut env = oci_spec::environment(record, &self.link_environment_now(record));
        if asked.tty && !env.iter().any(|pair| pair.starts_with("TERM=")) {
            env.push("TERM=xterm".into());
        }
        oci_spec::override_env(&mut env, &asked.env);
        let cwd = match (asked.working_dir.as_str(), record.config.working_dir.as_str()) {
            ("", "") => "/",
            ("", own) => own,
            (path, _) => path,
        };
        if !cwd.starts_with('/') {
            return Err(Error::invalid(format!(
                "the working directory '{cwd}' is invalid, it needs to be an absolute path"
            )));
        }
        let process = Process {
            terminal: asked.tty,
            console_size: size.filter(|_| asked.tty),
            user: oci_spec::user(identity),
            args: asked.cmd.clone(),
            env,
            cwd: cwd.into(),
            capabilities: Some(oci_spec::capabilities(bounding, identity.uid)),
            no_new_privileges: security.no_new_privileges,
            apparmor_profile: security.apparmor,
            oom_score_adj: i32::try_from(record.host.oom_score_adj)
                .ok()
                .filter(|adj| *adj != 0),
            ..Process::default()
        };
        Ok((process, program))
    }

    /// A container's own profile, compiled into its shim's directory when the first exec needs it.
    async fn custom_filter(&self, record: &Record, profile: Seccomp) -> Result<PathBuf> {
        let path = self.paths.shim(&record.id).join("seccomp.bpf");
        let file = path.clone();
        blocking(move || {
            if !file.exists() {
                let program = vessel_runtime::seccomp::compile(&profile)?;
                let new = file.with_extension("new");
                std::fs::write(&new, program.to_bytes())
                    .and_then(|()| std::fs::rename(&new, &file))
                    .context(|| format!("write the system call filter {}", file.display()))?;
            }
            Ok(())
        })
        .await?;
        Ok(path)
    }

    /// What is known of an exec.
    ///
    /// # Errors
    /// No such exec.
    pub async fn exec_inspect(&self, id: &str) -> Result<ExecInspect> {
        let exec = self.execs.get(id)?;
        let state = exec.change(|state| state.clone());
        let asked = &exec.request;
        Ok(ExecInspect {
            id: exec.id.clone(),
            running: state.running,
            exit_code: state.exit_code.map(i64::from),
            process_config: ExecProcessConfig {
                tty: asked.tty,
                entrypoint: asked.cmd.first().cloned().unwrap_or_default(),
                arguments: asked.cmd.iter().skip(1).cloned().collect(),
                privileged: Some(asked.privileged),
                user: asked.user.clone(),
            },
            open_stdin: asked.attach_stdin,
            open_stderr: asked.attach_stderr,
            open_stdout: asked.attach_stdout,
            can_remove: false,
            container_id: exec.container.id.clone(),
            detach_keys: asked.detach_keys.clone(),
            pid: i64::from(state.pid),
        })
    }

    /// Changes the size of an exec's terminal.
    ///
    /// # Errors
    /// No such exec; not running.
    pub async fn exec_resize(&self, id: &str, height: u16, width: u16) -> Result<()> {
        let exec = self.execs.get(id)?;
        if !exec.change(|state| state.running) {
            return Err(Error::conflict(format!("Exec {id} is not running")));
        }
        let request = Request::Resize {
            exec: Some(exec.id.clone()),
            size: ConsoleSize { height, width },
        };
        shim::request(self.paths.shim(&exec.container.id), &request).await?;
        Ok(())
    }

    /// An exec's process has ended.
    pub(super) fn exec_ended(&self, container: &Container, id: &str, exit: Exit) {
        container.inner().execs.retain(|other| other != id);
        let Ok(exec) = self.execs.get(id) else { return };
        exec.end(exit.code);
        if exec.probe {
            self.execs.remove(id);
        }
        let attributes = [("execID", id.to_owned()), ("exitCode", exit.code.to_string())];
        self.container_event(&container.record(), "exec_die", &attributes);
    }

    /// The container has ended, and with it all its processes.
    pub(super) fn end_execs(&self, container: &Container) {
        let running = std::mem::take(&mut container.inner().execs);
        for id in running {
            let Ok(exec) = self.execs.get(&id) else { continue };
            if exec.change(|state| state.running) {
                exec.end(137);
            }
            if exec.probe {
                self.execs.remove(&id);
            }
        }
    }

    /// The container is gone.
    pub(super) fn drop_execs(&self, container: &Container) {
        self.execs.retain(&container.id, |_| false);
    }

    /// An exec of an earlier daemon that still runs.
    pub(crate) fn adopt_exec(&self, container: &Arc<Container>, id: &str, pid: i32) {
        container.inner().execs.push(id.to_owned());
        let state = ExecState {
            started: true,
            running: true,
            pid,
            exit_code: None,
            ended: None,
        };
        self.execs.insert(Arc::new(Exec {
            id: id.to_owned(),
            container: Arc::clone(container),
            request: ExecCreateRequest::default(),
            probe: false,
            state: Mutex::new(state),
            over: Notify::new(),
        }));
    }

    /// Forgets the oldest ended execs of a container when there are many: scripts make thousands. The newest are about to
    /// be asked for their exit codes.
    fn forget_ended(&self, container: &Container) {
        let mut ended: Vec<Instant> = Vec::new();
        let over = |exec: &Exec| exec.change(|state| state.ended.filter(|_| !state.running));
        self.execs.retain(&container.id, |exec| {
            ended.extend(over(exec));
            true
        });
        let Some(excess) = ended.len().checked_sub(ENDED_KEPT).filter(|excess| *excess > 0) else {
            return;
        };
        ended.sort_unstable();
        let newest_to_go = ended[excess - 1];
        self.execs.retain(&container.id, |exec| {
            over(exec).is_none_or(|at| at > newest_to_go)
        });
    }
}

/// A stream that says one line and ends.
async fn said(line: &str, tty: bool) -> Result<tokio::net::UnixStream> {
    use tokio::io::AsyncWriteExt;
    let (mut ours, theirs) = tokio::net::UnixStream::pair().context(|| "make a stream for the client")?;
    let text = format!("{line}\r\n");
    if !tty {
        // A message is far shorter than 4 GiB.
        let [a, b, c, d] = (text.len() as u32).to_be_bytes();
        ours.write_all(&[1, 0, 0, 0, a, b, c, d])
            .await
            .context(|| "answer the client")?;
    }
    ours.write_all(text.as_bytes())
        .await
        .context(|| "answer the client")?;
    Ok(theirs)
}

fn runs(container: &Container) -> Result<()> {
    match container.status() {
        Status::Running => Ok(()),
        Status::Paused => Err(Error::conflict(format!(
            "Container {} is paused, unpause the container before exec",
            container.id
        ))),
        Status::Restarting => Err(Error::conflict(format!(
            "Container {} is restarting, wait until the container is running",
            container.id
        ))),
        _ => Err(not_running(container)),
    }
}

/// Program and arguments as events show them.
fn command_text(request: &ExecCreateRequest) -> String {
    request.cmd.join(" ")
}

/// Who an exec runs as, by the accounts in the container as it is now: in the root of process `pid`, or in `machine`, the root of a machine.
fn identity(
    record: &Record,
    machine: Option<OwnedFd>,
    pid: i32,
    user: &str,
) -> Result<oci_spec::user::Identity> {
    let root = match machine {
        Some(root) => root,
        None => rustix::fs::open(
            format!("/proc/{pid}/root"),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .context(|| "open the container's root")?,
    };
    Accounts::read(root.as_fd())?.identity(user, &record.host.group_add)
}
