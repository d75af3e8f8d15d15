//! `vessel manifest`: lists of manifests, made here and pushed. Like Docker's, it talks to registries itself.

mod draft;
mod push;

use vessel_image::registry::{RawManifest, RegistryClient, Repository, Settings};
use vessel_image::{Document, ImageConfig, Platform, Reference};

use crate::app::Run;
use crate::context::Context;
use crate::credentials::{ConfigFile, registry_of};
use crate::failure::{Failure, Result};
use crate::options::registries::from_environment;
use crate::output;
use draft::{Draft, Entry};

pub use push::PushArgs;

/// Show a manifest or a list of manifests
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// Allow a registry without TLS or with any certificate
    #[arg(long)]
    insecure: bool,
    /// Show descriptor and platform as well
    #[arg(short, long)]
    verbose: bool,
    /// [LIST] MANIFEST
    #[arg(value_name = "MANIFEST", required = true, num_args = 1..=2)]
    names: Vec<String>,
}

/// Make a list of manifests
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Add to a list that is there
    #[arg(short, long)]
    amend: bool,
    /// Allow a registry without TLS or with any certificate
    #[arg(long)]
    insecure: bool,
    /// The list's name
    #[arg(value_name = "LIST")]
    list: String,
    /// Names of manifests at registries
    #[arg(value_name = "MANIFEST", required = true)]
    manifests: Vec<String>,
}

/// Say what a manifest in a list is for
#[derive(Debug, clap::Args)]
pub struct AnnotateArgs {
    /// Architecture
    #[arg(long, value_name = "string")]
    arch: Option<String>,
    /// Operating system
    #[arg(long, value_name = "string")]
    os: Option<String>,
    /// Version of the operating system
    #[arg(long, value_name = "string")]
    os_version: Option<String>,
    /// Variant of the architecture
    #[arg(long, value_name = "string")]
    variant: Option<String>,
    /// The list's name
    #[arg(value_name = "LIST")]
    list: String,
    /// The manifest's name, as it was given to create
    #[arg(value_name = "MANIFEST")]
    manifest: String,
}

/// Forget lists that were made here
#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    /// Names of lists
    #[arg(value_name = "LIST", required = true)]
    lists: Vec<String>,
}

/// A client of registries for this command alone.
struct Registries {
    client: RegistryClient,
    runtime: tokio::runtime::Runtime,
}

impl Registries {
    fn new(insecure: bool, names: &[&str]) -> Result<Self> {
        let mut settings = from_environment(None, None, None);
        if insecure {
            for name in names {
                settings.insecure.push(parse(name)?.domain().to_owned());
            }
        }
        Self::with(settings)
    }

    fn with(settings: Settings) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(format!("cannot start: {}", crate::failure::words(&error))))?;
        let client = RegistryClient::new(settings).map_err(Failure::new)?;
        Ok(Self { client, runtime })
    }

    fn run<T>(&self, work: impl Future<Output = vessel_image::Result<T>>) -> Result<T> {
        self.runtime.block_on(work).map_err(Failure::new)
    }

    fn repository(&self, reference: &Reference) -> Result<Repository> {
        let key = registry_of(&reference.repository());
        let credentials = ConfigFile::load()?.credentials(&key)?.unwrap_or_default();
        self.run(self.client.repository(reference, &credentials))
    }

    fn manifest(&self, reference: &Reference) -> Result<(Repository, RawManifest)> {
        let repository = self.repository(reference)?;
        let manifest = self.run(repository.manifest(&target(reference)))?;
        Ok((repository, manifest))
    }

    /// What a manifest is for, as its image's configuration says.
    fn platform(&self, repository: &Repository, manifest: &RawManifest) -> Result<Option<Platform>> {
        let Document::Manifest(manifest) = manifest.document().map_err(Failure::new)? else {
            return Ok(None);
        };
        let raw = self.run(repository.document(&manifest.config))?;
        let config = ImageConfig::parse(&raw)
            .ok()
            .filter(|config| !config.os.is_empty());
        Ok(config.map(|config| Platform::of(&config)))
    }
}

