//! Uploads in progress.
//!
//! One request at a time works on an upload. What arrived before a connection broke is kept, so that the client can
//! ask for the status and go on. The digest is computed while the bytes come; after a restart, or when the client
//! ends with another algorithm than it began with, the file is read once more.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vessel_image::{Algorithm, Digest, Hasher};

use super::blob::{age, renew};
use super::{Storage, in_directory, list};
use crate::error::{Code, Error, Result};
use crate::name::Repository;

/// One of so many parts of all uploads may be one user's.
const SHARES: usize = 4;

/// All uploads, by their identifier.
#[derive(Debug, Default)]
pub struct Uploads(Mutex<HashMap<String, Entry>>);

struct Entry {
    repository: Repository,
    /// Who began it; nobody knows after a restart.
    owner: String,
    size: u64,
    /// What was computed so far; none means that the file has to be read again.
    hasher: Option<(Algorithm, Hasher)>,
    busy: bool,
    heard: Instant,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("repository", &self.repository)
            .field("size", &self.size)
            .field("busy", &self.busy)
            .finish_non_exhaustive()
    }
}

/// How far an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadStatus {
    /// Bytes that were stored.
    pub size: u64,
}

impl Uploads {
    fn table(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.table().len()
    }
}

/// An upload that this request alone works on. Dropped, it can be resumed.
pub struct Upload {
    storage: Storage,
    repository: Repository,
    id: String,
    path: PathBuf,
    file: File,
    size: u64,
    hasher: Option<(Algorithm, Hasher)>,
    ended: bool,
    /// Nobody can resume it.
    fleeting: bool,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload")
            .field("id", &self.id)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

fn unknown(id: &str) -> Error {
    Error::new(
        Code::BlobUploadUnknown,
        format!(
            "there is no upload {}; it ended, or was forgotten because nothing was heard of it",
            crate::name::show(id)
        ),
    )
}

/// A random version 4 UUID.
fn new_id() -> Result<String> {
    let mut bytes = [0u8; 16];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .map_err(|_| Error::new(Code::Unknown, "the system has no random numbers"))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    ))
}

impl Storage {
    fn uploads_path(&self, name: &Repository) -> PathBuf {
        self.0.root.join("uploads").join(name.to_file_name())
    }

    /// The uploads in progress.
    pub fn uploads(&self) -> &Uploads {
        &self.0.uploads
    }

    /// Begins an upload of somebody.
    pub fn begin_upload(&self, name: &Repository, owner: &str, algorithm: Algorithm) -> Result<Upload> {
        let most = self.0.options.max_uploads;
        let refuse = |count: usize, whose: &str| {
            Error::new(
                Code::TooManyRequests,
                format!(
                    "{count} uploads{whose} are in progress, which is the limit; end or cancel some, or try again later"
                ),
            )
        };
        {
            let table = self.0.uploads.table();
            if table.len() >= most {
                return Err(refuse(most, ""));
            }
            // Others want to push, too.
            let share = most.div_ceil(SHARES);
            if table.len() >= share && table.values().filter(|entry| entry.owner == owner).count() >= share {
                return Err(refuse(share, " of yours"));
            }
        }
        let id = new_id()?;
        let directory = self.uploads_path(name);
        let path = directory.join(&id);
        let mut file = None;
        in_directory(&directory, || File::create_new(&path).map(drop))
            .and_then(|()| {
                file = Some(File::options().append(true).open(&path)?);
                Ok(())
            })
            .map_err(|e| Error::io(format!("cannot make {}", path.display()), e))?;
        let file = file.ok_or_else(|| unknown(&id))?;
        let entry = Entry {
            repository: name.clone(),
            owner: owner.to_owned(),
            size: 0,
            hasher: None,
            busy: true,
            heard: Instant::now(),
        };
        self.0.uploads.table().insert(id.clone(), entry);
        Ok(Upload {
            storage: self.clone(),
            repository: name.clone(),
            id,
            path,
            file,
            size: 0,
            hasher: Some((algorithm, Hasher::new(algorithm))),
            ended: false,
            fleeting: false,
        })
    }

