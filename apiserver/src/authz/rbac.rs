//! The RBAC authorizer: roles and bindings from the watch caches, compiled into an index by subject.
//!
//! The index is rebuilt when one of the four resources has changed; objects that did not change keep their parsed form.
//! Decisions are remembered inside the index, so they end with it. A remembered decision does not depend on the
//! object's name: it says yes, no, or which names.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;

use super::rules::{Rule, missing, quoted};
use super::{Attributes, Authorizer, Decision};
use crate::authn::UserInfo;
use crate::cache::{Object, Selection, WatchCache};
use crate::registry::Registry;
use apimachinery::status::Result;

pub const GROUP: &str = "rbac.authorization.k8s.io";
/// More decisions than this are forgotten all at once; a cluster has a few hundred.
const MAX_DECISIONS: usize = 8192;

#[derive(Deserialize)]
struct RoleObject {
    #[serde(default)]
    rules: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BindingObject {
    role_ref: RoleRef,
    #[serde(default)]
    subjects: Option<Vec<Subject>>,
}

#[derive(Deserialize)]
struct RoleRef {
    kind: String,
    name: String,
}

#[derive(Deserialize)]
struct Subject {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

/// What one binding gives to one subject.
struct Grant {
    /// Empty for cluster-wide.
    namespace: String,
    /// The role's rules, or why there are none.
    rules: std::result::Result<Arc<[Rule]>, String>,
    /// `ClusterRoleBinding "x" of ClusterRole "y" to User "z"`
    source: String,
}

#[derive(Clone)]
enum Remembered {
    Allow(Arc<str>),
    Names(Arc<[(String, String)]>),
    No(Arc<str>),
}

#[derive(Default)]
struct Index {
    revisions: [u64; 4],
    /// Parsed roles by cache key, with the revision they were parsed at.
    roles: HashMap<String, (u64, Arc<[Rule]>)>,
    users: HashMap<String, Vec<Arc<Grant>>>,
    groups: HashMap<String, Vec<Arc<Grant>>>,
    decisions: RwLock<HashMap<u128, Remembered>>,
}

pub struct Rbac {
    /// roles, clusterroles, rolebindings, clusterrolebindings
    caches: [Arc<WatchCache>; 4],
    index: ArcSwap<Index>,
    rebuilding: Mutex<()>,
    hashers: [RandomState; 2],
}

impl Rbac {
    pub fn new(registry: &Registry) -> Result<Self> {
        let cache = |plural| registry.cache_of(GROUP, plural);
        Ok(Self {
            caches: [
                cache("roles")?,
                cache("clusterroles")?,
                cache("rolebindings")?,
                cache("clusterrolebindings")?,
            ],
            index: ArcSwap::from_pointee(Index::default()),
            rebuilding: Mutex::new(()),
            hashers: [RandomState::new(), RandomState::new()],
        })
    }

    /// The index as of now. The caches trail the store by a moment, as informers do.
    async fn index(&self) -> Result<Arc<Index>> {
        let revisions = || [0, 1, 2, 3].map(|i: usize| self.caches[i].last_change());
        let index = self.index.load_full();
        if index.revisions == revisions() && index.revisions.iter().any(|r| *r > 0) {
            return Ok(index);
        }
        for cache in &self.caches {
            cache.loaded().await?;
        }
        let _one = self.rebuilding.lock();
        let old = self.index.load_full();
        let now = revisions();
        if old.revisions == now && now.iter().any(|r| *r > 0) {
            return Ok(old);
        }
        let objects = |i: usize| self.caches[i].list(&Selection::default(), 0).objects;
        let new = Arc::new(build(now, &old, objects));
        self.index.store(new.clone());
        Ok(new)
    }

    fn key(&self, a: &Attributes<'_>) -> u128 {
        let hash = |state: &RandomState| {
            let mut h = state.build_hasher();
            a.user.name.hash(&mut h);
            a.user.groups.hash(&mut h);
            (a.verb, a.is_resource).hash(&mut h);
            if a.is_resource {
                (a.namespace, a.group, a.resource, a.subresource).hash(&mut h);
            } else {
                a.path.hash(&mut h);
            }
            h.finish()
        };
        (u128::from(hash(&self.hashers[0])) << 64) | u128::from(hash(&self.hashers[1]))
    }

