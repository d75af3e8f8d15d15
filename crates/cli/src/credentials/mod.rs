//! Credentials for registries: what `login` stores and `pull`, `push` and `build` show.
//!
//! They are where Docker keeps them: `config.json` in `DOCKER_CONFIG` or `~/.docker`, or behind one of its credential
//! helpers. A registry's helper (`credHelpers`) goes before the general one (`credsStore`), which goes before the file.

mod config_file;
mod helper;

use vessel_image::registry::{DOCKER_HUB_KEY, registry_key};

pub use config_file::ConfigFile;
pub use helper::Helper;

use crate::failure::Result;

/// What to show to the registry of an image: the value of `X-Registry-Auth`.
pub fn header_for(image: &str) -> Result<String> {
    let credentials = ConfigFile::load()?.credentials(registry_of(image))?;
    Ok(credentials.unwrap_or_default().to_header())
}

/// The registry in an image's name.
pub fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => registry_key(first),
        _ => DOCKER_HUB_KEY,
    }
}

/// Base64 with padding, as `config.json` has it.
fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
