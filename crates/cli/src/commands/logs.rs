//! `vessel logs`

use std::io::{self, Write};

use vessel_client::{LogsOptions, stdcopy};

use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output::units::parse_duration;

/// Show what a container wrote
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go on as more is written
    #[arg(short, long)]
    follow: bool,
    /// Only since a time (2026-01-02T15:04:05Z) or for a duration (42m)
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    since: String,
    /// Only until a time (2026-01-02T15:04:05Z) or a duration ago (42m)
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    until: String,
    /// Show times
    #[arg(short, long)]
    timestamps: bool,
    /// Lines from the end, or all
    #[arg(short = 'n', long, value_name = "string", default_value = "all")]
    tail: String,
    /// Show the attributes of lines
    #[arg(long)]
    details: bool,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        // Whether it has a terminal, and so no frames, is known to it alone.
        let tty = client.container_inspect(&self.container, false)?.config.tty;
        let options = LogsOptions {
            stdout: true,
            stderr: true,
            follow: self.follow,
            timestamps: self.timestamps,
            details: self.details,
            tail: self.tail,
            since: time(&self.since)
                .map_err(|why| Failure::new(format!("invalid value for \"since\": {why}")))?,
            until: time(&self.until)
                .map_err(|why| Failure::new(format!("invalid value for \"until\": {why}")))?,
        };
        let mut answer = client.container_logs(&self.container, &options)?;
        let mut stdout = io::stdout().lock();
        if tty {
            io::copy(&mut answer.body, &mut stdout)?;
            stdout.flush()?;
        } else {
            stdcopy(&mut answer.body, stdout, io::stderr().lock())?;
        }
        Ok(())
    }
}

/// A time for the API: a duration is so long ago; dates without a zone are local time.
pub fn time(text: &str) -> std::result::Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if digits(text) {
        return Ok(text.to_string());
    }
    if let Ok(duration) = parse_duration(text) {
        let then = jiff::Timestamp::now().as_nanosecond() - i128::from(duration);
        return Ok(seconds(then));
    }
    if let Ok(then) = text.parse::<jiff::Timestamp>() {
        return Ok(seconds(then.as_nanosecond()));
    }
    let civil = text.parse::<jiff::civil::DateTime>().or_else(|_| {
        text.parse::<jiff::civil::Date>()
            .map(|date| date.to_datetime(jiff::civil::Time::midnight()))
    });
    let civil = civil.map_err(|_| format!("failed to parse value as time or duration: \"{text}\""))?;
    let then = civil
        .to_zoned(jiff::tz::TimeZone::system())
        .map_err(|error| error.to_string())?;
    Ok(seconds(then.timestamp().as_nanosecond()))
}

fn seconds(nanoseconds: i128) -> String {
    const BILLION: i128 = 1_000_000_000;
    format!(
        "{}.{:09}",
        nanoseconds.div_euclid(BILLION),
        nanoseconds.rem_euclid(BILLION)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(time("").unwrap(), "");
        assert_eq!(time("1700000000.5").unwrap(), "1700000000.5");
        assert_eq!(time("2026-01-02T15:04:05Z").unwrap(), "1767366245.000000000");
        assert_eq!(
            time("2026-01-02T15:04:05.25+01:00").unwrap(),
            "1767362645.250000000"
        );
        assert!(time("2026-01-02").is_ok() && time("2026-01-02T15:04:05").is_ok());
        let ago: f64 = time("1h").unwrap().parse().unwrap();
        let now = crate::output::units::now() as f64;
        assert!((now - ago - 3600.0).abs() < 5.0);
        assert!(time("yesterday").is_err());
    }
}