    fn decide(&self, index: &Index, a: &Attributes<'_>) -> Decision {
        let key = self.key(a);
        let remembered = index.decisions.read().get(&key).cloned();
        let remembered = remembered.unwrap_or_else(|| {
            let fresh = index.evaluate(a);
            let mut decisions = index.decisions.write();
            if decisions.len() >= MAX_DECISIONS {
                decisions.clear();
            }
            decisions.insert(key, fresh.clone());
            fresh
        });
        match remembered {
            Remembered::Allow(reason) => Decision::Allow(reason.to_string()),
            Remembered::No(reason) => Decision::NoOpinion(reason.to_string()),
            Remembered::Names(names) => match names.iter().find(|(name, _)| name == a.name) {
                Some((_, reason)) => Decision::Allow(reason.clone()),
                None => Decision::NoOpinion(String::new()),
            },
        }
    }

    /// Refuses to grant what the user does not hold; the error is what a 403 says.
    pub async fn confirm_no_escalation(
        &self,
        user: &UserInfo,
        namespace: &str,
        wanted: &[Rule],
    ) -> Result<Option<String>> {
        let index = self.index().await?;
        let held = index.rules(user, namespace);
        let missing = missing(held.iter().flat_map(|rules| rules.iter()), wanted);
        if missing.is_empty() {
            return Ok(None);
        }
        let mut lines: Vec<String> = missing.iter().map(Rule::compact).collect();
        lines.sort();
        lines.dedup();
        Ok(Some(format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            user.name,
            quoted(&user.groups),
            lines.join("\n")
        )))
    }

    /// The rules of a role by reference; `None` when there is no such role.
    pub async fn role_rules(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<[Rule]>>> {
        let index = self.index().await?;
        Ok(index
            .roles
            .get(&role_key(kind, namespace, name))
            .map(|(_, rules)| rules.clone()))
    }
}

fn role_key(kind: &str, namespace: &str, name: &str) -> String {
    if kind == "Role" {
        format!("{namespace}/{name}")
    } else {
        name.to_owned()
    }
}

fn build(revisions: [u64; 4], old: &Index, objects: impl Fn(usize) -> Vec<Arc<Object>>) -> Index {
    let mut index = Index {
        revisions,
        ..Index::default()
    };
    for object in objects(0).into_iter().chain(objects(1)) {
        let parsed = match old.roles.get(object.key()) {
            Some((revision, rules)) if *revision == object.revision => rules.clone(),
            _ => object
                .decode::<RoleObject>()
                .map(|r| r.rules.unwrap_or_default())
                .unwrap_or_default()
                .into(),
        };
        index
            .roles
            .insert(object.key().to_owned(), (object.revision, parsed));
    }
    for (object, kind) in objects(3)
        .into_iter()
        .map(|o| (o, "ClusterRoleBinding"))
        .chain(objects(2).into_iter().map(|o| (o, "RoleBinding")))
    {
        match object.decode::<BindingObject>() {
            Ok(binding) => index.bind(&object, kind, binding),
            Err(error) => {
                tracing::error!(key = object.key(), %error, "binding cannot be read; it grants nothing")
            }
        }
    }
    index
}

impl Index {
    fn bind(&mut self, object: &Object, kind: &str, binding: BindingObject) {
        let namespace = object.namespace();
        let RoleRef {
            kind: role_kind,
            name: role,
        } = &binding.role_ref;
        let rules = match self.roles.get(&role_key(role_kind, namespace, role)) {
            Some((_, rules)) => Ok(rules.clone()),
            None => Err(format!(
                "{}.{GROUP} {role:?} not found",
                role_kind.to_lowercase()
            )),
        };
        let shown = match namespace {
            "" => object.name().to_owned(),
            _ => format!("{}/{namespace}", object.name()),
        };
        for subject in binding.subjects.unwrap_or_default() {
            let (map, name, described) = match subject.kind.as_str() {
                "ServiceAccount" => {
                    let of = if subject.namespace.is_empty() {
                        namespace
                    } else {
                        &subject.namespace
                    };
                    if of.is_empty() {
                        continue;
                    }
                    let user = format!("system:serviceaccount:{of}:{}", subject.name);
                    (&mut self.users, user, format!("{}/{of}", subject.name))
                }
                "User" => (&mut self.users, subject.name.clone(), subject.name),
                "Group" => (&mut self.groups, subject.name.clone(), subject.name),
                _ => continue,
            };
            let source = format!(
                "{kind} {shown:?} of {role_kind} {role:?} to {} {described:?}",
                subject.kind
            );
            let grant = Grant {
                namespace: namespace.to_owned(),
                rules: rules.clone(),
                source,
            };
            map.entry(name).or_default().push(Arc::new(grant));
        }
    }

