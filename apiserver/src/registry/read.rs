//! Get and list, with Kubernetes' resource version semantics.
//!
//! Without a resource version a read is as new as the store at the moment it arrived; `0` takes what is there; `N` waits
//! for `N`, or with `Exact` shows the state at `N`. A continue token carries the revision of its first page; as long as
//! nothing has changed since, pages come from the cache, afterwards from the store's history.

use std::sync::Arc;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::resource::GroupKind;
use apimachinery::status::{Result, Status};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::table::Served;
use super::versions::revive;
use super::{Registry, Target};
use crate::cache::{Object, Selection, Snapshot, store_error};
use crate::query::Query;

/// The query of a list or watch, read and checked.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    pub resource_version: Option<u64>,
    pub exact: bool,
    pub limit: usize,
    pub continue_token: String,
    pub send_initial_events: Option<bool>,
    pub allow_bookmarks: bool,
    pub timeout_seconds: Option<u64>,
}

impl ListOptions {
    pub fn parse(query: &Query, watch: bool) -> Result<Self> {
        let text = |name| query.get(name).unwrap_or_default();
        let (version, token, matching) = (
            text("resourceVersion"),
            text("continue"),
            text("resourceVersionMatch"),
        );
        let initial = query.optional_flag("sendInitialEvents");
        let errors = if watch {
            check_watch(matching, token, initial.is_some())
        } else {
            check_list(version, matching, token, initial.is_some())
        };
        if !errors.0.is_empty() {
            return Err(Status::invalid(
                &GroupKind::new("meta.k8s.io", "ListOptions"),
                "",
                errors,
            ));
        }
        Ok(Self {
            resource_version: parse_version(version)?,
            exact: matching == "Exact",
            limit: query
                .integer("limit")?
                .and_then(|limit| usize::try_from(limit).ok())
                .unwrap_or(0),
            continue_token: token.to_owned(),
            send_initial_events: initial,
            allow_bookmarks: query.flag("allowWatchBookmarks"),
            timeout_seconds: query
                .integer("timeoutSeconds")?
                .and_then(|seconds| u64::try_from(seconds).ok()),
        })
    }
}

/// Absent is `None`; otherwise a decimal number.
pub fn parse_version(version: &str) -> Result<Option<u64>> {
    if version.is_empty() {
        return Ok(None);
    }
    version.parse().map(Some).map_err(|_| {
        Status::bad_request(format!(
            "resourceVersion: Invalid value: {version:?}: strconv.ParseUint: parsing {version:?}: invalid syntax"
        ))
    })
}

