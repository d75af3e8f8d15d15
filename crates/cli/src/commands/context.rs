//! `vessel context`

use std::path::PathBuf;

use serde_json::Value;

use super::FormatOption;
use crate::app::Run;
use crate::context::{Context, Places};
use crate::contexts::{self, Contexts, DEFAULT, StoredContext};
use crate::credentials::ConfigFile;
use crate::failure::{Failure, Result};
use crate::output;
use crate::output::format::{Headers, Row, render};
use crate::output::template::Data;

/// What there is without a context: `DOCKER_HOST`, or the default socket.
fn default_context() -> StoredContext {
    let host = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
    StoredContext {
        name: DEFAULT.to_owned(),
        description: "Current DOCKER_HOST based configuration".to_owned(),
        host: host.unwrap_or_else(|| format!("unix://{}", Places::from_environment().socket().display())),
        skip_verify: false,
        tls: None,
        meta: PathBuf::new(),
    }
}

fn find(name: &str) -> Result<StoredContext> {
    match name {
        DEFAULT => Ok(default_context()),
        name => Contexts::of_user().find(name),
    }
}

/// List contexts
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// table, json, or a Go template
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    format: String,
    /// Only names
    #[arg(short, long)]
    quiet: bool,
}

const HEADERS: &Headers = &[
    ("Name", "NAME"),
    ("Description", "DESCRIPTION"),
    ("DockerEndpoint", "DOCKER ENDPOINT"),
    ("Current", "CURRENT"),
    ("Error", "ERROR"),
    ("ContextType", "TYPE"),
];

impl Run for ListArgs {
    fn run(self, context: &Context) -> Result {
        let current = contexts::current(context.name())?;
        let mut all = vec![default_context()];
        all.extend(Contexts::of_user().all()?);
        let rows = all.iter().map(|stored| {
            let mark = if stored.name == current && !self.quiet && self.format.is_empty() {
                " *"
            } else {
                ""
            };
            Row::default()
                .text("Name", format!("{}{mark}", stored.name))
                .text("Description", &stored.description)
                .text("DockerEndpoint", &stored.host)
                .text("Current", (stored.name == current).to_string())
                .text("Error", "")
                .text("ContextType", "moby")
        });
        let format = match self.format.as_str() {
            _ if self.quiet => "{{.Name}}",
            "" => "table",
            format => format,
        };
        let table = "{{.Name}}\t{{.Description}}\t{{.DockerEndpoint}}\t{{.Error}}";
        output::print(&render(format, table, HEADERS, rows.collect())?)?;
        Ok(())
    }
}

/// Create a context
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// A remark
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    description: String,
    /// The daemon: host=ADDRESS, ca=FILE, cert=FILE, key=FILE, skip-tls-verify=BOOL, separated by commas
    #[arg(long, value_name = "map", default_value = "", hide_default_value = true)]
    docker: String,
    /// Copy another context
    #[arg(long, value_name = "string")]
    from: Option<String>,
    /// Its name
    context: String,
}

