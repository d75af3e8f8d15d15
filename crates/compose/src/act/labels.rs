//! Labels by which what belongs to a project is known. They are Docker Compose's.

use vessel_client::Filters;

/// The project.
pub const PROJECT: &str = "com.docker.compose.project";
/// The service of a container.
pub const SERVICE: &str = "com.docker.compose.service";
/// Which of the service's containers it is, from 1.
pub const NUMBER: &str = "com.docker.compose.container-number";
/// `True` for containers of `run`, else `False`.
pub const ONE_OFF: &str = "com.docker.compose.oneoff";
/// What the container was made of.
pub const CONFIG_HASH: &str = "com.docker.compose.config-hash";
/// What the service depends on: `db:service_healthy:false,…`.
pub const DEPENDS_ON: &str = "com.docker.compose.depends_on";
/// The project's files, with commas between.
pub const CONFIG_FILES: &str = "com.docker.compose.project.config_files";
/// The project's directory.
pub const WORKING_DIR: &str = "com.docker.compose.project.working_dir";
/// The project's environment files.
pub const ENVIRONMENT_FILE: &str = "com.docker.compose.project.environment_file";
/// The ID of the image the container was made of.
pub const IMAGE: &str = "com.docker.compose.image";
/// The container that this one takes the place of.
pub const REPLACE: &str = "com.docker.compose.replace";
/// What a container of `run` is called.
pub const SLUG: &str = "com.docker.compose.slug";
/// The name a network has in the files.
pub const NETWORK: &str = "com.docker.compose.network";
/// The name a volume has in the files.
pub const VOLUME: &str = "com.docker.compose.volume";
/// The version of what made it.
pub const VERSION: &str = "com.docker.compose.version";

/// The version that is written down.
pub const OUR_VERSION: &str = env!("CARGO_PKG_VERSION");

/// A filter for what belongs to a project.
pub fn of_project(name: &str) -> Filters {
    let mut filters = Filters::new();
    filters.add("label", format!("{PROJECT}={name}"));
    filters
}
