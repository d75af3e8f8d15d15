//! Signatures that images of some repositories must have, as cosign makes them with a key pair.
//!
//! A signature is a small document that names the image's digest, signed with ECDSA over P-256. It is found by cosign's
//! tag (`sha256-HEX.sig` in the same repository) or as a referrer of the manifest. A signature of a list of manifests
//! covers what is in the list. Keyless signatures (certificates, transparency logs, bundles) are not understood and count
//! as none.

use base64::Engine as _;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;

use super::pull::Resolved;
use super::repository::{RawManifest, Repository};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Descriptor, Document};
use crate::reference::Reference;

/// The type of a signed document.
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation with its signature.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// What referrers with signatures are.
const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// Signatures of one image that are looked at.
const MAX_SIGNATURES: usize = 64;
/// Referrers that are looked at.
const MAX_REFERRERS: usize = 16;
/// The largest signed document.
const MAX_PAYLOAD: u64 = 64 << 10;
/// What a P-256 key begins with in DER (RFC 5480): the rest is the point.
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Which signatures are required. None by default.
#[derive(Debug, Clone, Default)]
pub struct TrustPolicy {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    prefix: String,
    /// Whether it was given with port 80.
    port_80: bool,
    /// Points on P-256; one of their owners must have signed.
    keys: Vec<Vec<u8>>,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Signed,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Signed {
    #[serde(rename = "docker-manifest-digest")]
    digest: Digest,
}

impl TrustPolicy {
    /// Requires that images of repositories below `prefix` (`docker.io/library`, `registry.example:5000`, or `*` for all)
    /// are signed by the owner of a public key in PEM form. Of several prefixes the longest counts; several keys with the
    /// same prefix are alternatives.
    ///
    /// # Errors
    /// What is no public key, or none of P-256.
    pub fn require(&mut self, prefix: &str, pem: &[u8]) -> Result<()> {
        let bad = |why: &str| Error::invalid(format!("the key for {prefix} cannot be used: {why}"));
        let key = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| {
            bad("it is not a public key in PEM form, as `cosign generate-key-pair` writes it")
        })?;
        let point = key
            .as_ref()
            .strip_prefix(&P256)
            .filter(|point| point.len() == 65 && point.first() == Some(&4))
            .ok_or_else(|| bad("only ECDSA keys of P-256 are supported"))?;
        let given = prefix.trim_end_matches('/');
        let (host, path) = given
            .split_once('/')
            .map_or((given, None), |(host, path)| (host, Some(path)));
        let below = match path {
            _ if given == "*" => String::new(),
            Some(path) => format!("{}/{path}", host_of(host)),
            None => host_of(host),
        };
        let port_80 = port_of(host) == Some(80);
        match self.rules.iter_mut().find(|rule| rule.prefix == below) {
            // They may be two registries, of which neither's key is to count for the other.
            Some(rule) if rule.port_80 != port_80 => {
                return Err(bad(
                    "there is one for the same name with port 80 or without it, and both stand for one registry here; name it the same way for both keys",
                ));
            }
            Some(rule) => rule.keys.push(point.to_vec()),
            None => self.rules.push(Rule {
                prefix: below,
                port_80,
                keys: vec![point.to_vec()],
            }),
        }
        Ok(())
    }

    fn rule(&self, reference: &Reference) -> Option<&Rule> {
        let repository = format!("{}/{}", host_of(reference.domain()), reference.path());
        let below = |prefix: &str| match repository.strip_prefix(prefix) {
            Some(rest) => prefix.is_empty() || rest.is_empty() || rest.starts_with('/'),
            None => false,
        };
        self.rules
            .iter()
            .filter(|rule| below(&rule.prefix))
            .max_by_key(|rule| rule.prefix.len())
    }

    /// Refuses an image that has not the signature it must have.
    pub async fn check(&self, reference: &Reference, resolved: &Resolved) -> Result<()> {
        let Some(rule) = self.rule(reference) else {
            return Ok(());
        };
        let mut found = 0;
        for document in &resolved.documents {
            if rule
                .signed(&resolved.repository, &document.digest, &mut found)
                .await?
            {
                return Ok(());
            }
        }
        let why = match found {
            0 => "it has no signature".to_owned(),
            count => format!("none of its {count} signatures is of a key that is trusted for it"),
        };
        Err(Error::new(
            ErrorKind::Permission,
            format!(
                "{} is refused: images of {} must be signed, and {why}",
                reference.familiar(),
                if rule.prefix.is_empty() {
                    "all registries"
                } else {
                    &rule.prefix
                }
            ),
        ))
    }
}

