//! `vessel kernel`: the kernels of virtual machines on this host.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vessel_kernel::{Import, Kernel, Store, recipe};

use crate::app::Run;
use crate::context::{Context, Places};
use crate::failure::{Failure, Result, words};
use crate::output;
use crate::output::format::{Headers, Row, render};
use crate::output::units::{ago, human_size};

/// Where the kernels are.
#[derive(Debug, clap::Args)]
struct StoreOption {
    /// The daemon's directory, when it is not the usual one
    #[arg(long, value_name = "dir")]
    root: Option<PathBuf>,
}

impl StoreOption {
    /// The directory of kernels. They are files of the daemon's host, put there without asking the daemon.
    fn directory(self, context: &Context) -> Result<PathBuf> {
        if !context.is_here()? {
            return Err(Failure::new(
                "kernels are files of the daemon's host, and the chosen daemon is on another: run this command there",
            ));
        }
        let root = self.root.unwrap_or_else(|| Places::from_environment().root);
        Ok(root.join("kernels"))
    }
}

/// List kernels
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// table, json, or a Go template
    #[arg(
        long,
        value_name = "string",
        default_value = "table",
        hide_default_value = true
    )]
    format: String,
    /// Only names
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    store: StoreOption,
}

const HEADERS: &Headers = &[
    ("Name", "NAME"),
    ("Release", "RELEASE"),
    ("Default", "DEFAULT"),
    ("Modules", "MODULES"),
    ("Size", "SIZE"),
    ("Imported", "IMPORTED"),
    ("Source", "SOURCE"),
    ("Missing", "MISSING"),
];
const TABLE: &str =
    "{{.Name}}\t{{.Release}}\t{{.Default}}\t{{.Modules}}\t{{.Size}}\t{{.Imported}}\t{{.Source}}";

impl Run for ListArgs {
    fn run(self, context: &Context) -> Result {
        let store = Store::new(self.store.directory(context)?);
        let default = store
            .default_kernel()
            .map(|kernel| kernel.name)
            .unwrap_or_default();
        let rows = store
            .list()
            .map_err(Failure::new)?
            .iter()
            .map(|kernel| row(kernel, kernel.name == default))
            .collect();
        let format = match self.quiet {
            true => "{{.Name}}",
            false => &self.format,
        };
        output::print(&render(format, TABLE, HEADERS, rows)?)?;
        Ok(())
    }
}

fn row(kernel: &Kernel, default: bool) -> Row {
    Row::default()
        .text("Name", &kernel.name)
        .text("Release", &kernel.release)
        .text("Default", if default { "yes" } else { "" })
        .text("Modules", kernel.modules.len().to_string())
        .text("Size", human_size(kernel.size as f64))
        .text(
            "Imported",
            ago(i64::try_from(kernel.imported).unwrap_or_default()),
        )
        .text("Source", &kernel.source)
        .text("Missing", kernel.missing.join(", "))
}

/// Import a kernel: a file like /boot/vmlinuz-RELEASE, a Debian package of one, or an unpacked package
///
/// Modules are taken from lib/modules/RELEASE beside the directory `boot` the kernel is in, or out of the package: those a
/// guest needs, with what they depend on. The first kernel becomes the default.
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// Its name here; without, its release
    #[arg(long, value_name = "string")]
    name: Option<String>,
    /// Directory of its modules
    #[arg(long, value_name = "dir")]
    modules: Option<PathBuf>,
    /// Replace one of this name
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    store: StoreOption,
    /// File or directory
    #[arg(value_name = "PATH")]
    source: PathBuf,
}

impl Run for ImportArgs {
    fn run(self, context: &Context) -> Result {
        let store = Store::new(self.store.directory(context)?);
        import(
            &store,
            &Import {
                source: &self.source,
                described: None,
                modules: self.modules.as_deref(),
                name: self.name.as_deref(),
                replace: self.force,
            },
        )
    }
}

/// Imports, prints the name, and says what will not work.
fn import(store: &Store, import: &Import<'_>) -> Result {
    let unpack = |image: &[u8]| {
        vessel_vmm::boot::extract_vmlinux(image)
            .ok()
            .map(std::borrow::Cow::into_owned)
    };
    let kernel = store.import(import, &unpack).map_err(Failure::new)?;
    if !kernel.missing.is_empty() {
        output::warn(&format!(
            "vessel: this kernel has neither built in nor as modules what containers need: {}",
            kernel.missing.join(", ")
        ));
    }
    output::print_line(&kernel.name)?;
    Ok(())
}

