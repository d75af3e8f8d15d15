//! Acting: what a project says becomes containers, networks and volumes, and they go again.
//!
//! Everything goes through the Docker Engine API. What belongs to a project is known by its labels alone
//! ([`labels`]), those of Docker Compose v2, so nothing is kept elsewhere and either tool goes on where the other
//! stopped. Services are worked on in parallel, each after those it depends on ([`graph`]).

pub mod control;
mod convert;
pub mod down;
mod files;
pub mod graph;
mod hooks;
mod images;
pub mod labels;
pub mod logs;
mod mounts;
mod resources;
pub mod run;
pub mod state;
mod up;
mod wait;

use std::sync::atomic::{AtomicBool, Ordering};

use vessel_client::Client;

use crate::error::{Error, Result};
use crate::project::{Project, Service};

pub use convert::durations;
pub use images::PullPolicy;
pub use up::{Create, Recreate};

/// How far something got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It goes on.
    Working,
    /// It is done.
    Done,
    /// It is not as it should be.
    Warning,
    /// It failed.
    Failed,
}

/// What happens to something.
#[derive(Debug, Clone)]
pub struct Event<'a> {
    /// What: `Container demo-web-1`, `Network demo_default`.
    pub resource: &'a str,
    /// How far it is.
    pub status: Status,
    /// In a word: `Creating`, `Started`.
    pub text: &'a str,
}

/// Who is told what happens.
pub trait Observer: Sync {
    /// Something happens to something.
    fn event(&self, event: &Event<'_>);
    /// Something is worth a line of its own.
    fn warn(&self, line: &str);
}

/// What acting needs of its caller: ways to images.
pub trait Images: Sync {
    /// Pulls an image; an empty platform is the daemon's.
    ///
    /// # Errors
    /// It cannot be had.
    fn pull(&self, image: &str, platform: &str) -> Result<()>;
    /// Builds the images of services, each of which says how.
    ///
    /// # Errors
    /// A build fails.
    fn build(&self, project: &Project, services: &[&Service]) -> Result<()>;
}

/// Acts for a project.
pub struct Engine<'a> {
    /// The daemon.
    pub client: &'a Client,
    /// The project.
    pub project: &'a Project,
    /// Who is told.
    pub observer: &'a dyn Observer,
    /// Ways to images.
    pub images: &'a dyn Images,
    /// Set by whoever gives up.
    pub interrupted: &'a AtomicBool,
}

impl Engine<'_> {
    /// Fails when the caller gave up.
    pub fn check(&self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        Ok(())
    }

    pub(crate) fn tell(&self, resource: &str, status: Status, text: &str) {
        self.observer.event(&Event {
            resource,
            status,
            text,
        });
    }

    /// Tells of something that begins, does it, and tells how it ended.
    pub(crate) fn step<T>(
        &self,
        resource: &str,
        begin: &str,
        end: &str,
        act: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.check()?;
        self.tell(resource, Status::Working, begin);
        match act() {
            Ok(value) => {
                self.tell(resource, Status::Done, end);
                Ok(value)
            }
            Err(error) => {
                self.tell(resource, Status::Failed, "Error");
                Err(error)
            }
        }
    }
}
