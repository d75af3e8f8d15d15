//! Archives: load, save, import.

use std::io::Read;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use vessel_api::{JsonMessage, ProgressDetail};
use vessel_image::{
    Format, ImageConfig, LayerInfo, LoadOptions, LoadedImage, Platform, Reference, SaveImage,
};

use super::remove::short;
use super::{CHANGES, changes, must_be_for};
use crate::files::TarJob;
use crate::image_index::ImageRecord;
use crate::{Engine, Error, Result, time, transfer};

/// Where an operation tells how it gets on. Nobody has to listen.
#[derive(Debug, Clone)]
pub struct Progress {
    messages: Option<UnboundedSender<JsonMessage>>,
}

impl Progress {
    /// Tells a listener.
    pub fn new(messages: UnboundedSender<JsonMessage>) -> Self {
        Self {
            messages: Some(messages),
        }
    }

    /// Tells nobody.
    pub fn silent() -> Self {
        Self { messages: None }
    }

    pub(super) fn tell(&self, message: JsonMessage) {
        if let Some(messages) = &self.messages {
            // The operation goes on when nobody listens any more.
            let _ = messages.send(message);
        }
    }

    /// Resolves when nobody listens any more; never when nobody ever did.
    pub(super) async fn closed(&self) {
        match &self.messages {
            Some(messages) => messages.closed().await,
            None => std::future::pending().await,
        }
    }

    fn layer(&self, layer: &LayerInfo) {
        let size = layer.size as i64;
        self.tell(JsonMessage {
            status: "Loading layer".to_owned(),
            id: short(&layer.diff_id.to_string()).to_owned(),
            progress_detail: Some(ProgressDetail {
                current: size,
                total: size,
                ..ProgressDetail::default()
            }),
            progress: format!(
                "[==================================================>]  {}",
                human(layer.size)
            ),
            ..JsonMessage::default()
        });
    }
}

/// Bytes as Docker writes them: `1.5MB`.
pub(super) fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    let digits = if value >= 100.0 || unit == "B" {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{unit}")
}

/// What an imported archive becomes.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The name to give, with or without a tag; empty: none.
    pub repository: String,
    /// The tag to give; empty: the one in the name, or `latest`.
    pub tag: String,
    /// A remark for the history.
    pub message: String,
    /// Dockerfile instructions for the configuration.
    pub changes: Vec<String>,
    /// `os[/architecture[/variant]]`; empty: the host's.
    pub platform: String,
}

impl Engine {
    /// Loads the images of an archive: `docker save`'s format or an OCI layout, compressed or not. `platform` is the only
    /// one to load images for; without it those for the host are chosen from an index.
    ///
    /// # Errors
    /// An archive that is malformed, hostile or holds something else; a full disk. Nothing of it remains then.
    pub async fn image_load(
        self: &Arc<Self>,
        input: impl Read + Send + 'static,
        quiet: bool,
        platform: Option<Platform>,
        progress: Progress,
    ) -> Result<()> {
        self.or_collect(self.load_images(input, quiet, platform, progress))
            .await
    }

    async fn load_images(
        &self,
        input: impl Read + Send + 'static,
        quiet: bool,
        platform: Option<Platform>,
        progress: Progress,
    ) -> Result<()> {
        let content = self.images().content().clone();
        let layers = if quiet {
            Progress::silent()
        } else {
            progress.clone()
        };
        let loaded = transfer::run(move || {
            let mut tell = |news: vessel_image::Progress| {
                if let vessel_image::Progress::Layer(layer) = news {
                    layers.layer(&layer);
                }
            };
            let options = LoadOptions {
                platform,
                ..LoadOptions::default()
            };
            let loaded = vessel_image::load(&content, input, &options, &mut tell);
            give_back_memory();
            Ok(loaded?)
        })
        .await?;
        let _change = CHANGES.lock().await;
        for image in &loaded {
            self.record_image(image).await?;
            let id = image.id.to_string();
            for reference in &image.references {
                if let Some(before) = self.name_image(reference, &id).await? {
                    progress.tell(JsonMessage::stream(format!(
                        "The image {} already exists, renaming the old one with ID {before} to empty string\n",
                        reference.familiar()
                    )));
                }
                progress.tell(JsonMessage::stream(format!(
                    "Loaded image: {}\n",
                    reference.familiar()
                )));
            }
            if image.references.is_empty() {
                progress.tell(JsonMessage::stream(format!("Loaded image ID: {id}\n")));
            }
            self.image_event("load", &id, &id);
        }
        Ok(())
    }

    /// Records an image whose content is in the store. Its lease may be dropped afterwards.
    pub(crate) async fn record_image(&self, image: &LoadedImage) -> Result<()> {
        self.record_child(image, "").await
    }

    /// The same for one that was committed over another.
    pub(super) async fn record_child(&self, image: &LoadedImage, parent: &str) -> Result<()> {
        let id = image.id.to_string();
        let before = self.images().record(&id);
        let record = ImageRecord {
            size: image.size(),
            chain_ids: image
                .layers
                .iter()
                .map(|layer| layer.chain_id.to_string())
                .collect(),
            tagged_at: time::now(),
            parent: parent.to_owned(),
            ..before.unwrap_or_default()
        };
        self.images().insert(&id, record).await?;
        self.images().flush_later();
        Ok(())
    }

