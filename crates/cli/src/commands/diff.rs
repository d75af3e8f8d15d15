//! `vessel diff`

use vessel_api::ChangeKind;

use crate::app::Run;
use crate::context::Context;
use crate::failure::Result;
use crate::output;
use crate::output::format::{Headers, Row, render};

/// Show what a container changed in its file system: A added, C changed, D deleted
#[derive(Debug, clap::Args)]
pub struct Args {
    /// table, json, or a Go template
    #[arg(
        long,
        value_name = "string",
        default_value = "{{.Type}} {{.Path}}",
        hide_default_value = true
    )]
    format: String,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

const HEADERS: &Headers = &[("Type", "CHANGE TYPE"), ("Path", "PATH")];

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let changes = context.client()?.container_changes(&self.container)?;
        let rows = changes.iter().map(|change| {
            let kind = match change.kind {
                ChangeKind::Modified => "C",
                ChangeKind::Added => "A",
                ChangeKind::Deleted => "D",
            };
            Row::default().text("Type", kind).text("Path", &change.path)
        });
        output::print(&render(
            &self.format,
            "{{.Type}}\t{{.Path}}",
            HEADERS,
            rows.collect(),
        )?)?;
        Ok(())
    }
}
