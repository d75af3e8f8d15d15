//! Names of repositories and tags, by the grammar of the distribution specification ("Pulling manifests").

use std::fmt;

use vessel_image::Digest;

use crate::error::{Code, Error, Result};

/// The specification leaves the limit to the implementation and says that many clients limit name and host together
/// to 255. This is also the longest name of a file.
pub const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// The name of a repository: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository(Box<str>);

impl Repository {
    /// Checks a name.
    pub fn parse(name: &str) -> Result<Self> {
        let valid = name.len() <= MAX_NAME && name.split('/').all(valid_component);
        if !valid {
            return Err(Error::new(
                Code::NameInvalid,
                format!(
                    "{} is not a repository name: lower-case letters and digits, separated by '.', '_', '__', '-' or '/', at most {MAX_NAME} of them",
                    show(name)
                ),
            ));
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As one component of a path: `+` is no letter of a name.
    pub fn to_file_name(&self) -> String {
        self.0.replace('/', "+")
    }

    /// The name behind a component of a path.
    pub fn from_file_name(name: &str) -> Option<Self> {
        if name.contains('/') {
            return None;
        }
        Self::parse(&name.replace('+', "/")).ok()
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn valid_component(component: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    alnum(first)
        && alnum(last)
        && bytes.split(|&b| alnum(b)).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-')
        })
}

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(Box<str>);

impl Tag {
    /// Checks a tag.
    pub fn parse(tag: &str) -> Result<Self> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let valid = (1..=MAX_TAG).contains(&tag.len())
            && tag.bytes().next().is_some_and(word)
            && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
        if !valid {
            return Err(Error::new(
                Code::TagInvalid,
                format!(
                    "{} is not a tag: letters, digits, '_', '.' and '-', beginning with none of the last two, at most {MAX_TAG}",
                    show(tag)
                ),
            ));
        }
        Ok(Self(tag.into()))
    }

    /// The tag.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What names a manifest within a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestName {
    /// Whatever the tag points to.
    Tag(Tag),
    /// Exactly this one.
    Digest(Digest),
}

impl ManifestName {
    /// A tag has no colon, a digest has one.
    pub fn parse(text: &str) -> Result<Self> {
        if text.contains(':') {
            digest(text).map(Self::Digest)
        } else {
            Tag::parse(text).map(Self::Tag)
        }
    }
}

impl fmt::Display for ManifestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// Checks a digest.
pub fn digest(text: &str) -> Result<Digest> {
    text.parse()
        .map_err(|error: vessel_image::Error| Error::new(Code::DigestInvalid, error.to_string()))
}

/// Shows what a client sent: quoted, escaped, cut.
pub fn show(text: &str) -> String {
    const MAX: usize = 100;
    let mut out: String = text.chars().take(MAX).collect();
    if out.len() < text.len() {
        out.push('…');
    }
    format!("{out:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_follow_the_specification() {
        let long = "a".repeat(255);
        for good in ["a", "library/debian", "a.b/c_d/e__f/g---h", "0", &long] {
            let name = Repository::parse(good).unwrap();
            assert_eq!(Repository::from_file_name(&name.to_file_name()).unwrap(), name);
        }
        let long = "a".repeat(256);
        for bad in [
            "", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "-a", "a-", ".", "..", "a/../b", "_blobs",
            "a+b", "a b", "é", "a:b", "a@b", "a\n", &long,
        ] {
            assert!(Repository::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn tags_and_digests_are_told_apart() {
        assert!(matches!(ManifestName::parse("latest"), Ok(ManifestName::Tag(_))));
        assert!(matches!(ManifestName::parse("_v1.0-x"), Ok(ManifestName::Tag(_))));
        let digest = format!("sha256:{}", "a".repeat(64));
        assert!(matches!(
            ManifestName::parse(&digest),
            Ok(ManifestName::Digest(_))
        ));
        for bad in [
            "",
            ".x",
            "-x",
            "a/b",
            "a b",
            "sha256:1",
            "md5:00",
            &"t".repeat(129),
        ] {
            assert!(ManifestName::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn file_names_are_one_to_one(a in "[a-z0-9._+/-]{0,12}", b in "[a-z0-9._+/-]{0,12}") {
            if let (Ok(a), Ok(b)) = (Repository::parse(&a), Repository::parse(&b)) {
                prop_assert_eq!(a == b, a.to_file_name() == b.to_file_name());
                prop_assert!(!a.to_file_name().contains('/') && !a.to_file_name().starts_with('.'));
            }
        }
    }
}
