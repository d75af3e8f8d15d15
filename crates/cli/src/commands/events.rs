//! `vessel events`

use vessel_api::EventMessage;
use vessel_client::EventsOptions;

use super::logs::time;
use super::{filters, in_brackets, print_each, template};
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};

/// Show what happens, as it happens
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only some: NAME=VALUE
    #[arg(short, long, value_name = "filter")]
    filter: Vec<String>,
    /// json, or a Go template
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// From a time or a duration ago on
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    since: String,
    /// Until a time or a duration ago
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    until: String,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let template = template(self.format.as_deref().unwrap_or_default())?;
        let wrong =
            |name: &'static str| move |why| Failure::new(format!("invalid value for \"{name}\": {why}"));
        let options = EventsOptions {
            since: time(&self.since).map_err(wrong("since"))?,
            until: time(&self.until).map_err(wrong("until"))?,
            filters: filters(&self.filter)?,
        };
        print_each(context.client()?.events(&options)?, template.as_ref(), line)
    }
}

/// `TIME container create ID (image=busybox, name=one)`
fn line(event: &EventMessage) -> String {
    let nanoseconds = match event.time_nano {
        0 => i128::from(event.time) * 1_000_000_000,
        exact => i128::from(exact),
    };
    let time = jiff::Timestamp::from_nanosecond(nanoseconds)
        .map(|time| {
            time.to_zoned(jiff::tz::TimeZone::system())
                .strftime("%Y-%m-%dT%H:%M:%S.%9f%:z")
                .to_string()
        })
        .unwrap_or_default();
    // Go writes UTC as a letter.
    let time = time.replace("+00:00", "Z");
    format!(
        "{time} {} {} {}{}",
        event.kind,
        event.action,
        event.actor.id,
        in_brackets(&event.actor.attributes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use vessel_api::EventActor;

    #[test]
    fn lines() {
        let event = EventMessage {
            kind: "container".into(),
            action: "die".into(),
            actor: EventActor {
                id: "abc".into(),
                attributes: [("name", "one"), ("exitCode", "0")]
                    .map(|(a, b)| (a.into(), b.into()))
                    .into(),
            },
            time_nano: 1_795_257_007_310_667_152,
            ..Default::default()
        };
        let line = line(&event);
        assert!(
            line.ends_with(" container die abc (exitCode=0, name=one)"),
            "{line}"
        );
        assert!(line.contains(".310667152"), "{line}");
    }
}
