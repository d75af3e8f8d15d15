//! The archive of `docker save`: `manifest.json` lists images, their configuration and layer files.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::contents::{Budget, Contents};
use super::load::{Found, FoundLayer, not_for};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result, show};
use crate::manifest::Platform;
use crate::reference::Reference;

/// Names in one archive.
const MAX_NAMES: usize = 16_384;

/// One image in `manifest.json`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Item {
    pub(super) config: String,
    pub(super) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(super) layers: Option<Vec<String>>,
}

/// The images in an archive whose `manifest.json` this is: all, or those for a platform.
pub(super) fn images(
    contents: &Contents,
    manifest: &[u8],
    platform: Option<&Platform>,
) -> Result<Vec<Found>> {
    let items: Vec<Item> = serde_json::from_slice(manifest)
        .map_err(|e| Error::json("manifest.json in the archive is not valid", e))?;
    let names = items
        .iter()
        .flat_map(|item| &item.repo_tags)
        .map(Vec::len)
        .sum::<usize>();
    if names > MAX_NAMES {
        return Err(Error::limit(format!(
            "the archive gives its images more than {MAX_NAMES} names"
        )));
    }
    let mut budget = Budget::new();
    let (mut found, mut offered) = (Vec::new(), Vec::new());
    for item in items {
        let (has, image) = image(contents, item, &mut budget)?;
        match platform {
            Some(platform) if !platform.accepts(&has) => offered.push(has),
            _ => found.push(image),
        }
    }
    match platform {
        Some(platform) if found.is_empty() && !offered.is_empty() => Err(not_for(platform, offered)),
        _ => Ok(found),
    }
}

fn image(contents: &Contents, item: Item, budget: &mut Budget) -> Result<(Platform, Found)> {
    budget.image()?;
    let raw = contents.document(item.config.as_bytes()).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!(
                "the archive lacks the image configuration {}",
                show(item.config.as_bytes())
            ),
        )
    })?;
    budget.read(raw)?;
    let id = Digest::sha256(raw);
    if let Some(hex) = item.config.strip_prefix("blobs/sha256/")
        && hex != id.hex()
    {
        return Err(Error::new(
            ErrorKind::Digest,
            format!("{} in the archive has another digest than its name", item.config),
        ));
    }
    let config = ImageConfig::parse(raw)?;
    let layers = item.layers.unwrap_or_default();
    if layers.len() != config.rootfs.diff_ids.len() {
        return Err(Error::invalid(format!(
            "image {}: manifest.json lists {} layers, the image configuration {}",
            id.short(),
            layers.len(),
            config.rootfs.diff_ids.len()
        )));
    }
    let references = item
        .repo_tags
        .unwrap_or_default()
        .iter()
        .map(|tag| Reference::parse(tag).map(Reference::with_default_tag))
        .collect::<Result<_>>()?;
    let layers = layers
        .into_iter()
        .map(|path| FoundLayer {
            path: path.into_bytes(),
            digest: None,
        })
        .collect();
    let platform = Platform::of(&config);
    let found = Found {
        id,
        raw: Arc::clone(raw),
        diff_ids: config.rootfs.diff_ids,
        references,
        layers,
    };
    Ok((platform, found))
}
