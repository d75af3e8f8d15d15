//! Where `vessel build` has its files from: a directory, an address, standard input.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use vessel_client::build::Build;

use crate::failure::{Failure, Result, words};

/// The name of an archive from standard input.
const UPLOAD: &str = "context";
/// What is looked at to tell an archive from a Dockerfile.
const START: usize = 512;
/// The largest Dockerfile that is read from standard input.
const MAX_DOCKERFILE: u64 = 16 << 20;

/// Which Dockerfile is meant.
#[derive(Debug, Clone, Copy)]
pub enum Dockerfile<'a> {
    /// `Dockerfile` in the context.
    Default,
    /// A path: on this side, or within a context that is elsewhere.
    Path(&'a Path),
    /// Standard input.
    Stdin,
}

/// A context and its Dockerfile.
#[derive(Debug)]
pub struct Context<'a> {
    context: &'a str,
    dockerfile: Dockerfile<'a>,
}

/// A directory that is removed again.
#[derive(Debug)]
pub struct Made(PathBuf);

impl Drop for Made {
    fn drop(&mut self) {
        // Nobody needs it, and it lies where such things are cleaned up.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether a context is somewhere else, as Docker tells it by its beginning.
pub fn is_remote(context: &str) -> bool {
    ["http://", "https://", "git://", "ssh://", "git@", "github.com/"]
        .iter()
        .any(|start| context.starts_with(start))
}

impl<'a> Context<'a> {
    /// Of the words of the command line.
    pub fn new(context: &'a str, dockerfile: Dockerfile<'a>) -> Result<Self> {
        if context == "-" && matches!(dockerfile, Dockerfile::Stdin) {
            return Err(Failure::usage(
                "invalid argument: can't use stdin for both build context and dockerfile",
            ));
        }
        Ok(Self { context, dockerfile })
    }

    /// Offers the files to the build. What is returned has to live as long as the build.
    pub fn offer(self, build: &mut Build) -> Result<Option<Made>> {
        if self.context == "-" {
            return self.offer_stdin(build);
        }
        if is_remote(self.context) {
            build
                .attributes
                .insert("context".to_owned(), self.context.to_owned());
            return self.offer_dockerfile(None, build);
        }
        let path = Path::new(self.context);
        let directory = path.canonicalize().map_err(|error| {
            Failure::new(format!(
                "unable to prepare context: {}: {}",
                path.display(),
                words(&error)
            ))
        })?;
        if !directory.is_dir() {
            return Err(Failure::new(format!(
                "unable to prepare context: {} is not a directory",
                path.display()
            ))
            .with_hint("the context is the directory of the files to copy; name the Dockerfile with -f"));
        }
        build.shared_key = directory.display().to_string();
        build.directories.insert("context".to_owned(), directory.clone());
        self.offer_dockerfile(Some(&directory), build)
    }

    fn offer_dockerfile(&self, context: Option<&Path>, build: &mut Build) -> Result<Option<Made>> {
        match (self.dockerfile, context) {
            (Dockerfile::Default, Some(context)) => offer_file(&context.join("Dockerfile"), build),
            (Dockerfile::Default, None) => Ok(None),
            (Dockerfile::Path(path), Some(_)) => offer_file(path, build),
            (Dockerfile::Path(path), None) => {
                build
                    .attributes
                    .insert("filename".to_owned(), path.display().to_string());
                Ok(None)
            }
            (Dockerfile::Stdin, _) => {
                let mut text = Vec::new();
                io::stdin().take(MAX_DOCKERFILE).read_to_end(&mut text)?;
                build
                    .attributes
                    .insert("dockerfilekey".to_owned(), "dockerfile".to_owned());
                offer_text(&text, build).map(Some)
            }
        }
    }

    fn offer_stdin(&self, build: &mut Build) -> Result<Option<Made>> {
        if crate::terminal::stdin_is_terminal() {
            return Err(
                Failure::new("the context is to come from standard input, which is a terminal")
                    .with_hint("pipe an archive or a Dockerfile in: vessel build - < Dockerfile"),
            );
        }
        let mut start = Vec::new();
        io::stdin().take(START as u64).read_to_end(&mut start)?;
        if is_archive(&start) {
            build
                .attributes
                .insert("context".to_owned(), format!("http://buildkit-session/{UPLOAD}"));
            if let Dockerfile::Path(path) = self.dockerfile {
                build
                    .attributes
                    .insert("filename".to_owned(), path.display().to_string());
            }
            let archive = io::Cursor::new(start).chain(io::stdin());
            build.uploads.insert(UPLOAD.to_owned(), Box::new(archive));
            return Ok(None);
        }
        let mut text = start;
        io::stdin().take(MAX_DOCKERFILE).read_to_end(&mut text)?;
        let made = offer_text(&text, build)?;
        let empty = made.0.join("context");
        std::fs::create_dir(&empty).map_err(|error| cannot_make(&empty, &error))?;
        build.directories.insert("context".to_owned(), empty);
        Ok(Some(made))
    }
}

/// Offers the directory of a Dockerfile on this side.
fn offer_file(path: &Path, build: &mut Build) -> Result<Option<Made>> {
    File::open(path).map_err(|error| {
        Failure::new(format!(
            "failed to read dockerfile: open {}: {}",
            path.display(),
            words(&error)
        ))
        .with_hint("name the Dockerfile with -f")
    })?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let name = path
        .file_name()
        .ok_or_else(|| Failure::usage(format!("{} is not a Dockerfile", path.display())))?;
    build
        .attributes
        .insert("filename".to_owned(), name.to_string_lossy().into_owned());
    build.directories.insert("dockerfile".to_owned(), parent);
    Ok(None)
}

/// Offers a Dockerfile from memory.
fn offer_text(text: &[u8], build: &mut Build) -> Result<Made> {
    let made = make_directory()?;
    let directory = made.0.join("dockerfile");
    std::fs::create_dir(&directory)
        .and_then(|()| std::fs::write(directory.join("Dockerfile"), text))
        .map_err(|error| cannot_make(&directory, &error))?;
    build
        .attributes
        .insert("filename".to_owned(), "Dockerfile".to_owned());
    build.directories.insert("dockerfile".to_owned(), directory);
    Ok(made)
}

fn cannot_make(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot make {}: {}", path.display(), words(error)))
}

/// A directory that nobody else can enter.
fn make_directory() -> Result<Made> {
    let base = std::env::temp_dir();
    for attempt in 0..100 {
        let path = base.join(format!("vessel-build-{}-{attempt}", std::process::id()));
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(Made(path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(cannot_make(&path, &error)),
        }
    }
    Err(Failure::new(format!(
        "cannot make a directory in {}: all names are taken",
        base.display()
    )))
}

/// Whether bytes begin a tar, compressed or not, as Docker tells it.
fn is_archive(start: &[u8]) -> bool {
    const MAGIC: [&[u8]; 4] = [b"BZh", b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    MAGIC.iter().any(|magic| start.starts_with(magic)) || start.get(257..262) == Some(b"ustar")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_told_from_dockerfiles() {
        assert!(is_archive(b"\x1f\x8b\x08\0"));
        assert!(!is_archive(b"FROM x\n"));
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(is_archive(&tar));
    }

    #[test]
    fn addresses() {
        for (context, remote) in [
            ("https://h/x.git", true),
            ("git@h:x", true),
            ("github.com/a/b", true),
            (".", false),
            ("git", false),
        ] {
            assert_eq!(is_remote(context), remote, "{context}");
        }
    }

    #[test]
    fn a_dockerfile_from_elsewhere_has_its_directory_offered() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("My.Dockerfile");
        std::fs::write(&file, "FROM x").unwrap();
        let mut build = Build::default();
        let context = dir.path().to_str().unwrap().to_owned();
        Context::new(&context, Dockerfile::Path(&file))
            .unwrap()
            .offer(&mut build)
            .unwrap();
        assert_eq!(build.attributes["filename"], "My.Dockerfile");
        assert_eq!(build.directories["dockerfile"], dir.path());
        let missing = Context::new(&context, Dockerfile::Default)
            .unwrap()
            .offer(&mut build);
        assert!(missing.unwrap_err().message.unwrap().contains("Dockerfile"));
    }
}
