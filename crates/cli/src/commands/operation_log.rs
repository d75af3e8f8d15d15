//! `vessel system log`

use vessel_api::Operation;
use vessel_client::LogOptions;

use super::logs::time;
use super::{in_brackets, print_each, template};
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};

/// Show who did what, the newest last
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// json, or a Go template
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// From a time or a duration ago on
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    since: String,
    /// Until a time or a duration ago
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    until: String,
    /// Only so many of the newest
    #[arg(short = 'n', long, value_name = "string", default_value = "all")]
    tail: String,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let template = template(self.format.as_deref().unwrap_or_default())?;
        let wrong =
            |name: &'static str| move |why| Failure::new(format!("invalid value for \"{name}\": {why}"));
        let options = LogOptions {
            since: time(&self.since).map_err(wrong("since"))?,
            until: time(&self.until).map_err(wrong("until"))?,
            tail: self.tail,
            follow: self.follow,
        };
        print_each(
            context.client()?.operation_log(&options)?,
            template.as_ref(),
            line,
        )
    }
}

/// `TIME ID WHO ACTION OBJECT (name=value) OUTCOME`, without what a terminal would act on: names come from anybody.
fn line(operation: &Operation) -> String {
    let local = operation.time.parse::<jiff::Timestamp>().map(|time| {
        let zoned = time.to_zoned(jiff::tz::TimeZone::system());
        zoned.strftime("%Y-%m-%d %H:%M:%S.%3f").to_string()
    });
    let mut out = format!(
        "{} {} {} {}",
        local.unwrap_or_default(),
        operation.id,
        who(operation),
        operation.action
    );
    if !operation.object.is_empty() {
        out.push_str(&format!(" {}", operation.object));
    }
    out.push_str(&in_brackets(&operation.details));
    out.push_str(&match operation.status {
        0 => " not waited for".to_owned(),
        101 | 200..=299 | 304 if operation.error.is_empty() => {
            format!(" done in {} ms", operation.milliseconds)
        }
        status if operation.error.is_empty() => format!(" refused ({status})"),
        200 => format!(" failed: {}", operation.error),
        status => format!(" refused ({status}): {}", operation.error),
    });
    if !out.contains(char::is_control) {
        return out;
    }
    let escaped = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    };
    out.chars().map(escaped).collect()
}

/// `uid 0 docker[1234]`, `name@address`.
fn who(operation: &Operation) -> String {
    if operation.pid != 0 {
        let uid = operation
            .uid
            .map_or_else(String::new, |uid| format!("uid {uid} "));
        return format!("{uid}{}[{}]", operation.program, operation.pid);
    }
    match (operation.client.as_str(), operation.address.as_str()) {
        ("", "") => operation.via.clone(),
        ("", address) => format!("{} {address}", operation.via),
        (client, address) => format!("{client}@{address}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let mut operation = Operation {
            id: "0123456789ab".into(),
            via: "unix".into(),
            uid: Some(0),
            pid: 7,
            program: "docker".into(),
            action: "container remove".into(),
            object: "web".into(),
            details: [("force".to_owned(), "1".to_owned())].into(),
            status: 204,
            milliseconds: 3,
            ..Operation::default()
        };
        assert!(
            line(&operation)
                .ends_with("0123456789ab uid 0 docker[7] container remove web (force=1) done in 3 ms"),
            "{}",
            line(&operation)
        );
        operation.status = 404;
        operation.error = "No such container: web".into();
        assert!(line(&operation).ends_with("refused (404): No such container: web"));
        operation.status = 200;
        assert!(line(&operation).ends_with("failed: No such container: web"));
        operation.error = "no\u{1b}[2J\nsuch".into();
        assert!(
            line(&operation).ends_with("failed: no\\u{1b}[2J\\nsuch"),
            "{}",
            line(&operation)
        );
        (operation.pid, operation.client, operation.address) = (0, "alice".into(), "10.0.0.1:7".into());
        assert_eq!(who(&operation), "alice@10.0.0.1:7");
    }
}