fn check_list(version: &str, matching: &str, token: &str, initial: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("resourceVersionMatch");
    if !matching.is_empty() {
        if version.is_empty() {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            errors.0.push(Error::forbidden(&path, why));
        }
        if !token.is_empty() {
            errors.0.push(Error::forbidden(
                &path,
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
        if !matches!(matching, "Exact" | "NotOlderThan") {
            errors.0.push(Error::not_supported(
                &path,
                matching,
                &["Exact", "NotOlderThan", ""],
            ));
        }
        if matching == "Exact" && version == "0" {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            errors.0.push(Error::forbidden(&path, why));
        }
    }
    if initial {
        let path = Path::new("sendInitialEvents");
        errors.0.push(Error::forbidden(
            &path,
            "sendInitialEvents is forbidden for list",
        ));
    }
    errors
}

fn check_watch(matching: &str, token: &str, initial: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("resourceVersionMatch");
    if initial && matching != "NotOlderThan" {
        let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        errors.0.push(Error::forbidden(&path, why));
    }
    if !matching.is_empty() {
        if !initial {
            let why =
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.0.push(Error::forbidden(&path, why));
        }
        if matching != "NotOlderThan" {
            errors
                .0
                .push(Error::not_supported(&path, matching, &["NotOlderThan"]));
        }
        if !token.is_empty() {
            errors.0.push(Error::forbidden(
                &path,
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
    }
    errors
}

/// One page of a list.
#[derive(Debug)]
pub struct List {
    pub revision: u64,
    pub objects: Vec<Arc<Object>>,
    pub continue_token: Option<String>,
    /// How many follow, where that is known without looking (no selectors).
    pub remaining: Option<u64>,
}

/// What a continue token holds, in Kubernetes' own layout.
#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    rv: i64,
    /// The key (below the resource or namespace) to start at.
    start: String,
}

const INCONSISTENT: i64 = -1;

impl Token {
    fn encode(rv: i64, start: String) -> String {
        let token = Self {
            v: "meta.k8s.io/v1".into(),
            rv,
            start,
        };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    fn decode(text: &str) -> Result<Self> {
        let invalid =
            |why: String| Status::bad_request(format!("continue key is not valid: {why}"));
        let bytes = URL_SAFE_NO_PAD
            .decode(text.trim_end_matches('='))
            .map_err(|e| invalid(e.to_string()))?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))?;
        if token.v != "meta.k8s.io/v1" {
            return Err(invalid(format!(
                "server does not recognize this encoded version {:?}",
                token.v
            )));
        }
        if token.start.is_empty() || token.start.split('/').any(|part| part == "..") {
            return Err(invalid(token.start.to_string()));
        }
        if token.rv == 0 || token.rv < INCONSISTENT {
            return Err(invalid(
                "incorrect encoded start resourceVersion (version meta.k8s.io/v1)".into(),
            ));
        }
        Ok(token)
    }
}

impl Registry {
    /// One object. With a resource version, no older than that.
    pub async fn read(
        &self,
        target: Target<'_>,
        resource_version: Option<u64>,
    ) -> Result<Arc<Object>> {
        let cache = self.cache(target.served);
        match resource_version {
            None => cache.fresh().await?,
            Some(revision) => cache.at_least(revision).await?,
        };
        cache
            .get(&target.cache_key())
            .ok_or_else(|| target.not_found())
    }

    /// One page of the selected objects.
    pub async fn page(
        &self,
        served: &Served,
        selection: &Selection,
        options: &ListOptions,
    ) -> Result<List> {
        let cache = self.cache(served);
        if !options.continue_token.is_empty() {
            return self.next_page(served, selection, options).await;
        }
        let legacy_exact =
            options.limit > 0 && options.resource_version.is_some_and(|version| version > 0);
        let not_older = options.resource_version.is_some() && !options.exact && !legacy_exact;
        if !not_older && let Some(revision) = options.resource_version {
            return self
                .history(served, selection, revision, "", options.limit)
                .await;
        }
        let reached = match options.resource_version {
            None => cache.fresh().await?,
            Some(revision) => cache.at_least(revision).await?,
        };
        // A list that takes what is there is served whole, as Kubernetes does from its cache.
        let limit = if options.resource_version == Some(0) {
            0
        } else {
            options.limit
        };
        Ok(cut(cache.list(selection, reached), selection, "", limit))
    }

    async fn next_page(
        &self,
        served: &Served,
        selection: &Selection,
        options: &ListOptions,
    ) -> Result<List> {
        if options.resource_version.is_some_and(|version| version > 0) {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let token = Token::decode(&options.continue_token)?;
        let start = match selection.namespace.as_str() {
            "" => token.start,
            namespace => format!("{namespace}/{}", token.start),
        };
        let cache = self.cache(served);
        let Ok(revision) = u64::try_from(token.rv) else {
            let reached = cache.fresh().await?;
            return Ok(cut(
                cache.list(selection, reached),
                selection,
                &start,
                options.limit,
            ));
        };
        let reached = cache.at_least(revision).await?;
        if cache.last_change() <= revision {
            let mut snapshot = cache.list(selection, reached);
            if snapshot.last_change <= revision {
                snapshot.revision = revision;
                return Ok(cut(snapshot, selection, &start, options.limit));
            }
        }
        self.history(served, selection, revision, &start, options.limit)
            .await
    }

    /// The state at a revision, from the store.
    async fn history(
        &self,
        served: &Served,
        selection: &Selection,
        revision: u64,
        start: &str,
        limit: usize,
    ) -> Result<List> {
        let kept = &served.storage;
        let prefix = match selection.namespace.as_str() {
            "" => kept.prefix.clone(),
            namespace => format!("{}{namespace}/", kept.prefix),
        };
        let mut range = storage::Range::prefix(&prefix).at(revision);
        if !start.is_empty() {
            range = range.from_key(format!("{}{start}", kept.prefix));
        }
        // Selected objects may lie anywhere in the range, so only an unfiltered page can be cut by the store. One more
        // than the page tells whether there is another.
        let filters = selection.filters();
        if limit > 0 && !filters {
            range = range.limit(limit + 1);
        }
        let result = self.store.range(range).await.map_err(store_error)?;
        let values = result.kvs.iter().map(|kv| kv.value.clone()).collect();
        let values = revive(kept.versions.as_deref(), values).await?;
        let objects = result.kvs.iter().zip(&values).filter_map(|(kv, value)| {
            let key = kv.key.strip_prefix(&*kept.prefix)?;
            let value = kept.adopt(&kv.key, value).ok()?;
            Object::new(key, &value, kv.mod_revision, &kept.fields)
                .ok()
                .map(Arc::new)
        });
        let objects = objects.filter(|object| selection.matches(object)).collect();
        let snapshot = Snapshot {
            revision,
            objects,
            last_change: revision,
        };
        let mut page = cut(snapshot, selection, start, limit);
        if page.remaining.is_some() {
            page.remaining = Some(result.count.saturating_sub(page.objects.len() as u64));
        }
        Ok(page)
    }
}

/// The part of a list from `start` on, at most `limit` long, with the token for the rest.
fn cut(snapshot: Snapshot, selection: &Selection, start: &str, limit: usize) -> List {
    let Snapshot {
        revision,
        mut objects,
        ..
    } = snapshot;
    if !start.is_empty() {
        let skip = objects.partition_point(|object| object.key() < start);
        objects.drain(..skip);
    }
    let rest = if limit == 0 {
        0
    } else {
        objects.len().saturating_sub(limit)
    };
    let mut list = List {
        revision,
        objects,
        continue_token: None,
        remaining: None,
    };
    if rest > 0 {
        list.objects.truncate(limit);
        list.remaining = (!selection.filters()).then_some(rest as u64);
        list.continue_token = list.objects.last().map(|last| {
            let start = format!("{}\0", relative(last.key(), selection));
            Token::encode(i64::try_from(revision).unwrap_or(i64::MAX), start)
        });
    }
    list
}

/// A key as a token has it: below the namespace when the list is of one.
fn relative<'a>(key: &'a str, selection: &Selection) -> &'a str {
    key.strip_prefix(selection.namespace.as_str())
        .and_then(|rest| rest.strip_prefix('/'))
        .filter(|_| !selection.namespace.is_empty())
        .unwrap_or(key)
}

/// Where a list may go on, inconsistently, after the revision of its token has been compacted: the message and the new
/// token of the 410.
#[must_use]
pub fn resume(token: &str) -> Option<(&'static str, String)> {
    let token = Token::decode(token).ok()?;
    let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
         results. Continuing with the provided token results in an inconsistent list - objects that were created, \
         modified, or deleted between the time the first chunk was returned and now may show up in the list.";
    Some((message, Token::encode(INCONSISTENT, token.start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        #[rustfmt::skip]
        let table = [
            ("resourceVersion=5&resourceVersionMatch=Exact", false, 0),
            ("resourceVersionMatch=Exact", false, 422),
            ("resourceVersion=0&resourceVersionMatch=Exact", false, 422),
            ("resourceVersion=1&resourceVersionMatch=Nope", false, 422),
            ("sendInitialEvents=true", false, 422),
            ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", true, 0),
            ("sendInitialEvents=true", true, 422),
            ("resourceVersionMatch=NotOlderThan", true, 422),
            ("resourceVersion=x", false, 400),
            ("limit=ten", false, 400),
        ];
        for (query, watch, code) in table {
            let got = ListOptions::parse(&Query::parse(query), watch)
                .err()
                .map_or(0, |error| error.code);
            assert_eq!(got, code, "{query}");
        }
    }

    #[test]
    fn tokens() {
        let token = Token::decode(&Token::encode(7, "ns/a\0".into())).unwrap();
        assert_eq!((token.rv, &*token.start), (7, "ns/a\0"));
        for bad in [
            "",
            "!!",
            "e30",
            &Token::encode(0, "a".into()),
            &Token::encode(5, "../x".into()),
        ] {
            assert_eq!(
                Token::decode(bad).err().map(|error| error.code),
                Some(400),
                "{bad}"
            );
        }
    }
}
