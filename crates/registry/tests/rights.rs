//! Passwords, tokens, rules.

mod common;

use common::{Registry, code, header, start_with};
use reqwest::{Method, StatusCode};
use vessel_image::Digest;
use vessel_registry::{AuthOptions, ExternalIssuer};

const RULES: &str = r#"{"groups":{"team":["ann"]},"rules":[
    {"repositories":["public/**"],"users":["anonymous","*"],"actions":["pull"]},
    {"repositories":["team/**","public/**"],"users":["@team"],"actions":["pull","push"]}]}"#;

async fn guarded(rules: bool, basic: bool) -> (tempfile::TempDir, Registry) {
    let directory = tempfile::tempdir().unwrap();
    let htpasswd = directory.path().join("htpasswd");
    let users =
        ["ann", "bob"].map(|user| format!("{user}:{}\n", vessel_registry::hash_password(user).unwrap()));
    std::fs::write(&htpasswd, users.concat()).unwrap();
    let path = directory.path().join("rules.json");
    std::fs::write(&path, RULES).unwrap();
    let registry = start_with(|config| {
        config.auth = AuthOptions {
            htpasswd: Some(htpasswd),
            rules: rules.then_some(path),
            basic,
            ..AuthOptions::default()
        };
    })
    .await;
    (directory, registry)
}

