//! Tokens in a file: lines of `token,user,uid,"group1,group2"`, read once.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use sha2::{Digest, Sha256};

use super::UserInfo;
use super::tokens::{Verified, Verifier, ignoring_audiences};

/// Users by the hash of their token, so that looking one up tells nothing about the others.
pub struct TokenFile {
    users: HashMap<[u8; 32], UserInfo>,
    audiences: Vec<String>,
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

impl TokenFile {
    pub fn read(path: &Path, audiences: Vec<String>) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let users = parse(&text).with_context(|| format!("in {}", path.display()))?;
        Ok(Self { users, audiences })
    }
}

fn parse(text: &str) -> Result<HashMap<[u8; 32], UserInfo>> {
    let mut users = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let fields = fields(line);
        let [token, name, uid, groups @ ..] = fields.as_slice() else {
            bail!(
                "line {}: a token file must have at least 3 columns (token, user name, user uid), found {}",
                number + 1,
                fields.len()
            );
        };
        if token.is_empty() {
            tracing::warn!(
                line = number + 1,
                "empty token has been found in token file"
            );
            continue;
        }
        let mut user = UserInfo::new(name.as_str(), &[]);
        user.uid.clone_from(uid);
        if let Some(groups) = groups.first() {
            user.groups = groups
                .split(',')
                .map(|group| group.trim().to_owned())
                .filter(|group| !group.is_empty())
                .collect();
        }
        if users.insert(hash(token), user).is_some() {
            tracing::warn!(
                line = number + 1,
                "duplicate token has been found in token file"
            );
        }
    }
    Ok(users)
}

/// The fields of a line; quotes keep commas together, and are doubled inside.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = line.trim().chars().peekable();
    while let Some(character) = characters.next() {
        let last = fields.len() - 1;
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                fields[last].push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => fields[last].push(other),
        }
    }
    fields.iter().map(|field| field.trim().to_owned()).collect()
}

impl Verifier for TokenFile {
    fn verify<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<Verified>, String>> {
        let user = self.users.get(&hash(token)).cloned();
        let verified = user.and_then(|user| ignoring_audiences(user, audiences, &self.audiences));
        Box::pin(std::future::ready(Ok(verified)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_users() {
        let users = parse("# comment\nt1,jane,1,\"dev,ops\"\n\nt2, joe ,2\n,nobody,3\n").unwrap();
        assert_eq!(users.len(), 2);
        let jane = &users[&hash("t1")];
        assert_eq!((jane.name.as_str(), jane.uid.as_str()), ("jane", "1"));
        assert_eq!(jane.groups, ["dev", "ops"]);
        assert_eq!(users[&hash("t2")].name, "joe");
        assert!(parse("t1,jane").is_err());
        assert_eq!(fields(r#"a,"b ""c"", d",e"#), ["a", r#"b "c", d"#, "e"]);
    }
}
