//! `vessel registry user add|ls|rm`: a `htpasswd` file without Apache's tools.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result, words};
use crate::output;

/// Manage the users in a file of passwords
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    Add(AddArgs),
    Ls(ListArgs),
    Rm(RemoveArgs),
}

impl Run for Args {
    fn run(self, _context: &Context) -> Result {
        match self.action {
            Action::Add(args) => args.run(),
            Action::Ls(args) => args.run(),
            Action::Rm(args) => args.run(),
        }
    }
}

/// Add a user to a file of passwords, or change the password
#[derive(Debug, clap::Args)]
struct AddArgs {
    /// The file
    #[arg(long, value_name = "file")]
    htpasswd: PathBuf,
    /// Read the password from standard input (without, it is asked for)
    #[arg(long)]
    password_stdin: bool,
    /// Name of the user
    #[arg(value_name = "USER")]
    user: String,
}

impl AddArgs {
    fn run(self) -> Result {
        if self.user.is_empty() || self.user.contains([':', '\n', '\r', '\0']) {
            return Err(Failure::usage("a user's name is not empty and has no colon"));
        }
        let password = if self.password_stdin || !io::stdin().is_terminal() {
            line()?
        } else {
            asked()?
        };
        let hash = vessel_registry::hash_password(&password).map_err(Failure::new)?;
        let mut lines = others(&self.htpasswd, &self.user)?;
        lines.push(format!("{}:{hash}", self.user));
        write(&self.htpasswd, &lines)
    }
}

/// Remove a user from a file of passwords
#[derive(Debug, clap::Args)]
struct RemoveArgs {
    /// The file
    #[arg(long, value_name = "file")]
    htpasswd: PathBuf,
    /// Name of the user
    #[arg(value_name = "USER")]
    user: String,
}

impl RemoveArgs {
    fn run(self) -> Result {
        let all = read(&self.htpasswd)?;
        let lines = others(&self.htpasswd, &self.user)?;
        if all.len() == lines.len() {
            return Err(Failure::new(format!(
                "there is no user {} in {}",
                self.user,
                self.htpasswd.display()
            )));
        }
        write(&self.htpasswd, &lines)
    }
}

/// List the users in a file of passwords
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// The file
    #[arg(long, value_name = "file")]
    htpasswd: PathBuf,
}

impl ListArgs {
    fn run(self) -> Result {
        for line in read(&self.htpasswd)? {
            if let Some((user, _)) = line.split_once(':').filter(|_| !line.starts_with('#')) {
                output::print_line(user)?;
            }
        }
        Ok(())
    }
}

fn line() -> Result<String> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks on the terminal, which does not show the answer.
fn asked() -> Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let before = tcgetattr(io::stdin()).map_err(io::Error::from)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    output::print("Password: ")?;
    io::stdout().flush()?;
    tcsetattr(io::stdin(), OptionalActions::Flush, &silent).map_err(io::Error::from)?;
    let answer = line();
    tcsetattr(io::stdin(), OptionalActions::Flush, &before).map_err(io::Error::from)?;
    output::print("\n")?;
    answer
}

fn read(path: &Path) -> Result<Vec<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) => Err(Failure::new(format!(
            "cannot read {}: {}",
            path.display(),
            words(&error)
        ))),
    }
}

/// The lines that are not about this user; none when there is no file yet.
fn others(path: &Path, user: &str) -> Result<Vec<String>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut lines = read(path)?;
    lines.retain(|line| line.split_once(':').is_none_or(|(name, _)| name != user));
    Ok(lines)
}

/// Complete or not at all: a registry may read it at any moment.
fn write(path: &Path, lines: &[String]) -> Result {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let fail = |error: io::Error| Failure::new(format!("cannot write {}: {}", path.display(), words(&error)));
    let mode = fs::metadata(path).map_or(0o600, |metadata| metadata.permissions().mode() & 0o777);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut file = fs::File::options()
            .create_new(true)
            .write(true)
            .mode(mode)
            .open(&temporary)?;
        for line in lines {
            writeln!(file, "{line}")?;
        }
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(fail)
}