    /// Goes on with an upload.
    pub fn resume_upload(&self, name: &Repository, id: &str) -> Result<Upload> {
        let (size, hasher) = {
            let mut table = self.0.uploads.table();
            let entry = table
                .get_mut(id)
                .filter(|entry| entry.repository == *name)
                .ok_or_else(|| unknown(id))?;
            if entry.busy {
                return Err(Error::new(
                    Code::BlobUploadInvalid,
                    "another request works on this upload; wait for it to end",
                ));
            }
            entry.busy = true;
            (entry.size, entry.hasher.take())
        };
        let path = self.uploads_path(name).join(id);
        let opened = File::options().append(true).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(e) => {
                let mut table = self.0.uploads.table();
                if e.kind() == std::io::ErrorKind::NotFound {
                    table.remove(id);
                    self.0.usage.refund(name, size);
                    self.0.usage.refund_disk(size);
                } else if let Some(entry) = table.get_mut(id) {
                    // Too many open files, say: the next request may have more luck.
                    entry.busy = false;
                    entry.hasher = hasher;
                }
                return Err(Error::io(format!("cannot open {}", path.display()), e));
            }
        };
        Ok(Upload {
            storage: self.clone(),
            repository: name.clone(),
            id: id.to_owned(),
            path,
            file,
            size,
            hasher,
            ended: false,
            fleeting: false,
        })
    }

    /// How far an upload is.
    pub fn upload_status(&self, name: &Repository, id: &str) -> Result<UploadStatus> {
        let mut table = self.0.uploads.table();
        let entry = table
            .get_mut(id)
            .filter(|entry| entry.repository == *name)
            .ok_or_else(|| unknown(id))?;
        entry.heard = Instant::now();
        Ok(UploadStatus { size: entry.size })
    }

    /// What an earlier process left can be gone on with.
    pub(super) fn recover_uploads(&self) -> Result<()> {
        let root = self.0.root.join("uploads");
        for directory in list(&root)? {
            let Some(repository) = Repository::from_file_name(&directory) else {
                continue;
            };
            for id in list(&root.join(&directory))? {
                let path = root.join(&directory).join(&id);
                let metadata = fs::metadata(&path)
                    .map_err(|e| Error::io(format!("cannot look at {}", path.display()), e))?;
                let now = Instant::now();
                let entry = Entry {
                    repository: repository.clone(),
                    owner: String::new(),
                    size: metadata.len(),
                    hasher: None,
                    busy: false,
                    heard: now.checked_sub(age(&metadata)).unwrap_or(now),
                };
                // Over a quota or not, it is there.
                let _ = self.0.usage.charge(&repository, metadata.len());
                let _ = self.0.usage.charge_disk(metadata.len());
                self.0.uploads.table().insert(id, entry);
            }
        }
        Ok(())
    }

    /// Forgets uploads of which nothing was heard for long. Returns how many.
    pub fn expire_uploads(&self, expiry: Duration) -> usize {
        let expired: Vec<(String, Repository)> = self
            .0
            .uploads
            .table()
            .iter()
            .filter(|(_, entry)| !entry.busy && entry.heard.elapsed() >= expiry)
            .map(|(id, entry)| (id.clone(), entry.repository.clone()))
            .collect();
        let mut count = 0;
        for (id, name) in expired {
            if self
                .resume_upload(&name, &id)
                .is_ok_and(|upload| upload.cancel().is_ok())
            {
                count += 1;
            }
        }
        count
    }

    /// How long an upload may be silent.
    pub fn upload_expiry(&self) -> Duration {
        self.0.options.upload_expiry
    }
}

impl Upload {
    /// Its identifier.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Bytes that were stored.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The same, which is gone when it is dropped: nobody knows its identifier.
    #[must_use]
    pub fn fleeting(mut self) -> Self {
        self.fleeting = true;
        self
    }

