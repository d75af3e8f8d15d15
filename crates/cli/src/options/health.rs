//! `--health-*`.

use vessel_api::HealthConfig;

use crate::output::units::parse_duration;

/// The health check.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Health")]
pub struct HealthOptions {
    /// The command that checks health
    #[arg(long, value_name = "string")]
    pub health_cmd: Option<String>,
    /// Time between checks (ms|s|m|h)
    #[arg(long, value_name = "duration", value_parser = parse_duration, allow_hyphen_values = true)]
    pub health_interval: Option<i64>,
    /// The longest a check may take (ms|s|m|h)
    #[arg(long, value_name = "duration", value_parser = parse_duration, allow_hyphen_values = true)]
    pub health_timeout: Option<i64>,
    /// Time to start up before failures count (ms|s|m|h)
    #[arg(long, value_name = "duration", value_parser = parse_duration, allow_hyphen_values = true)]
    pub health_start_period: Option<i64>,
    /// Time between checks while starting up (ms|s|m|h)
    #[arg(long, value_name = "duration", value_parser = parse_duration, allow_hyphen_values = true)]
    pub health_start_interval: Option<i64>,
    /// Failures in a row that make it unhealthy
    #[arg(long, value_name = "int", allow_hyphen_values = true)]
    pub health_retries: Option<i64>,
    /// Disable any health check of the image
    #[arg(long)]
    pub no_healthcheck: bool,
}

impl HealthOptions {
    /// The health check asked for, if any.
    pub fn config(&self) -> Result<Option<HealthConfig>, String> {
        let numbers = [
            ("interval", self.health_interval),
            ("timeout", self.health_timeout),
            ("start-period", self.health_start_period),
            ("start-interval", self.health_start_interval),
            ("retries", self.health_retries),
        ];
        let command = self.health_cmd.as_deref().unwrap_or_default();
        let any = !command.is_empty()
            || numbers
                .iter()
                .any(|(_, value)| value.is_some_and(|value| value != 0));
        if self.no_healthcheck {
            if any {
                return Err("--no-healthcheck conflicts with --health-* options".to_string());
            }
            return Ok(Some(HealthConfig {
                test: vec!["NONE".to_string()],
                ..HealthConfig::default()
            }));
        }
        if !any {
            return Ok(None);
        }
        for (name, value) in numbers {
            if value.is_some_and(|value| value < 0) {
                return Err(format!("--health-{name} cannot be negative"));
            }
        }
        Ok(Some(HealthConfig {
            test: if command.is_empty() {
                Vec::new()
            } else {
                vec!["CMD-SHELL".to_string(), command.to_string()]
            },
            interval: self.health_interval.unwrap_or(0),
            timeout: self.health_timeout.unwrap_or(0),
            start_period: self.health_start_period.unwrap_or(0),
            start_interval: self.health_start_interval.unwrap_or(0),
            retries: self.health_retries.unwrap_or(0),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks() {
        let none = HealthOptions::default();
        assert_eq!(none.config().unwrap(), None);
        let some = HealthOptions {
            health_cmd: Some("true".into()),
            health_retries: Some(2),
            ..none.clone()
        };
        let config = some.config().unwrap().unwrap();
        assert_eq!(
            (config.test, config.retries),
            (vec!["CMD-SHELL".to_string(), "true".to_string()], 2)
        );
        assert!(
            HealthOptions {
                health_interval: Some(-1),
                ..none.clone()
            }
            .config()
            .is_err()
        );
        assert!(
            HealthOptions {
                no_healthcheck: true,
                ..some
            }
            .config()
            .is_err()
        );
        let off = HealthOptions {
            no_healthcheck: true,
            ..none
        };
        assert_eq!(off.config().unwrap().unwrap().test, ["NONE"]);
    }
}
