//! From what a user has to what the store keeps.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::Context;
use crate::image::{self, Format};
use crate::modules::{EARLY, Module, Modules, NEEDED, WANTED};
use crate::{Error, ErrorKind, Result, package, unpack};

/// The largest kernel that is taken: the largest there is has a quarter of it.
const MAX_KERNEL: u64 = 256 << 20;

/// Takes the ELF kernel out of a bzImage, if it can; it boots faster.
pub type Unpack<'a> = &'a dyn Fn(&[u8]) -> Option<Vec<u8>>;

/// What is imported.
#[derive(Debug, Clone)]
pub struct Import<'a> {
    /// A kernel's file, a Debian package, or a directory that has `boot` and `lib/modules` (of an unpacked package, say).
    pub source: &'a Path,
    /// What the store says it came from; none: the source's path.
    pub described: Option<&'a str>,
    /// A directory of modules; none: `/lib/modules/RELEASE` beside a kernel in a `boot` directory, else none.
    pub modules: Option<&'a Path>,
    /// The name it gets; none: its release.
    pub name: Option<&'a str>,
    /// Whether it takes the place of one of that name.
    pub replace: bool,
}

/// A kernel, read and checked.
#[derive(Debug)]
pub struct Imported {
    pub release: String,
    pub format: Format,
    pub kernel: Vec<u8>,
    pub modules: Vec<Module>,
    /// How many of them come before the guest serves.
    pub early: usize,
    /// What a container needs and this kernel seems not to have.
    pub missing: Vec<String>,
}

/// Reads what is to be imported. A package is unpacked into `scratch`.
pub fn read(import: &Import<'_>, scratch: &Path, unpack_kernel: Unpack<'_>) -> Result<Imported> {
    let source = import.source;
    let named = |error: Error| error.wrap(source.display());
    let (kernel, beside) = locate(source, scratch).map_err(named)?;
    let file = File::open(&kernel).context(|| format!("open {}", kernel.display()))?;
    let kernel = unpack::whole(BufReader::new(file), MAX_KERNEL).map_err(named)?;
    let (mut format, release) = image::inspect(&kernel).map_err(named)?;
    let mut content = kernel;
    if format == Format::BzImage
        && let Some(unpacked) = unpack_kernel(&content)
    {
        format = Format::Elf;
        content = unpacked;
    }
    let modules = match (import.modules, beside) {
        (Some(directory), _) => Modules::find(directory)?,
        (None, Some(Beside::Flat(directory))) => Modules::find(&directory)?,
        (None, Some(Beside::Tree(root))) => {
            let places = ["lib/modules", "usr/lib/modules"].map(|place| root.join(place).join(&release));
            match places.iter().find(|place| place.is_dir()) {
                Some(place) => Modules::find(place)?,
                None => Modules::default(),
            }
        }
        (None, None) => Modules::default(),
    };
    let missing = match modules.is_empty() {
        // A kernel without modules has built in what it has; there is nothing to look at.
        true => Vec::new(),
        false => NEEDED
            .iter()
            .filter(|name| !modules.has(name))
            .map(|name| (*name).to_owned())
            .collect(),
    };
    let (first, _) = WANTED.split_at(EARLY);
    Ok(Imported {
        early: modules.in_order(first, &release)?.len(),
        modules: modules.in_order(&WANTED, &release)?,
        release,
        format,
        kernel: content,
        missing,
    })
}

/// Where a kernel's modules may be.
enum Beside {
    /// All in this directory.
    Flat(PathBuf),
    /// In `lib/modules/RELEASE` below this directory.
    Tree(PathBuf),
}

/// The kernel's file, and where its modules may be.
fn locate(source: &Path, scratch: &Path) -> Result<(PathBuf, Option<Beside>)> {
    if fs::metadata(source).context(|| "look at it".into())?.is_dir() {
        return Ok((
            only_kernel(&source.join("boot"))?,
            Some(Beside::Tree(source.to_owned())),
        ));
    }
    let file = File::open(source).context(|| "open it".into())?;
    let mut start = Vec::new();
    (&file)
        .take(8)
        .read_to_end(&mut start)
        .context(|| "read it".into())?;
    if package::is_package(&start) {
        let file = File::open(source).context(|| "open it".into())?;
        package::extract(&file, scratch)?;
        return Ok((only_kernel(scratch)?, Some(Beside::Flat(scratch.to_owned()))));
    }
    let absolute = fs::canonicalize(source).context(|| "look at it".into())?;
    let root = absolute
        .parent()
        .filter(|parent| parent.file_name().is_some_and(|name| name == "boot"))
        .and_then(Path::parent);
    Ok((source.to_owned(), root.map(|root| Beside::Tree(root.to_owned()))))
}

/// The one `vmlinuz-*` in a directory.
fn only_kernel(directory: &Path) -> Result<PathBuf> {
    let read = || format!("read {}", directory.display());
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(directory).context(read)? {
        let entry = entry.context(read)?;
        if entry.file_name().as_encoded_bytes().starts_with(b"vmlinuz-") {
            found.push(entry.path());
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Error::new(
            ErrorKind::NotFound,
            "there is no kernel (vmlinuz-*) in it",
        )),
        count => Err(Error::invalid(format!(
            "there are {count} kernels in {}: name one of the files",
            directory.display()
        ))),
    }
}
