//! Health checks: a command run in the container every now and then, and what its exit codes make of it.
//!
//! The rules are Docker's. A container begins as `starting`. One success makes it `healthy`; as many failures in a row as
//! `retries` says make it `unhealthy`, and before the first success those within the start period do not count. A
//! container that is paused or has ended counts as `unhealthy`.
//!
//! A container without a check costs nothing here: no task, no memory. One with a check has a task (`monitor`) that
//! sleeps between probes. The state is journalled when it changes between the three, with the log at that moment;
//! results that change nothing are kept in memory, so a daemon that crashes loses at most the newest lines of the log.

mod monitor;
mod probe;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vessel_api::{ContainerConfig, HealthConfig, HealthcheckResult};

use super::record::{State, Status};
use crate::time::rfc3339;
use crate::{Error, Result};

/// How often and how long, unless told otherwise: Docker's.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;

/// The shortest duration that can be asked for.
const SHORTEST: i64 = 1_000_000;
/// How many results are kept.
const LOG: usize = 5;

/// The three states.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names are Docker's")]
pub enum HealthStatus {
    #[default]
    Starting,
    Healthy,
    Unhealthy,
}

impl HealthStatus {
    /// As the API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// What probes have found so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// The state.
    pub status: HealthStatus,
    /// Failures since the last success.
    pub failing_streak: u32,
    /// The last five results, oldest first.
    pub log: Vec<Finding>,
}

/// The result of one probe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Nanoseconds since the epoch.
    pub start: i64,
    /// Nanoseconds since the epoch.
    pub end: i64,
    /// The command's exit code; -1 when it did not run or took too long.
    pub exit_code: i32,
    /// The beginning of what it wrote, or why there is no exit code.
    pub output: String,
}

impl Health {
    /// As the API shows it.
    pub fn to_api(&self) -> vessel_api::Health {
        vessel_api::Health {
            status: self.status.as_str().to_owned(),
            failing_streak: i64::from(self.failing_streak),
            log: self.log.iter().map(Finding::to_api).collect(),
        }
    }
}

impl Finding {
    fn to_api(&self) -> HealthcheckResult {
        HealthcheckResult {
            start: rfc3339(self.start),
            end: rfc3339(self.end),
            exit_code: i64::from(self.exit_code),
            output: self.output.clone(),
        }
    }
}

impl State {
    /// What `ps` and its filter call the health.
    pub(crate) fn health_name(&self) -> &'static str {
        self.health
            .as_ref()
            .map_or("none", |health| health.status.as_str())
    }

    /// A run begins: what earlier runs found stays in the log only.
    pub(crate) fn begin_health(&mut self, config: &ContainerConfig) {
        self.health = Check::of(config).map(|_| {
            Box::new(Health {
                log: self.health.take().map(|health| health.log).unwrap_or_default(),
                ..Health::default()
            })
        });
    }

    /// Nobody probes any more; Docker calls that unhealthy.
    pub(super) fn end_health(&mut self, before: Status) {
        if before == Status::Running
            && self.status != Status::Running
            && let Some(health) = &mut self.health
        {
            health.status = HealthStatus::Unhealthy;
        }
    }
}

/// What to probe with, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Check {
    /// Program and arguments.
    command: Vec<String>,
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: u32,
}

impl Check {
    /// The check of a container; none when it has none, or `NONE`, or one of a kind nobody knows.
    pub fn of(config: &ContainerConfig) -> Option<Self> {
        let asked = config.healthcheck.as_ref()?;
        let (kind, words) = asked.test.split_first()?;
        let command = match kind.as_str() {
            "CMD" => words.to_vec(),
            "CMD-SHELL" if config.shell.is_empty() => [&["/bin/sh".into(), "-c".into()], words].concat(),
            "CMD-SHELL" => [&config.shell, words].concat(),
            _ => return None,
        };
        // An image may say anything; what makes no sense counts as not said.
        let or = |nanos: i64, default| match u64::try_from(nanos) {
            Ok(nanos) if nanos >= SHORTEST.unsigned_abs() => Duration::from_nanos(nanos),
            _ => default,
        };
        Some(Self {
            command,
            interval: or(asked.interval, INTERVAL),
            timeout: or(asked.timeout, TIMEOUT),
            start_period: or(asked.start_period, Duration::ZERO),
            start_interval: or(asked.start_interval, START_INTERVAL),
            retries: match u32::try_from(asked.retries) {
                Ok(retries @ 1..) => retries,
                _ => RETRIES,
            },
        })
    }

