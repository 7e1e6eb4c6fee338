//! Requests for an operation of an OpenAPI document: some sound, most of them broken in one way or several.

use bytes::Bytes;
use http::Method;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde_json::{Map, Value, json};

use super::seeds;
use super::values::{Schemas, extreme, mutate};

/// The namespace that everything happens in.
pub const NAMESPACE: &str = "generated";

/// An operation, as the document has it.
pub struct Operation<'a> {
    pub path: &'a str,
    pub method: Method,
    pub document: &'a Value,
    /// Of the objects at the path's collection; of a subresource that takes another kind, that one.
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
    /// The kind of the object that the path is about.
    pub parent: &'a str,
    /// Whether such an object can be made.
    pub stored: bool,
}

impl Operation<'_> {
    /// One that goes through to a node or pod.
    pub fn connects(&self) -> bool {
        self.document["x-kubernetes-action"] == "connect"
    }

    fn is_item(&self) -> bool {
        self.path.contains("{name}")
    }
}

#[derive(Debug, Clone)]
pub struct Request {
    pub method: Method,
    pub uri: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
}

impl Request {
    /// As a person would write it down.
    pub fn shown(&self) -> String {
        let body = String::from_utf8_lossy(&self.body);
        let cut: String = body.chars().take(1500).collect();
        format!("{} {} {:?}\n{cut}", self.method, self.uri, self.headers)
    }
}

const NAMES: &[&str] = &[
    "other",
    "default",
    "UPPER",
    "a..b",
    "-",
    "a%2Fb",
    "..",
    ".",
    "%00",
    "%ff%fe",
    "%F0%9F%92%A5",
    "a%20b",
    "%25",
    "seed:80",
    "https:seed:",
    ":::",
    "seed%0a",
    "status",
    "~",
    "a*b",
];

const MEDIA: &[&str] = &[
    "application/json",
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json; charset=utf-8",
    "application/json;;",
    "APPLICATION/JSON",
    "text/plain",
    "",
    ";",
    "application/cbor",
    "application/x-www-form-urlencoded",
    "application/json, application/yaml",
    "*/*",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
    "application/apply-patch+cbor",
];

const ACCEPT: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "*/*",
    "application/*",
    "application/vnd.kubernetes.protobuf,application/json;q=0.5",
    "text/html",
    "nonsense",
    ";",
    "q=1",
    "application/json;as=Table;v=v1;g=meta.k8s.io",
    "application/json;as=Table;v=v9;g=meta.k8s.io",
    "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
    "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
    "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
    "application/json;as=Nothing",
    "application/json;q=x",
    "application/json;stream=watch",
];

/// Odd values of a query parameter. None of them holds a request up for long.
fn parameter(rng: &mut StdRng, name: &str) -> String {
    let all: &[&str] = match name {
        "labelSelector" => &[
            "app%3Dseed",
            "app",
            "!app",
            "app+in+(seed,x)",
            "app+notin+()",
            "a,,b",
            "=",
            "a+in+(",
            "a%3E5",
            "a%3Ex",
            "a==b==c",
            "%00",
            "a+in+(b,(c))",
            "(",
            "in+in+(in)",
            "%F0%9F%92%A5",
            "a!=",
            "a%3D%22b%22",
        ],
        "fieldSelector" => &[
            "metadata.name%3Dseed",
            "metadata.name%3D%3D",
            "metadata.namespace!=x",
            "spec.nodeName=",
            "nope=1",
            "=",
            "metadata.name=a%5C,b",
            "metadata.name=%5C",
            "a",
            "!a",
            "metadata.name=a,metadata.name=b",
            "%00=%00",
            "status.phase!=Running",
            "type=x",
        ],
        "continue" => &[
            "garbage",
            "eyJydiI6MX0",
            "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6LTEsInN0YXJ0IjoiLi4vIn0",
            "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJcdTAwMDAifQ",
            "%ff",
            "====",
            "e30",
            "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6OTIyMzM3MjAzNjg1NDc3NTgwNywic3RhcnQiOiJhIn0",
        ],
        "resourceVersion" => &[
            "0",
            "1",
            "-1",
            "x",
            "18446744073709551616",
            "1.5",
            "%00",
            "+1",
        ],
        "resourceVersionMatch" => &["Exact", "NotOlderThan", "Nope", "exact"],
        "limit" => &[
            "1",
            "0",
            "-1",
            "9223372036854775807",
            "9223372036854775808",
            "x",
            "1e3",
            "%2B1",
        ],
        "timeoutSeconds" => &["1", "0", "-1", "x", "9223372036854775807"],
        "gracePeriodSeconds" => &["0", "1", "-1", "x", "9223372036854775807", "1.5"],
        "propagationPolicy" => &["Foreground", "Background", "Orphan", "Nope", "orphan"],
        "dryRun" => &["All", "None", "all", "All&dryRun=All", "All&dryRun=x"],
        "fieldValidation" => &["Strict", "Warn", "Ignore", "strict", "x"],
        "fieldManager" => &["m", "a%2Fb", "%00", "%F0%9F%92%A5", "a+b"],
        "watch" => &["1", "true", "false", "x", "TRUE"],
        _ => &["true", "false", "x", "1", "0", "-1", "", "%00", "TRUE"],
    };
    match rng.random_range(0..12) {
        0 => String::new(),
        1 => "a".repeat(500),
        _ => (*all.choose(rng).unwrap_or(&"x")).to_owned(),
    }
}

