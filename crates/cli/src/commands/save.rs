//! `vessel save`

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use vessel_client::Response;

use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result, words};
use crate::terminal;

/// Write images to a tar archive
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "string")]
    output: Option<String>,
    /// Only if the images are for a platform: OS[/ARCH[/VARIANT]]
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    platform: String,
    /// Images
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        write_archive(self.output.as_deref(), "save", || {
            let client = context.client()?;
            client
                .image_save(&self.images, &self.platform)
                .map_err(Into::into)
        })
    }
}

/// Writes an archive to a file, which appears when it is complete, or to standard output.
pub fn write_archive(output: Option<&str>, verb: &str, open: impl FnOnce() -> Result<Response>) -> Result {
    let Some(output) = output else {
        if terminal::stdout_is_terminal() {
            return Err(Failure::new(format!("cowardly refusing to {verb} to a terminal"))
                .with_hint("use the -o flag or redirect"));
        }
        let mut stdout = io::stdout().lock();
        io::copy(&mut open()?.body, &mut stdout)?;
        stdout.flush()?;
        return Ok(());
    };
    let cannot = |error: io::Error| Failure::new(format!("cannot write {output}: {}", words(&error)));
    let path = Path::new(output);
    if path.is_dir() {
        return Err(Failure::new(format!("cannot write {output}: it is a directory")));
    }
    // What is no regular file, as /dev/null, is written as it is.
    if path.exists() && !path.is_file() {
        let mut file = OpenOptions::new().write(true).open(path).map_err(cannot)?;
        io::copy(&mut open()?.body, &mut file).map_err(cannot)?;
        return Ok(());
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".partial-{}", std::process::id()));
    let partial = Path::new(&partial);
    let written = || -> Result {
        let mut file = File::create_new(partial).map_err(cannot)?;
        io::copy(&mut open()?.body, &mut file).map_err(cannot)?;
        file.sync_all().map_err(cannot)?;
        std::fs::rename(partial, path).map_err(cannot)
    };
    written().inspect_err(|_| {
        let _ = std::fs::remove_file(partial);
    })
}
