//! `vessel top`

use crate::app::Run;
use crate::context::Context;
use crate::failure::Result;
use crate::output::{self, tabwriter};

/// Show the processes of a container
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The container, and options of ps(1)
    #[arg(
        value_name = "CONTAINER [ps OPTIONS]",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    args: Vec<String>,
}

/// The columns of this table are wider than others.
const MIN_WIDTH: usize = 20;

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let (container, ps) = self
            .args
            .split_first()
            .map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
        let top = context.client()?.container_top(container, &ps.join(" "))?;
        let mut out = top.titles.join("\t");
        out.push('\n');
        for process in &top.processes {
            out.push_str(&process.join("\t"));
            out.push('\n');
        }
        output::print(&tabwriter::align_with(&out, MIN_WIDTH))?;
        Ok(())
    }
}
