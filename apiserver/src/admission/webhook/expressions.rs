//! What expressions of webhooks and policies see, and match conditions.

use std::sync::Arc;

use serde_json::Value as Json;

use super::review;
use super::versions::Versioned;
use crate::admission::{Attributes, cached};
use crate::authz::Authorizer;
use crate::cel::{
    Asked, Authorization, Bindings, Budget, Environment, Error, Program, ResourceCheck, Type, Value,
};
use crate::registry::Registry;
use crate::strategy::check::{list, text};
use std::sync::LazyLock;

static REQUEST: LazyLock<Type> = LazyLock::new(|| {
    let text = || Type::String;
    let kind = || {
        let fields = [("group", text()), ("version", text()), ("kind", text())];
        Type::object("kubernetes.GroupVersionKind", fields)
    };
    let resource = || {
        let fields = [("group", text()), ("version", text()), ("resource", text())];
        Type::object("kubernetes.GroupVersionResource", fields)
    };
    let texts = || Type::list(Type::String);
    let user = Type::object(
        "kubernetes.UserInfo",
        [
            ("username", text()),
            ("uid", text()),
            ("groups", texts()),
            ("extra", Type::map(Type::String, texts())),
        ],
    );
    let mut request = Type::object(
        "kubernetes.AdmissionRequest",
        [
            ("kind", kind()),
            ("resource", resource()),
            ("subResource", text()),
            ("requestKind", kind()),
            ("requestResource", resource()),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user),
            ("dryRun", Type::Bool),
            ("options", Type::Dyn),
        ],
    );
    unescape(&mut request);
    request
});

/// The types of Kubernetes' own declare `namespace` under its plain name: as a field, the word is not reserved.
fn unescape(of: &mut Type) {
    if let Type::Object(object) = of {
        let object = Arc::make_mut(object);
        if let Some(field) = object.fields.remove("__namespace__") {
            object.fields.insert("namespace".to_owned(), field);
        }
    }
}

static NAMESPACE: LazyLock<Type> = LazyLock::new(|| {
    let text = || Type::String;
    let texts = || Type::list(Type::String);
    let labels = || Type::map(Type::String, Type::String);
    let mut metadata = Type::object(
        "kubernetes.NamespaceMetadata",
        [
            ("name", text()),
            ("generateName", text()),
            ("namespace", text()),
            ("labels", labels()),
            ("annotations", labels()),
            ("UID", text()),
            ("creationTimestamp", Type::Timestamp),
            ("deletionGracePeriodSeconds", Type::Int),
            ("deletionTimestamp", Type::Timestamp),
            ("generation", Type::Int),
            ("resourceVersion", text()),
            ("finalizers", texts()),
        ],
    );
    unescape(&mut metadata);
    let condition = Type::object(
        "kubernetes.NamespaceCondition",
        [
            ("status", text()),
            ("type", text()),
            ("lastTransitionTime", Type::Timestamp),
            ("message", text()),
            ("reason", text()),
        ],
    );
    let spec = Type::object("kubernetes.NamespaceSpec", [("finalizers", texts())]);
    let status = Type::object(
        "kubernetes.NamespaceStatus",
        [("conditions", Type::list(condition)), ("phase", text())],
    );
    let fields = [("metadata", metadata), ("spec", spec), ("status", status)];
    Type::object("kubernetes.Namespace", fields)
});

/// The variables of admission.
#[must_use]
pub fn environment(params: bool, authorizer: bool) -> Environment {
    let mut environment = Environment::new([
        ("object", Type::Dyn),
        ("oldObject", Type::Dyn),
        ("namespaceObject", NAMESPACE.clone()),
        ("request", REQUEST.clone()),
    ]);
    if params {
        environment.declare("params", Type::Dyn);
    }
    if authorizer {
        let opaque = |name| Type::Opaque(name);
        environment.declare("authorizer", opaque("kubernetes.authorization.Authorizer"));
        environment.declare(
            "authorizer.requestResource",
            opaque("kubernetes.authorization.ResourceCheck"),
        );
    }
    environment
}

/// Everything that the expressions over one write read.
pub struct Scene<'a> {
    pub versioned: &'a Versioned,
    request: Json,
    namespace: Json,
    asked: Asked<'a>,
    check: ResourceCheck,
}

