//! Query parameters, decoded once: small, ordered, with Go's idea of a boolean.

use std::borrow::Cow;

use apimachinery::status::Status;

use crate::request::percent_decode;

/// The decoded parameters of a URL, in order; a name may repeat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    #[must_use]
    pub fn parse(raw: &str) -> Self {
        Self(
            raw.split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// The first value of a parameter; present but empty is `Some("")`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// All values of a repeated parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// A boolean as Kubernetes' query conversion reads it: absent, `false` and `0` are false (in any
    /// case), everything else, the empty value included, is true.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        self.optional_flag(name).unwrap_or(false)
    }

    #[must_use]
    pub fn optional_flag(&self, name: &str) -> Option<bool> {
        self.get(name)
            .map(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    #[must_use]
    pub fn watch(&self) -> bool {
        self.flag("watch")
    }

    /// An integer parameter; what is not one is a 400 in the words of Go's `strconv`.
    pub fn integer(&self, name: &str) -> Result<Option<i64>, Status> {
        match self.get(name) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!(
                    "strconv.ParseInt: parsing {text:?}: invalid syntax"
                ))
            }),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }
}

fn decode(raw: &str) -> String {
    let spaced: Cow<'_, str> = if raw.contains('+') {
        Cow::Owned(raw.replace('+', " "))
    } else {
        Cow::Borrowed(raw)
    };
    percent_decode(&spaced).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_flags_and_integers() {
        let query = Query::parse("watch&limit=5&x=a+b%2Fc&x=2&bad=z&no=False&%=%zz");
        assert!(query.watch() && !query.flag("no") && !query.flag("absent"));
        assert_eq!(query.integer("limit").unwrap(), Some(5));
        assert_eq!(query.all("x").collect::<Vec<_>>(), ["a b/c", "2"]);
        assert_eq!(query.integer("absent").unwrap(), None);
        assert!(query.integer("bad").is_err());
        assert_eq!(query.get("%"), Some("%zz"));
    }
}
