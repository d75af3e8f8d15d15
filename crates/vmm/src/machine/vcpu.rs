//! vCPUs' threads, and what stops them.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::End;
use crate::accel::{Exit, Vcpu, VcpuHandle};
use crate::sync::lock;

/// What all vCPUs must do.
struct State {
    paused: bool,
    end: Option<End>,
    /// Threads that wait here.
    parked: usize,
    handles: Vec<Arc<dyn VcpuHandle>>,
}

/// The machine's hold on its vCPUs. It begins with a pause.
pub(super) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                paused: true,
                end: None,
                parked: 0,
                handles: Vec::new(),
            }),
            changed: Condvar::new(),
        }
    }
}

impl Control {
    /// The machine is to end, unless it has already. Never waits for a vCPU: it may be one that calls.
    pub(super) fn end(&self, end: End) {
        let mut state = lock(&self.state);
        state.end.get_or_insert(end);
        for handle in &state.handles {
            handle.kick();
        }
        self.changed.notify_all();
    }

    /// Stops all vCPUs and waits until they have.
    pub(super) fn pause(&self, vcpus: &[VcpuThread]) {
        let mut state = lock(&self.state);
        state.paused = true;
        for handle in &state.handles {
            handle.kick();
        }
        while state.parked < vcpus.len() && state.end.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets them run.
    pub(super) fn resume(&self) {
        lock(&self.state).paused = false;
        self.changed.notify_all();
    }

    /// Waits for the end.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> Option<End> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = lock(&self.state);
        loop {
            if let Some(end) = &state.end {
                return Some(end.clone());
            }
            state = match deadline {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.checked_duration_since(Instant::now())?;
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// A vCPU's thread asks whether to go on; it waits here while the machine is paused. False: it is to end.
    fn may_run(&self) -> bool {
        let mut state = lock(&self.state);
        if state.end.is_some() {
            return false;
        }
        if state.paused {
            state.parked += 1;
            self.changed.notify_all();
            while state.paused && state.end.is_none() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.parked -= 1;
        }
        state.end.is_none()
    }
}

/// A vCPU at work.
pub(super) struct VcpuThread {
    thread: JoinHandle<()>,
}

impl VcpuThread {
    pub(super) fn spawn(index: u8, mut vcpu: Box<dyn Vcpu>, control: Arc<Control>) -> io::Result<Self> {
        lock(&control.state).handles.push(vcpu.handle());
        let run = move || {
            while control.may_run() {
                match vcpu.run() {
                    Ok(Exit::Kicked) => {}
                    Ok(Exit::Shutdown) => control.end(End::Reset),
                    Err(error) => control.end(End::Failed(format!("vCPU {index} cannot go on: {error}"))),
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(run)?;
        Ok(Self { thread })
    }

    pub(super) fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("a vCPU's thread has panicked");
        }
    }
}