fn parse(name: &str) -> Result<Reference> {
    Ok(Reference::parse(name).map_err(Failure::new)?.with_default_tag())
}

fn target(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or_default().to_owned(),
    }
}

impl Run for InspectArgs {
    fn run(self, _context: &Context) -> Result {
        let (list, name) = match self.names.as_slice() {
            [list, name] => (Some(list), name),
            [name] => (None, name),
            _ => return Err(Failure::usage("a manifest's name is required")),
        };
        let reference = parse(name)?;
        if let Some(list) = list {
            let draft = Draft::load(&parse(list)?)?;
            let entry = draft.entry(&reference)?;
            return show(&serde_json::json!({
                "Ref": entry.reference.to_string(),
                "Descriptor": entry.descriptor,
            }));
        }
        if let Some(draft) = Draft::load_if_there(&reference)? {
            return show(&draft.index());
        }
        let registries = Registries::new(self.insecure, &[name])?;
        let (repository, manifest) = registries.manifest(&reference)?;
        let document: serde_json::Value = serde_json::from_slice(&manifest.raw)
            .map_err(|error| Failure::new(format!("the manifest is not valid: {error}")))?;
        if !self.verbose {
            return show(&document);
        }
        let mut descriptor = manifest.descriptor();
        descriptor.platform = registries.platform(&repository, &manifest)?;
        show(&serde_json::json!({
            "Ref": reference.to_string(),
            "Descriptor": descriptor,
            "Manifest": document,
        }))
    }
}

fn show(value: &impl serde::Serialize) -> Result {
    let text = serde_json::to_string_pretty(value).map_err(Failure::new)?;
    output::print_line(&text)?;
    Ok(())
}

impl Run for CreateArgs {
    fn run(self, _context: &Context) -> Result {
        let list = parse(&self.list)?;
        let mut draft = match Draft::load_if_there(&list)? {
            Some(_) if !self.amend => {
                return Err(Failure::new(format!(
                    "refusing to amend an existing manifest list with no --amend flag: {}",
                    list.familiar()
                )));
            }
            Some(draft) => draft,
            None => Draft::new(list.clone()),
        };
        let names: Vec<&str> = self.manifests.iter().map(String::as_str).collect();
        let registries = Registries::new(self.insecure, &names)?;
        for name in names {
            let reference = parse(name)?;
            let (repository, manifest) = registries.manifest(&reference)?;
            let mut descriptor = manifest.descriptor();
            descriptor.platform = registries.platform(&repository, &manifest)?;
            if descriptor.platform.is_none() {
                return Err(Failure::new(format!(
                    "{} is a list of manifests or not an image, and cannot be put into a list",
                    reference.familiar()
                )));
            }
            draft.set(Entry {
                reference,
                descriptor,
            });
        }
        draft.save()?;
        output::print_line(&format!("Created manifest list {list}"))?;
        Ok(())
    }
}

impl Run for AnnotateArgs {
    fn run(self, _context: &Context) -> Result {
        let mut draft = Draft::load(&parse(&self.list)?)?;
        let reference = parse(&self.manifest)?;
        let mut entry = draft.entry(&reference)?.clone();
        let platform = entry.descriptor.platform.get_or_insert_with(Platform::host);
        if let Some(architecture) = self.arch {
            platform.architecture = architecture;
        }
        if let Some(os) = self.os {
            platform.os = os;
        }
        if self.variant.is_some() {
            platform.variant = self.variant;
        }
        if self.os_version.is_some() {
            platform.os_version = self.os_version;
        }
        draft.set(entry);
        draft.save()
    }
}

impl Run for RemoveArgs {
    fn run(self, _context: &Context) -> Result {
        let mut failed = false;
        for list in &self.lists {
            if let Err(failure) = parse(list).and_then(|reference| Draft::load(&reference)?.remove()) {
                output::warn(&format!("vessel: {}", failure.message.unwrap_or_default()));
                failed = true;
            }
        }
        if failed { Err(Failure::silent(1)) } else { Ok(()) }
    }
}