impl Run for CreateArgs {
    fn run(self, _context: &Context) -> Result {
        let from = match &self.from {
            Some(name) => find(name)?,
            None => default_context(),
        };
        let mut files: Vec<(&str, Vec<u8>)> = Vec::new();
        let read = |path: &std::path::Path| {
            std::fs::read(path).map_err(|error| {
                Failure::new(format!(
                    "cannot read {}: {}",
                    path.display(),
                    crate::failure::words(&error)
                ))
            })
        };
        let mut stored = StoredContext {
            name: self.context.clone(),
            description: self.description,
            host: from.host.clone(),
            skip_verify: from.skip_verify,
            tls: None,
            meta: PathBuf::new(),
        };
        let material = |from: &StoredContext| -> Result<Vec<(&'static str, Vec<u8>)>> {
            let mut files = Vec::new();
            for name in contexts::TLS_FILES {
                if let Some(path) = from
                    .tls
                    .as_ref()
                    .map(|tls| tls.join(name))
                    .filter(|path| path.exists())
                {
                    files.push((name, read(&path)?));
                }
            }
            Ok(files)
        };
        files.extend(material(&from)?);
        // An endpoint that is copied comes first, whatever its place: the other keys change it.
        let mut pairs: Vec<&str> = self.docker.split(',').filter(|pair| !pair.is_empty()).collect();
        pairs.sort_by_key(|pair| !pair.starts_with("from="));
        for pair in pairs {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let mut file = |name: &'static str| -> Result {
                files.retain(|(other, _)| *other != name);
                files.push((name, read(std::path::Path::new(value))?));
                Ok(())
            };
            match key {
                "host" => value.clone_into(&mut stored.host),
                "ca" => file("ca.pem")?,
                "cert" => file("cert.pem")?,
                "key" => file("key.pem")?,
                "skip-tls-verify" => {
                    stored.skip_verify = crate::options::parse_bool(value).ok_or_else(|| {
                        Failure::usage(format!("skip-tls-verify: \"{value}\" is neither true nor false"))
                    })?;
                }
                "from" => {
                    let from = find(value)?;
                    files = material(&from)?;
                    (stored.host, stored.skip_verify) = (from.host, from.skip_verify);
                }
                other => {
                    return Err(Failure::usage(format!(
                        "unrecognized config key: {other}: host, ca, cert, key and skip-tls-verify are known"
                    )));
                }
            }
        }
        let has = |name: &str| files.iter().any(|(other, _)| *other == name);
        if has("cert.pem") != has("key.pem") {
            return Err(Failure::usage(
                "a client's certificate and its key belong together: give both cert= and key=",
            ));
        }
        Contexts::of_user().create(&stored, &files)?;
        output::print_line(&self.context)?;
        Ok(())
    }
}

/// Set the context that commands use
#[derive(Debug, clap::Args)]
pub struct UseArgs {
    /// Its name; default: none
    context: String,
}

impl Run for UseArgs {
    fn run(self, _context: &Context) -> Result {
        find(&self.context)?;
        let name = Some(self.context.as_str()).filter(|name| *name != DEFAULT);
        ConfigFile::load()?.set_current_context(name)?;
        output::print_line(&self.context)?;
        Ok(())
    }
}

/// Print the name of the context in use
#[derive(Debug, clap::Args)]
pub struct ShowArgs {}

impl Run for ShowArgs {
    fn run(self, context: &Context) -> Result {
        output::print_line(&contexts::current(context.name())?)?;
        Ok(())
    }
}

/// Show everything about contexts
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    #[command(flatten)]
    format: FormatOption,
    /// Contexts; without one, that in use
    context: Vec<String>,
}

impl Run for InspectArgs {
    fn run(mut self, context: &Context) -> Result {
        if self.context.is_empty() {
            self.context.push(contexts::current(context.name())?);
        }
        let found = self
            .context
            .iter()
            .map(|name| Ok(find(name)?.to_json()))
            .collect::<Result<Vec<Value>>>()?;
        match self.format.template()? {
            Some(template) => {
                for value in found {
                    output::print_line(&template.apply(&Data::new(&value)).map_err(Failure::new)?)?;
                }
            }
            None => {
                let text = serde_json::to_string_pretty(&found).map_err(Failure::new)?;
                output::print_line(&text)?;
            }
        }
        Ok(())
    }
}

/// Remove contexts
#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    /// Also that in use
    #[arg(short, long)]
    force: bool,
    /// Contexts
    #[arg(required = true)]
    context: Vec<String>,
}

impl Run for RemoveArgs {
    fn run(self, _context: &Context) -> Result {
        let mut config = ConfigFile::load()?;
        for name in &self.context {
            if name == DEFAULT {
                return Err(Failure::new("context \"default\" cannot be removed"));
            }
            if config.current_context().as_deref() == Some(name) {
                if !self.force {
                    return Err(Failure::new(format!(
                        "context \"{name}\" is in use, set -f flag to force remove"
                    )));
                }
                config.set_current_context(None)?;
            }
            Contexts::of_user().remove(name)?;
            output::print_line(name)?;
        }
        Ok(())
    }
}
