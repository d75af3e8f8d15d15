//! `vessel pull`

use vessel_client::{Client, ImageCreateOptions};

use crate::app::Run;
use crate::context::Context;
use crate::credentials;
use crate::failure::{Failure, Result};
use crate::output::{self, progress};

/// Download an image from a registry
#[derive(Debug, clap::Args)]
pub struct Args {
    /// All tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Skip the verification of the image
    #[arg(long, hide = true)]
    disable_content_trust: bool,
    /// Platform: OS[/ARCH[/VARIANT]]
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    platform: String,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
    /// NAME[:TAG|@DIGEST]
    #[arg(value_name = "NAME")]
    name: String,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let (repository, tag) = split_reference(&self.name);
        if self.all_tags && tag.is_some() {
            return Err(Failure::new("tag can't be used with --all-tags/-a"));
        }
        let tag = if self.all_tags {
            ""
        } else {
            tag.unwrap_or("latest")
        };
        if !self.all_tags && !self.quiet && split_reference(&self.name).1.is_none() {
            output::print_line("Using default tag: latest")?;
        }
        let options = ImageCreateOptions {
            from_image: repository.to_string(),
            tag: tag.to_string(),
            platform: self.platform.clone(),
            credentials: credentials::header_for(repository)?,
        };
        let messages = context.client()?.image_pull(&options)?;
        if self.quiet {
            progress::quietly(messages)?;
        } else {
            progress::show(messages)?;
        }
        if !self.all_tags {
            output::print_line(&full_name(&self.name))?;
        }
        Ok(())
    }
}

/// Pulls the image of a container that is to be made; progress goes to standard error.
pub fn pull_for_run(client: &Client, image: &str, platform: &str, quiet: bool) -> Result {
    let (repository, tag) = split_reference(image);
    let options = ImageCreateOptions {
        from_image: repository.to_string(),
        tag: tag.unwrap_or("latest").to_string(),
        platform: platform.to_string(),
        credentials: credentials::header_for(repository).map_err(|failure| failure.with_code(125))?,
    };
    let fail = |failure: Failure| failure.with_code(125);
    let messages = client.image_pull(&options).map_err(|error| fail(error.into()))?;
    if !quiet {
        return progress::show_on_stderr(messages).map_err(fail);
    }
    progress::quietly(messages).map_err(fail)
}

/// Splits `name:tag` or `name@digest`; a colon before a slash belongs to a port.
pub fn split_reference(reference: &str) -> (&str, Option<&str>) {
    if let Some((name, digest)) = reference.split_once('@') {
        return (name, Some(digest));
    }
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (reference, None),
    }
}

/// The reference with its tag.
pub fn with_default_tag(reference: &str) -> String {
    match split_reference(reference) {
        (_, Some(_)) => reference.to_string(),
        (name, None) => format!("{name}:latest"),
    }
}

/// The reference with registry and tag: `docker.io/library/busybox:latest`.
pub fn full_name(reference: &str) -> String {
    let tagged = with_default_tag(reference);
    match tagged.split_once('/') {
        None => format!("docker.io/library/{tagged}"),
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => tagged,
        Some(_) => format!("docker.io/{tagged}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        assert_eq!(split_reference("a:5000/b"), ("a:5000/b", None));
        assert_eq!(split_reference("a:5000/b:c"), ("a:5000/b", Some("c")));
        assert_eq!(split_reference("b@sha256:0"), ("b", Some("sha256:0")));
        assert_eq!(full_name("b"), "docker.io/library/b:latest");
        assert_eq!(full_name("x/b:1"), "docker.io/x/b:1");
        assert_eq!(full_name("r.io/b"), "r.io/b:latest");
    }
}
