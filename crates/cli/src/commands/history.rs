//! `vessel history`

use vessel_api::HistoryItem;

use crate::app::Run;
use crate::context::Context;
use crate::failure::Result;
use crate::output;
use crate::output::format::{Headers, Row, render};
use crate::output::text::{ellipsis, short_id};
use crate::output::units::{ago, human_size_digits};

/// Show how an image was made
#[derive(Debug, clap::Args)]
pub struct Args {
    /// table, json, or a Go template
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Sizes and times for people
    #[arg(short = 'H', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set, value_name = "bool")]
    human: bool,
    /// Do not cut anything short
    #[arg(long)]
    no_trunc: bool,
    /// Only IDs
    #[arg(short, long)]
    quiet: bool,
    /// The image must be for this platform: OS[/ARCH[/VARIANT]]
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    platform: String,
    /// The image
    #[arg(value_name = "IMAGE")]
    image: String,
}

const HEADERS: &Headers = &[
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];
const TABLE: &str = "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";
const TABLE_EXACT: &str = "{{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let history = context.client()?.image_history(&self.image, &self.platform)?;
        let rows = history.iter().map(|item| self.row(item)).collect();
        let format = match &self.format {
            Some(format) if !format.is_empty() => format.as_str(),
            _ if self.quiet => "{{.ID}}",
            _ => "table",
        };
        output::print(&render(
            format,
            if self.human { TABLE } else { TABLE_EXACT },
            HEADERS,
            rows,
        )?)?;
        Ok(())
    }
}

impl Args {
    fn row(&self, item: &HistoryItem) -> Row {
        let created_by = item.created_by.replace('\t', " ");
        let at = jiff::Timestamp::from_second(item.created).map(|time| {
            time.to_zoned(jiff::tz::TimeZone::system())
                .strftime("%Y-%m-%dT%H:%M:%S%:z")
                .to_string()
        });
        Row::default()
            .text(
                "ID",
                if self.no_trunc {
                    &item.id
                } else {
                    short_id(&item.id)
                },
            )
            .text("CreatedSince", ago(item.created))
            .text("CreatedAt", at.unwrap_or_default().replace("+00:00", "Z"))
            .text(
                "CreatedBy",
                if self.no_trunc {
                    created_by
                } else {
                    ellipsis(&created_by, 45)
                },
            )
            .text(
                "Size",
                if self.human {
                    human_size_digits(item.size as f64, 3)
                } else {
                    item.size.to_string()
                },
            )
            .text("Comment", &item.comment)
    }
}
