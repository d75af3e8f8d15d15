//! `vessel build`

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vessel_build::dockerfile::{Diagnostic, Source, Span};
use vessel_client::build::{Build, BuildAnswer, BuildFailure, BuildOutput, Excerpt, Sink};
use vessel_image::registry::registry_key;

use super::build_context::{Context as BuildContext, Dockerfile};
use super::build_options as options;
use crate::app::Run;
use crate::context::Context;
use crate::credentials::ConfigFile;
use crate::failure::{Failure, Result, words};
use crate::output;
use crate::output::build_progress::Display;
use crate::output::units::parse_size;

/// Build an image from a Dockerfile
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Add a line to /etc/hosts of RUN steps: NAME:ADDRESS
    #[arg(long, value_name = "strings")]
    add_host: Vec<String>,
    /// Allow what RUN steps may not by default: network.host, security.insecure
    #[arg(long, value_name = "stringArray")]
    allow: Vec<String>,
    /// Add an annotation to the image
    #[arg(long, value_name = "stringArray")]
    annotation: Vec<String>,
    /// Set a build argument: NAME=VALUE, or NAME for the environment's value
    #[arg(long, value_name = "stringArray")]
    build_arg: Vec<String>,
    /// Add a named context: NAME=DIRECTORY, NAME=ADDRESS or NAME=docker-image://IMAGE
    #[arg(long, value_name = "stringArray")]
    build_context: Vec<String>,
    /// Where results of earlier builds may be found: IMAGE or type=registry|local,...
    #[arg(long, value_name = "stringArray")]
    cache_from: Vec<String>,
    /// Where to leave results for later builds: type=inline|registry|local,...
    #[arg(long, value_name = "stringArray")]
    cache_to: Vec<String>,
    /// What to do: build, check, outline or targets
    #[arg(long, value_name = "string", default_value = "build")]
    call: String,
    /// Parent of the cgroups of RUN steps
    #[arg(long, value_name = "string")]
    cgroup_parent: Option<String>,
    /// Check the Dockerfile and build nothing (same as --call=check)
    #[arg(long)]
    check: bool,
    /// Name of the Dockerfile, - for standard input
    #[arg(short, long, value_name = "string")]
    file: Option<String>,
    /// Write the image's ID to a file
    #[arg(long, value_name = "string")]
    iidfile: Option<PathBuf>,
    /// Set a label of the image: NAME=VALUE
    #[arg(long, value_name = "stringArray")]
    label: Vec<String>,
    /// Put the image into the store, which is the default
    #[arg(long)]
    load: bool,
    /// Write what is known of the result to a file
    #[arg(long, value_name = "string")]
    metadata_file: Option<PathBuf>,
    /// Network of RUN steps: default, none or host
    #[arg(long, value_name = "string")]
    network: Option<String>,
    /// Take nothing from the cache
    #[arg(long)]
    no_cache: bool,
    /// Take nothing from the cache for these stages
    #[arg(long, value_name = "stringArray", value_delimiter = ',')]
    no_cache_filter: Vec<String>,
    /// What becomes of the result: DIRECTORY, -, or type=image|local|tar|oci|docker|registry|cacheonly,...
    #[arg(short, long, value_name = "stringArray")]
    output: Vec<String>,
    /// Platforms to build for: OS[/ARCH[/VARIANT]]
    #[arg(long, value_name = "stringArray", value_delimiter = ',')]
    platform: Vec<String>,
    /// How progress is shown: auto, plain, tty, quiet or rawjson
    #[arg(
        long,
        value_name = "string",
        env = "BUILDKIT_PROGRESS",
        default_value = "auto"
    )]
    progress: String,
    /// Attestations of provenance: Vessel makes none
    #[arg(long, value_name = "string", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    provenance: Option<String>,
    /// Look images up in their registry even if they are here
    #[arg(long)]
    pull: bool,
    /// Push the image to its registry
    #[arg(long)]
    push: bool,
    /// Print nothing but the image's ID
    #[arg(short, long)]
    quiet: bool,
    /// Attestations of what is in the image: Vessel makes none
    #[arg(long, value_name = "string", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sbom: Option<String>,
    /// Offer a secret: id=ID[,src=FILE|,env=VARIABLE]
    #[arg(long, value_name = "stringArray")]
    secret: Vec<String>,
    /// Size of /dev/shm in RUN steps
    #[arg(long, value_name = "bytes", value_parser = parse_size)]
    shm_size: Option<i64>,
    /// Make one layer of all layers over the base
    #[arg(long)]
    squash: bool,
    /// Offer an SSH agent: default, or ID=SOCKET
    #[arg(long, value_name = "stringArray", num_args = 0..=1, require_equals = false, default_missing_value = "default")]
    ssh: Vec<String>,
    /// Name of the image: NAME[:TAG]
    #[arg(short, long, value_name = "stringArray")]
    tag: Vec<String>,
    /// Stage to build
    #[arg(long, value_name = "string")]
    target: Option<String>,
    /// Limits of RUN steps: NAME=SOFT[:HARD]
    #[arg(long, value_name = "ulimit")]
    ulimit: Vec<String>,
    #[command(flatten)]
    classic: Classic,
    /// Directory, address of a Git repository or an archive, or - for an archive or a Dockerfile on standard input
    #[arg(value_name = "PATH|URL|-")]
    context: String,
}

