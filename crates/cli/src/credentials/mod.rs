//! Credentials for registries: what `login` stores and `pull`, `push` and `build` show.
//!
//! They are where Docker keeps them: `config.json` in `DOCKER_CONFIG` or `~/.docker`, or behind one of its credential
//! helpers. A registry's helper (`credHelpers`) goes before the general one (`credsStore`), which goes before the file.

mod config_file;
mod helper;

use vessel_image::Reference;
use vessel_image::registry::registry_key;

pub use config_file::{ConfigFile, directory};
pub use helper::Helper;

use crate::failure::Result;

/// What to show to the registry of an image: the value of `X-Registry-Auth`.
pub fn header_for(image: &str) -> Result<String> {
    let credentials = ConfigFile::load()?.credentials(&registry_of(image))?;
    Ok(credentials.unwrap_or_default().to_header())
}

/// The registry in an image's name, as credentials are kept under; empty for what is no name. It is read as the daemon reads
/// it, or one registry would be shown another's credentials.
pub fn registry_of(image: &str) -> String {
    Reference::parse(image).map_or_else(
        |_| String::new(),
        |reference| registry_key(reference.domain()).to_owned(),
    )
}

/// Base64 with padding, as `config.json` has it.
fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_the_one_that_is_asked() {
        for (image, registry) in [
            ("debian", "https://index.docker.io/v1/"),
            ("user/app:1", "https://index.docker.io/v1/"),
            ("docker.io/user/app", "https://index.docker.io/v1/"),
            ("localhost/app", "localhost"),
            ("localhost:5000/app", "localhost:5000"),
            ("registry.example/app", "registry.example"),
            ("BUILDHOST/app", "BUILDHOST"),
            ("no name", ""),
        ] {
            assert_eq!(registry_of(image), registry, "{image}");
        }
    }
}
