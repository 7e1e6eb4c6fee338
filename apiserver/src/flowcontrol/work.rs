//! How many seats a request is worth: one, but for lists of many objects.

use crate::query::Query;
use crate::registry::Registry;
use crate::request::RequestInfo;

/// Objects that are read for one seat, and the most seats that one request takes.
const OBJECTS_PER_SEAT: usize = 100;
const MOST: usize = 10;

/// The width of a request. Of a watch this counts its beginning only: the seats are free again once it runs.
#[must_use]
pub fn width(registry: &Registry, info: &RequestInfo, query: &Query) -> usize {
    let reads_many = match info.verb.as_str() {
        "list" => true,
        "watch" => begins_with_a_list(query),
        _ => false,
    };
    if !reads_many || !info.name.is_empty() {
        return 1;
    }
    let Some(served) = registry.find(&info.group, &info.version, &info.resource) else {
        return 1;
    };
    // What nobody has asked for yet is loaded by whoever comes first, and is usually small.
    let kept = served.storage.started().map_or(0, |cache| cache.len());
    of_list(kept, query.integer("limit").ok().flatten())
}

/// Whether a watch sends what there is before what changes.
fn begins_with_a_list(query: &Query) -> bool {
    query.flag("sendInitialEvents") || matches!(query.get("resourceVersion"), None | Some("" | "0"))
}

fn of_list(kept: usize, limit: Option<i64>) -> usize {
    let limit = limit.and_then(|limit| usize::try_from(limit).ok());
    let read = limit
        .filter(|limit| *limit > 0)
        .map_or(kept, |limit| limit.min(kept));
    read.div_ceil(OBJECTS_PER_SEAT).clamp(1, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_as_wide_as_they_are_long() {
        for (kept, limit, wanted) in [
            (0, None, 1),
            (100, None, 1),
            (101, None, 2),
            (5000, None, 10),
            (5000, Some(500), 5),
            (5000, Some(0), 10),
            (5000, Some(-1), 10),
            (50, Some(500), 1),
        ] {
            assert_eq!(of_list(kept, limit), wanted, "{kept} {limit:?}");
        }
    }

    #[test]
    fn watches_that_resume_read_little() {
        for (query, wanted) in [
            ("watch=1", true),
            ("watch=1&resourceVersion=0", true),
            ("watch=1&resourceVersion=7", false),
            ("watch=1&resourceVersion=7&sendInitialEvents=true", true),
        ] {
            assert_eq!(begins_with_a_list(&Query::parse(query)), wanted, "{query}");
        }
    }
}