/// Options of the classic builder.
#[derive(Debug, clap::Args)]
struct Classic {
    /// Memory of RUN steps
    #[arg(short, long, value_name = "bytes", value_parser = parse_size, hide = true)]
    memory: Option<i64>,
    /// Memory and swap of RUN steps; -1: without limit
    #[arg(long, value_name = "bytes", value_parser = crate::options::resources::parse_swap, hide = true)]
    memory_swap: Option<i64>,
    /// Weight of the processor of RUN steps
    #[arg(short, long, value_name = "int", hide = true)]
    cpu_shares: Option<u64>,
    /// Period of the processor's quota
    #[arg(long, value_name = "int", hide = true)]
    cpu_period: Option<u64>,
    /// Quota of the processor
    #[arg(long, value_name = "int", hide = true)]
    cpu_quota: Option<i64>,
    /// Processors of RUN steps
    #[arg(long, value_name = "string", hide = true)]
    cpuset_cpus: Option<String>,
    /// Memory nodes of RUN steps
    #[arg(long, value_name = "string", hide = true)]
    cpuset_mems: Option<String>,
    /// Nothing is left over in any case
    #[arg(long, hide = true)]
    rm: bool,
    /// Nothing is left over in any case
    #[arg(long, hide = true)]
    force_rm: bool,
    /// The context is not sent where it is not needed
    #[arg(long, hide = true)]
    compress: bool,
}

/// What `--call` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Build,
    Ask { request: &'static str, json: bool },
}

impl Args {
    fn call(&self) -> Result<Call> {
        let (name, format) = match self.call.split_once(',') {
            Some((name, format)) => (name, format),
            None => (self.call.as_str(), ""),
        };
        let json = match format {
            "" | "format=text" => false,
            "format=json" => true,
            other => {
                return Err(Failure::usage(format!(
                    "invalid call option {other:?}: format=json is known"
                )));
            }
        };
        let name = if self.check { "check" } else { name };
        let request = match name {
            "build" => return Ok(Call::Build),
            "check" | "lint" => "frontend.lint",
            "outline" => "frontend.outline",
            "targets" => "frontend.targets",
            other => {
                return Err(Failure::usage(format!(
                    "invalid call {other:?}: build, check, outline or targets is expected"
                )));
            }
        };
        Ok(Call::Ask { request, json })
    }

