//! The commands, one file each.

pub mod attach;
pub mod bin;
pub mod build;
mod build_context;
mod build_options;
pub mod builder;
pub mod commit;
pub mod completion;
pub mod compose;
pub mod context;
pub mod cp;
pub mod create;
pub mod daemon;
pub mod df;
pub mod diff;
pub mod events;
pub mod exec;
pub mod explain;
pub mod export;
pub mod history;
pub mod image_diff;
pub mod image_explain;
pub mod images;
pub mod images_tree;
pub mod import;
pub mod info;
pub mod inspect;
pub mod kernel;
pub mod kill;
pub mod load;
pub mod login;
pub mod logs;
pub mod man;
pub mod manifest;
pub mod network;
pub mod operation_log;
pub mod pause;
pub mod port;
pub mod prune;
pub mod ps;
pub mod pull;
pub mod push;
pub mod registry;
pub mod rename;
pub mod restart;
pub mod rm;
pub mod rmi;
pub mod run;
pub mod runtime;
pub mod save;
pub mod search;
pub mod shim;
pub mod start;
pub mod stats;
pub mod stop;
pub mod tag;
pub mod top;
pub mod unpause;
pub mod update;
pub mod version;
pub mod volume;
pub mod volume_archive;
pub mod wait;

use crate::failure::{Failure, Result};
use crate::output;
use crate::output::template::{Data, Format};

/// `--format` of commands that show one thing: without it in their own words.
#[derive(Debug, clap::Args)]
struct FormatOption {
    /// json, or a Go template
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    format: String,
}

impl FormatOption {
    /// The template asked for, if any.
    fn template(&self) -> Result<Option<Format>> {
        template(&self.format)
    }
}

/// The template that a value of `--format` means; `json` is one, and empty is none.
fn template(format: &str) -> Result<Option<Format>> {
    let text = match format {
        "" => return Ok(None),
        "json" => "{{json .}}",
        format => format,
    };
    let template = Format::parse(text).map_err(|error| Failure::new(error).with_code(64))?;
    Ok(Some(template))
}

/// Prints each of what comes at once, as a line of its own, or as the template says.
fn print_each<T: serde::Serialize>(
    items: impl Iterator<Item = vessel_client::Result<T>>,
    template: Option<&Format>,
    line: impl Fn(&T) -> String,
) -> Result {
    for item in items {
        let item = item?;
        let text = match template {
            Some(template) => {
                let value = serde_json::to_value(&item).map_err(Failure::new)?;
                template.apply(&Data::new(&value)).map_err(Failure::new)?
            }
            None => line(&item),
        };
        output::print_line(&text)?;
    }
    Ok(())
}

/// ` (name=value, name=value)`, and nothing for none.
fn in_brackets<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let pairs: Vec<_> = pairs
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    if pairs.is_empty() {
        return String::new();
    }
    format!(" ({})", pairs.join(", "))
}

/// Does something for each name and prints the name; goes on after an error and fails at the end.
fn for_each(names: &[String], act: impl Fn(&str) -> vessel_client::Result<()>) -> Result {
    tell(names.iter().map(|name| (name, act(name))))
}

/// Prints the names of what went well and the errors of what did not, and fails when there was one.
fn tell<'a>(results: impl Iterator<Item = (&'a String, vessel_client::Result<()>)>) -> Result {
    let mut failed = false;
    for (name, result) in results {
        match result {
            Ok(()) => output::print_line(name)?,
            Err(error @ vessel_client::Error::Connect { .. }) => return Err(error.into()),
            Err(error) => {
                output::warn(&format!("vessel: {error}"));
                failed = true;
            }
        }
    }
    if failed { Err(Failure::silent(1)) } else { Ok(()) }
}

/// Does something for many names at once, since each may take seconds; results in the order of the names.
fn at_once<T: Send>(
    names: &[String],
    act: impl Fn(&str) -> vessel_client::Result<T> + Sync,
) -> Vec<vessel_client::Result<T>> {
    const AT_ONCE: usize = 50;
    if let [name] = names {
        return vec![act(name)];
    }
    let mut results = Vec::with_capacity(names.len());
    for names in names.chunks(AT_ONCE) {
        let act = &act;
        std::thread::scope(|scope| {
            let threads: Vec<_> = names.iter().map(|name| scope.spawn(move || act(name))).collect();
            results.extend(threads.into_iter().map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }));
        });
    }
    results
}

/// Like [`for_each`], with many at once.
fn for_each_parallel(names: &[String], act: impl Fn(&str) -> vessel_client::Result<()> + Sync) -> Result {
    tell(names.iter().zip(at_once(names, act)))
}

/// Reads `--filter name=value` options.
fn filters(options: &[String]) -> Result<vessel_client::Filters> {
    let mut filters = vessel_client::Filters::new();
    for option in options {
        let (name, value) = option
            .split_once('=')
            .filter(|(name, _)| !name.trim().is_empty())
            .ok_or_else(|| {
                Failure::usage(format!(
                    "invalid filter '{option}': it has to look like NAME=VALUE"
                ))
            })?;
        filters.add(name.trim().to_lowercase(), value.trim());
    }
    Ok(filters)
}

/// Asks a question on the terminal; only `y` agrees.
fn confirm(question: &str) -> Result<bool> {
    output::print(&format!("{question} [y/N] "))?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}
