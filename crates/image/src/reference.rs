//! Image references: `[domain/]path[:tag][@digest]`.
//!
//! The grammar and the normalisation are those of the `distribution/reference` library that Docker uses:
//! a missing domain is `docker.io`, a single name there is below `library/`, a missing tag means `latest`
//! (only where a tag is needed: parsing keeps what was written). A string of 64 hexadecimal digits is an
//! image ID, not a name.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::{Error, Result, show};

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Domain, slash and path together.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A parsed, normalised reference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses what a person or a client wrote, and normalises it.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::invalid(format!(
                "invalid reference format: {}: {why}",
                show(text.as_bytes())
            ))
        };
        if text.is_empty() {
            return Err(bad("it is empty"));
        }
        if is_hex_id(text) {
            return Err(bad(
                "64 hexadecimal digits are an image ID, not a repository name",
            ));
        }
        let (named, digest) = match text.split_once('@') {
            None => (text, None),
            Some((named, digest)) => (
                named,
                Some(digest.parse::<Digest>().map_err(|e| bad(&e.to_string()))?),
            ),
        };
        let (domain, rest) = split_domain(named);
        let (path, tag) = match rest.split_once(':') {
            None => (rest, None),
            Some((path, tag)) => (path, Some(tag)),
        };
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad("a repository name must be lower case"));
        }
        if !valid_domain(domain) {
            return Err(bad(
                "the registry's name is not a host name with an optional port",
            ));
        }
        if !valid_path(path) {
            return Err(bad(
                "a repository name is made of lower-case letters and digits, separated by '/', '.', '_', '__' or '-'",
            ));
        }
        if let Some(tag) = tag
            && !valid_tag(tag)
        {
            return Err(bad(
                "a tag has at most 128 letters, digits, '_', '.' and '-', and does not begin with '.' or '-'",
            ));
        }
        let domain = if domain == LEGACY_DOMAIN {
            DEFAULT_DOMAIN
        } else {
            domain
        };
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("{OFFICIAL}{path}")
        } else {
            path.to_owned()
        };
        if domain.len() + 1 + path.len() > MAX_NAME {
            return Err(bad("the repository name is longer than 255 characters"));
        }
        Ok(Self {
            domain: domain.to_owned(),
            path,
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// The registry: `docker.io`, `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository's path at the registry: `library/debian`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if one was written (or set by [`Reference::with_default_tag`]).
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was written.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Domain and path: `docker.io/library/debian`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The repository as people write it: `debian`, `user/app`, `localhost:5000/app`.
    pub fn familiar_name(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.repository();
        }
        match self.path.strip_prefix(OFFICIAL) {
            // library/a/b would read back as user "a", library/e3b0… as an ID.
            Some(name) if !name.contains('/') && !is_hex_id(name) => name.to_owned(),
            _ if split_domain(&self.path) == (DEFAULT_DOMAIN, &self.path) => self.path.clone(),
            // docker.io/a.b/c would read back as c of the registry a.b.
            _ => self.repository(),
        }
    }

    /// The whole reference as people write it: `debian:12`.
    pub fn familiar(&self) -> String {
        let mut out = self.familiar_name();
        self.suffix(&mut out);
        out
    }

    /// With the tag `latest` if there is neither tag nor digest.
    pub fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// The same repository with this tag and no digest.
    pub fn with_tag(&self, tag: &str) -> Result<Self> {
        if !valid_tag(tag) {
            return Err(Error::invalid(format!(
                "invalid tag format: {}",
                show(tag.as_bytes())
            )));
        }
        Ok(Self {
            tag: Some(tag.to_owned()),
            digest: None,
            ..self.clone()
        })
    }

    /// The same repository with this digest and no tag.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    fn suffix(&self, out: &mut String) {
        if let Some(tag) = &self.tag {
            out.push(':');
            out.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            out.push('@');
            out.push_str(&digest.to_string());
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = self.repository();
        self.suffix(&mut out);
        f.write_str(&out)
    }
}

impl FromStr for Reference {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Reference {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> String {
        reference.to_string()
    }
}

/// Whether a text can be a prefix of an image ID: up to 64 lower-case hexadecimal digits, `sha256:` optional.
/// Gives the digits. A text may be both a prefix and a repository name (`cafe`): names go first.
pub fn image_id_prefix(text: &str) -> Option<&str> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let valid = (1..=64).contains(&hex.len()) && hex.bytes().all(is_lower_hex);
    valid.then_some(hex)
}

fn is_hex_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(is_lower_hex)
}

fn is_lower_hex(b: u8) -> bool {
    b.is_ascii_digit() || (b'a'..=b'f').contains(&b)
}

/// The first component is a domain only if it looks like one: it has a dot, a port or an upper-case
/// letter, or is `localhost`.
fn split_domain(named: &str) -> (&str, &str) {
    match named.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, named),
    }
}