    fn grants<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Grant> {
        let own = self.users.get(&user.name).into_iter().flatten();
        let groups = user
            .groups
            .iter()
            .filter_map(|g| self.groups.get(g))
            .flatten();
        own.chain(groups)
            .map(|g| &**g)
            .filter(move |g| g.namespace.is_empty() || g.namespace == namespace)
    }

    fn rules(&self, user: &UserInfo, namespace: &str) -> Vec<Arc<[Rule]>> {
        self.grants(user, namespace)
            .filter_map(|g| g.rules.clone().ok())
            .collect()
    }

    fn evaluate(&self, a: &Attributes<'_>) -> Remembered {
        let mut names = Vec::new();
        let mut errors: Vec<&str> = Vec::new();
        for grant in self.grants(a.user, a.namespace) {
            let rules = match &grant.rules {
                Ok(rules) => rules,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            let reason = || format!("RBAC: allowed by {}", grant.source);
            for rule in rules.iter() {
                if !a.is_resource {
                    if rule.matches_path(a.verb, a.path) {
                        return Remembered::Allow(reason().into());
                    }
                } else if rule.matches_resource(a.verb, a.group, a.resource, a.subresource) {
                    if rule.resource_names.is_empty() {
                        return Remembered::Allow(reason().into());
                    }
                    names.extend(rule.resource_names.iter().map(|n| (n.clone(), reason())));
                }
            }
        }
        if !names.is_empty() {
            return Remembered::Names(names.into());
        }
        errors.dedup();
        let reason = match errors.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        };
        Remembered::No(reason.into())
    }
}

impl Authorizer for Rbac {
    fn authorize<'a>(&'a self, attributes: &'a Attributes<'a>) -> BoxFuture<'a, Decision> {
        Box::pin(async move {
            match self.index().await {
                Ok(index) => self.decide(&index, attributes),
                Err(error) => Decision::NoOpinion(error.message),
            }
        })
    }

