//! `docker-credential-NAME` programs: they are run with a verb, read a line or JSON, and print JSON.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use vessel_image::registry::{Credentials, TOKEN_USERNAME};

use crate::failure::{Failure, Result, words};

/// The largest answer.
const MAX_ANSWER: u64 = 1 << 20;
/// What helpers print when they know nothing; they fail then.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// One helper.
#[derive(Debug, Clone)]
pub struct Helper {
    program: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(default, rename = "ServerURL")]
    server_url: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

impl Helper {
    /// The helper of a name in `config.json`.
    pub fn new(name: &str) -> Result<Self> {
        // The name becomes part of a program's name, not a path.
        if name.is_empty() || name.contains(['/', '\0']) {
            return Err(Failure::new(format!(
                "\"{name}\" is not the name of a credential helper"
            )));
        }
        Ok(Self {
            program: format!("docker-credential-{name}"),
        })
    }

    /// What it knows of a registry.
    pub fn get(&self, registry: &str) -> Result<Option<Credentials>> {
        let Some(answer) = self.run("get", registry.as_bytes())? else {
            return Ok(None);
        };
        let entry: Entry = serde_json::from_slice(&answer)
            .map_err(|_| Failure::new(format!("{} printed something that is not its JSON", self.program)))?;
        let mut credentials = Credentials {
            serveraddress: registry.to_owned(),
            ..Credentials::default()
        };
        if entry.username == TOKEN_USERNAME {
            credentials.identitytoken = entry.secret;
        } else {
            credentials.username = entry.username;
            credentials.password = entry.secret;
        }
        Ok((!credentials.is_anonymous()).then_some(credentials))
    }

    /// Gives it something to keep.
    pub fn store(&self, registry: &str, credentials: &Credentials) -> Result<()> {
        let token = !credentials.identitytoken.is_empty();
        let entry = Entry {
            server_url: registry.to_owned(),
            username: if token {
                TOKEN_USERNAME.to_owned()
            } else {
                credentials.username.clone()
            },
            secret: if token {
                credentials.identitytoken.clone()
            } else {
                credentials.password.clone()
            },
        };
        let text = serde_json::to_vec(&entry).map_err(|error| Failure::new(error.to_string()))?;
        self.run("store", &text).map(drop)
    }

    /// Makes it forget a registry.
    pub fn erase(&self, registry: &str) -> Result<()> {
        self.run("erase", registry.as_bytes()).map(drop)
    }

    /// Runs it; `None` when it does not know what it was asked for.
    fn run(&self, verb: &str, input: &[u8]) -> Result<Option<Vec<u8>>> {
        let fail =
            |why: String| Failure::new(format!("cannot {verb} credentials with {}: {why}", self.program));
        let mut child = Command::new(&self.program)
            .arg(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| fail(words(&error)).with_hint("is it installed, and in PATH?"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read knows already what to say.
            let _ = stdin.write_all(input);
        }
        let mut answer = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout
                .take(MAX_ANSWER)
                .read_to_end(&mut answer)
                .map_err(|error| fail(words(&error)))?;
        }
        let status = child.wait().map_err(|error| fail(words(&error)))?;
        if status.success() {
            return Ok(Some(answer));
        }
        let said = String::from_utf8_lossy(&answer);
        if said.trim() == NOT_FOUND {
            return Ok(None);
        }
        // What it prints when it fails is a message, not a secret.
        Err(fail(said.trim().chars().take(500).collect()))
    }
}