    fn attributes(&self) -> Result<BTreeMap<String, String>> {
        let mut attributes = BTreeMap::new();
        let mut set = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                attributes.insert(name.to_owned(), value);
            }
        };
        set("target", self.target.clone());
        set(
            "platform",
            (!self.platform.is_empty()).then(|| self.platform.join(",")),
        );
        set("image-resolve-mode", self.pull.then(|| "pull".to_owned()));
        set("cgroup-parent", self.cgroup_parent.clone());
        set("shm-size", self.shm_size.map(|bytes| bytes.to_string()));
        set("ulimit", (!self.ulimit.is_empty()).then(|| self.ulimit.join(",")));
        set(
            "force-network-mode",
            self.network.clone().filter(|network| network != "default"),
        );
        set("add-hosts", options::hosts(&self.add_host)?);
        if self.no_cache {
            set("no-cache", Some(String::new()));
        } else if !self.no_cache_filter.is_empty() {
            set("no-cache", Some(self.no_cache_filter.join(",")));
        }
        set("vessel.squash", self.squash.then(|| "true".to_owned()));
        let classic = &self.classic;
        set("memory", classic.memory.map(|value| value.to_string()));
        set("memswap", classic.memory_swap.map(|value| value.to_string()));
        set("cpushares", classic.cpu_shares.map(|value| value.to_string()));
        set("cpuperiod", classic.cpu_period.map(|value| value.to_string()));
        set("cpuquota", classic.cpu_quota.map(|value| value.to_string()));
        set("cpusetcpus", classic.cpuset_cpus.clone());
        set("cpusetmems", classic.cpuset_mems.clone());
        for (name, value) in options::arguments(&self.build_arg) {
            attributes.insert(format!("build-arg:{name}"), value);
        }
        for label in &self.label {
            let (name, value) = label.split_once('=').unwrap_or((label, ""));
            attributes.insert(format!("label:{name}"), value.to_owned());
        }
        Ok(attributes)
    }

    fn entitlements(&self) -> Vec<String> {
        let mut allowed = self.allow.clone();
        // Who asks for the host's network on the command line has allowed it.
        if self.network.as_deref() == Some("host") && !allowed.iter().any(|name| name == "network.host") {
            allowed.push("network.host".to_owned());
        }
        allowed
    }

    fn outputs(&self) -> Result<Vec<BuildOutput>> {
        let mut outputs = Vec::new();
        for text in &self.output {
            outputs.push(options::output(text)?);
        }
        if outputs.is_empty() || self.push || self.load {
            let known = outputs
                .iter_mut()
                .find(|output| output.kind == "image" || output.kind == "moby");
            let output = match known {
                Some(output) => output,
                None => {
                    outputs.push(BuildOutput {
                        kind: "moby".to_owned(),
                        attributes: BTreeMap::new(),
                        sink: Sink::None,
                    });
                    match outputs.last_mut() {
                        Some(output) => output,
                        None => return Ok(outputs),
                    }
                }
            };
            if self.push {
                output.kind = "image".to_owned();
                output.attributes.insert("push".to_owned(), "true".to_owned());
            }
        }
        let annotations = options::annotations(&self.annotation)?;
        for output in &mut outputs {
            if !matches!(output.kind.as_str(), "image" | "moby" | "docker" | "oci") {
                continue;
            }
            if !self.tag.is_empty() {
                let names = output.attributes.entry("name".to_owned()).or_default();
                if names.is_empty() {
                    *names = self.tag.join(",");
                }
            }
            output.attributes.extend(annotations.clone());
        }
        Ok(outputs)
    }

    /// Refuses or mentions what is asked for and not there.
    fn attestations(&self) {
        for (name, value) in [("sbom", &self.sbom), ("provenance", &self.provenance)] {
            if value.as_deref().is_some_and(|value| value != "false") {
                output::warn(&format!("vessel: --{name} is ignored: no attestations are made"));
            }
        }
    }
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let call = self.call()?;
        let (quiet, progress) = (self.quiet, if self.quiet { "quiet" } else { &self.progress });
        let mut display = Display::new(if call == Call::Build { progress } else { "quiet" })?;
        self.attestations();
        let mut build = Build {
            attributes: self.attributes()?,
            entitlements: self.entitlements(),
            secrets: options::secrets(&self.secret)?,
            agents: options::agents(&self.ssh)?,
            credentials: Some(Arc::new(credentials)),
            ..Build::default()
        };
        let mut layout = None;
        if let Call::Ask { request, .. } = call {
            build
                .attributes
                .insert("requestid".to_owned(), request.to_owned());
        } else {
            build.outputs = self.outputs()?;
            layout = options::cache_to(&self.cache_to, &mut build)?;
        }
        options::cache_from(&self.cache_from, &mut build)?;
        options::contexts(&self.build_context, &mut build)?;
        let dockerfile = match self.file.as_deref() {
            None => Dockerfile::Default,
            Some("-") => Dockerfile::Stdin,
            Some(path) => Dockerfile::Path(Path::new(path)),
        };
        // What was made for the build goes when it is over.
        let _made = BuildContext::new(&self.context, dockerfile)?.offer(&mut build)?;
        let answer = context.client()?.build(build, &mut |told| display.show(told));
        display.finish();
        let answer = answer.map_err(|error| match error {
            vessel_client::Error::Build(failure) => failed(&failure),
            other => other.into(),
        })?;
        if let (Some(manifest), Some((path, tag))) = (answer.get("cache.manifest"), &layout) {
            vessel_client::build::enter(path, tag, manifest).map_err(Failure::new)?;
        }
        match call {
            Call::Build => self.done(quiet, &answer),
            Call::Ask { json, .. } => answered(json, &answer),
        }
    }
}

