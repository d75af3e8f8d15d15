//! Copies of files into volumes: the image's, when a container first uses an empty one, and those of another volume.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use vessel_runtime::rootfs::resolve::open_in_root;

use crate::error::Context;
use crate::image_index::from_image;
use crate::paths::remove_tree;
use crate::{Error, Result};

/// Where a copy of the image's files is made before it becomes a volume's files.
pub(super) fn unfinished(data: &Path) -> PathBuf {
    data.with_file_name("_new")
}

/// Copies what the image has at `destination`, with its owner and mode, into a volume's directory when that is empty.
/// When it is nobody's but the caller's, it has all or nothing of it: a copy that fails, or whose daemon is killed, would
/// be taken for the volume's own files the next time.
pub(super) fn copy_up(layers: Vec<PathBuf>, destination: &str, data: &Path, alone: bool) -> Result<()> {
    let mut entries = std::fs::read_dir(data).context(|| format!("look into {}", data.display()))?;
    if layers.is_empty() || entries.next().is_some() {
        return Ok(());
    }
    let root = crate::oci_spec::user::stack(layers)?;
    let relative = destination.trim_start_matches('/');
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let from = match open_in_root(&root, relative.as_ref(), flags, rustix::fs::ResolveFlags::empty()) {
        Ok(from) => from,
        // The image has nothing there, or a file, which a volume hides.
        Err(_) => return Ok(()),
    };
    let mounted = super::local::is_mounted(data)?;
    if !alone || mounted {
        // Others see this very directory, or an operator mounted something on it.
        return copy(&from, data);
    }
    let new = unfinished(data);
    remove_tree(&new).context(|| format!("remove {}", new.display()))?;
    std::fs::create_dir(&new).context(|| format!("create {}", new.display()))?;
    let copied = copy(&from, &new).and_then(|()| {
        std::fs::rename(&new, data).context(|| format!("move {} to {}", new.display(), data.display()))
    });
    if copied.is_err() {
        let _ = remove_tree(&new);
    }
    copied
}

/// Copies a directory, with its owner and mode, into another.
pub(super) fn copy(from: &OwnedFd, data: &Path) -> Result<()> {
    let to = rustix::fs::open(
        data,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| format!("open {}", data.display()))?;
    let stat = rustix::fs::fstat(from).context(|| "look at the image's directory")?;
    rustix::fs::fchown(
        &to,
        Some(rustix::fs::Uid::from_raw(stat.st_uid)),
        Some(rustix::fs::Gid::from_raw(stat.st_gid)),
    )
    .context(|| "give the volume its owner")?;
    rustix::fs::fchmod(&to, Mode::from_raw_mode(stat.st_mode & 0o7777))
        .context(|| "give the volume its mode")?;

    // An archive that is never whole: packed on one thread, unpacked on this one.
    let (reader, writer) = std::io::pipe().context(|| "make a pipe")?;
    std::thread::scope(|scope| {
        let packing = scope
            .spawn(|| vessel_image::pack(from.as_fd(), b"", &vessel_image::PackOptions::default(), writer));
        let unpacked =
            vessel_image::unpack_into(to.as_fd(), reader, &vessel_image::ExtractOptions::default());
        let packed = packing
            .join()
            .map_err(|_| Error::system("packing the image's files ended abnormally"))?;
        unpacked.map_err(from_image)?;
        packed.map_err(from_image)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_whole_or_not_there() {
        use std::fs;
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("layer/data/sub")).unwrap();
        fs::write(at("layer/data/sub/file"), "whole").unwrap();
        fs::create_dir_all(at("volume/_data")).unwrap();
        // What a daemon that was killed left.
        fs::create_dir_all(at("volume/_new/sub")).unwrap();
        fs::write(at("volume/_new/partial"), "").unwrap();
        let data = at("volume/_data");
        copy_up(vec![at("layer")], "/data", &data, true).unwrap();
        assert_eq!(fs::read_to_string(data.join("sub/file")).unwrap(), "whole");
        assert!(!data.join("partial").exists());
        assert!(!at("volume/_new").exists());

        // The room ends in the middle.
        fs::write(at("layer/data/zeros"), vec![1; 1 << 20]).unwrap();
        let small = at("small");
        fs::create_dir(&small).unwrap();
        if rustix::mount::mount(
            "none",
            &small,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            Some(c"size=64k"),
        )
        .is_err()
        {
            return;
        }
        let data = small.join("_data");
        fs::create_dir(&data).unwrap();
        let failed = copy_up(vec![at("layer")], "/data", &data, true);
        let left: Vec<_> = fs::read_dir(&data).unwrap().collect();
        let beside = small.join("_new").exists();
        rustix::mount::unmount(&small, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert!(failed.is_err());
        assert!(left.is_empty() && !beside, "{left:?} {beside}");
    }
}
