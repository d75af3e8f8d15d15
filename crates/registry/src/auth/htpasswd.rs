//! Users and passwords: Apache's `htpasswd` with bcrypt, and nothing weaker.
//!
//! To verify a password takes bcrypt tens of milliseconds on purpose, and clients send it with every request. What was
//! verified is remembered for a while as a keyed hash of user, password and the entry of the file: the key is random
//! for each process, so nothing that is remembered can be tried against, and an entry that changes is forgotten.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ring::hmac;
use tokio::sync::Semaphore;

use super::watched::Watched;
use crate::error::{Code, Error, Result};

/// How long a verified password need not be verified again.
const REMEMBER: Duration = Duration::from_secs(600);
/// Verified passwords that are remembered.
const MAX_REMEMBERED: usize = 4096;
/// Who comes when so many wait for their password's verification is sent away.
const MAX_WAITING: usize = 64;
/// bcrypt's own limit.
const MAX_PASSWORD: usize = 72;

/// The users.
#[derive(Debug)]
pub struct Htpasswd {
    file: Watched<Users>,
    key: hmac::Key,
    verified: Mutex<HashMap<[u8; 32], Instant>>,
    waiting: Arc<Semaphore>,
    verifying: Arc<Semaphore>,
}

/// What the file says: hashes by user.
#[derive(Debug, Default)]
pub struct Users(HashMap<String, String>);

/// Reads a `htpasswd` file.
pub fn parse(text: &str) -> Result<Users, String> {
    let mut users = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = number + 1;
        let (user, hash) = line
            .split_once(':')
            .filter(|(user, _)| !user.is_empty())
            .ok_or_else(|| format!("line {number} does not look like USER:HASH"))?;
        if !is_bcrypt(hash) {
            return Err(format!(
                "the password of {} in line {number} is not hashed with bcrypt; use `htpasswd -B` or `vessel registry user add`",
                crate::name::show(user)
            ));
        }
        users.insert(user.to_owned(), hash.to_owned());
    }
    Ok(Users(users))
}

impl Users {
    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// `$2y$10$` and 53 letters.
fn is_bcrypt(hash: &str) -> bool {
    let letters = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'/';
    let Some(rest) = ["$2y$", "$2a$", "$2b$"]
        .iter()
        .find_map(|prefix| hash.strip_prefix(prefix))
    else {
        return false;
    };
    let Some((cost, salt)) = rest.split_once('$') else {
        return false;
    };
    let cost = cost.parse().unwrap_or(0);
    (4..=20u32).contains(&cost) && salt.len() == 53 && salt.bytes().all(letters)
}

impl Htpasswd {
    /// Reads the file.
    pub fn open(path: &Path) -> Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new())
            .map_err(|_| Error::new(Code::Unknown, "the system has no random numbers"))?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            file: Watched::open(path, parse)?,
            key,
            verified: Mutex::default(),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            verifying: Arc::new(Semaphore::new(threads)),
        })
    }

    /// Whether this is the password of that user.
    pub async fn verify(&self, user: &str, password: &str) -> Result<bool> {
        if password.len() > MAX_PASSWORD {
            return Ok(false);
        }
        let users = self.file.get();
        let known = users.0.get(user);
        // One that nobody has, as slow to find out as for a user who exists.
        let hash = known.cloned().unwrap_or_else(|| {
            let cost = users
                .0
                .values()
                .next()
                .and_then(|hash| hash.get(4..6))
                .unwrap_or("10");
            format!("$2y${cost}${}", ".".repeat(53))
        });
        let tag = self.tag(user, password, &hash);
        if known.is_some() && self.remembered(&tag) {
            return Ok(true);
        }
        let busy = || {
            Error::new(
                Code::TooManyRequests,
                "too many passwords are to be verified; try again",
            )
        };
        let _place = Arc::clone(&self.waiting)
            .try_acquire_owned()
            .map_err(|_| busy())?;
        let turn = Arc::clone(&self.verifying)
            .acquire_owned()
            .await
            .map_err(|_| busy())?;
        let password = password.to_owned();
        let right = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            bcrypt::verify(password, &hash).unwrap_or(false)
        })
        .await
        .unwrap_or(false);
        let right = right && known.is_some();
        if right {
            self.remember(tag);
        }
        Ok(right)
    }

    fn tag(&self, user: &str, password: &str, hash: &str) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [user, password, hash] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        let mut tag = [0; 32];
        tag.copy_from_slice(context.sign().as_ref());
        tag
    }

    fn remembered(&self, tag: &[u8; 32]) -> bool {
        let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.get(tag).is_some_and(|when| when.elapsed() < REMEMBER)
    }

    fn remember(&self, tag: [u8; 32]) {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= MAX_REMEMBERED {
            verified.retain(|_, when| when.elapsed() < REMEMBER);
        }
        if verified.len() >= MAX_REMEMBERED {
            verified.clear();
        }
        verified.insert(tag, Instant::now());
    }
}

/// The hash of a new password.
pub fn hash(password: &str) -> Result<String, String> {
    if password.is_empty() {
        return Err("the password is empty".into());
    }
    if password.len() > MAX_PASSWORD || password.contains('\0') {
        return Err(format!(
            "bcrypt takes passwords of up to {MAX_PASSWORD} bytes without null bytes"
        ));
    }
    bcrypt::hash(password, 10).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_bcrypt_is_accepted() {
        let good = hash("secret").unwrap();
        let users = parse(&format!("# users\n\nann:{good}\n")).unwrap();
        assert_eq!(users.names().collect::<Vec<_>>(), ["ann"]);
        for bad in [
            "ann",
            ":x",
            "ann:secret",
            "ann:$apr1$x$y",
            "ann:{SHA}x",
            "ann:$2y$99$x",
            &format!("ann:{good}x"),
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn verified_once_and_forgotten_with_the_entry() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("htpasswd");
        let entry = |password| format!("ann:{}\n", bcrypt::hash(password, 4).unwrap());
        std::fs::write(&path, entry("one")).unwrap();
        let users = Htpasswd::open(&path).unwrap();
        assert!(users.verify("ann", "one").await.unwrap());
        assert!(users.verify("ann", "one").await.unwrap());
        assert!(!users.verify("ann", "two").await.unwrap());
        assert!(!users.verify("bob", "one").await.unwrap());
        assert!(!users.verify("ann", "").await.unwrap());
        assert_eq!(users.verified.lock().unwrap().len(), 1);
        std::fs::write(&path, entry("two").repeat(2)).unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert!(!users.verify("ann", "one").await.unwrap());
        assert!(users.verify("ann", "two").await.unwrap());
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,100}") {
            let _ = parse(&text);
            let _ = is_bcrypt(&text);
        }
    }
}
