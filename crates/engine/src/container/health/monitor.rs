//! The task that probes a container as long as it runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::super::record::Status;
use super::super::{Container, Life};
use super::{Check, Finding, HealthStatus};
use crate::{Engine, time};

/// What is probed. The engine's containers; in tests, something that answers from a list.
trait Subject {
    /// Runs the command once.
    async fn probe(&self) -> Finding;
    /// Takes a result in and tells the state.
    fn found(&self, finding: Finding) -> HealthStatus;
}

/// Probes until the run is over. `run`: when it began, as [`Life::active`] has it; `began`: the same as an instant.
async fn monitor(
    check: &Check,
    run: i64,
    began: Instant,
    mut status: HealthStatus,
    mut life: watch::Receiver<Life>,
    subject: &impl Subject,
) {
    loop {
        // Nothing is probed while it is paused.
        let waited = life.wait_for(|life| life.active != 0 || !life.process || life.removed);
        match waited.await {
            Ok(life) if life.active == run => {}
            _ => return,
        }
        let probed = async {
            sleep(check.pause(status, began.elapsed())).await;
            subject.probe().await
        };
        // Dropping a probe ends its process.
        let finding = tokio::select! {
            finding = probed => finding,
            left = life.wait_for(|life| life.active != run) => match left {
                Ok(_) => continue,
                Err(_) => return,
            },
        };
        status = subject.found(finding);
    }
}

struct Running {
    engine: Arc<Engine>,
    container: Arc<Container>,
    check: Check,
    run: i64,
}

impl Engine {
    /// Begins to probe a container that has just been started or adopted, if there is something to probe it with.
    pub(crate) fn monitor_health(self: &Arc<Self>, container: &Arc<Container>) {
        let Some(check) = Check::of(&container.record().config) else {
            return;
        };
        let state = container.state();
        let (run, Some(health)) = (state.started_at, state.health) else {
            return;
        };
        let running = Duration::from_nanos(u64::try_from(time::now() - run).unwrap_or(0));
        let now = Instant::now();
        // The clock of instants begins with the machine; no container is older, unless the other clock was changed.
        let began = now.checked_sub(running).unwrap_or(now);
        let subject = Running {
            engine: Arc::clone(self),
            container: Arc::clone(container),
            check,
            run,
        };
        tokio::spawn(async move {
            let life = subject.container.life();
            monitor(&subject.check, run, began, health.status, life, &subject).await;
        });
    }
}

impl Subject for Running {
    async fn probe(&self) -> Finding {
        self.engine.probe(&self.container, &self.check).await
    }