async fn token(registry: &Registry, user: Option<&str>, scope: &str) -> String {
    let mut request = registry.request(Method::GET, &format!("/token?service=x&scope={scope}"));
    if let Some(user) = user {
        request = request.basic_auth(user, Some(user));
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let body: serde_json::Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    body["token"].as_str().unwrap().to_owned()
}

async fn push(
    registry: &Registry,
    name: &str,
    auth: impl Fn(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
) -> StatusCode {
    let url = format!("/v2/{name}/blobs/uploads/?digest={}", Digest::sha256(b"x"));
    auth(registry.request(Method::POST, &url).body("x"))
        .send()
        .await
        .unwrap()
        .status()
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords() {
    let (directory, registry) = guarded(false, true).await;
    let response = registry.get("/v2/").await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(header(&response, "www-authenticate").starts_with("Basic realm="));
    assert_eq!(code(response).await, "UNAUTHORIZED");
    let with = |user: &'static str, password: &'static str| {
        registry
            .request(Method::GET, "/v2/")
            .basic_auth(user, Some(password))
            .send()
    };
    assert_eq!(with("ann", "ann").await.unwrap().status(), StatusCode::OK);
    for (user, password) in [("ann", "bob"), ("", ""), ("eve", "eve"), ("ann", "")] {
        assert_eq!(
            with(user, password).await.unwrap().status(),
            StatusCode::UNAUTHORIZED,
            "{user}"
        );
    }
    for wrong in [
        "Basic",
        "Basic !",
        "Basic YQ==",
        "Digest x",
        "Bearer x",
        "Bearer a.b.c",
    ] {
        let response = registry
            .request(Method::GET, "/v2/")
            .header("authorization", wrong)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{wrong}");
    }
    // Who is taken from the file is out.
    std::fs::write(directory.path().join("htpasswd"), "").unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(
        with("ann", "ann").await.unwrap().status(),
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_rules() {
    let (_directory, registry) = guarded(true, false).await;
    let response = registry
        .request(Method::POST, "/v2/team/a/blobs/uploads/")
        .send()
        .await
        .unwrap();
    assert_eq!(
        header(&response, "www-authenticate"),
        format!(
            "Bearer realm=\"http://{}/token\",service=\"vessel-registry\",scope=\"repository:team/a:pull,push\"",
            registry.address
        )
    );
    let ann = token(&registry, Some("ann"), "repository:team/a:pull,push").await;
    assert_eq!(
        push(&registry, "team/a", |r| r.bearer_auth(&ann)).await,
        StatusCode::CREATED
    );
    assert_eq!(
        push(&registry, "team/b", |r| r.bearer_auth(&ann)).await,
        StatusCode::UNAUTHORIZED
    );
    // bob asks for more than he may have, and nobody for what nobody may.
    let bob = token(
        &registry,
        Some("bob"),
        "repository:team/a:pull,push%20repository:public/a:pull,push,delete",
    )
    .await;
    assert_eq!(
        push(&registry, "team/a", |r| r.bearer_auth(&bob)).await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        push(&registry, "public/a", |r| r.bearer_auth(&bob)).await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        push(&registry, "public/a", |r| r.basic_auth("bob", Some("bob"))).await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        push(&registry, "public/a", |r| r.basic_auth("ann", Some("ann"))).await,
        StatusCode::CREATED
    );
    let nobody = token(&registry, None, "repository:public/a:pull").await;
    let blob = format!("blobs/{}", Digest::sha256(b"x"));
    let get = |name: &str, token: &str| {
        registry
            .request(Method::GET, &format!("/v2/{name}/{blob}"))
            .bearer_auth(token)
            .send()
    };
    assert_eq!(get("public/a", &nobody).await.unwrap().status(), StatusCode::OK);
    assert_eq!(
        get("team/a", &nobody).await.unwrap().status(),
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        registry.get(&format!("/v2/public/a/{blob}")).await.status(),
        StatusCode::OK,
        "without any token"
    );
    // A mount reads what it takes.
    let mount = |from: &str| {
        let url = format!("/v2/public/b/blobs/uploads/?mount={}{from}", Digest::sha256(b"x"));
        registry.request(Method::POST, &url)
    };
    let response = mount("&from=team/a")
        .basic_auth("ann", Some("ann"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    // Lists show what may be read.
    let catalog = |user: &'static str| {
        registry
            .request(Method::GET, "/v2/_catalog")
            .basic_auth(user, Some(user))
            .send()
    };
    assert_eq!(
        catalog("bob").await.unwrap().text().await.unwrap(),
        r#"{"repositories":["public/a","public/b"]}"#
    );
    assert!(
        catalog("ann")
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
            .contains("team/a")
    );
    // `docker search` of somebody who is not logged in finds what anybody may pull; others are asked who they are.
    let search = |old: bool| {
        let request = registry.request(Method::GET, "/v1/search?q=a");
        let request = if old {
            request.header("x-docker-token", "true")
        } else {
            request
        };
        request.send()
    };
    let found = search(true).await.unwrap().text().await.unwrap();
    assert!(found.contains("public/a") && !found.contains("team/a"), "{found}");
    assert_eq!(
        search(false).await.unwrap().status(),
        StatusCode::UNAUTHORIZED,
        "who knows challenges gets one"
    );
    // The page is for nobody in particular, too.
    let home = registry.get("/").await.text().await.unwrap();
    assert!(home.contains("public/a") && !home.contains("team/a"));
    assert_eq!(registry.get("/r/team/a").await.status(), StatusCode::UNAUTHORIZED);
    // A token is for what it names, whatever its user may see.
    let page = |name: &str, token: &str| {
        registry
            .request(Method::GET, &format!("/r/{name}"))
            .bearer_auth(token)
            .send()
    };
    let elsewhere = token(&registry, Some("ann"), "repository:public/a:pull").await;
    assert_eq!(
        page("team/a", &elsewhere).await.unwrap().status(),
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(page("team/a", &ann).await.unwrap().status(), StatusCode::OK);
    let response = registry
        .request(Method::GET, "/token")
        .basic_auth("ann", Some("x"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let response = registry
        .request(Method::GET, "/token")
        .bearer_auth(&ann)
        .send()
        .await
        .unwrap();
    assert_eq!(
        response.status(),
        StatusCode::UNAUTHORIZED,
        "no token for a token"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_where_nobody_may_read_needs_a_password() {
    let (_directory, registry) = guarded(false, false).await;
    let search = || {
        registry
            .request(Method::GET, "/v1/search?q=a")
            .header("x-docker-token", "true")
    };
    assert_eq!(search().send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let response = search().basic_auth("ann", Some("ann")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_read_cannot_be_mounted() {
    let (_directory, registry) = guarded(true, false).await;
    assert_eq!(
        push(&registry, "team/secret", |r| r.basic_auth("ann", Some("ann"))).await,
        StatusCode::CREATED
    );
    // bob may push nowhere here, so he gets a home by new rules.
    let rules = RULES.replace(
        "]}]}",
        r#"]},{"repositories":["home/{user}/**"],"users":["*"],"actions":["pull","push"]}]}"#,
    );
    std::fs::write(_directory.path().join("rules.json"), rules).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    for from in ["&from=team/secret", ""] {
        let url = format!(
            "/v2/home/bob/x/blobs/uploads/?mount={}{from}",
            Digest::sha256(b"x")
        );
        let response = registry
            .request(Method::POST, &url)
            .basic_auth("bob", Some("bob"))
            .send()
            .await
            .unwrap();
        assert_eq!(
            response.status(),
            StatusCode::ACCEPTED,
            "an upload begins instead"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_another_issuer() {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let directory = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let path = directory.path().join("issuer.pem");
    std::fs::write(&path, key.public_key_pem()).unwrap();
    let registry = start_with(|config| {
        config.auth.external = Some(ExternalIssuer {
            realm: "https://issuer.example.com/auth".into(),
            issuer: "issuer".into(),
            service: "reg".into(),
            key: path,
        });
    })
    .await;
    let response = registry.get("/v2/a/tags/list").await;
    assert!(
        header(&response, "www-authenticate")
            .starts_with("Bearer realm=\"https://issuer.example.com/auth\",service=\"reg\"")
    );
    let random = ring::rand::SystemRandom::new();
    let pair = ring::signature::EcdsaKeyPair::from_pkcs8(
        &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        key.serialized_der(),
        &random,
    )
    .unwrap();
    let sign = |claims: serde_json::Value| {
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"ES256"}"#),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let signature = pair.sign(&random, signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    };
    let access = serde_json::json!([{"type":"repository","name":"a","actions":["pull","push"]}]);
    let good = sign(
        serde_json::json!({"iss":"issuer","aud":["reg"],"exp":9_999_999_999i64,"sub":"ann","access":access}),
    );
    assert_eq!(
        push(&registry, "a", |r| r.bearer_auth(&good)).await,
        StatusCode::CREATED
    );
    assert_eq!(
        push(&registry, "b", |r| r.bearer_auth(&good)).await,
        StatusCode::UNAUTHORIZED
    );
    let old = sign(serde_json::json!({"iss":"issuer","aud":"reg","exp":1,"access":access}));
    assert_eq!(
        push(&registry, "a", |r| r.bearer_auth(&old)).await,
        StatusCode::UNAUTHORIZED
    );
}
