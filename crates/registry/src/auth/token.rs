//! `/token`: gives tokens for passwords, and for nothing if rules allow something to everybody.
//!
//! `GET` as the distribution project specifies it ("Token Authentication Specification"), and `POST` with the
//! password grant of OAuth 2 ("OAuth2 Token Authentication"). There are no refresh tokens: clients keep the password.

use hyper::Method;

use super::jwt::{Access, Audience, Claims};
use super::{Action, Auth, Identity, OWN, Tokens, now};
use crate::api::document;
use crate::error::{Code, Error, Result};
use crate::http::receive::whole;
use crate::http::{Request, Response, query};
use crate::name::Repository;

/// Seconds. Short, since rights that were taken away end with it; clients get a new one by themselves.
const VALID: i64 = 300;
/// Scopes in one request.
const MAX_SCOPES: usize = 100;
const MAX_FORM: usize = 64 << 10;

fn too_large() -> Error {
    Error::new(Code::SizeInvalid, "the request for a token is too large")
}

impl Auth {
    /// Answers a request for a token.
    pub async fn token(&self, mut request: Request) -> Result<Response> {
        let Tokens::Own { signer, .. } = &self.tokens else {
            return Err(Error::new(
                Code::NotFound,
                "tokens for this registry are issued elsewhere",
            ));
        };
        let (who, scopes) = match *request.method() {
            Method::GET => {
                let who = self.identify(request.headers()).await?;
                let query = request.uri().query();
                (
                    who,
                    query::all(query, "scope").take(MAX_SCOPES).collect::<Vec<_>>(),
                )
            }
            Method::POST => {
                let form = whole(request.body_mut(), MAX_FORM, too_large).await?;
                let form = String::from_utf8(form).map_err(|_| too_large())?;
                let field = |name| query::get(Some(&form), name).unwrap_or_default();
                if field("grant_type") != "password" {
                    return Err(Error::new(
                        Code::Unsupported,
                        "the only grant_type here is password",
                    ));
                }
                let who = self.password(&field("username"), &field("password")).await?;
                (who, query::all(Some(&form), "scope").take(MAX_SCOPES).collect())
            }
            _ => {
                return Err(Error::new(
                    Code::Unsupported,
                    "tokens are asked for with GET or POST",
                ));
            }
        };
        // A token for a token would never end.
        let user = match &who {
            Identity::Anonymous => "",
            Identity::User(user) => user,
            Identity::Token(_) => {
                return Err(Error::new(Code::Unauthorized, "a token is given for a password"));
            }
        };
        let access = scopes
            .iter()
            .flat_map(|scopes| scopes.split(' '))
            .take(MAX_SCOPES)
            .filter_map(|scope| self.grant(&who, scope))
            .collect();
        let now = now();
        let token = signer.sign(&Claims {
            iss: OWN.into(),
            sub: user.to_owned(),
            aud: Audience::One(OWN.into()),
            exp: now + VALID,
            nbf: Some(now),
            iat: Some(now),
            access,
        })?;
        let issued = jiff::Timestamp::from_second(now)
            .map(|time| time.to_string())
            .unwrap_or_default();
        let answer = serde_json::json!({
            "token": token, "access_token": token, "expires_in": VALID, "issued_at": issued,
        });
        Ok(document("application/json", answer.to_string().into_bytes()))
    }

    /// What of a scope is granted; what is not is left out, as the specification has it.
    fn grant(&self, who: &Identity, scope: &str) -> Option<Access> {
        let (kind, rest) = scope.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        // `repository(plugin)` is how Docker writes it for plugins.
        let kind = kind.split('(').next()?;
        let actions: Vec<String> = match kind {
            "repository" => {
                let repository = Repository::parse(name).ok()?;
                [Action::Pull, Action::Push, Action::Delete]
                    .into_iter()
                    .filter(|action| {
                        actions
                            .split(',')
                            .any(|asked| asked == action.name() || asked == "*")
                    })
                    .filter(|action| self.may(who, &repository, *action))
                    .map(|action| action.name().to_owned())
                    .collect()
            }
            "registry" if name == "catalog" => vec!["*".to_owned()],
            _ => return None,
        };
        (!actions.is_empty()).then(|| Access {
            kind: kind.to_owned(),
            name: name.to_owned(),
            actions,
        })
    }
}
