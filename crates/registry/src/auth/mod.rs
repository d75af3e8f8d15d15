//! Who asks, and whether they may.
//!
//! Credentials are a user and a password (`Basic`) or a token (`Bearer`) that `/token` gives for them, or that an
//! issuer elsewhere gave. Without credentials the answer to what needs some is a challenge; it is for a token, because
//! clients that are not challenged at first never send what they have, and a token may be for nobody. A password is
//! taken at any time.

mod der;
pub mod htpasswd;
pub mod jwt;
pub mod rules;
pub mod token;
mod watched;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::header;

pub use htpasswd::Htpasswd;
use jwt::{Claims, Signer, Verifier};
pub use rules::{Action, Rules};
use watched::Watched;

use crate::error::{Code, Error, Result};
use crate::name::Repository;

/// How users are known and what they may do.
#[derive(Debug, Clone, Default)]
pub struct AuthOptions {
    /// Users and passwords.
    pub htpasswd: Option<PathBuf>,
    /// Rights; without, who has a password may do everything.
    pub rules: Option<PathBuf>,
    /// Everybody may pull everything.
    pub anonymous_pull: bool,
    /// Challenge for a password instead of a token.
    pub basic: bool,
    /// Who issues tokens, if not this server.
    pub external: Option<ExternalIssuer>,
}

/// An issuer of tokens elsewhere.
#[derive(Debug, Clone)]
pub struct ExternalIssuer {
    /// Where clients get tokens.
    pub realm: String,
    /// Its name, in the tokens.
    pub issuer: String,
    /// The name of this registry, in the tokens.
    pub service: String,
    /// Its public key or certificate (PEM).
    pub key: PathBuf,
}

/// The guard.
#[derive(Debug)]
pub struct Auth {
    users: Option<Htpasswd>,
    rules: Option<Watched<Rules>>,
    anonymous_pull: bool,
    basic: bool,
    tokens: Tokens,
}

/// Whose tokens are taken.
#[derive(Debug)]
enum Tokens {
    Own {
        signer: Signer,
        verifier: Verifier,
    },
    External {
        issuer: ExternalIssuer,
        verifier: Verifier,
    },
}

/// The name of this server in tokens of its own.
const OWN: &str = "vessel-registry";

/// Who asks.
#[derive(Debug)]
pub enum Identity {
    /// Nobody in particular.
    Anonymous,
    /// Somebody with a password.
    User(String),
    /// Somebody with a token.
    Token(Claims),
}

impl Auth {
    /// Reads the files. None when nothing is configured: then everybody may do everything.
    pub fn open(options: &AuthOptions, root: &std::path::Path) -> Result<Option<Self>> {
        if options.htpasswd.is_none() && options.external.is_none() {
            if options.rules.is_some() || options.anonymous_pull {
                return Err(Error::new(
                    Code::Unknown,
                    "rules for users need users: give a htpasswd file or an issuer of tokens",
                ));
            }
            return Ok(None);
        }
        let tokens = match &options.external {
            Some(external) => {
                let pem = std::fs::read_to_string(&external.key)
                    .map_err(|e| Error::io(format!("cannot read {}", external.key.display()), e))?;
                let verifier = Verifier::from_pem(&pem)
                    .map_err(|why| Error::new(Code::Unknown, format!("{}: {why}", external.key.display())))?;
                Tokens::External {
                    issuer: external.clone(),
                    verifier,
                }
            }
            None => {
                let signer = Signer::open(&root.join("token.key"))?;
                Tokens::Own {
                    verifier: signer.verifier(),
                    signer,
                }
            }
        };
        Ok(Some(Self {
            users: options.htpasswd.as_deref().map(Htpasswd::open).transpose()?,
            rules: options
                .rules
                .as_deref()
                .map(|path| Watched::open(path, rules::parse))
                .transpose()?,
            anonymous_pull: options.anonymous_pull,
            basic: options.basic,
            tokens,
        }))
    }