    fn rules<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &'a str,
    ) -> BoxFuture<'a, (Vec<super::Rule>, Option<String>)> {
        Box::pin(async move {
            let index = match self.index().await {
                Ok(index) => index,
                Err(error) => return (Vec::new(), Some(error.message)),
            };
            let mut all = Vec::new();
            for rule in index
                .rules(user, namespace)
                .iter()
                .flat_map(|rules| rules.iter())
                .cloned()
            {
                if !rule.resources.is_empty() {
                    all.push(super::Rule::Resource {
                        verbs: rule.verbs.clone(),
                        groups: rule.api_groups,
                        resources: rule.resources,
                        names: rule.resource_names,
                    });
                }
                if !rule.non_resource_urls.is_empty() {
                    all.push(super::Rule::NonResource {
                        verbs: rule.verbs,
                        urls: rule.non_resource_urls,
                    });
                }
            }
            let errors: Vec<&str> = index
                .grants(user, namespace)
                .filter_map(|g| g.rules.as_ref().err().map(String::as_str))
                .collect();
            let error = (!errors.is_empty()).then(|| errors.join(", "));
            (all, error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object(key: &str, revision: u64, value: &Value) -> Arc<Object> {
        Arc::new(Object::new(key, value.to_string().as_bytes(), revision, &[]).unwrap())
    }

    fn index(binding: Value) -> Index {
        let role = |verbs: &[&str], names: &[&str]| {
            json!({"metadata": {}, "rules": [
                {"verbs": verbs, "apiGroups": [""], "resources": ["pods"], "resourceNames": names},
                {"verbs": ["get"], "nonResourceURLs": ["/metrics"]},
            ]})
        };
        build([1; 4], &Index::default(), |i| match i {
            0 => vec![object("ns/reader", 1, &role(&["get"], &["a"]))],
            1 => vec![object("view", 1, &role(&["get", "list"], &[]))],
            2 => vec![object("ns/rb", 1, &binding)],
            _ => vec![object(
                "crb",
                1,
                &json!({"metadata": {}, "roleRef": {"kind": "ClusterRole", "name": "view"},
                "subjects": [{"kind": "Group", "name": "viewers"}, {"kind": "ServiceAccount", "name": "sa", "namespace": "x"}]}),
            )],
        })
    }

    fn ask(
        index: &Index,
        user: &str,
        group: &str,
        verb: &str,
        namespace: &str,
        name: &str,
    ) -> bool {
        let user = UserInfo::new(user, &[group]);
        let a = Attributes {
            user: &user,
            verb,
            namespace,
            group: "",
            version: "v1",
            resource: "pods",
            subresource: "",
            name,
            is_resource: true,
            path: "",
            field_selector: "",
            label_selector: "",
        };
        match index.evaluate(&a) {
            Remembered::Allow(_) => true,
            Remembered::Names(names) => names.iter().any(|(n, _)| n == name),
            Remembered::No(_) => false,
        }
    }

    #[test]
    fn subjects_namespaces_and_names() {
        let index = index(
            json!({"metadata": {}, "roleRef": {"kind": "Role", "name": "reader"},
            "subjects": [{"kind": "User", "name": "jane"}, {"kind": "ServiceAccount", "name": "local"}]}),
        );
        for (user, group, verb, namespace, name, want) in [
            ("jane", "", "get", "ns", "a", true),
            ("jane", "", "get", "ns", "b", false),
            ("jane", "", "get", "other", "a", false),
            ("jane", "", "list", "ns", "", false),
            ("jane", "viewers", "list", "ns", "", true),
            ("bob", "viewers", "get", "", "", true),
            ("bob", "", "get", "ns", "a", false),
            ("system:serviceaccount:ns:local", "", "get", "ns", "a", true),
            (
                "system:serviceaccount:x:sa",
                "",
                "list",
                "anywhere",
                "",
                true,
            ),
        ] {
            assert_eq!(
                ask(&index, user, group, verb, namespace, name),
                want,
                "{user} {verb} {namespace}/{name}"
            );
        }
    }

    #[test]
    fn a_binding_to_no_role_says_so() {
        let index = index(
            json!({"metadata": {}, "roleRef": {"kind": "ClusterRole", "name": "gone"},
            "subjects": [{"kind": "User", "name": "jane"}]}),
        );
        let user = UserInfo::new("jane", &[]);
        let a = Attributes {
            user: &user,
            verb: "get",
            namespace: "ns",
            group: "",
            version: "v1",
            resource: "pods",
            subresource: "",
            name: "",
            is_resource: true,
            path: "",
            field_selector: "",
            label_selector: "",
        };
        let Remembered::No(reason) = index.evaluate(&a) else {
            panic!("allowed")
        };
        assert_eq!(
            &*reason,
            r#"RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found"#
        );
    }

    #[test]
    fn unchanged_roles_are_not_parsed_again() {
        let first = index(json!({"metadata": {}, "roleRef": {"kind": "Role", "name": "reader"}}));
        let kept = first.roles["view"].1.clone();
        let second = build([2; 4], &first, |i| match i {
            1 => vec![object("view", 1, &json!({"metadata": {}}))],
            _ => vec![],
        });
        assert!(Arc::ptr_eq(&kept, &second.roles["view"].1));
        assert!(!second.roles.contains_key("ns/reader"));
    }
}