/// Build the small kernel from Debian's linux-source package, and import it
///
/// It boots in a tenth of the instructions of a distribution's. About ten minutes on two cores, 1.5 GB of space meanwhile, and
/// gcc, make, flex, bison, bc, perl, xz and libelf's headers; a kernel that was built from the same source is not built again.
#[derive(Debug, clap::Args)]
pub struct BuildArgs {
    /// Its name here; without, its release
    #[arg(long, value_name = "string")]
    name: Option<String>,
    /// Build it again, and replace one of this name
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    store: StoreOption,
    /// /usr/src/linux-source-6.12.tar.xz of the package linux-source-6.12
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
}

impl Run for BuildArgs {
    fn run(self, context: &Context) -> Result {
        let directory = self.store.directory(context)?;
        let store = Store::new(&directory);
        let cannot = |error: io::Error| {
            Failure::new(format!(
                "cannot read {}: {}",
                self.source.display(),
                words(&error)
            ))
        };
        let file = File::open(&self.source).map_err(cannot)?;
        let source = fs::canonicalize(&self.source).map_err(cannot)?;
        let key = recipe::key(&file).map_err(Failure::new)?;
        let name = source.file_name().unwrap_or_default().display();
        let described = format!("built from {name}, recipe {}", key.get(..12).unwrap_or(&key));
        let kernels = store.list().map_err(Failure::new)?;
        if let Some(kernel) = kernels.iter().find(|kernel| kernel.source == described)
            && !self.force
        {
            output::print_line(&kernel.name)?;
            return Ok(());
        }
        let made = Workshop::make(&directory).map_err(|error| {
            Failure::new(format!(
                "cannot build below {}: {}",
                directory.display(),
                words(&error)
            ))
        })?;
        made.build(&source)?;
        let kernel = made.path.join("out/vmlinux");
        import(
            &store,
            &Import {
                source: &kernel,
                described: Some(&described),
                modules: None,
                name: self.name.as_deref(),
                replace: self.force,
            },
        )
    }
}

/// A directory to build in, which goes when it is done.
struct Workshop {
    path: PathBuf,
}

impl Workshop {
    fn make(directory: &Path) -> io::Result<Self> {
        let made = Self {
            path: directory.join(format!(".build-{}", std::process::id())),
        };
        fs::create_dir_all(&made.path)?;
        fs::set_permissions(&made.path, fs::Permissions::from_mode(0o700))?;
        fs::write(made.path.join("build"), recipe::SCRIPT)?;
        fs::write(made.path.join("guest.config"), recipe::FRAGMENT)?;
        Ok(made)
    }

    /// Runs the script. Compiling takes compilers: beside Git for sources of builds, this is all that Vessel executes.
    fn build(&self, source: &Path) -> Result {
        let cannot = |error: io::Error| {
            Failure::new(format!("cannot start sh to build the kernel: {}", words(&error)))
        };
        // Standard output is for the name of what was built.
        let output = rustix::io::dup(rustix::stdio::stderr()).map_err(|errno| cannot(errno.into()))?;
        let status = Command::new("sh")
            .arg(self.path.join("build"))
            .arg(source)
            .arg(self.path.join("out"))
            .stdin(Stdio::null())
            .stdout(output)
            .status()
            .map_err(cannot)?;
        match status.success() {
            true => Ok(()),
            false => Err(Failure::new(
                "the kernel was not built; what the compiler or the script said is above, `vessel kernel build --help` names \
                 the packages it takes",
            )),
        }
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Show the kernel that is used when none is named, or choose it
#[derive(Debug, clap::Args)]
pub struct DefaultArgs {
    #[command(flatten)]
    store: StoreOption,
    /// The kernel that becomes it
    #[arg(value_name = "KERNEL")]
    name: Option<String>,
}

impl Run for DefaultArgs {
    fn run(self, context: &Context) -> Result {
        let store = Store::new(self.store.directory(context)?);
        if let Some(name) = &self.name {
            store.set_default(name).map_err(Failure::new)?;
        }
        output::print_line(&store.default_kernel().map_err(Failure::new)?.name)?;
        Ok(())
    }
}

/// Remove kernels; machines that run them go on
#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    store: StoreOption,
    /// Kernels
    #[arg(value_name = "KERNEL", required = true)]
    names: Vec<String>,
}

impl Run for RemoveArgs {
    fn run(self, context: &Context) -> Result {
        let store = Store::new(self.store.directory(context)?);
        let mut failed = false;
        for name in &self.names {
            match store.remove(name) {
                Ok(()) => output::print_line(name)?,
                Err(error) => {
                    output::warn(&format!("vessel: {error}"));
                    failed = true;
                }
            }
        }
        match failed {
            false => Ok(()),
            true => Err(Failure::silent(1)),
        }
    }
}
