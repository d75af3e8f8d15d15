//! Tokens: JSON Web Tokens (RFC 7519) as the distribution project uses them ("Token Authentication Specification").
//!
//! Ours are signed with ES256. An issuer elsewhere may use ES256, RS256 or EdDSA; the key decides which, never the
//! token.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, EcdsaKeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use super::der;
use super::rules::Action;
use crate::error::{Code, Error, Result};
use crate::name::Repository;

/// Longer ones are no tokens.
const MAX_TOKEN: usize = 32 << 10;
/// By how much clocks may differ, in seconds.
const LEEWAY: i64 = 60;

/// What a token says.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
pub struct Claims {
    /// Who issued it.
    pub iss: String,
    /// Whom it is for: a user's name, or nothing.
    #[serde(default)]
    pub sub: String,
    /// The service it is for.
    pub aud: Audience,
    /// End of its validity, in seconds since 1970.
    pub exp: i64,
    /// Begin of its validity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    /// When it was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iat: Option<i64>,
    /// What it allows.
    #[serde(default)]
    pub access: Vec<Access>,
}

/// One service or several.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Audience {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

impl Audience {
    fn has(&self, service: &str) -> bool {
        match self {
            Self::One(one) => one == service,
            Self::Several(all) => all.iter().any(|one| one == service),
        }
    }
}

/// What a token allows.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Access {
    /// `repository` or `registry`
    #[serde(rename = "type")]
    pub kind: String,
    /// Of the repository, or `catalog`.
    pub name: String,
    /// `pull`, `push`, `delete`, `*`
    pub actions: Vec<String>,
}

impl Claims {
    /// Whether it allows this.
    pub fn allow(&self, repository: &Repository, action: Action) -> bool {
        self.access.iter().any(|access| {
            access.kind == "repository"
                && access.name == repository.as_str()
                && access
                    .actions
                    .iter()
                    .any(|name| name == action.name() || name == "*")
        })
    }

    /// Whether it allows to list all repositories.
    pub fn allow_catalog(&self) -> bool {
        self.access
            .iter()
            .any(|access| access.kind == "registry" && access.name == "catalog" && !access.actions.is_empty())
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(default)]
    typ: String,
    alg: String,
}

/// Signs our tokens.
pub struct Signer {
    pair: EcdsaKeyPair,
    random: ring::rand::SystemRandom,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    /// Reads the key in a file, or makes one.
    pub fn open(path: &Path) -> Result<Self> {
        let random = ring::rand::SystemRandom::new();
        let algorithm = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = match std::fs::read(path) {
            Ok(document) => document,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random)
                    .map_err(|_| Error::new(Code::Unknown, "the system has no random numbers"))?;
                write_secret(path, document.as_ref())
                    .map_err(|e| Error::io(format!("cannot write {}", path.display()), e))?;
                document.as_ref().to_vec()
            }
            Err(e) => return Err(Error::io(format!("cannot read {}", path.display()), e)),
        };
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, &document, &random).map_err(|e| {
            Error::new(
                Code::Unknown,
                format!(
                    "{} is not a key for tokens ({e}); remove it to get a new one",
                    path.display()
                ),
            )
        })?;
        Ok(Self { pair, random })
    }

    /// A token.
    pub fn sign(&self, claims: &Claims) -> Result<String> {
        let header = Header {
            typ: "JWT".into(),
            alg: "ES256".into(),
        };
        let part = |json: serde_json::Result<Vec<u8>>| {
            json.map(|json| URL_SAFE_NO_PAD.encode(json))
                .map_err(|e| Error::new(Code::Unknown, e.to_string()))
        };
        let mut token = part(serde_json::to_vec(&header))? + "." + &part(serde_json::to_vec(claims))?;
        let signature = self
            .pair
            .sign(&self.random, token.as_bytes())
            .map_err(|_| Error::new(Code::Unknown, "a token cannot be signed"))?;
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(token)
    }

    /// What verifies our own.
    pub fn verifier(&self) -> Verifier {
        Verifier {
            algorithm: &signature::ECDSA_P256_SHA256_FIXED,
            name: "ES256",
            key: self.pair.public_key().as_ref().to_vec(),
        }
    }
}

/// A file that only its owner may read, complete or not there.
fn write_secret(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_extension("new");
    let _ = std::fs::remove_file(&temporary);
    let mut file = std::fs::File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

/// Verifies tokens of one issuer.
pub struct Verifier {
    algorithm: &'static dyn signature::VerificationAlgorithm,
    name: &'static str,
    key: Vec<u8>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier")
            .field("algorithm", &self.name)
            .finish_non_exhaustive()
    }
}