fn valid_domain(domain: &str) -> bool {
    let (host, port) = if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        let valid = !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
        if !valid {
            return false;
        }
        match port {
            "" => return true,
            _ => match port.strip_prefix(':') {
                Some(port) => return valid_port(port),
                None => return false,
            },
        }
    } else {
        match domain.split_once(':') {
            None => (domain, None),
            Some((host, port)) => (host, Some(port)),
        }
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label) && port.is_none_or(valid_port)
}

fn valid_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

fn valid_path(path: &str) -> bool {
    path.split('/').all(valid_component)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn valid_component(component: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alnum(first) || !alnum(last) {
        return false;
    }
    bytes.split(|&b| alnum(b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-')
    })
}

/// Whether the specification's grammar has it as a tag.
pub(crate) fn valid_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=MAX_TAG).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_repository_that_looks_like_an_id_is_written_so_that_it_can_be_read() {
        let name = Reference::parse(&format!("docker.io/{HEX}:1")).unwrap();
        assert_eq!(name.familiar(), format!("library/{HEX}:1"));
        assert_eq!(Reference::parse(&name.familiar()).unwrap(), name);
    }

    #[test]
    fn normalises_as_docker_does() {
        for (text, canonical, familiar) in [
            ("debian", "docker.io/library/debian", "debian"),
            ("debian:12", "docker.io/library/debian:12", "debian:12"),
            ("user/app", "docker.io/user/app", "user/app"),
            ("docker.io/debian", "docker.io/library/debian", "debian"),
            (
                "index.docker.io/debian:1",
                "docker.io/library/debian:1",
                "debian:1",
            ),
            ("docker.io/library/debian", "docker.io/library/debian", "debian"),
            ("docker.io/a.b/c", "docker.io/a.b/c", "docker.io/a.b/c"),
            ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
            ("localhost/app", "localhost/app", "localhost/app"),
            (
                "localhost:5000/app:v1",
                "localhost:5000/app:v1",
                "localhost:5000/app:v1",
            ),
            ("Host/app", "Host/app", "Host/app"),
            ("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app"),
            (
                "ghcr.io/a/b__c-d.e:T_1.x-y",
                "ghcr.io/a/b__c-d.e:T_1.x-y",
                "ghcr.io/a/b__c-d.e:T_1.x-y",
            ),
            ("a--b", "docker.io/library/a--b", "a--b"),
            (
                "localhost:5000",
                "docker.io/library/localhost:5000",
                "localhost:5000",
            ),
        ] {
            let reference = Reference::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(reference.to_string(), canonical, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
        }
        let both = Reference::parse(&format!("debian:12@sha256:{HEX}")).unwrap();
        assert_eq!(both.tag(), Some("12"));
        assert_eq!(both.digest().unwrap().hex(), HEX);
    }

    #[test]
    fn refuses_what_docker_refuses() {
        let long = format!("docker.io/{}", "a".repeat(300));
        let long_tag = format!("a:{}", "t".repeat(129));
        for bad in [
            "",
            ":tag",
            "a:",
            "a@",
            "a@sha256:12",
            "UPPER",
            "a/Upper",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a_.b",
            "a//b",
            "/a",
            "a/",
            "a b",
            "a:b:c",
            "a:.t",
            "a:-t",
            HEX,
            "ex_ample.com/a",
            "-x.com/a",
            "x.com:/a",
            "x.com:8a/a",
            "[::1/a",
            "é",
            "a@md5:00",
            "a\n",
            "https://x.com/a",
            &long,
            &long_tag,
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn tags_and_ids() {
        assert_eq!(
            Reference::parse("a").unwrap().with_default_tag().familiar(),
            "a:latest"
        );
        assert!(Reference::parse("a").unwrap().with_tag(".x").is_err());
        assert_eq!(image_id_prefix("cafe"), Some("cafe"));
        assert_eq!(image_id_prefix(&format!("sha256:{HEX}")), Some(HEX));
        assert_eq!(image_id_prefix("sha256:"), None);
        assert_eq!(image_id_prefix("debian"), None);
    }

    proptest! {
        #[test]
        fn canonical_and_familiar_forms_read_back(text in "([a-zA-Z0-9.:\\-]{1,12}/)?[a-z0-9._/\\-]{1,20}(:[a-zA-Z0-9._\\-]{1,10})?") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(&Reference::parse(&reference.to_string()).unwrap(), &reference);
                prop_assert_eq!(&Reference::parse(&reference.familiar()).unwrap(), &reference);
            }
        }

        #[test]
        fn never_panics(text in "\\PC{0,300}") {
            let _ = Reference::parse(&text);
            let _ = image_id_prefix(&text);
        }
    }
}