    /// How long to wait for the next probe, so long after the start.
    fn pause(&self, status: HealthStatus, running: Duration) -> Duration {
        if status == HealthStatus::Starting && running < self.start_period {
            self.start_interval
        } else {
            self.interval
        }
    }

    /// Takes a result in; `running`: how long the container ran when the probe began. Returns whether the state changed.
    fn judge(&self, health: &mut Health, finding: Finding, running: Duration) -> bool {
        let before = health.status;
        if finding.exit_code == 0 {
            health.failing_streak = 0;
            health.status = HealthStatus::Healthy;
        } else if health.status != HealthStatus::Starting || running >= self.start_period {
            health.failing_streak = health.failing_streak.saturating_add(1);
            if health.failing_streak >= self.retries {
                health.status = HealthStatus::Unhealthy;
            }
        }
        let over = (health.log.len() + 1).saturating_sub(LOG);
        health.log.drain(..over);
        health.log.push(finding);
        health.status != before
    }
}

/// Checks what a user asks for.
///
/// # Errors
/// Durations that are negative or too short, a negative number of retries; in Docker's words.
pub(crate) fn validate(asked: &HealthConfig) -> Result<()> {
    for (name, value) in [
        ("Interval", asked.interval),
        ("Timeout", asked.timeout),
        ("StartPeriod", asked.start_period),
        ("StartInterval", asked.start_interval),
    ] {
        if value != 0 && value < SHORTEST {
            return Err(Error::invalid(format!(
                "{name} in Healthcheck cannot be less than 1ms"
            )));
        }
    }
    if asked.retries < 0 {
        return Err(Error::invalid("Retries in Healthcheck cannot be negative"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(test: &[&str], change: impl FnOnce(&mut HealthConfig)) -> ContainerConfig {
        let mut asked = HealthConfig {
            test: test.iter().map(|word| (*word).to_owned()).collect(),
            ..HealthConfig::default()
        };
        change(&mut asked);
        ContainerConfig {
            healthcheck: Some(asked),
            ..ContainerConfig::default()
        }
    }

    fn finding(exit_code: i32) -> Finding {
        Finding {
            exit_code,
            ..Finding::default()
        }
    }

    #[test]
    fn kinds_and_defaults_are_dockers() {
        for none in [&[][..], &["NONE"], &["NONE", "x"], &["BOGUS", "x"]] {
            assert_eq!(Check::of(&config(none, |_| {})), None, "{none:?}");
        }
        assert_eq!(Check::of(&ContainerConfig::default()), None);
        let check = Check::of(&config(&["CMD-SHELL", "a b"], |_| {})).unwrap();
        assert_eq!(check.command, ["/bin/sh", "-c", "a b"]);
        assert_eq!((check.interval, check.timeout), (INTERVAL, TIMEOUT));
        assert_eq!((check.start_period, check.retries), (Duration::ZERO, 3));
        let mut own_shell = config(&["CMD-SHELL", "a"], |asked| asked.interval = 1_000_000);
        own_shell.shell = vec!["/bin/bash".into(), "-lc".into()];
        let check = Check::of(&own_shell).unwrap();
        assert_eq!(check.command, ["/bin/bash", "-lc", "a"]);
        assert_eq!(check.interval, Duration::from_millis(1));
        // From an image, where nobody checked.
        let check = Check::of(&config(&["CMD", "a"], |asked| {
            (asked.interval, asked.timeout, asked.retries) = (-1, 999_999, i64::MIN);
        }))
        .unwrap();
        assert_eq!(check.command, ["a"]);
        assert_eq!(
            (check.interval, check.timeout, check.retries),
            (INTERVAL, TIMEOUT, 3)
        );
    }

    #[test]
    fn what_a_user_asks_for_is_checked() {
        let refused = |change: fn(&mut HealthConfig)| {
            let mut asked = HealthConfig::default();
            change(&mut asked);
            validate(&asked).unwrap_err().message().to_owned()
        };
        assert_eq!(
            refused(|asked| asked.interval = -1),
            "Interval in Healthcheck cannot be less than 1ms"
        );
        assert_eq!(
            refused(|asked| asked.timeout = 999_999),
            "Timeout in Healthcheck cannot be less than 1ms"
        );
        assert_eq!(
            refused(|asked| asked.start_period = i64::MIN),
            "StartPeriod in Healthcheck cannot be less than 1ms"
        );
        assert_eq!(
            refused(|asked| asked.start_interval = 1),
            "StartInterval in Healthcheck cannot be less than 1ms"
        );
        assert_eq!(
            refused(|asked| asked.retries = -1),
            "Retries in Healthcheck cannot be negative"
        );
        validate(&HealthConfig {
            interval: 1_000_000,
            ..HealthConfig::default()
        })
        .unwrap();
    }

    #[test]
    fn failures_count_in_a_row_and_after_the_start_period() {
        let check = Check::of(&config(&["CMD", "x"], |asked| {
            (asked.retries, asked.start_period) = (2, 10_000_000_000);
        }))
        .unwrap();
        let mut health = Health::default();
        let mut judge = |code, second| {
            let changed = check.judge(&mut health, finding(code), Duration::from_secs(second));
            (changed, health.status, health.failing_streak)
        };
        use HealthStatus::{Healthy, Starting, Unhealthy};
        assert_eq!(judge(1, 1), (false, Starting, 0));
        assert_eq!(judge(-1, 9), (false, Starting, 0));
        assert_eq!(judge(1, 10), (false, Starting, 1));
        assert_eq!(judge(1, 11), (true, Unhealthy, 2));
        assert_eq!(judge(1, 12), (false, Unhealthy, 3));
        assert_eq!(judge(0, 13), (true, Healthy, 0));
        assert_eq!(judge(7, 14), (false, Healthy, 1));
        assert_eq!(judge(0, 15), (false, Healthy, 0));
        assert_eq!(judge(7, 16), (false, Healthy, 1));
        assert_eq!(judge(7, 17), (true, Unhealthy, 2));
        // A success within the start period ends it.
        let mut health = Health::default();
        assert!(check.judge(&mut health, finding(0), Duration::from_secs(1)));
        check.judge(&mut health, finding(1), Duration::from_secs(2));
        assert!(check.judge(&mut health, finding(1), Duration::from_secs(3)));
        assert_eq!(health.status, Unhealthy);
    }

    #[test]
    fn five_results_are_kept() {
        let check = Check::of(&config(&["CMD", "x"], |_| {})).unwrap();
        let mut health = Health::default();
        for code in 1..=7 {
            check.judge(&mut health, finding(code), Duration::ZERO);
        }
        let codes: Vec<i32> = health.log.iter().map(|finding| finding.exit_code).collect();
        assert_eq!(codes, [3, 4, 5, 6, 7]);
    }

    #[test]
    fn runs_begin_anew_and_ends_are_unhealthy() {
        let config = config(&["CMD", "x"], |_| {});
        let mut state = State {
            status: Status::Running,
            ..State::default()
        };
        assert_eq!(state.health_name(), "none");
        state.begin_health(&config);
        assert_eq!(state.health_name(), "starting");
        let check = Check::of(&config).unwrap();
        check.judge(state.health.as_mut().unwrap(), finding(0), Duration::ZERO);
        assert_eq!(state.health_name(), "healthy");
        state.status = Status::Paused;
        state.end_health(Status::Running);
        assert_eq!(state.health_name(), "unhealthy");
        state.begin_health(&config);
        assert_eq!(state.health_name(), "starting");
        assert_eq!(state.health.as_ref().unwrap().log.len(), 1);
        state.begin_health(&ContainerConfig::default());
        assert_eq!(state.health, None);
    }
}
