//! `vessel load`

use std::fs::File;
use std::io::{self, Read, Write};

use vessel_client::Client;

use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result, words};
use crate::output::progress;
use crate::terminal;

/// Load images from a tar archive
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Read from a file instead of standard input
    #[arg(short, long, value_name = "string")]
    input: Option<String>,
    /// Only images for a platform: OS[/ARCH[/VARIANT]]
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    platform: String,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let source: Box<dyn Read + Send> = match &self.input {
            Some(path) => {
                let file = File::open(path)
                    .map_err(|error| Failure::new(format!("open {path}: {}", words(&error))))?;
                Box::new(file)
            }
            None if terminal::stdin_is_terminal() => {
                return Err(Failure::new("requested load from stdin, but stdin is empty")
                    .with_hint("name a file with --input, or pipe an archive in"));
            }
            None => Box::new(io::stdin()),
        };
        let quiet = self.quiet || !terminal::stdout_is_terminal();
        let mut answer = context.client()?.image_load(quiet, &self.platform, source)?;
        if answer
            .header("content-type")
            .is_some_and(|kind| kind.starts_with("application/json"))
        {
            return progress::show(Client::messages(answer));
        }
        let mut stdout = io::stdout().lock();
        io::copy(&mut answer.body, &mut stdout)?;
        stdout.flush()?;
        Ok(())
    }
}
