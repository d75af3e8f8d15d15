//! Contents of configs and secrets that are not files are put into a container before it starts.

use super::mounts::{copied, mode};
use super::{Engine, mounts::Copied};
use crate::error::{Error, Result};
use crate::project::Service;

impl Engine<'_> {
    pub(super) fn copy_files(&self, service: &Service, container: &str) -> Result<()> {
        for file in copied(self.project, service)? {
            let archive =
                archive(&file).map_err(|error| Error::project(format!("{}: {error}", file.target)))?;
            self.client
                .container_extract(container, "/", false, std::io::Cursor::new(archive))
                .map_err(Error::engine(format!(
                    "cannot put {} into the container",
                    file.target
                )))?;
        }
        Ok(())
    }
}

fn archive(file: &Copied<'_>) -> std::io::Result<Vec<u8>> {
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    let mut header = tar::Header::new_ustar();
    header.set_size(file.content.len() as u64);
    header.set_mode(file.mount.mode.as_ref().map_or(0o444, mode));
    header.set_uid(number(&file.mount.uid));
    header.set_gid(number(&file.mount.gid));
    header.set_mtime(
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |now| now.as_secs()),
    );
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(
        &mut header,
        file.target.trim_start_matches('/'),
        file.content.as_bytes(),
    )?;
    archive.into_inner()
}
