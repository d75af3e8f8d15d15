//! Restart policies.

use std::sync::Arc;
use std::time::Duration;

use vessel_api::RestartPolicy;

use super::Container;
use super::record::{State, Status};
use super::start::Starter;
use crate::Engine;

/// How long a container must have run for its next restart to be prompt again.
const STABLE: Duration = Duration::from_secs(10);
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);

/// How long to wait before a restart: twice as long each time, from 100 ms up to a minute.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Backoff(Option<Duration>);

impl Backoff {
    /// The next pause, after a run that lasted so long.
    pub fn next(&mut self, ran: Duration) -> Duration {
        let pause = match self.0 {
            Some(last) if ran < STABLE => (last * 2).min(LONGEST),
            _ => FIRST,
        };
        self.0 = Some(pause);
        pause
    }
}

/// Whether the policy wants another run after this end.
pub(super) fn wanted(policy: &RestartPolicy, state: &State) -> bool {
    if state.stopped_by_user {
        return false;
    }
    match policy.name.as_str() {
        "always" | "unless-stopped" => true,
        "on-failure" => {
            let most = policy.maximum_retry_count;
            state.exit_code != 0 && (most <= 0 || i64::from(state.restart_count) < most)
        }
        _ => false,
    }
}

/// Whether the policy wants a container to run when the daemon comes up, whose last known state is this.
pub(crate) fn wanted_at_start(policy: &RestartPolicy, state: &State, was_running: bool) -> bool {
    match policy.name.as_str() {
        // Docker's `always` means after a restart of the daemon even what a user stopped.
        "always" => state.started_at != 0 || was_running,
        "unless-stopped" => was_running && !state.stopped_by_user,
        "on-failure" => was_running && wanted(policy, state),
        _ => false,
    }
}

impl Engine {
    /// Starts a container again after a pause, unless something else happens to it meanwhile.
    pub(crate) fn restart_later(self: &Arc<Self>, container: &Arc<Container>, pause: Duration) {
        let (engine, container) = (Arc::clone(self), Arc::clone(container));
        let generation = container.inner().generation;
        tokio::spawn(async move {
            let mut life = container.life.subscribe();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // Stopped or removed during the pause.
                _ = life.wait_for(|life| !life.running || life.removed) => return,
            }
            let Ok(_op) = engine.lock_op(&container).await else {
                return;
            };
            if container.status() != Status::Restarting
                || container.inner().generation != generation
                || engine.ending()
            {
                return;
            }
            let policy = container.record().host.restart_policy.clone();
            engine.change(&container, |state| {
                // A daemon that was killed may have counted a run that it did not begin.
                state.restart_count = match (policy.name.as_str(), u32::try_from(policy.maximum_retry_count))
                {
                    ("on-failure", Ok(most @ 1..)) => (state.restart_count + 1).min(most),
                    _ => state.restart_count + 1,
                };
            });
            if let Err(error) = engine.start_locked(&container, Starter::Policy).await {
                tracing::warn!(container = container.id, "restart: {error}");
                if container.status() == Status::Restarting {
                    let pause = container.inner().backoff.next(Duration::ZERO);
                    engine.restart_later(&container, pause);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, count: i64) -> RestartPolicy {
        RestartPolicy {
            name: name.into(),
            maximum_retry_count: count,
        }
    }

    #[test]
    fn policies_are_dockers() {
        let ended = |exit_code, restart_count, stopped_by_user| State {
            exit_code,
            restart_count,
            stopped_by_user,
            started_at: 1,
            ..State::default()
        };
        for (policy, state, again, at_start) in [
            (policy("no", 0), ended(1, 0, false), false, false),
            (policy("always", 0), ended(0, 9, false), true, true),
            (policy("always", 0), ended(0, 9, true), false, true),
            (policy("unless-stopped", 0), ended(0, 0, false), true, true),
            (policy("unless-stopped", 0), ended(0, 0, true), false, false),
            (policy("on-failure", 0), ended(1, 99, false), true, true),
            (policy("on-failure", 0), ended(0, 0, false), false, false),
            (policy("on-failure", 2), ended(1, 1, false), true, true),
            (policy("on-failure", 2), ended(1, 2, false), false, false),
        ] {
            assert_eq!(wanted(&policy, &state), again, "{policy:?} {state:?}");
            assert_eq!(
                wanted_at_start(&policy, &state, true),
                at_start,
                "{policy:?} {state:?}"
            );
        }
    }

    #[test]
    fn pauses_double_and_recover() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..12)
            .map(|_| backoff.next(Duration::ZERO).as_millis())
            .collect();
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[11], 60_000);
        assert_eq!(backoff.next(STABLE).as_millis(), 100);
    }
}