impl Verifier {
    /// From a public key or a certificate (PEM).
    pub fn from_pem(text: &str) -> Result<Self, String> {
        let (key, bytes) = der::public_key(text)?;
        Ok(match key {
            der::Kind::P256 => Self {
                algorithm: &signature::ECDSA_P256_SHA256_FIXED,
                name: "ES256",
                key: bytes,
            },
            der::Kind::Rsa => Self {
                algorithm: &signature::RSA_PKCS1_2048_8192_SHA256,
                name: "RS256",
                key: bytes,
            },
            der::Kind::Ed25519 => Self {
                algorithm: &signature::ED25519,
                name: "EdDSA",
                key: bytes,
            },
        })
    }

    /// Verifies a token and its validity at some time.
    pub fn verify(&self, token: &str, issuer: &str, service: &str, now: i64) -> Result<Claims, &'static str> {
        if token.len() > MAX_TOKEN {
            return Err("it is too long");
        }
        let (signed, signature) = token.rsplit_once('.').ok_or("it is not a token")?;
        let (header, claims) = signed.split_once('.').ok_or("it is not a token")?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| "it is not a token");
        let signature = decode(signature)?;
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| "it is not a token")?;
        if header.alg != self.name {
            return Err("it is not signed as the issuer's key signs");
        }
        UnparsedPublicKey::new(self.algorithm, &self.key)
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| "its signature is wrong")?;
        let claims: Claims =
            serde_json::from_slice(&decode(claims)?).map_err(|_| "it does not say what a token must")?;
        if claims.iss != issuer {
            return Err("it is from another issuer");
        }
        if !claims.aud.has(service) {
            return Err("it is for another service");
        }
        if claims.exp.saturating_add(LEEWAY) < now {
            return Err("it has expired");
        }
        if claims.nbf.is_some_and(|nbf| nbf.saturating_sub(LEEWAY) > now) {
            return Err("it is not valid yet");
        }
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claims() -> Claims {
        Claims {
            iss: "i".into(),
            sub: "ann".into(),
            aud: Audience::One("s".into()),
            exp: 1000,
            nbf: Some(500),
            iat: None,
            access: vec![Access {
                kind: "repository".into(),
                name: "a/b".into(),
                actions: vec!["pull".into()],
            }],
        }
    }

    fn signer() -> (tempfile::TempDir, Signer) {
        let directory = tempfile::tempdir().unwrap();
        let signer = Signer::open(&directory.path().join("key")).unwrap();
        (directory, signer)
    }

    #[test]
    fn ours_are_verified_and_the_key_is_kept() {
        let (directory, signer) = signer();
        let token = signer.sign(&claims()).unwrap();
        let again = Signer::open(&directory.path().join("key")).unwrap();
        let verifier = again.verifier();
        assert_eq!(verifier.verify(&token, "i", "s", 800).unwrap(), claims());
        assert!(verifier.verify(&token, "x", "s", 800).is_err());
        assert!(verifier.verify(&token, "i", "x", 800).is_err());
        assert!(verifier.verify(&token, "i", "s", 1061).is_err());
        assert!(verifier.verify(&token, "i", "s", 439).is_err());
        let name = |name| Repository::parse(name).unwrap();
        assert!(claims().allow(&name("a/b"), Action::Pull));
        assert!(!claims().allow(&name("a/b"), Action::Push) && !claims().allow(&name("a"), Action::Pull));
    }

    #[test]
    fn forgeries_are_refused() {
        let (_directory, signer) = signer();
        let verifier = signer.verifier();
        let token = signer.sign(&claims()).unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let (_, body) = signed.split_once('.').unwrap();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let hs = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
        let mut other = claims();
        other.access[0].actions = vec!["*".into()];
        let other = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&other).unwrap());
        let header = token.split('.').next().unwrap();
        for forged in [
            format!("{none}.{body}."),
            format!("{none}.{body}.{signature}"),
            format!("{hs}.{body}.{signature}"),
            format!("{header}.{other}.{signature}"),
            format!("{signed}."),
            signed.to_owned(),
            String::new(),
            "a".repeat(100_000),
        ] {
            assert!(verifier.verify(&forged, "i", "s", 800).is_err());
        }
    }

    proptest! {
        #[test]
        fn never_panics(token in "[A-Za-z0-9_.-]{0,100}") {
            let (_directory, signer) = signer();
            prop_assert!(signer.verifier().verify(&token, "i", "s", 1).is_err());
        }
    }
}