impl<'a> Scene<'a> {
    pub async fn new(
        attributes: &Attributes<'_>,
        versioned: &'a Versioned,
        authorizer: &'a dyn Authorizer,
        registry: &Registry,
    ) -> apimachinery::status::Result<Self> {
        let namespaced =
            !attributes.namespace.is_empty() && !super::matching::is_namespace(attributes);
        let namespace = match namespaced {
            true => cached(registry, "", "namespaces", "", attributes.namespace)
                .await?
                .map_or(Json::Null, |namespace| namespace.value()),
            false => Json::Null,
        };
        Ok(Self {
            request: review::request(attributes, versioned),
            namespace,
            asked: Asked {
                authorizer,
                user: Arc::new(attributes.user.clone()),
            },
            check: ResourceCheck {
                group: attributes.resource.group.to_string(),
                resource: attributes.resource.plural.to_string(),
                subresource: attributes.subresource.to_owned(),
                namespace: attributes.namespace.to_owned(),
                name: attributes.name.to_owned(),
                ..ResourceCheck::default()
            },
            versioned,
        })
    }

    pub fn bindings<'b>(&'b self, params: Option<&'b Json>) -> Bindings<'b> {
        let asked = || self.asked.clone();
        let resource = Authorization::Resource(asked(), self.check.clone());
        let mut bindings = Bindings::new([
            ("object", Value::untyped(&self.versioned.object)),
            ("oldObject", Value::untyped(&self.versioned.old)),
            ("request", Value::json(&self.request, &REQUEST)),
            ("namespaceObject", Value::json(&self.namespace, &NAMESPACE)),
            (
                "authorizer",
                Value::Authorization(Authorization::Authorizer(asked())),
            ),
            ("authorizer.requestResource", Value::Authorization(resource)),
        ]);
        bindings.bind("params", params.map_or(Value::Null, Value::untyped));
        bindings
    }
}

/// Conditions that all have to hold before a webhook or policy is asked.
#[derive(Debug, Default)]
pub struct Conditions(Vec<Condition>);

#[derive(Debug)]
struct Condition {
    expression: String,
    program: Result<Program, String>,
}

impl Conditions {
    pub fn read(value: &Json, environment: &Environment) -> Self {
        let conditions = list(value, "matchConditions").iter().map(|condition| {
            let expression = text(condition, "expression").trim().to_owned();
            Condition {
                program: compile(&expression, environment),
                expression,
            }
        });
        Self(conditions.collect())
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all hold. One that does not is enough to say no; failures count only if none does.
    pub fn hold(&self, bindings: &Bindings<'_>) -> Result<bool, String> {
        let mut budget = Budget::for_match_conditions();
        let mut errors = Vec::new();
        for condition in &self.0 {
            match &condition.program {
                Ok(program) => match program.evaluate(bindings, &mut budget) {
                    Ok(value) if value.as_bool() == Some(true) => {}
                    Ok(_) => return Ok(false),
                    Err(error) => errors.push(evaluation_error(&condition.expression, &error)),
                },
                Err(error) => errors.push(format!("compilation error: {error}")),
            }
        }
        match errors.as_slice() {
            [] => Ok(true),
            [only] => Err(only.clone()),
            several => Err(format!("[{}]", several.join(", "))),
        }
    }
}

pub fn compile(expression: &str, environment: &Environment) -> Result<Program, String> {
    Program::compile(expression, environment)
        .map_err(|error| format!("compilation failed: {error}"))
}

/// As policies report that an expression failed.
#[must_use]
pub fn evaluation_error(expression: &str, error: &Error) -> String {
    match error {
        Error::BudgetExceeded => error.to_string(),
        error => format!("expression '{expression}' resulted in error: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environments() {
        let environment = environment(false, true);
        for (text, fine) in [
            (
                "request.namespace == 'x' && request.userInfo.username != ''",
                true,
            ),
            ("!request.userInfo.groups.exists(g, g == 'x')", true),
            ("namespaceObject.metadata.labels['a'] == 'b'", true),
            ("namespaceObject.metadata.name == 'x'", true),
            (
                "authorizer.group('').resource('pods').namespace('n').check('get').allowed()",
                true,
            ),
            ("authorizer.requestResource.check('get').allowed()", true),
            (
                "authorizer.path('/healthz').check('get').reason() == ''",
                true,
            ),
            ("object.spec.anything == oldObject.spec.anything", true),
            ("request.nothing", false),
            ("params.x == 1", false),
        ] {
            assert_eq!(
                compile(text, &environment).is_ok(),
                fine,
                "{text}: {:?}",
                compile(text, &environment).err()
            );
        }
    }
}
