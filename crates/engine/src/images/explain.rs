//! What an image consists of: step by step, with what is of no use any more and who else has what.

use std::collections::BTreeMap;

use vessel_api::{FileAmount, ImageExplanation, ImageStep, LayerExplanation, SizedFile, WastedFile};
use vessel_image::{Amount, FileKind, History, ImageConfig, LayerStack, Platform};

use super::short;
use crate::{Engine, Result, blocking};

/// The most paths that are listed as waste.
const WASTE: usize = 200;

impl Engine {
    /// Explains an image. It looks at every file of its layers, but does not read them.
    ///
    /// # Errors
    /// No such image; content that cannot be read.
    pub async fn image_explain(&self, name: &str) -> Result<ImageExplanation> {
        let found = self.find_image(name)?;
        let config = ImageConfig::parse(&self.image_document(&found.id).await?)?;
        let sharing = self.sharing(&found.id);
        let mut tags = self.images().tags_of(&found.id);
        tags.sort();
        let content = self.images().content().clone();
        blocking(move || {
            let mut lease = content.lease();
            let mut stack = LayerStack::new();
            let mut infos = Vec::new();
            for chain in config.chain() {
                lease.pin_layer(&chain);
                infos.push(content.layer(&chain)?);
                stack.push(&content.layer_path(&chain))?;
            }
            let mut shared = 0;
            let mut layers = Vec::new();
            for (info, changes) in infos.iter().zip(stack.layers()) {
                let chain = info.chain_id.to_string();
                let shared_by = sharing.get(&chain).cloned().unwrap_or_default();
                if !shared_by.is_empty() {
                    shared += info.size;
                }
                layers.push(LayerExplanation {
                    diff_id: info.diff_id.to_string(),
                    chain_id: chain,
                    size: info.size,
                    archive_size: info.archive_size,
                    added: amount(changes.added),
                    changed: amount(changes.changed),
                    attributes_only: amount(changes.attributes_only),
                    deleted: amount(changes.deleted),
                    wasted: changes.wasted,
                    shared_by,
                    largest: changes
                        .largest
                        .iter()
                        .map(|(path, size)| SizedFile {
                            path: absolute(path),
                            size: *size,
                        })
                        .collect(),
                });
            }
            let size: u64 = infos.iter().map(|info| info.size).sum();
            let wasted: u64 = stack.layers().iter().map(|layer| layer.wasted).sum();
            let visible = size.saturating_sub(wasted);
            let waste = stack.waste();
            Ok(ImageExplanation {
                id: found.id,
                tags,
                platform: Platform::of(&config).to_string(),
                size,
                visible,
                wasted,
                efficiency: match size {
                    0 => 1.0,
                    size => visible as f64 / size as f64,
                },
                shared,
                steps: steps(&config.history, layers),
                waste_omitted: waste.len().saturating_sub(WASTE) as u64,
                waste: waste
                    .into_iter()
                    .take(WASTE)
                    .map(|(path, waste)| WastedFile {
                        path: absolute(&path),
                        size: waste.bytes,
                        times: waste.times,
                        deleted: waste.deleted,
                    })
                    .collect(),
            })
        })
        .await
    }

    /// The names of all other images that have a layer, by its chain ID.
    fn sharing(&self, id: &str) -> BTreeMap<String, Vec<String>> {
        let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (other, record) in self.images().all() {
            if other == id {
                continue;
            }
            let mut names = self.images().tags_of(&other);
            names.sort();
            if names.is_empty() {
                names.push(short(&other).to_owned());
            }
            for chain in &record.chain_ids {
                out.entry(chain.clone())
                    .or_default()
                    .extend(names.iter().cloned());
            }
        }
        out
    }
}

/// The history with each layer at the step that made it. Layers that no step claims come first, as steps of their own.
fn steps(history: &[History], layers: Vec<LayerExplanation>) -> Vec<ImageStep> {
    let claimed = history
        .iter()
        .filter(|step| step.empty_layer != Some(true))
        .count();
    let unclaimed = layers.len().saturating_sub(claimed);
    let mut layers = layers.into_iter();
    let mut out: Vec<ImageStep> = layers
        .by_ref()
        .take(unclaimed)
        .map(|layer| ImageStep {
            layer: Some(layer),
            ..ImageStep::default()
        })
        .collect();
    out.extend(history.iter().map(|step| ImageStep {
        created_by: step.created_by.clone().unwrap_or_default(),
        created: step.created.clone().unwrap_or_default(),
        comment: step.comment.clone().unwrap_or_default(),
        layer: match step.empty_layer {
            Some(true) => None,
            _ => layers.next(),
        },
    }));
    out
}

fn amount(amount: Amount) -> FileAmount {
    FileAmount {
        files: amount.files,
        bytes: amount.bytes,
    }
}

/// A path as people write it.
pub(super) fn absolute(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

/// A path of a kind: directories end with a slash.
pub(super) fn shown(path: &[u8], kind: FileKind) -> String {
    let slash = if kind == FileKind::Directory { "/" } else { "" };
    format!("{}{slash}", absolute(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_with_their_steps() {
        let step = |by: &str, empty| History {
            created_by: Some(by.to_owned()),
            empty_layer: Some(empty),
            ..History::default()
        };
        let layer = |id: &str| LayerExplanation {
            diff_id: id.to_owned(),
            ..LayerExplanation::default()
        };
        let seen = |history: &[History], layers: &[&str]| -> Vec<(String, Option<String>)> {
            steps(history, layers.iter().map(|id| layer(id)).collect())
                .into_iter()
                .map(|step| (step.created_by, step.layer.map(|layer| layer.diff_id)))
                .collect()
        };
        let pair = |by: &str, id: Option<&str>| (by.to_owned(), id.map(str::to_owned));
        let history = [step("FROM", false), step("ENV", true), step("RUN", false)];
        assert_eq!(
            seen(&history, &["a", "b"]),
            [pair("FROM", Some("a")), pair("ENV", None), pair("RUN", Some("b"))]
        );
        assert_eq!(
            seen(&history[2..], &["a", "b"]),
            [pair("", Some("a")), pair("RUN", Some("b"))]
        );
        assert_eq!(
            seen(&history, &["a"]),
            [pair("FROM", Some("a")), pair("ENV", None), pair("RUN", None)]
        );
    }
}