/// Parameters that no document tells of, or that belong to other operations.
const UNTOLD: &[&str] = &[
    "pretty",
    "bogus",
    "container",
    "tailLines",
    "limitBytes",
    "sinceSeconds",
    "sinceTime",
    "stream",
    "command",
    "ports",
    "stdin",
    "timeout",
    "orphanDependents",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "export",
    "includeObject",
    "watch",
    "labelSelector",
    "fieldSelector",
    "resourceVersion",
    "dryRun",
    "force",
    "fieldManager",
];

pub struct Maker<'a> {
    pub schemas: Schemas<'a>,
}

impl<'a> Maker<'a> {
    pub fn request(&self, rng: &mut StdRng, operation: &Operation<'a>) -> Request {
        let mut headers = Vec::new();
        let body = match operation.method {
            Method::PATCH if !operation.connects() => {
                let (media, body) = self.patch(rng, operation);
                headers.push(("content-type", media.to_owned()));
                body
            }
            Method::POST | Method::PUT | Method::DELETE | Method::PATCH => {
                let (media, body) = self.body(rng, operation);
                headers.push(("content-type", media.to_owned()));
                body
            }
            _ => Bytes::new(),
        };
        if rng.random_bool(0.08) {
            headers.retain(|(name, _)| *name != "content-type");
            let media = MEDIA.choose(rng).unwrap_or(&"");
            headers.push(("content-type", (*media).to_owned()));
        }
        if rng.random_bool(0.4) {
            let accept = ACCEPT.choose(rng).unwrap_or(&"");
            headers.push(("accept", (*accept).to_owned()));
        }
        if rng.random_bool(0.1) {
            headers.push(("accept-encoding", "gzip".into()));
        }
        Request {
            method: operation.method.clone(),
            uri: uri(rng, operation),
            headers,
            body,
        }
    }

    /// An object for a create or update, or the options of a delete.
    fn body(&self, rng: &mut StdRng, operation: &Operation<'a>) -> (&'static str, Bytes) {
        let schema = &operation.document["requestBody"]["content"]["application/json"]["schema"];
        let mut value = match operation.method {
            Method::DELETE if rng.random_bool(0.5) => return ("application/json", Bytes::new()),
            Method::DELETE => self.schemas.value(rng, schema, "", 0),
            _ => self.object(rng, operation, schema),
        };
        if operation.method == Method::DELETE {
            value["kind"] = "DeleteOptions".into();
            value["apiVersion"] = "v1".into();
        }
        for _ in 0..[0, 0, 1, 1, 1, 2, 4].choose(rng).copied().unwrap_or(1) {
            mutate(rng, &mut value);
        }
        self.encoded(rng, &value)
    }

    fn object(&self, rng: &mut StdRng, operation: &Operation<'a>, schema: &'a Value) -> Value {
        let mut object = seed(operation);
        match rng.random_range(0..3) {
            0 => {
                for _ in 0..rng.random_range(1..5) {
                    self.schemas.graft(rng, schema, &mut object);
                }
            }
            1 => {
                let made = self.schemas.value(rng, schema, "", 0);
                for (name, value) in made.as_object().into_iter().flatten() {
                    object[name] = value.clone();
                }
            }
            _ => {}
        }
        if operation.method == Method::POST
            && rng.random_bool(0.3)
            && object["metadata"].is_object()
        {
            object["metadata"] = json!({"generateName": "g-"});
        }
        object
    }

    fn encoded(&self, rng: &mut StdRng, value: &Value) -> (&'static str, Bytes) {
        match rng.random_range(0..12) {
            0 => ("application/yaml", value.to_string().into()),
            1 => {
                let sealed = apimachinery::protobuf::from_json(value.to_string().as_bytes());
                let mut bytes = sealed.unwrap_or_else(|_| b"k8s\0\x0a\x03\x0a\x01a".to_vec());
                if rng.random_bool(0.7) {
                    damage(rng, &mut bytes);
                }
                ("application/vnd.kubernetes.protobuf", bytes.into())
            }
            2 => {
                let mut bytes = value.to_string().into_bytes();
                damage(rng, &mut bytes);
                ("application/json", bytes.into())
            }
            3 => ("application/json", raw(rng)),
            4 => ("application/yaml", raw(rng)),
            _ => ("application/json", value.to_string().into()),
        }
    }

