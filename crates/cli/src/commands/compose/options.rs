//! What all commands of a project have: its files, its name, its daemon, its progress.

use std::cell::OnceCell;
use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use vessel_client::Client;
use vessel_compose::act::Engine;
use vessel_compose::{Error, Options, Project};

use super::images::ImageSource;
use super::progress::Progress;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output;

/// Options before the command.
#[derive(Debug, clap::Args)]
pub struct ProjectOptions {
    /// When to colour: never, always or auto
    #[arg(long, value_name = "string", env = "COMPOSE_ANSI", default_value = "auto")]
    ansi: String,
    /// Environment file, instead of .env; several are read one after the other
    #[arg(long, value_name = "stringArray")]
    env_file: Vec<PathBuf>,
    /// Compose file, - for standard input; several are merged
    #[arg(short, long, value_name = "stringArray")]
    file: Vec<PathBuf>,
    /// Profile to activate, * for all
    #[arg(long, value_name = "stringArray")]
    profile: Vec<String>,
    /// How progress is shown: auto, tty, plain, json or quiet
    #[arg(long, value_name = "string", env = "COMPOSE_PROGRESS", default_value = "auto")]
    progress: String,
    /// Directory of the project, instead of that of the first file
    #[arg(long, value_name = "string")]
    project_directory: Option<PathBuf>,
    /// Name of the project
    #[arg(short, long, value_name = "string")]
    project_name: Option<String>,
}

/// What a command works with.
pub struct Session<'a> {
    /// The daemon.
    pub context: &'a Context,
    options: ProjectOptions,
    progress: Progress,
    images: OnceCell<ImageSource<'a>>,
    /// Set when the user gives up.
    pub interrupted: AtomicBool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Interrupted => Self::silent(130),
            Error::Engine {
                source: source @ vessel_client::Error::Connect { .. },
                ..
            } => source.into(),
            Error::Engine {
                source: vessel_client::Error::Build(failure),
                ..
            } => Self::new(format!("failed to solve: {}", failure.message)),
            error => Self::new(error),
        }
    }
}

impl<'a> Session<'a> {
    /// With the options before the command.
    pub fn new(context: &'a Context, options: ProjectOptions) -> Result<Self> {
        let progress = Progress::new(&options.progress, &options.ansi)?;
        Ok(Self {
            context,
            options,
            progress,
            images: OnceCell::new(),
            interrupted: AtomicBool::new(false),
        })
    }

    /// The daemon's client.
    pub fn client(&self) -> Result<&'a Client> {
        self.context.client()
    }

    /// Who shows progress.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Whether lines of containers are coloured.
    pub fn colour(&self) -> bool {
        match self.options.ansi.as_str() {
            "never" => false,
            "always" => true,
            _ => {
                let plain = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
                crate::terminal::stdout_is_terminal() && !plain("NO_COLOR")
            }
        }
    }

    /// What to load, as the command line says.
    pub fn load_options(&self) -> Result<Options> {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let stdin = self.options.file.iter().any(|file| file.as_os_str() == "-");
        let stdin = if stdin {
            let mut text = String::new();
            std::io::stdin()
                .take(vessel_compose::yaml::MAX_TEXT + 1)
                .read_to_string(&mut text)?;
            Some(text)
        } else {
            None
        };
        Ok(Options {
            files: self.options.file.clone(),
            current_directory: std::env::current_dir()?,
            project_directory: self.options.project_directory.clone(),
            name: self.options.project_name.clone(),
            profiles: self.options.profile.clone(),
            env_files: self.options.env_file.clone(),
            environment,
            stdin,
            ..Options::default()
        })
    }

    /// The project of the files, with named services active.
    pub fn project(&self, services: &[String]) -> Result<Project> {
        let mut options = self.load_options()?;
        options.services = services.to_vec();
        let project = vessel_compose::load(&options)?;
        for warning in &project.warnings {
            output::warn(&format!("vessel: warning: {warning}"));
        }
        Ok(project)
    }

    /// The project of the files, of all profiles, for looking at what there is; without files what the containers of
    /// the named project tell of it.
    pub fn known_project(&self, services: &[String]) -> Result<Project> {
        let mut options = self.load_options()?;
        // What runs is meant, whatever profile it was started with.
        options.profiles = vec!["*".to_owned()];
        self.existing(options, services)
    }

    /// The same for acting on what there is: of the user's profiles, with named services active.
    pub fn acting_project(&self, services: &[String]) -> Result<Project> {
        let mut options = self.load_options()?;
        options.services = services.to_vec();
        self.existing(options, services)
    }

    fn existing(&self, mut options: Options, services: &[String]) -> Result<Project> {
        options.no_consistency = true;
        options.no_env_resolution = true;
        let of_containers = |name: &str| -> Result<Project> {
            let project = vessel_compose::act::state::project_of_containers(self.client()?, name)?;
            for service in services {
                project.service(service)?;
            }
            Ok(project)
        };
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        // A name without files means that project, not the one whose files happen to be here.
        if let Some(name) = options.name.as_ref().filter(|name| !name.is_empty())
            && options.files.is_empty()
            && variable("COMPOSE_FILE").is_none()
        {
            return of_containers(name);
        }
        let said = options.name.clone().filter(|name| !name.is_empty());
        let project = match (
            vessel_compose::load(&options),
            said.or_else(|| variable("COMPOSE_PROJECT_NAME")),
        ) {
            (Err(Error::NoFile(_)), Some(name)) => return of_containers(&name),
            (loaded, _) => loaded?,
        };
        for service in services {
            project.service(service)?;
        }
        Ok(project)
    }

    /// How images are built.
    pub fn images(&self) -> Result<&ImageSource<'a>> {
        let client = self.client()?;
        Ok(self
            .images
            .get_or_init(|| ImageSource::new(client, &self.options.progress)))
    }

    /// What acts for a project.
    pub fn engine<'s>(&'s self, project: &'s Project) -> Result<Engine<'s>> {
        Ok(Engine {
            client: self.client()?,
            project,
            observer: &self.progress,
            images: self.images()?,
            interrupted: &self.interrupted,
        })
    }
}
