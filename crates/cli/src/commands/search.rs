//! `vessel search`

use vessel_image::registry::SearchResult;

use super::filters;
use crate::app::Run;
use crate::context::Context;
use crate::credentials;
use crate::failure::Result;
use crate::output;
use crate::output::format::{Headers, Row, render};
use crate::output::text::ellipsis;

/// Search a registry for images
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only what matches: is-official=true, stars=3
    #[arg(short, long, value_name = "filter")]
    filter: Vec<String>,
    /// A Go template
    #[arg(
        long,
        value_name = "string",
        default_value = "table",
        hide_default_value = true
    )]
    format: String,
    /// Results at most
    #[arg(long, value_name = "int", default_value_t = 25)]
    limit: i64,
    /// Do not cut anything short
    #[arg(long)]
    no_trunc: bool,
    /// [REGISTRY/]WORDS
    #[arg(value_name = "TERM")]
    term: String,
}

const HEADERS: &Headers = &[
    ("Name", "NAME"),
    ("Description", "DESCRIPTION"),
    ("StarCount", "STARS"),
    ("IsOfficial", "OFFICIAL"),
    ("IsAutomated", "AUTOMATED"),
];
const TABLE: &str = "{{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}";

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let shown = credentials::header_for(&self.term)?;
        let filters = filters(&self.filter)?;
        let mut results: Vec<SearchResult> = context
            .client()?
            .image_search(&self.term, self.limit, &filters, &shown)?;
        results.sort_by_key(|result| std::cmp::Reverse(result.star_count));
        let yes = |yes: bool| if yes { "[OK]" } else { "" };
        let rows = results.iter().map(|result| {
            let description = result.description.replace(['\n', '\r', '\t'], " ");
            Row::default()
                .text("Name", &result.name)
                .text(
                    "Description",
                    match self.no_trunc {
                        true => description,
                        false => ellipsis(&description, 45),
                    },
                )
                .text("StarCount", result.star_count.to_string())
                .text("IsOfficial", yes(result.is_official))
                .text("IsAutomated", yes(result.is_automated))
        });
        output::print(&render(&self.format, TABLE, HEADERS, rows.collect())?)?;
        Ok(())
    }
}