/// A registry by one of its spellings: `Registry.example:443` is reached like `registry.example`, and what may be spoken
/// to in clear without a port at 80. Names that do not resolve alike are different registries.
fn host_of(domain: &str) -> String {
    let url = reqwest::Url::parse(&format!("https://{domain}/")).ok();
    let Some((host, port)) = url.as_ref().and_then(|url| Some((url.host_str()?, url.port()))) else {
        return domain.to_ascii_lowercase();
    };
    let host = host.trim_end_matches('.');
    match (host, port) {
        ("docker.io" | "index.docker.io" | "registry-1.docker.io", None) => "docker.io".to_owned(),
        (host, None | Some(80)) => host.to_owned(),
        (host, Some(port)) => format!("{host}:{port}"),
    }
}

/// The port that is written in `host:port`, unless it is that of HTTPS.
fn port_of(domain: &str) -> Option<u16> {
    reqwest::Url::parse(&format!("https://{domain}/")).ok()?.port()
}

impl Rule {
    async fn signed(&self, repository: &Repository, digest: &Digest, found: &mut usize) -> Result<bool> {
        let tag = format!("{}-{}.sig", digest.algorithm().name(), digest.hex());
        match repository.manifest(&tag).await {
            Ok(signatures) => {
                if self.any(repository, &signatures, digest, found).await? {
                    return Ok(true);
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        for referrer in repository
            .referrers(digest, Some(ARTIFACT))
            .await?
            .iter()
            .take(MAX_REFERRERS)
        {
            let signatures = repository.manifest(&referrer.digest.to_string()).await?;
            if self.any(repository, &signatures, digest, found).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn any(
        &self,
        repository: &Repository,
        signatures: &RawManifest,
        digest: &Digest,
        found: &mut usize,
    ) -> Result<bool> {
        let Document::Manifest(manifest) = signatures.document()? else {
            return Ok(false);
        };
        let payloads = manifest.layers.iter().filter(|layer| layer.media_type == PAYLOAD);
        for layer in payloads.take(MAX_SIGNATURES) {
            *found += 1;
            if layer.size > MAX_PAYLOAD {
                continue;
            }
            let payload = repository.document(layer).await?;
            if self.verifies(layer, &payload, digest) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a document says that this digest is signed, and a trusted key signed the document.
    fn verifies(&self, layer: &Descriptor, payload: &[u8], digest: &Digest) -> bool {
        let signature = layer
            .annotation(SIGNATURE)
            .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text.trim()).ok());
        let Some(signature) = signature else { return false };
        let by_key = self.keys.iter().any(|key| {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key)
                .verify(payload, &signature)
                .is_ok()
        });
        // Only what is authentic is looked at.
        by_key
            && serde_json::from_slice::<Payload>(payload).is_ok_and(|payload| {
                payload.critical.image.digest == *digest
                    && payload.critical.kind == "cosign container image signature"
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

    fn pair() -> EcdsaKeyPair {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.as_ref(), &random).unwrap()
    }

    fn pem(pair: &EcdsaKeyPair) -> String {
        let der = [&P256[..], pair.public_key().as_ref()].concat();
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
    }

    fn signature(pair: &EcdsaKeyPair, payload: &[u8]) -> Descriptor {
        let signature = pair.sign(&SystemRandom::new(), payload).unwrap();
        let text = base64::engine::general_purpose::STANDARD.encode(signature);
        Descriptor {
            annotations: Some([(SIGNATURE.to_owned(), text)].into()),
            ..Descriptor::new(PAYLOAD, Digest::sha256(payload), payload.len() as u64)
        }
    }

    #[test]
    fn only_the_key_that_is_trusted_and_the_digest_that_is_signed() {
        let (ours, theirs) = (pair(), pair());
        let mut policy = TrustPolicy::default();
        policy
            .require("registry.example/team", pem(&ours).as_bytes())
            .unwrap();
        let rule = &policy.rules[0];
        let digest = Digest::sha256(b"image");
        let payload = |digest: &Digest, kind: &str| {
            serde_json::json!({"critical": {"identity": {"docker-reference": ""},
                "image": {"docker-manifest-digest": digest}, "type": kind}, "optional": null})
            .to_string()
            .into_bytes()
        };
        let good = payload(&digest, "cosign container image signature");
        assert!(rule.verifies(&signature(&ours, &good), &good, &digest));
        assert!(!rule.verifies(&signature(&theirs, &good), &good, &digest));
        assert!(!rule.verifies(&signature(&ours, &good), &good, &Digest::sha256(b"another")));
        let other = payload(&Digest::sha256(b"another"), "cosign container image signature");
        assert!(!rule.verifies(&signature(&ours, &good), &other, &Digest::sha256(b"another")));
        let kind = payload(&digest, "something else");
        assert!(!rule.verifies(&signature(&ours, &kind), &kind, &digest));
        assert!(!rule.verifies(&Descriptor::new(PAYLOAD, digest.clone(), 1), &good, &digest));
    }

    #[test]
    fn the_longest_prefix_counts() {
        let mut policy = TrustPolicy::default();
        let key = pem(&pair());
        for prefix in ["registry.example/", "registry.example/team", "docker.io/library"] {
            policy.require(prefix, key.as_bytes()).unwrap();
        }
        let prefix = |policy: &TrustPolicy, name: &str| {
            policy
                .rule(&Reference::parse(name).unwrap())
                .map(|rule| rule.prefix.clone())
        };
        assert_eq!(
            prefix(&policy, "registry.example/team/app").as_deref(),
            Some("registry.example/team")
        );
        assert_eq!(
            prefix(&policy, "registry.example/teams/app").as_deref(),
            Some("registry.example")
        );
        assert_eq!(prefix(&policy, "debian").as_deref(), Some("docker.io/library"));
        assert_eq!(prefix(&policy, "user/debian").as_deref(), None);
        assert_eq!(prefix(&policy, "registry.example.com/x").as_deref(), None);
        policy.require("*", key.as_bytes()).unwrap();
        assert_eq!(prefix(&policy, "user/debian").as_deref(), Some(""));
    }

    #[test]
    fn another_spelling_of_a_registry_is_the_same_registry() {
        let mut policy = TrustPolicy::default();
        let key = pem(&pair());
        for prefix in [
            "registry.example/team",
            "Ports.example:5000",
            "docker.io/library",
            "TLS.example:443/x",
        ] {
            policy.require(prefix, key.as_bytes()).unwrap();
        }
        for covered in [
            "registry.example/team/app",
            "REGISTRY.example/team/app",
            "registry.example:443/team/app",
            "registry.example:0443/team/app",
            "registry.example:80/team/app",
            "ports.EXAMPLE:5000/app",
            "registry-1.docker.io/library/debian",
            "tls.example/x/y",
        ] {
            let reference = Reference::parse(covered).unwrap();
            assert!(policy.rule(&reference).is_some(), "{covered}");
        }
        for other in [
            "registry.example:5000/team/app",
            "ports.example/app",
            "registry.example/teams",
        ] {
            assert!(
                policy.rule(&Reference::parse(other).unwrap()).is_none(),
                "{other}"
            );
        }
    }

    #[test]
    fn port_80_and_none_are_not_mixed() {
        let mut policy = TrustPolicy::default();
        let (one, other) = (pem(&pair()), pem(&pair()));
        policy.require("registry.example/team", one.as_bytes()).unwrap();
        let error = policy
            .require("registry.example:80/team/", other.as_bytes())
            .unwrap_err();
        assert!(error.to_string().contains("port 80"), "{error}");
        for same in ["Registry.example/team", "registry.example:443/team"] {
            policy.require(same, other.as_bytes()).unwrap();
        }
        assert_eq!(policy.rules[0].keys.len(), 3);
        policy
            .require("registry.example:80/else", other.as_bytes())
            .unwrap();
        assert!(policy.require("registry.example/else", one.as_bytes()).is_err());
    }

    #[test]
    fn keys_of_other_kinds_are_refused() {
        let mut policy = TrustPolicy::default();
        assert!(policy.require("x", b"nonsense").is_err());
        assert!(
            policy
                .require(
                    "x",
                    b"-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----\n"
                )
                .is_err()
        );
    }
}