    /// Who sent these headers.
    pub async fn identify(&self, headers: &HeaderMap) -> Result<Identity> {
        let Some(field) = headers.get(header::AUTHORIZATION) else {
            return Ok(Identity::Anonymous);
        };
        let wrong = |why: &str| Error::new(Code::Unauthorized, why);
        let (scheme, credentials) = field
            .to_str()
            .ok()
            .and_then(|field| field.split_once(' '))
            .ok_or_else(|| wrong("the Authorization header cannot be read"))?;
        let credentials = credentials.trim();
        if scheme.eq_ignore_ascii_case("basic") {
            let (user, password) =
                basic(credentials).ok_or_else(|| wrong("the Authorization header cannot be read"))?;
            return self.password(&user, &password).await;
        }
        if scheme.eq_ignore_ascii_case("bearer") {
            let (verifier, issuer, service) = match &self.tokens {
                Tokens::Own { verifier, .. } => (verifier, OWN, OWN),
                Tokens::External { issuer, verifier } => {
                    (verifier, issuer.issuer.as_str(), issuer.service.as_str())
                }
            };
            return match verifier.verify(credentials, issuer, service, now()) {
                Ok(claims) => Ok(Identity::Token(claims)),
                Err(why) => Err(wrong(&format!("the token is refused: {why}"))),
            };
        }
        Err(wrong(
            "the Authorization header has neither a password nor a token",
        ))
    }

    async fn password(&self, user: &str, password: &str) -> Result<Identity> {
        if let Some(users) = &self.users
            && users.verify(user, password).await?
        {
            return Ok(Identity::User(user.to_owned()));
        }
        Err(Error::new(Code::Unauthorized, "user or password is wrong"))
    }

    /// Whether they may do this.
    pub fn may(&self, who: &Identity, repository: &Repository, action: Action) -> bool {
        match who {
            Identity::Anonymous => self.user_may(None, repository, action),
            Identity::User(user) => self.user_may(Some(user), repository, action),
            Identity::Token(claims) => claims.allow(repository, action),
        }
    }

    fn user_may(&self, user: Option<&str>, repository: &Repository, action: Action) -> bool {
        if self.anonymous_pull && action == Action::Pull {
            return true;
        }
        match &self.rules {
            Some(rules) => rules.get().allow(user, repository, action),
            None => user.is_some(),
        }
    }

    /// Whether they may see that a repository exists. A token of ours stands for its user; one from elsewhere says
    /// itself whether it is for lists.
    pub fn may_list(&self, who: &Identity, repository: &Repository) -> bool {
        match (who, &self.tokens) {
            (Identity::Token(claims), Tokens::External { .. }) => claims.allow_catalog(),
            (Identity::Token(claims), Tokens::Own { .. }) => {
                let user = Some(claims.sub.as_str()).filter(|user| !user.is_empty());
                self.user_may(user, repository, Action::Pull)
            }
            (who, _) => self.may(who, repository, Action::Pull),
        }
    }

    /// Whether somebody without a password may read anything.
    pub fn may_anybody_read(&self) -> bool {
        self.anonymous_pull
            || self
                .rules
                .as_ref()
                .is_some_and(|rules| rules.get().allow_anybody(Action::Pull))
    }

    /// Whether any blob may be mounted without naming where from.
    pub fn is_uniform(&self, who: &Identity) -> bool {
        self.rules.is_none() && matches!(who, Identity::User(_))
    }

    /// What to answer to who may not: the `WWW-Authenticate` header.
    pub fn challenge(
        &self,
        origin: &str,
        wanted: Option<(&Repository, Action)>,
        catalog: bool,
        error: Option<&str>,
    ) -> String {
        if self.basic {
            return "Basic realm=\"Vessel registry\", charset=\"UTF-8\"".into();
        }
        let (realm, service) = match &self.tokens {
            Tokens::Own { .. } => (format!("{origin}/token"), OWN),
            Tokens::External { issuer, .. } => (issuer.realm.clone(), issuer.service.as_str()),
        };
        let mut challenge = format!("Bearer realm=\"{realm}\",service=\"{service}\"");
        match wanted {
            Some((name, Action::Push)) => {
                challenge.push_str(&format!(",scope=\"repository:{name}:pull,push\""))
            }
            Some((name, action)) => {
                challenge.push_str(&format!(",scope=\"repository:{name}:{}\"", action.name()))
            }
            None if catalog => challenge.push_str(",scope=\"registry:catalog:*\""),
            None => {}
        }
        if let Some(error) = error {
            challenge.push_str(&format!(",error=\"{error}\""));
        }
        challenge
    }
}

/// User and password of a `Basic` header.
fn basic(credentials: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(credentials).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}
