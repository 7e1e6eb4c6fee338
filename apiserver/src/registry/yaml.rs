//! YAML bodies to documents, noticing keys that are given twice: the last one wins, and strict field validation reports
//! the others by their lines, as Kubernetes' YAML library does.

use apimachinery::decode::{self, Key, Step};
use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, Spanned, budget, options};

/// How deep a document may nest, as in JSON.
const DEEPEST: usize = 128;

/// The document, and `line N: key "K" already set in map` for every key that was set before.
pub fn decode(text: &str) -> Result<(Value, Vec<String>), String> {
    let options = options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        budget: budget! { max_depth: DEEPEST },
    };
    serde_saphyr::with_deserializer_from_str_with_options(text, options, |reader| {
        let read = decode::read::<Line, _>(reader)?;
        Ok((read.value, read.duplicates))
    })
    .map_err(|error| error.to_string())
}

/// A key that knows where it stands.
#[derive(Deserialize)]
#[serde(transparent)]
struct Line(Spanned<String>);

impl Key for Line {
    const ONCE: bool = false;

    fn name(&self) -> &str {
        &self.0.value
    }

    fn into_name(self) -> String {
        self.0.value
    }

    fn repeated(&self, _: &[Step]) -> String {
        let (line, key) = (
            self.0.referenced.line(),
            apimachinery::field::quote(self.name()),
        );
        format!("line {line}: key {key} already set in map")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn repeated_keys_are_told_by_line() {
        let text = "a: 1\nb:\n- c: p\n  c: q\na: 2\n80: z\nn: null\nt: 2026-01-01T00:00:00Z\nm: |\n  two\n  lines\n";
        let (value, repeated) = decode(text).unwrap();
        assert_eq!(
            value,
            json!({"a": 2, "b": [{"c": "q"}], "80": "z", "n": null, "t": "2026-01-01T00:00:00Z", "m": "two\nlines\n"})
        );
        assert_eq!(
            repeated,
            [
                "line 4: key \"c\" already set in map",
                "line 5: key \"a\" already set in map"
            ]
        );
    }

    #[test]
    fn json_is_yaml() {
        let (value, repeated) =
            decode(r#"{"a": [1, 2.5, true, "x", {}], "a": {"b": -1}}"#).unwrap();
        assert_eq!(value, json!({"a": {"b": -1}}));
        assert_eq!(repeated.len(), 1);
    }

    #[test]
    fn what_is_no_document() {
        for bad in ["a: [", "a: b: c", "{", "a: *x"] {
            assert!(decode(bad).is_err(), "{bad}");
        }
        assert!(decode(&"[".repeat(100_000)).is_err());
        let nested = |depth: usize| format!("{}{}", "{a: ".repeat(depth), "}".repeat(depth));
        assert!(decode(&nested(100)).is_ok());
        assert!(decode(&nested(200)).is_err());
    }
}
