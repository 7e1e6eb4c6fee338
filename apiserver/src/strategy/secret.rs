//! Secrets and config maps: bags of keys with a size limit, which may be sealed.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{names, object};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::check::{Checks, entries, flag, same, text};
use super::{Context, Strategy};

/// The strategy of `secrets`.
pub struct Secret;

/// The strategy of `configmaps`.
pub struct ConfigMap;

/// All values together, decoded.
const MAX_SIZE: usize = 1024 * 1024;
const SEALED: &str = "field is immutable when `immutable` is set";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const REDACTED: &str = "<secret contents redacted>";

impl Strategy for Secret {
    /// `stringData` is only ever written: its values become those of `data`.
    fn default(&self, object: &mut Value) {
        let Some(fields) = object.as_object_mut() else {
            return;
        };
        let Some(Value::Object(plain)) = fields.remove("stringData") else {
            return;
        };
        if plain.is_empty() {
            return;
        }
        let data = fields.entry("data").or_insert(Value::Null);
        if !data.is_object() {
            *data = Value::Object(Map::new());
        }
        for (key, value) in plain {
            data[key] = STANDARD.encode(value.as_str().unwrap_or_default()).into();
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let path = Path::new("data");
        let size = bytes(&mut checks, object, "data");
        if size > MAX_SIZE {
            checks.push(Error::too_long(&path, MAX_SIZE));
        }
        contents(&mut checks, object, &path);
        checks.done()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        checks.immutable(&Path::new("type"), &object["type"], &old["type"]);
        sealed(&mut checks, object, old, &["data"]);
        checks.add(self.validate(context, object));
        checks.done()
    }

    fn warnings(&self, _context: &Context<'_>, object: &Value) -> Vec<String> {
        if text(object, "type") != "kubernetes.io/tls" {
            return Vec::new();
        }
        let of = |key: &str| {
            STANDARD
                .decode(text(&object["data"], key))
                .unwrap_or_default()
        };
        key_pair(&of("tls.crt"), &of("tls.key"))
            .err()
            .into_iter()
            .collect()
    }
}

impl Strategy for ConfigMap {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> ErrorList {
        let mut checks = Checks::default();
        let path = Path::new("data");
        let mut size = 0;
        for (key, value) in entries(object, "data") {
            checks.each(&path.key(key), key, names::config_map_key(key));
            if object["binaryData"].get(key).is_some() {
                let why = "duplicate of key present in binaryData";
                checks.invalid(&path.key(key), key, why);
            }
            size += value.as_str().map_or(0, str::len);
        }
        size += bytes(&mut checks, object, "binaryData");
        if size > MAX_SIZE {
            // Of the object as a whole.
            checks.push(Error::too_long(&Path::new(""), MAX_SIZE));
        }
        checks.done()
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let mut checks = Checks::default();
        sealed(&mut checks, object, old, &["data", "binaryData"]);
        checks.add(self.validate(context, object));
        checks.done()
    }
}

/// Checks the keys of a map of base64 values, and gives the size of what they hold.
fn bytes(checks: &mut Checks, object: &Value, field: &str) -> usize {
    let path = Path::new(field);
    let mut size = 0;
    for (key, value) in entries(object, field) {
        checks.each(&path.key(key), key, names::config_map_key(key));
        let encoded = value.as_str().unwrap_or_default();
        let padding = encoded.bytes().rev().take_while(|b| *b == b'=').count();
        size += (encoded.len() / 4 * 3).saturating_sub(padding);
    }
    size
}

fn sealed(checks: &mut Checks, object: &Value, old: &Value, fields: &[&str]) {
    if !flag(old, "immutable") {
        return;
    }
    if !flag(object, "immutable") {
        checks.forbidden(&Path::new("immutable"), SEALED);
    }
    for field in fields.iter().filter(|f| !same(&object[**f], &old[**f])) {
        checks.forbidden(&Path::new(*field), SEALED);
    }
}

/// What the types that Kubernetes knows must hold.
fn contents(checks: &mut Checks, object: &Value, path: &Path) {
    let data = &object["data"];
    let missing = |key: &str| data.get(key).is_none();
    match text(object, "type") {
        "kubernetes.io/service-account-token"
            if object::annotation(object, ACCOUNT).is_none_or(str::is_empty) =>
        {
            let path = Path::new("metadata").child("annotations").key(ACCOUNT);
            checks.required(&path, "");
        }
        "kubernetes.io/dockercfg" => json_object(checks, data, ".dockercfg", path),
        "kubernetes.io/dockerconfigjson" => json_object(checks, data, ".dockerconfigjson", path),
        "kubernetes.io/basic-auth" if missing("username") && missing("password") => {
            checks.required(&path.key("username"), "");
            checks.required(&path.key("password"), "");
        }
        "kubernetes.io/ssh-auth" if text(data, "ssh-privatekey").is_empty() => {
            checks.required(&path.key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"].into_iter().filter(|k| missing(k)) {
                checks.required(&path.key(key), "");
            }
        }
        _ => {}
    }
}

fn json_object(checks: &mut Checks, data: &Value, key: &str, path: &Path) {
    let path = path.key(key);
    if data.get(key).is_none() {
        checks.required(&path, "");
        return;
    }
    let content = STANDARD.decode(text(data, key)).unwrap_or_default();
    match serde_json::from_slice::<Value>(&content) {
        Ok(Value::Object(_) | Value::Null) => {}
        Ok(other) => {
            let found = match other {
                Value::Array(_) => "array",
                Value::String(_) => "string",
                Value::Number(_) => "number",
                _ => "bool",
            };
            let why = format!(
                "json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"
            );
            checks.invalid(&path, REDACTED, &why);
        }
        Err(error) if error.is_eof() => {
            checks.invalid(&path, REDACTED, "unexpected end of JSON input");
        }
        // The parser's words say where, not what: nothing of the content may show.
        Err(error) => checks.invalid(&path, REDACTED, &error.to_string()),
    }
}

/// Why a certificate and a key do not make a pair, in the words of Go's TLS library.
fn key_pair(certificate: &[u8], key: &[u8]) -> Result<(), String> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let none = |what: &str| format!("tls: failed to find any PEM data in {what} input");
    let pem = |input: &[u8]| input.windows(11).any(|w| w == b"-----BEGIN ");
    if !pem(certificate) {
        return Err(none("certificate"));
    }
    let mut chain = CertificateDer::pem_slice_iter(certificate);
    let Some(leaf) = chain.next().and_then(Result::ok) else {
        return Err("tls: failed to find \"CERTIFICATE\" PEM block in certificate input".into());
    };
    if !pem(key) {
        return Err(none("key"));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
        "tls: found unknown private key type in PKCS#8 wrapping or no PEM block with type ending in \"PRIVATE KEY\""
    })?;
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(&leaf) else {
        return Err("x509: malformed certificate".into());
    };
    let Ok(key) = rustls::crypto::ring::sign::any_supported_type(&key) else {
        return Err("tls: failed to parse private key".into());
    };
    match key.public_key() {
        Some(public) if public.as_ref() != parsed.public_key().raw => {
            Err("tls: private key does not match public key".into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::tests::refusals;
    use serde_json::json;

    #[test]
    fn string_data_is_written_into_data() {
        let mut secret = json!({"data": {"a": "MQ==", "b": "MQ=="}, "stringData": {"b": "two"}});
        Secret.default(&mut secret);
        assert_eq!(secret, json!({"data": {"a": "MQ==", "b": "dHdv"}}));
    }

    #[test]
    fn types_have_their_keys() {
        let b64 = |text: &str| STANDARD.encode(text);
        #[rustfmt::skip]
        let table: &[(Value, &[&str])] = &[
            (json!({"type": "Opaque", "data": {"a b": ""}}), &["data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"]),
            (json!({"type": "kubernetes.io/tls"}), &["data[tls.crt]: Required value", "data[tls.key]: Required value"]),
            (json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "", "tls.key": ""}}), &[]),
            (json!({"type": "kubernetes.io/basic-auth", "data": {"password": ""}}), &[]),
            (json!({"type": "kubernetes.io/basic-auth"}), &["data[username]: Required value", "data[password]: Required value"]),
            (json!({"type": "kubernetes.io/ssh-auth", "data": {"ssh-privatekey": ""}}), &["data[ssh-privatekey]: Required value"]),
            (json!({"type": "kubernetes.io/dockercfg"}), &["data[.dockercfg]: Required value"]),
            (json!({"type": "kubernetes.io/dockercfg", "data": {".dockercfg": b64("{}")}}), &[]),
            (json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": b64("{")}}), &["data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": unexpected end of JSON input"]),
            (json!({"type": "kubernetes.io/service-account-token"}), &["metadata.annotations[kubernetes.io/service-account.name]: Required value"]),
            (json!({"type": "Opaque", "data": {"a": b64(&"x".repeat(MAX_SIZE))}}), &[]),
            (json!({"type": "Opaque", "data": {"a": b64(&"x".repeat(MAX_SIZE + 1))}}), &["data: Too long: may not be more than 1048576 bytes"]),
        ];
        for (secret, want) in table {
            assert_eq!(refusals("secrets", secret, None), *want);
        }
    }

    #[test]
    fn sealed_bags_stay_as_they_are() {
        let old = json!({"immutable": true, "type": "Opaque", "data": {"a": "MQ=="}});
        assert!(refusals("secrets", &old, Some(&old)).is_empty());
        let new = json!({"type": "other", "data": {"a": "Mg=="}});
        let found = refusals("secrets", &new, Some(&old));
        assert_eq!(
            found,
            [
                "type: Invalid value: \"other\": field is immutable",
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
            ]
        );
        let old = json!({"immutable": true, "data": {"a": "1"}, "binaryData": {"b": "MQ=="}});
        let new =
            json!({"immutable": true, "data": {"a": "1", "b": "x"}, "binaryData": {"b": "MQ=="}});
        let found = refusals("configmaps", &new, Some(&old));
        assert_eq!(
            found,
            [
                "data: Forbidden: field is immutable when `immutable` is set",
                "data[b]: Invalid value: \"b\": duplicate of key present in binaryData",
            ]
        );
    }

    #[test]
    fn pairs_are_compared() {
        let make = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
            let certificate = params.self_signed(&key).unwrap();
            (certificate.pem(), key.serialize_pem())
        };
        let ((certificate, key), (_, other)) = (make(), make());
        assert_eq!(key_pair(certificate.as_bytes(), key.as_bytes()), Ok(()));
        assert_eq!(
            key_pair(certificate.as_bytes(), other.as_bytes()).unwrap_err(),
            "tls: private key does not match public key"
        );
        assert_eq!(
            key_pair(b"x", key.as_bytes()).unwrap_err(),
            "tls: failed to find any PEM data in certificate input"
        );
    }
}