    /// Makes an image of a root's archive: plain, gzip, zstd or xz.
    ///
    /// # Errors
    /// A name, platform or change that is not valid; an archive that is malformed or hostile.
    pub async fn image_import(
        self: &Arc<Self>,
        input: impl Read + Send + 'static,
        options: ImportOptions,
        progress: Progress,
    ) -> Result<()> {
        self.or_collect(self.import_image(input, options, progress)).await
    }

    async fn import_image(
        &self,
        input: impl Read + Send + 'static,
        options: ImportOptions,
        progress: Progress,
    ) -> Result<()> {
        let name = new_name(&options.repository, &options.tag)?;
        let mut import = vessel_image::ImportOptions {
            message: Some(options.message).filter(|message| !message.is_empty()),
            ..vessel_image::ImportOptions::default()
        };
        if import.message.is_none() {
            import.message = Some("Imported from -".to_owned());
        }
        if !options.platform.is_empty() {
            import.platform = platform(&options.platform)?;
        }
        changes::apply(&mut import.config, &options.changes)?;
        let content = self.images().content().clone();
        let image = transfer::run(move || {
            let image = vessel_image::import(&content, input, &import);
            give_back_memory();
            Ok(image?)
        })
        .await?;
        let _change = CHANGES.lock().await;
        self.record_image(&image).await?;
        let id = image.id.to_string();
        if let Some(name) = name {
            self.name_image(&name, &id).await?;
        }
        self.image_event("import", &id, &id);
        progress.tell(JsonMessage::status(id));
        Ok(())
    }

    /// Prepares an archive of images. A name without a tag stands for all tags of the repository. An image is for one
    /// platform: with `platform`, all must be for that.
    ///
    /// # Errors
    /// No such image; one for another platform.
    pub async fn image_save(&self, names: &[String], platform: Option<&Platform>) -> Result<TarJob> {
        let mut images: Vec<SaveImage> = Vec::new();
        for name in names {
            for (id, reference) in self.images_to_save(name)? {
                let id = id.parse()?;
                let at = images.iter().position(|image| image.id == id).unwrap_or_else(|| {
                    images.push(SaveImage {
                        id,
                        references: Vec::new(),
                    });
                    images.len() - 1
                });
                let references = &mut images[at].references;
                references.extend(reference.filter(|reference| !references.contains(reference)));
            }
        }
        if platform.is_some() {
            for image in &images {
                let id = image.id.to_string();
                let config = ImageConfig::parse(&self.image_document(&id).await?)?;
                let name = image.references.first().map(Reference::familiar);
                must_be_for(platform, &config, name.as_deref().unwrap_or(&id))?;
            }
        }
        for image in &images {
            let id = image.id.to_string();
            self.image_event("save", &id, &id);
        }
        let content = self.images().content().clone();
        Ok(TarJob::new(move |output| {
            Ok(vessel_image::save(&content, &images, Format::Docker, output)?)
        }))
    }

    fn images_to_save(&self, name: &str) -> Result<Vec<(String, Option<Reference>)>> {
        if let Ok(reference) = Reference::parse(name)
            && reference.tag().is_none()
            && reference.digest().is_none()
        {
            let repository = reference.familiar_name();
            let of_repository = |tag: &str| tag.rsplit_once(':').is_some_and(|(name, _)| name == repository);
            let tags: Vec<_> = self
                .images()
                .tags()
                .into_iter()
                .filter(|(tag, _)| of_repository(tag))
                .collect();
            if !tags.is_empty() {
                return tags
                    .into_iter()
                    .map(|(tag, id)| Ok((id, Some(Reference::parse(&tag)?))))
                    .collect();
            }
        }
        let found = self.find_image(name)?;
        let reference = found.name.as_deref().map(Reference::parse).transpose()?;
        Ok(vec![(found.id, reference)])
    }
}

/// The name for a new image; none without a repository.
pub(super) fn new_name(repository: &str, tag: &str) -> Result<Option<Reference>> {
    if repository.is_empty() {
        return Ok(None);
    }
    let reference = Reference::parse(repository)?;
    if reference.digest().is_some() {
        return Err(Error::invalid("cannot import digest reference"));
    }
    let reference = match tag {
        "" => reference,
        tag => reference.with_tag(tag)?,
    };
    Ok(Some(reference.with_default_tag()))
}

/// Gives the system back what an archive's buffers took: the allocator would keep it for the next archive, in a
/// process that is meant to be small most of its life.
pub(super) fn give_back_memory() {
    // SAFETY: frees unused pages of the allocator; what is in use is not touched.
    unsafe { libc::malloc_trim(0) };
}

fn platform(text: &str) -> Result<Platform> {
    let mut parts = text.split('/');
    let os = parts.next().unwrap_or_default();
    if os != "linux" {
        return Err(Error::invalid(format!(
            "invalid platform {text:?}: linux, linux/amd64, linux/arm64/v8 are some"
        )));
    }
    let mut platform = Platform::host();
    os.clone_into(&mut platform.os);
    if let Some(architecture) = parts.next() {
        architecture.clone_into(&mut platform.architecture);
        platform.variant = None;
    }
    if let Some(variant) = parts.next() {
        platform.variant = Some(variant.to_owned());
    }
    Ok(platform)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_dockers() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1500, "1.5kB"),
            (4_261_550, "4.26MB"),
            (163_000_000, "163MB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn platforms() {
        assert_eq!(platform("linux/arm64/v8").unwrap().variant.as_deref(), Some("v8"));
        assert_eq!(
            platform("linux").unwrap().architecture,
            Platform::host().architecture
        );
        assert!(platform("windows/amd64").is_err());
    }
}