    fn patch(&self, rng: &mut StdRng, operation: &Operation<'a>) -> (&'static str, Bytes) {
        let known = &operation.document["requestBody"]["content"];
        let media: Vec<&str> = known
            .as_object()
            .into_iter()
            .flatten()
            .map(|(m, _)| m.as_str())
            .collect();
        let media: &'static str = match *media.choose(rng).unwrap_or(&"") {
            "application/json-patch+json" => "application/json-patch+json",
            "application/merge-patch+json" => "application/merge-patch+json",
            "application/strategic-merge-patch+json" => "application/strategic-merge-patch+json",
            _ => "application/apply-patch+yaml",
        };
        let seed = seed(operation);
        let mut patch = match media {
            "application/json-patch+json" => operations(rng, &seed),
            "application/apply-patch+yaml" => {
                let mut object = seed;
                self.schemas.graft(rng, self.own(operation), &mut object);
                object
            }
            _ => {
                let mut patch = json!({});
                for _ in 0..rng.random_range(0..4) {
                    self.schemas.graft(rng, self.own(operation), &mut patch);
                }
                if media.contains("strategic") && rng.random_bool(0.6) {
                    directive(rng, &mut patch, &seed);
                }
                patch
            }
        };
        for _ in 0..[0, 0, 1, 1, 2].choose(rng).copied().unwrap_or(0) {
            mutate(rng, &mut patch);
        }
        let bytes = match rng.random_range(0..15) {
            0 => raw(rng),
            1 => {
                let mut bytes = patch.to_string().into_bytes();
                damage(rng, &mut bytes);
                bytes.into()
            }
            _ => patch.to_string().into(),
        };
        (media, bytes)
    }

    /// The schema of what is patched: the document has only that a patch is an object, so the answer tells.
    fn own(&self, operation: &Operation<'a>) -> &'a Value {
        &operation.document["responses"]["200"]["content"]["application/json"]["schema"]
    }
}

fn seed(operation: &Operation<'_>) -> Value {
    match operation.kind == operation.parent {
        true => seeds::object(
            operation.group,
            operation.version,
            operation.kind,
            NAMESPACE,
        ),
        false => seeds::below(operation.kind, operation.group, operation.version),
    }
}

fn uri(rng: &mut StdRng, operation: &Operation<'_>) -> String {
    let name = match rng.random_bool(0.85) {
        true => seeds::name(operation.parent),
        false => NAMES.choose(rng).unwrap_or(&"x"),
    };
    let namespace = match rng.random_bool(0.93) {
        true => NAMESPACE,
        false => NAMES.choose(rng).unwrap_or(&"x"),
    };
    let mut uri = operation
        .path
        .replace("{name}", name)
        .replace("{namespace}", namespace);
    if operation.is_item() && rng.random_bool(0.03) {
        uri.push_str(
            ["/", "//", "/nope", "/status/x", "/a/b/c"]
                .choose(rng)
                .unwrap_or(&"/"),
        );
    }
    let told = operation.document["parameters"]
        .as_array()
        .into_iter()
        .flatten();
    let mut pairs = Vec::new();
    for parameter_ in told {
        let name = parameter_["name"].as_str().unwrap_or_default();
        // An apply needs its manager; the rest is rare.
        let chance = if name == "fieldManager" { 0.7 } else { 0.12 };
        if parameter_["in"] == "query" && rng.random_bool(chance) {
            let value = match name == "fieldManager" && rng.random_bool(0.8) {
                true => "m".to_owned(),
                false => parameter(rng, name),
            };
            pairs.push(format!("{name}={value}"));
        }
    }
    if rng.random_bool(0.15) {
        let name = UNTOLD.choose(rng).unwrap_or(&"bogus");
        pairs.push(format!("{name}={}", parameter(rng, name)));
    }
    if !pairs.is_empty() {
        pairs.shuffle(rng);
        uri.push('?');
        uri.push_str(&pairs.join("&"));
    }
    uri
}

/// Changes some bytes, or how many there are.
fn damage(rng: &mut StdRng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..bytes.len().max(1)).min(bytes.len());
        match rng.random_range(0..4) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, rng.random()),
            2 => bytes.extend_from_slice(b"}{"),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = rng.random();
                }
            }
        }
    }
}

