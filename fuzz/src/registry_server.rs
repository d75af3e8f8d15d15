//! What clients of the registry server send, and the files that its owner writes.

use vessel_registry::parse::{
    Manifest, Range, Route, Verifier, content_range, htpasswd, none_match, query, range, rules,
};

/// Paths, queries, headers, manifests, tokens, rules and users.
pub fn registry_server(data: &[u8]) {
    if let Ok(manifest) = Manifest::parse(data, None) {
        assert_eq!(Manifest::media_type_of(data).unwrap(), manifest.media_type);
        assert!(Manifest::parse(data, Some(manifest.media_type)).is_ok());
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for path in [text.to_owned(), format!("/v2/{text}"), format!("/r/{text}")] {
        if let Ok(Some(route)) = Route::parse(&path)
            && let Some(name) = route.repository()
        {
            let file = name.to_file_name();
            assert!(!file.contains('/') && !file.starts_with('.') && file.len() <= 255);
        }
    }
    for size in [0, 1, 1000, u64::MAX] {
        for field in [text.to_owned(), format!("bytes={text}")] {
            if let Range::Part(from, end) = range(Some(&field), size) {
                assert!(from < end && end <= size);
            }
        }
    }
    if let Some((first, last)) = content_range(text) {
        assert!(first <= last);
    }
    let _ = none_match(Some(text), "sha256:x");
    let _ = (query::get(Some(text), "n"), query::all(Some(text), "tag").count());
    assert_eq!(query::decode(&query::encode(text)).as_deref(), Some(text));
    let _ = (rules(text).is_ok(), htpasswd(text).is_ok());
    if let Ok(verifier) = Verifier::from_pem(text) {
        let _ = verifier.verify(text, "i", "s", 1);
    }
    let verifier = Verifier::from_pem(KEY).unwrap();
    assert!(verifier.verify(text, "i", "s", 1).is_err(), "a forgery");
}

/// A public key of which nobody has the other half.
const KEY: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEdian0RWwuY/72pEYielrs/7AALu7
8C8w53ZCxXO1+uXdJkprrqfC1rnAa0YQS7997O7gvqH4fBrh+4+fd1St1g==
-----END PUBLIC KEY-----
";
