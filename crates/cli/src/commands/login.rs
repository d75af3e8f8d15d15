//! `vessel login` and `vessel logout`

use std::io::{BufRead, Read};

use vessel_image::registry::{Credentials, DOCKER_HUB_KEY, registry_key};

use crate::app::Run;
use crate::context::Context;
use crate::credentials::ConfigFile;
use crate::failure::{Failure, Result};
use crate::output;
use crate::terminal;

/// The longest password or token that is read.
const MAX_SECRET: u64 = 256 << 10;

/// Log in to a registry
#[derive(Debug, clap::Args)]
pub struct LoginArgs {
    /// Username
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    username: String,
    /// Password; others on this machine can see it while the command runs
    #[arg(short, long, value_name = "string")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, conflicts_with = "password")]
    password_stdin: bool,
    /// The registry; Docker Hub without
    #[arg(value_name = "SERVER", default_value = "", hide_default_value = true)]
    server: String,
}

/// Log out of a registry
#[derive(Debug, clap::Args)]
pub struct LogoutArgs {
    /// The registry; Docker Hub without
    #[arg(value_name = "SERVER", default_value = "", hide_default_value = true)]
    server: String,
}

fn key_of(server: &str) -> &str {
    match server {
        "" => DOCKER_HUB_KEY,
        server => registry_key(server),
    }
}

impl Run for LoginArgs {
    fn run(self, context: &Context) -> Result {
        let registry = key_of(&self.server).to_owned();
        if self.password.is_some() {
            output::warn("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
        }
        if self.password_stdin && self.username.is_empty() {
            return Err(Failure::new("Must provide --username with --password-stdin"));
        }
        let mut file = ConfigFile::load()?;
        let stored = match self.username.is_empty() && self.password.is_none() {
            true => file.credentials(&registry)?,
            false => None,
        };
        if let Some(stored) = stored {
            output::print_line("Authenticating with existing credentials...")?;
            match context.client()?.auth(&stored) {
                Ok(_) => {
                    output::print_line("Login Succeeded")?;
                    return Ok(());
                }
                Err(error) if error.status() == Some(401) => {
                    output::warn("Login did not succeed with them: enter others");
                }
                Err(error) => return Err(error.into()),
            }
        }
        let mut credentials = self.ask()?;
        registry.clone_into(&mut credentials.serveraddress);
        let answer = context.client()?.auth(&credentials)?;
        credentials.identitytoken = answer.identity_token;
        let in_clear = file.store(&registry, &credentials)?;
        if in_clear {
            output::warn(&format!(
                "\nWARNING! Your credentials are stored unencrypted in '{}'.\nConfigure a credential helper to remove this warning. See\nhttps://docs.docker.com/go/credential-store/\n",
                file.path().display()
            ));
        }
        output::print_line(if answer.status.is_empty() {
            "Login Succeeded"
        } else {
            &answer.status
        })?;
        Ok(())
    }
}

impl LoginArgs {
    fn ask(&self) -> Result<Credentials> {
        let mut username = self.username.clone();
        if username.is_empty() {
            interactive("username")?;
            output::print("Username: ")?;
            username = line()?;
        }
        let password = match &self.password {
            Some(password) => password.clone(),
            None if self.password_stdin => {
                let mut text = String::new();
                std::io::stdin().take(MAX_SECRET).read_to_string(&mut text)?;
                text.trim_end_matches(['\r', '\n']).to_owned()
            }
            None => {
                interactive("password")?;
                output::print("Password: ")?;
                let hidden = terminal::hide_input()?;
                let password = line();
                drop(hidden);
                output::print("\n")?;
                password?
            }
        };
        if username.is_empty() || password.is_empty() {
            return Err(Failure::new("a username and a password are required"));
        }
        Ok(Credentials::password(username, password))
    }
}

fn interactive(what: &str) -> Result {
    match terminal::stdin_is_terminal() {
        true => Ok(()),
        false => Err(Failure::new(format!(
            "cannot ask for a {what}: standard input is not a terminal"
        ))
        .with_hint("give --username and --password-stdin")),
    }
}

fn line() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().lock().take(MAX_SECRET).read_line(&mut text)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

impl Run for LogoutArgs {
    fn run(self, _context: &Context) -> Result {
        let registry = key_of(&self.server);
        let known = ConfigFile::load()?.erase(registry)?;
        output::print_line(&match known {
            true => format!("Removing login credentials for {registry}"),
            false => format!("Not logged in to {registry}"),
        })?;
        Ok(())
    }
}
