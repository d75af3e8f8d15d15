//! What registries and token servers send.

use vessel_image::registry::{
    Challenge, Credentials, RawManifest, Token, content_range, next_link, registry_key, retry_after,
    upload_offset,
};
use vessel_image::{Digest, Document, Platform};

/// `WWW-Authenticate`, `Link`, ranges, `Retry-After`: headers.
pub fn challenge(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let challenges = Challenge::parse_all(text);
    assert!(challenges.len() <= 16);
    for challenge in challenges {
        if let Some(realm) = challenge.get("realm") {
            assert!(!realm.contains(char::is_control));
        }
    }
    if let Some((first, last, total)) = content_range(text) {
        assert!(first <= last && total.is_none_or(|total| last < total));
    }
    if let Some(link) = next_link(text) {
        assert!(text.contains(link));
    }
    let _ = (upload_offset(text), retry_after(text));
}

/// Tokens, manifests and indexes, credentials, platforms.
pub fn registry(data: &[u8]) {
    let _ = Token::parse(data);
    let raw = RawManifest {
        raw: data.to_vec(),
        media_type: String::new(),
        digest: Digest::sha256(data),
    };
    if let Ok(Document::Index(index)) = raw.document() {
        let host = Platform::host();
        if let Some(chosen) = index.select(&host).and_then(|entry| entry.platform.as_ref()) {
            assert!(host.rank(chosen).is_some());
        }
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(credentials) = Credentials::from_header(text) {
        assert_eq!(
            Credentials::from_header(&credentials.to_header()).unwrap(),
            credentials
        );
    }
    let _ = Credentials::map_from_header(text);
    if let Ok(platform) = Platform::parse(text) {
        assert_eq!(Platform::parse(&platform.to_string()).unwrap(), platform);
        assert_eq!(platform.rank(&platform), Some(0));
    }
    let _ = registry_key(text);
}