    fn found(&self, finding: Finding) -> HealthStatus {
        let (status, changed) = {
            let mut inner = self.container.inner();
            let state = &mut inner.state;
            let current = state.status == Status::Running && state.started_at == self.run;
            match &mut state.health {
                Some(health) if current => {
                    let running = u64::try_from(finding.start - self.run).unwrap_or(0);
                    let changed = self.check.judge(health, finding, Duration::from_nanos(running));
                    (health.status, changed)
                }
                // Paused or ended meanwhile: the loop sees it next.
                _ => return HealthStatus::Starting,
            }
        };
        if changed {
            // Journals it.
            self.engine.change(&self.container, |_| {});
            let action = format!("health_status: {}", status.as_str());
            self.engine
                .container_event(&self.container.record(), &action, &[]);
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::timeout;

    use super::super::Health;
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn check() -> Check {
        Check {
            command: Vec::new(),
            interval: 100 * MS,
            timeout: 50 * MS,
            start_period: 35 * MS,
            start_interval: 10 * MS,
            retries: 2,
        }
    }

    /// A subject whose probes fail until some time after the start, and last some time.
    struct Fake {
        began: Instant,
        well_after: Duration,
        lasts: Duration,
        health: Mutex<Health>,
        /// When probes began, in milliseconds.
        probes: Mutex<Vec<u128>>,
        /// When the state became which.
        changes: Mutex<Vec<(u128, HealthStatus)>>,
    }

    impl Fake {
        fn new(well_after: u32, lasts: u32) -> Arc<Self> {
            Arc::new(Self {
                began: Instant::now(),
                well_after: well_after * MS,
                lasts: lasts * MS,
                health: Mutex::default(),
                probes: Mutex::default(),
                changes: Mutex::default(),
            })
        }

        fn now(&self) -> u128 {
            self.began.elapsed().as_millis()
        }

        /// Starts a monitor of a run that began at 7.
        fn monitor(self: &Arc<Self>) -> (watch::Sender<Life>, tokio::task::JoinHandle<()>) {
            let (sender, life) = watch::channel(life(7));
            let subject = Arc::clone(self);
            let task = tokio::spawn(async move {
                let (check, began) = (check(), subject.began);
                monitor(&check, 7, began, HealthStatus::Starting, life, &*subject).await;
            });
            (sender, task)
        }

        fn probes(&self) -> Vec<u128> {
            self.probes.lock().unwrap().clone()
        }
    }

    impl Subject for Fake {
        async fn probe(&self) -> Finding {
            let start = self.now();
            self.probes.lock().unwrap().push(start);
            sleep(self.lasts).await;
            Finding {
                start: start as i64,
                exit_code: i32::from(start < self.well_after.as_millis()),
                ..Finding::default()
            }
        }

        fn found(&self, finding: Finding) -> HealthStatus {
            let running = Duration::from_millis(finding.start as u64);
            let mut health = self.health.lock().unwrap();
            if check().judge(&mut health, finding, running) {
                self.changes.lock().unwrap().push((self.now(), health.status));
            }
            health.status
        }
    }

    fn life(active: i64) -> Life {
        Life {
            running: true,
            process: true,
            active,
            ..Life::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn starting_is_probed_often_and_then_as_told() {
        let fake = Fake::new(25, 1);
        let (_life, task) = fake.monitor();
        sleep(300 * MS).await;
        // Every 10 ms and the duration of a probe, until one succeeds; then every 100 ms.
        assert_eq!(fake.probes(), [10, 21, 32, 133, 234]);
        assert_eq!(*fake.changes.lock().unwrap(), [(33, HealthStatus::Healthy)]);
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn the_start_period_ends_and_failures_count() {
        let fake = Fake::new(1000, 0);
        let (_life, task) = fake.monitor();
        sleep(450 * MS).await;
        // The fourth comes at 40 ms, after the period, and counts; the pause after it is the long one.
        assert_eq!(fake.probes(), [10, 20, 30, 40, 140, 240, 340, 440]);
        assert_eq!(*fake.changes.lock().unwrap(), [(140, HealthStatus::Unhealthy)]);
        sleep(700 * MS).await;
        assert_eq!(fake.changes.lock().unwrap()[1], (1040, HealthStatus::Healthy));
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_probed_while_paused() {
        let fake = Fake::new(0, 1);
        let (sender, task) = fake.monitor();
        sleep(50 * MS).await;
        assert_eq!(fake.probes(), [10]);
        sender.send_replace(life(0));
        sleep(5000 * MS).await;
        assert_eq!(fake.probes(), [10]);
        sender.send_replace(life(7));
        sleep(101 * MS).await;
        // A whole interval after it goes on.
        assert_eq!(fake.probes(), [10, 5150]);
        assert!(!task.is_finished());
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_drops_the_probe_under_way() {
        let fake = Fake::new(0, 40);
        let (sender, task) = fake.monitor();
        sleep(20 * MS).await;
        sender.send_replace(life(0));
        sleep(100 * MS).await;
        assert_eq!(fake.probes(), [10]);
        assert!(fake.health.lock().unwrap().log.is_empty());
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_ends_with_the_run() {
        let ended = Life::default();
        let next_run = life(8);
        for after in [ended, next_run] {
            let fake = Fake::new(0, 1);
            let (sender, task) = fake.monitor();
            sleep(50 * MS).await;
            sender.send_replace(after);
            timeout(MS, task).await.unwrap().unwrap();
            assert_eq!(fake.probes(), [10]);
        }
        // And with the container, also out of a pause.
        let fake = Fake::new(0, 1);
        let (sender, task) = fake.monitor();
        sender.send_replace(life(0));
        sleep(MS).await;
        drop(sender);
        timeout(MS, task).await.unwrap().unwrap();
    }
}
