//! Bearer tokens: everyone who may know one is asked in turn, and the answer remembered for a moment.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::UserInfo;

/// A token's user, and which of the wanted audiences it is for.
pub type Verified = (UserInfo, Vec<String>);

/// Somebody who knows tokens of one kind.
pub trait Verifier: Send + Sync {
    /// `None` for a token that is not of this kind; an error for one that is, and does not hold. No audiences wanted
    /// means those of the API server.
    fn verify<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<Verified>, String>>;
}

/// The result for a token that is for no audience in particular: it is for the API server's.
#[must_use]
pub fn ignoring_audiences(
    user: UserInfo,
    wanted: &[String],
    implicit: &[String],
) -> Option<Verified> {
    if wanted.is_empty() {
        return Some((user, implicit.to_vec()));
    }
    let matching: Vec<String> = wanted
        .iter()
        .filter(|audience| implicit.contains(audience))
        .cloned()
        .collect();
    (!matching.is_empty()).then_some((user, matching))
}

/// Verified tokens are believed for so long, as in Kubernetes. Refusals are not remembered: a token's objects may
/// appear the moment after.
const TTL: Duration = Duration::from_secs(10);
const MAX_CACHED: usize = 4096;

/// All verifiers in order.
#[derive(Default)]
pub struct Tokens {
    verifiers: Vec<Box<dyn Verifier>>,
    known: Mutex<HashMap<u128, (Instant, Arc<UserInfo>)>>,
    hashers: [RandomState; 2],
}

impl Tokens {
    #[must_use]
    pub fn new(verifiers: Vec<Box<dyn Verifier>>) -> Self {
        Self {
            verifiers,
            ..Self::default()
        }
    }

    /// The user of a token for the API server itself.
    pub async fn user(&self, token: &str) -> Result<Arc<UserInfo>, String> {
        let [high, low] = [0, 1].map(|i: usize| u128::from(self.hashers[i].hash_one(token)));
        let key = (high << 64) | low;
        let now = Instant::now();
        if let Some((until, known)) = self.known.lock().get(&key)
            && *until > now
        {
            return Ok(known.clone());
        }
        let (user, _) = self.verify(token, &[]).await?;
        let user = Arc::new(user);
        let mut known = self.known.lock();
        if known.len() >= MAX_CACHED {
            known.retain(|_, (until, _)| *until > now);
            if known.len() >= MAX_CACHED {
                known.clear();
            }
        }
        known.insert(key, (now + TTL, user.clone()));
        Ok(user)
    }

    /// The user and audiences of a token. Everyone who verifies a token is believed; what the others say counts only
    /// when nobody does.
    pub async fn verify(&self, token: &str, audiences: &[String]) -> Result<Verified, String> {
        let mut errors = Vec::new();
        for verifier in &self.verifiers {
            match verifier.verify(token, audiences).await {
                Ok(Some((user, audiences))) => return Ok((user.authenticated(), audiences)),
                Ok(None) => {}
                Err(error) => errors.push(error),
            }
        }
        Err(match errors.as_slice() {
            [] => "invalid bearer token".to_owned(),
            [one] => one.clone(),
            several => format!("[{}]", several.join(", ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Result<Option<Verified>, String>);

    impl Verifier for Fixed {
        fn verify<'a>(
            &'a self,
            _token: &'a str,
            _audiences: &'a [String],
        ) -> BoxFuture<'a, Result<Option<Verified>, String>> {
            Box::pin(std::future::ready(self.0.clone()))
        }
    }

    fn fixed(list: Vec<Result<Option<Verified>, String>>) -> Tokens {
        let verifiers = list
            .into_iter()
            .map(|r| Box::new(Fixed(r)) as Box<dyn Verifier>);
        Tokens::new(verifiers.collect())
    }

    #[tokio::test]
    async fn the_first_who_knows_decides() {
        let jane = || Ok(Some((UserInfo::new("jane", &[]), Vec::new())));
        let tokens = fixed(vec![Err("bad".into()), Ok(None), jane()]);
        let user = tokens.user("t").await.unwrap();
        assert_eq!(user.name, "jane");
        assert_eq!(user.groups, ["system:authenticated"]);
        let refused = fixed(vec![Err("bad".into()), Err("worse".into())]);
        assert_eq!(refused.user("t").await.unwrap_err(), "[bad, worse]");
        assert_eq!(
            fixed(vec![Ok(None)]).user("t").await.unwrap_err(),
            "invalid bearer token"
        );
    }

    #[test]
    fn tokens_without_audience_are_for_the_api() {
        let user = || UserInfo::new("jane", &[]);
        let words =
            |list: &[&str]| -> Vec<String> { list.iter().map(ToString::to_string).collect() };
        let api = words(&["api"]);
        assert_eq!(ignoring_audiences(user(), &[], &api).unwrap().1, api);
        assert_eq!(
            ignoring_audiences(user(), &words(&["x", "api"]), &api)
                .unwrap()
                .1,
            api
        );
        assert_eq!(ignoring_audiences(user(), &words(&["x"]), &api), None);
    }
}
