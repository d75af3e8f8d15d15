//! `vessel completion`

use std::io;

use clap_complete::Shell;

use crate::app::{self, Run};
use crate::context::Context;
use crate::failure::Result;
use crate::output;

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
pub struct Args {
    /// bash, elvish, fish, powershell or zsh
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Run for Args {
    fn run(self, _context: &Context) -> Result {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut app::whole(), "vessel", &mut script);
        io::Write::write_all(&mut io::stdout().lock(), &script)?;
        output::print("")?;
        Ok(())
    }
}