    /// A second handle, to read what was stored, also after the end.
    pub fn reader(&self) -> Result<File> {
        File::open(&self.path).map_err(|e| Error::io(format!("cannot open {}", self.path.display()), e))
    }

    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let length = bytes.len() as u64;
        let usage = &self.storage.0.usage;
        usage.charge(&self.repository, length)?;
        if let Err(error) = usage.charge_disk(length) {
            usage.refund(&self.repository, length);
            return Err(error);
        }
        if let Err(e) = self.file.write_all(bytes) {
            usage.refund(&self.repository, length);
            usage.refund_disk(length);
            // A part of it may have been written, which the digest does not know.
            let cut = self.file.set_len(self.size);
            if let Err(e) = cut {
                tracing::error!(error = %e, upload = self.id, "an upload cannot be cut back to what was acknowledged");
                self.hasher = None;
            }
            return Err(Error::io(format!("cannot write {}", self.path.display()), e));
        }
        if let Some((_, hasher)) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.size += length;
        Ok(())
    }

    /// Ends the upload: its content becomes a blob of the repository. When the digest is another, the upload is gone.
    pub fn commit(mut self, digest: &Digest) -> Result<u64> {
        let actual = match self.hasher.take() {
            Some((algorithm, hasher)) if algorithm == digest.algorithm() => hasher.finish(),
            _ => self.hash(digest.algorithm())?,
        };
        if actual != *digest {
            let error = Error::new(
                Code::DigestInvalid,
                format!("what was uploaded has the digest {actual}, not {digest}; upload it again"),
            );
            self.discard()?;
            return Err(error);
        }
        let fail = |e| Error::io(format!("cannot store {digest}"), e);
        self.file.sync_data().map_err(fail)?;
        let storage = self.storage.clone();
        let lease = storage.lease_of(digest);
        let content = storage.content_path(digest);
        let new = storage.adopt(&self.path, digest, &lease)?;
        self.ended = true;
        let size = self.size;
        if !new {
            storage.0.usage.refund_disk(size);
        }
        let link = storage.blob_link(&self.repository, digest);
        let made = storage.make_link(&content, &link);
        if !matches!(made, Ok(true)) {
            storage.0.usage.refund(&self.repository, size);
        }
        if matches!(made, Ok(false))
            && let Ok(metadata) = fs::metadata(&link)
        {
            renew(&link, &metadata);
        }
        self.forget();
        made.map(|_| size)
    }

    /// Ends the upload without a result.
    pub fn cancel(mut self) -> Result<()> {
        self.discard()
    }

    fn discard(&mut self) -> Result<()> {
        self.ended = true;
        let removed = fs::remove_file(&self.path);
        self.storage.0.usage.refund(&self.repository, self.size);
        self.storage.0.usage.refund_disk(self.size);
        self.forget();
        removed.map_err(|e| Error::io(format!("cannot remove {}", self.path.display()), e))
    }

    fn forget(&self) {
        self.storage.0.uploads.table().remove(&self.id);
        // It stays when others use it.
        let _ = fs::remove_dir(self.storage.uploads_path(&self.repository));
    }

    fn hash(&self, algorithm: Algorithm) -> Result<Digest> {
        let fail = |e| Error::io(format!("cannot read {}", self.path.display()), e);
        let mut file = File::open(&self.path).map_err(fail)?;
        let mut hasher = Hasher::new(algorithm);
        let mut buffer = vec![0; 256 << 10];
        loop {
            match file.read(&mut buffer).map_err(fail)? {
                0 => return Ok(hasher.finish()),
                n => hasher.update(&buffer[..n]),
            }
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if self.fleeting {
            if let Err(error) = self.discard() {
                tracing::warn!(%error, "an upload is left over");
            }
            return;
        }
        if let Some(entry) = self.storage.0.uploads.table().get_mut(&self.id) {
            entry.busy = false;
            entry.size = self.size;
            entry.hasher = self.hasher.take();
            entry.heard = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::StorageOptions;
    use std::path::Path;

    fn storage(root: &Path, max_uploads: usize) -> Storage {
        let options = StorageOptions {
            max_uploads,
            ..StorageOptions::default()
        };
        Storage::open(root, options).unwrap()
    }

    fn name() -> Repository {
        Repository::parse("a").unwrap()
    }

    #[test]
    fn what_cannot_be_opened_for_a_moment_is_not_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let storage = storage(root.path(), 100);
        let mut upload = storage.begin_upload(&name(), "", Algorithm::Sha256).unwrap();
        upload.write(b"abc").unwrap();
        let (id, path) = (upload.id().to_owned(), upload.path.clone());
        drop(upload);
        // It takes a directory's place for as long as there are too many open files, say.
        let aside = root.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(storage.resume_upload(&name(), &id).is_err());
        fs::remove_dir(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
        let mut upload = storage.resume_upload(&name(), &id).unwrap();
        upload.write(b"def").unwrap();
        assert_eq!(upload.commit(&Digest::sha256(b"abcdef")).unwrap(), 6);
        // What is gone for good is, and takes no space.
        let mut upload = storage.begin_upload(&name(), "", Algorithm::Sha256).unwrap();
        upload.write(b"ghi").unwrap();
        let (id, path) = (upload.id().to_owned(), upload.path.clone());
        drop(upload);
        assert_eq!(storage.usage().disk(), 9);
        fs::remove_file(path).unwrap();
        assert!(storage.resume_upload(&name(), &id).is_err());
        assert_eq!(storage.uploads().count(), 0);
        let usage = storage.usage();
        assert_eq!((usage.disk(), usage.repository(&name())), (6, 6));
    }

    #[test]
    fn what_nobody_can_resume_ends_when_it_is_dropped() {
        let root = tempfile::tempdir().unwrap();
        let storage = storage(root.path(), 100);
        let upload = storage.begin_upload(&name(), "", Algorithm::Sha256).unwrap();
        let mut upload = upload.fleeting();
        upload.write(b"abc").unwrap();
        let path = upload.path.clone();
        assert!(path.exists());
        drop(upload);
        assert!(!path.exists());
        assert_eq!((storage.uploads().count(), storage.usage().disk()), (0, 0));
    }

    #[test]
    fn one_user_gets_a_part_of_the_places() {
        let root = tempfile::tempdir().unwrap();
        let storage = storage(root.path(), 8);
        let begin = |owner: &str| storage.begin_upload(&name(), owner, Algorithm::Sha256);
        let mut held = Vec::new();
        for owner in ["ann", "bob", "cid", "dan"] {
            for _ in 0..2 {
                held.push(begin(owner).unwrap());
            }
            let refused = begin(owner).unwrap_err();
            assert_eq!(refused.code(), Code::TooManyRequests);
        }
        assert!(begin("eve").is_err(), "all places are taken");
        held.pop();
        assert_eq!(storage.uploads().count(), 8, "what was dropped can be resumed");
    }

    #[test]
    fn equal_blobs_that_end_at_once_count_once() {
        let root = tempfile::tempdir().unwrap();
        let storage = storage(root.path(), 100);
        for round in 0..20u32 {
            let bytes = round.to_le_bytes().repeat(5000);
            let digest = Digest::sha256(&bytes);
            let uploads: Vec<Upload> = (0..4)
                .map(|_| {
                    let mut upload = storage.begin_upload(&name(), "", Algorithm::Sha256).unwrap();
                    upload.write(&bytes).unwrap();
                    upload
                })
                .collect();
            let together = std::sync::Barrier::new(uploads.len());
            std::thread::scope(|scope| {
                for upload in uploads {
                    let (together, digest) = (&together, &digest);
                    scope.spawn(move || {
                        together.wait();
                        upload.commit(digest).unwrap();
                    });
                }
            });
            let expected = u64::from(round + 1) * 20_000;
            assert_eq!(storage.usage().disk(), expected, "round {round}");
            assert_eq!(storage.usage().repository(&name()), expected, "round {round}");
        }
    }
}