/// Bodies that are hardly anything.
fn raw(rng: &mut StdRng) -> Bytes {
    let all: &[&[u8]] = &[
        b"",
        b"{",
        b"}",
        b"null",
        b"true",
        b"[]",
        b"[null]",
        b"\"x\"",
        b"1e999",
        b"{\"a\":1,\"a\":2}",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{}",
        b"{\"metadata\":{\"name\":\"\xff\"}}",
        b"{}{}",
        b"{} ",
        b"&a [*a, *a]",
        b"a: &a [x]\nb: *a\n<<: *a",
        b"? [a]\n: b",
        b"!!binary x",
        b"--- 1\n--- 2",
        b"k8s\0",
        b"k8s\0\xff\xff\xff\xff\x0f",
        b"{\"kind\":\"Status\",\"apiVersion\":\"v1\"}",
        b"{\"kind\":1}",
        b"{\"metadata\":{\"name\":1}}",
        b"{\"metadata\":{\"labels\":null,\"ownerReferences\":[{}]}}",
        b"- op: add",
        b"[{\"op\":\"test\"}]",
        b"{\"metadata\":{\"name\":\"seed\",\"resourceVersion\":\"x\"}}",
        b"{\"\\u0000\":\"\\ud800\"}",
    ];
    if rng.random_bool(0.1) {
        return ["[", "{\"a\":", "- ", "{a: "]
            .choose(rng)
            .unwrap_or(&"[")
            .repeat(20_000)
            .into();
    }
    Bytes::from_static(all.choose(rng).unwrap_or(&&b""[..]))
}

/// All places in a document, as JSON pointers.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                pointers(inner, &format!("{at}/{name}"), found);
            }
        }
        Value::Array(items) => {
            for (i, inner) in items.iter().enumerate() {
                pointers(inner, &format!("{at}/{i}"), found);
            }
        }
        _ => {}
    }
}

/// A JSON patch.
fn operations(rng: &mut StdRng, seed: &Value) -> Value {
    const ODD: &[&str] = &[
        "",
        "/",
        "nope",
        "/metadata/~2",
        "/spec/-",
        "/metadata/finalizers/-",
        "/-1",
        "/metadata/labels/a~1b",
        "/spec/containers/99999999999999999999",
        "/metadata/name/x",
        "/spec/0",
    ];
    let mut known = Vec::new();
    pointers(seed, "", &mut known);
    let place = |rng: &mut StdRng| -> String {
        match rng.random_bool(0.8) {
            true => known.choose(rng).cloned().unwrap_or_default(),
            false => (*ODD.choose(rng).unwrap_or(&"")).to_owned(),
        }
    };
    let one = |rng: &mut StdRng| {
        let op = *["add", "remove", "replace", "move", "copy", "test", "nope"]
            .choose(rng)
            .unwrap_or(&"add");
        let mut operation = Map::new();
        operation.insert("op".into(), op.into());
        operation.insert("path".into(), place(rng).into());
        if matches!(op, "move" | "copy") {
            operation.insert("from".into(), place(rng).into());
        }
        if matches!(op, "add" | "replace" | "test") {
            operation.insert("value".into(), extreme(rng));
        }
        Value::Object(operation)
    };
    (0..rng.random_range(0..4)).map(|_| one(rng)).collect()
}

/// Puts a directive of strategic merges into a patch, mostly where there is a list.
fn directive(rng: &mut StdRng, patch: &mut Value, seed: &Value) {
    const LISTS: &[&str] = &[
        "containers",
        "ports",
        "finalizers",
        "ownerReferences",
        "webhooks",
        "labels",
        "conditions",
        "spec",
    ];
    let list = *LISTS.choose(rng).unwrap_or(&"ports");
    let (name, value) = match rng.random_range(0..6) {
        0 => (
            "$patch".to_owned(),
            (*["delete", "replace", "merge", "nope"]
                .choose(rng)
                .unwrap_or(&"delete"))
            .into(),
        ),
        1 => ("$retainKeys".to_owned(), json!(["a", "metadata", list])),
        2 => (
            format!("$setElementOrder/{list}"),
            json!([{"name": "c"}, {"name": "d"}]),
        ),
        3 => (format!("$deleteFromPrimitiveList/{list}"), json!(["a", 1])),
        4 => (format!("$setElementOrder/{list}"), extreme(rng)),
        _ => (
            list.to_owned(),
            json!([{"$patch": "delete", "name": "c"}, {"$patch": "replace"}, extreme(rng)]),
        ),
    };
    let inside = *["", "spec", "metadata", "template", "status"]
        .choose(rng)
        .unwrap_or(&"");
    let target = match inside {
        "" => patch,
        inside if !seed[inside].is_object() => patch,
        inside => {
            if !patch[inside].is_object() {
                patch[inside] = json!({});
            }
            &mut patch[inside]
        }
    };
    target[&name] = value;
}
