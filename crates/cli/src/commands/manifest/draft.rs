//! A list of manifests that is being made: a file of ours beside `config.json`.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vessel_image::{Descriptor, Index, Reference, media_type};

use crate::credentials::ConfigFile;
use crate::failure::{Failure, Result, words};

/// The largest file, and the most entries.
const MAX_FILE: u64 = 4 << 20;

/// A manifest in a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// Where it is.
    pub reference: Reference,
    /// What it is.
    pub descriptor: Descriptor,
}

/// A list that is being made.
#[derive(Debug, Serialize, Deserialize)]
pub struct Draft {
    /// Its name.
    pub list: Reference,
    /// What is in it.
    pub entries: Vec<Entry>,
}

fn path(list: &Reference) -> Result<PathBuf> {
    let directory = ConfigFile::load()?.path().with_file_name("vessel-manifests");
    // What separates the parts of a reference occurs in none of them.
    Ok(directory.join(list.to_string().replace('/', "\\") + ".json"))
}

impl Draft {
    /// An empty one.
    pub fn new(list: Reference) -> Self {
        Self {
            list,
            entries: Vec::new(),
        }
    }

    /// One that was made before.
    pub fn load(list: &Reference) -> Result<Self> {
        Self::load_if_there(list)?.ok_or_else(|| {
            Failure::new(format!("No such manifest: {}", list.familiar()))
                .with_hint("make it with `manifest create`")
        })
    }

    /// One that was made before, if it was.
    pub fn load_if_there(list: &Reference) -> Result<Option<Self>> {
        let path = path(list)?;
        let fail = |why: String| Failure::new(format!("cannot read {}: {why}", path.display()));
        match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(words(&error))),
            Ok(data) if data.len() > MAX_FILE => return Err(fail("it is larger than 4 MiB".to_owned())),
            Ok(_) => {}
        }
        let text = fs::read(&path).map_err(|error| fail(words(&error)))?;
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| fail(error.to_string()))
    }

    /// A manifest in it.
    pub fn entry(&self, reference: &Reference) -> Result<&Entry> {
        self.entries
            .iter()
            .find(|entry| entry.reference == *reference)
            .ok_or_else(|| {
                Failure::new(format!(
                    "manifest for image {} does not exist in {}",
                    reference.familiar(),
                    self.list.familiar()
                ))
            })
    }

    /// Adds a manifest or replaces what was known of it.
    pub fn set(&mut self, entry: Entry) {
        match self
            .entries
            .iter_mut()
            .find(|known| known.reference == entry.reference)
        {
            Some(known) => *known = entry,
            None => self.entries.push(entry),
        }
    }

    /// Keeps it.
    pub fn save(&self) -> Result {
        let path = path(&self.list)?;
        let text = serde_json::to_vec_pretty(self).map_err(Failure::new)?;
        let temporary = path.with_extension(format!("{}", std::process::id()));
        let directory = path.parent().map_or(Ok(()), fs::create_dir_all);
        directory
            .and_then(|()| fs::write(&temporary, text))
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|error| Failure::new(format!("cannot write {}: {}", path.display(), words(&error))))
    }

    /// Forgets it.
    pub fn remove(&self) -> Result {
        let path = path(&self.list)?;
        fs::remove_file(&path)
            .map_err(|error| Failure::new(format!("cannot remove {}: {}", path.display(), words(&error))))
    }

    /// The list as it is pushed: Docker's kind unless a manifest is OCI's.
    pub fn index(&self) -> Index {
        let oci = self
            .entries
            .iter()
            .any(|entry| entry.descriptor.media_type == media_type::OCI_MANIFEST);
        let kind = if oci {
            media_type::OCI_INDEX
        } else {
            media_type::DOCKER_INDEX
        };
        Index {
            schema_version: 2,
            media_type: Some(kind.to_owned()),
            manifests: self
                .entries
                .iter()
                .map(|entry| entry.descriptor.clone())
                .collect(),
            artifact_type: None,
            subject: None,
            annotations: None,
        }
    }
}