impl Args {
    fn done(&self, quiet: bool, answer: &BuildAnswer) -> Result {
        let id = answer
            .get("containerimage.config.digest")
            .or_else(|| answer.get("containerimage.digest"));
        let write = |path: &Path, text: &str| {
            std::fs::write(path, text)
                .map_err(|error| Failure::new(format!("cannot write {}: {}", path.display(), words(&error))))
        };
        if let (Some(path), Some(id)) = (&self.iidfile, id) {
            write(path, id)?;
        }
        if let Some(path) = &self.metadata_file {
            let sorted: BTreeMap<&String, serde_json::Value> = answer
                .iter()
                .map(|(name, value)| (name, metadata(value)))
                .collect();
            let text = serde_json::to_string_pretty(&sorted).map_err(Failure::new)?;
            write(path, &text)?;
        }
        match id {
            Some(id) if quiet => Ok(output::print_line(id)?),
            _ => Ok(()),
        }
    }
}

/// A value of the answer: documents come in base64.
fn metadata(value: &str) -> serde_json::Value {
    use base64::Engine as _;
    let decoded = base64::engine::general_purpose::STANDARD.decode(value).ok();
    let document = decoded.and_then(|text| serde_json::from_slice(&text).ok());
    match document {
        Some(document @ serde_json::Value::Object(_)) => document,
        _ => value.into(),
    }
}

/// What is stored for a registry, as a session gives it: a token has no user name.
pub fn credentials(host: &str) -> Option<(String, String)> {
    let known = ConfigFile::load().ok()?.credentials(registry_key(host)).ok()??;
    if known.identitytoken.is_empty() {
        Some((known.username, known.password))
    } else {
        Some((String::new(), known.identitytoken))
    }
}

/// Prints the answer to a question about a Dockerfile.
fn answered(json: bool, answer: &BuildAnswer) -> Result {
    let text = answer.get(if json { "result.json" } else { "result.txt" });
    let text = text.map(|text| text.trim_end()).unwrap_or_default();
    if !text.is_empty() {
        output::print_line(text)?;
    }
    if answer
        .get("result.statuscode")
        .is_some_and(|status| status != "0")
    {
        return Err(Failure::silent(1));
    }
    Ok(())
}

/// Shows where in the Dockerfile a build failed, and says why.
pub fn failed(failure: &BuildFailure) -> Failure {
    if let Some(excerpt) = &failure.excerpt {
        let text = excerpt_text(excerpt, &failure.message, crate::terminal::stderr_is_terminal());
        // There is nobody to tell when standard error is gone.
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
    let code = if failure.cancelled { 130 } else { 1 };
    Failure::new(format!("failed to solve: {}", failure.message)).with_code(code)
}

fn excerpt_text(excerpt: &Excerpt, message: &str, color: bool) -> String {
    let source = Arc::new(Source::new(&excerpt.file, &excerpt.text));
    let (first, last) = excerpt.lines;
    let bytes = source.line_range(first).map_or(0..0, |range| range);
    let (start, end) = (excerpt.columns.0 as usize, excerpt.columns.1 as usize);
    let word = (end > start).then(|| bytes.start + start..bytes.start + end);
    let diagnostic = Diagnostic {
        span: Some(Span { first, last, bytes }),
        word,
        source: Some(source),
        ..Diagnostic::error(message)
    };
    diagnostic.excerpt(color)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caret_stands_under_the_word() {
        let excerpt = Excerpt {
            file: "Dockerfile".into(),
            text: b"FROM a\nRUM true\n".to_vec(),
            lines: (2, 2),
            columns: (0, 3),
        };
        let text = excerpt_text(&excerpt, "unknown instruction", false);
        assert!(text.contains("   2 | >>> RUM true\n     |     ^^^\n"), "{text}");
    }
}
