//! Acting as somebody else: the `Impersonate-*` headers.
//!
//! Each thing asked for (user or service account, groups, uid, extra values) is authorized on its own, with the
//! verb `impersonate`; then the request goes on under the new identity.

use apimachinery::status::{Result, Status};
use http::HeaderMap;

use super::service_account::{group_names, split_username};
use super::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, UserInfo};
use crate::authz::{Attributes, Authorizer, Decision, forbidden};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// One permission that an impersonation needs.
#[derive(Debug, PartialEq, Eq)]
struct Need {
    group: &'static str,
    resource: &'static str,
    subresource: String,
    namespace: String,
    name: String,
}

fn need(group: &'static str, resource: &'static str, name: &str) -> Need {
    Need {
        group,
        resource,
        subresource: String::new(),
        namespace: String::new(),
        name: name.to_owned(),
    }
}

/// Who the headers ask to be, and what that takes; `None` when they ask for nothing.
fn plan(headers: &HeaderMap) -> Result<Option<(UserInfo, Vec<Need>)>> {
    let text = |name: &str| -> Vec<String> {
        headers
            .get_all(name)
            .iter()
            .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
            .collect()
    };
    let name = text(USER).into_iter().next().unwrap_or_default();
    let mut user = UserInfo {
        name,
        ..UserInfo::default()
    };
    let mut needs = Vec::new();
    if let Some((namespace, account)) = split_username(&user.name) {
        needs.push(Need {
            namespace: namespace.to_owned(),
            ..need("", "serviceaccounts", account)
        });
    } else if !user.name.is_empty() {
        needs.push(need("", "users", &user.name));
    }
    user.groups = text(GROUP);
    needs.extend(user.groups.iter().map(|g| need("", "groups", g)));
    let groups_given = !user.groups.is_empty();
    for key in headers
        .keys()
        .filter_map(|k| k.as_str().strip_prefix(EXTRA))
    {
        let values = text(&format!("{EXTRA}{key}"));
        let key = crate::request::percent_decode(key).into_owned();
        needs.extend(values.iter().map(|v| Need {
            subresource: key.clone(),
            ..need("authentication.k8s.io", "userextras", v)
        }));
        user.extra.insert(key, values);
    }
    if let Some(uid) = text(UID).into_iter().next().filter(|u| !u.is_empty()) {
        needs.push(need("authentication.k8s.io", "uids", &uid));
        user.uid = uid;
    }
    if needs.is_empty() {
        return Ok(None);
    }
    if user.name.is_empty() {
        let asked: Vec<String> = needs
            .iter()
            .map(|n| format!("{} {:?}", n.resource, n.name))
            .collect();
        return Err(Status::bad_request(format!(
            "requested [{}] without impersonating a user",
            asked.join(" ")
        )));
    }
    if !groups_given && let Some((namespace, _)) = split_username(&user.name) {
        user.groups = group_names(namespace);
    }
    let has = |g: &str| user.groups.iter().any(|x| x == g);
    let implied = match user.name.as_str() {
        ANONYMOUS if !has(UNAUTHENTICATED) => Some(UNAUTHENTICATED),
        ANONYMOUS => None,
        _ if !has(AUTHENTICATED) && !has(UNAUTHENTICATED) => Some(AUTHENTICATED),
        _ => None,
    };
    user.groups.extend(implied.map(str::to_owned));
    Ok(Some((user, needs)))
}

/// The identity to go on with, if the headers ask for another one and `requestor` may take it.
pub async fn impersonate(
    headers: &HeaderMap,
    requestor: &UserInfo,
    authorizer: &dyn Authorizer,
) -> Result<Option<UserInfo>> {
    // Nearly every request has none of these headers: look before building anything.
    if !headers
        .keys()
        .any(|k| k.as_str().starts_with("impersonate-"))
    {
        return Ok(None);
    }
    let Some((user, needs)) = plan(headers)? else {
        return Ok(None);
    };
    for need in &needs {
        let attributes = Attributes {
            user: requestor,
            verb: "impersonate",
            namespace: &need.namespace,
            group: need.group,
            version: "v1",
            resource: need.resource,
            subresource: &need.subresource,
            name: &need.name,
            is_resource: true,
            path: "",
            field_selector: "",
            label_selector: "",
        };
        match authorizer.authorize(&attributes).await {
            Decision::Allow(_) => {}
            Decision::Deny(reason) | Decision::NoOpinion(reason) => {
                return Err(forbidden(&attributes, &reason));
            }
        }
    }
    Ok(Some(user))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|(k, v)| (k.parse::<http::HeaderName>().unwrap(), v.parse().unwrap()))
            .collect()
    }

    #[test]
    fn each_thing_asked_for_is_a_permission() {
        let asked = headers(&[
            ("Impersonate-User", "jane"),
            ("Impersonate-Group", "dev"),
            ("Impersonate-Uid", "42"),
            ("Impersonate-Extra-scopes%2fx", "view"),
        ]);
        let (user, needs) = plan(&asked).unwrap().unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("jane", "42"));
        assert_eq!(user.groups, ["dev", AUTHENTICATED]);
        assert_eq!(user.extra["scopes/x"], ["view"]);
        assert_eq!(needs.len(), 4);
        assert!(needs.contains(&Need {
            subresource: "scopes/x".into(),
            ..need("authentication.k8s.io", "userextras", "view")
        }));
    }

    #[test]
    fn groups_that_follow_from_the_user() {
        for (user, groups) in [
            (
                "system:serviceaccount:ns:sa",
                vec![
                    "system:serviceaccounts",
                    "system:serviceaccounts:ns",
                    AUTHENTICATED,
                ],
            ),
            (ANONYMOUS, vec![UNAUTHENTICATED]),
            ("jane", vec![AUTHENTICATED]),
        ] {
            let (got, _) = plan(&headers(&[("impersonate-user", user)]))
                .unwrap()
                .unwrap();
            assert_eq!(got.groups, groups, "{user}");
        }
        assert!(plan(&headers(&[("accept", "x")])).unwrap().is_none());
        assert!(plan(&headers(&[("impersonate-group", "x")])).is_err());
    }
}
