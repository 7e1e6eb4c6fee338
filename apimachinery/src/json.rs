//! JSON text of documents, with less work than a serializer for any type needs: every write of an object comes through here.

use serde_json::{Number, Value};

/// Appends a document.
pub fn write(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => write_number(out, number),
        Value::String(text) => write_string(out, text),
        Value::Array(items) => {
            let mut before = b'[';
            for item in items {
                out.push(before);
                write(out, item);
                before = b',';
            }
            out.extend_from_slice(if items.is_empty() { b"[]" } else { b"]" });
        }
        Value::Object(fields) => {
            let mut before = b'{';
            for (name, value) in fields {
                out.push(before);
                write_field(out, name, value);
                before = b',';
            }
            out.extend_from_slice(if fields.is_empty() { b"{}" } else { b"}" });
        }
    }
}

/// Appends a field of an object: name, colon and value.
pub fn write_field(out: &mut Vec<u8>, name: &str, value: &Value) {
    write_string(out, name);
    out.push(b':');
    write(out, value);
}

/// Appends a string in quotes.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    write_joined(out, "", text);
}

/// Appends a string in quotes that is made of two, of which the first has nothing that has to be escaped.
pub fn write_joined(out: &mut Vec<u8>, plain: &'static str, text: &str) {
    out.reserve(plain.len() + text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(plain.as_bytes());
    let mut rest = text.as_bytes();
    loop {
        let (before, from) = rest.split_at(special(rest));
        out.extend_from_slice(before);
        let Some((byte, after)) = from.split_first() else {
            break;
        };
        write_escape(out, *byte);
        rest = after;
    }
    out.push(b'"');
}

/// Where the first byte is that a string has to escape; the length if there is none. Eight are looked at at once.
fn special(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    // The lowest high bit that is set belongs to the first byte that is less, or the same.
    let less = |word: u64, than: u8| word.wrapping_sub(ONES * u64::from(than)) & !word;
    let same = |word: u64, byte: u8| less(word ^ (ONES * u64::from(byte)), 1);
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let found = less(word, b' ') | same(word, b'"') | same(word, b'\\');
        let found = found & (ONES << 7);
        if found != 0 {
            return index * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let is_special = |byte: &u8| *byte < b' ' || matches!(byte, b'"' | b'\\');
    let at = rest.iter().position(is_special).unwrap_or(rest.len());
    words.len() * 8 + at
}

fn write_escape(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        control => {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            let [high, low] = [control >> 4, control & 15].map(|d| DIGITS[usize::from(d)]);
            return out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

fn write_number(out: &mut Vec<u8>, number: &Number) {
    // A `Vec` takes every write.
    let written = serde_json::to_writer(&mut *out, number);
    debug_assert!(written.is_ok());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn any_document() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    #[test]
    fn writes_what_has_to_be_escaped() {
        let mut out = Vec::new();
        write(
            &mut out,
            &json!({"a\"": ["\\", "\n", "\u{1}", "é", {}, []]}),
        );
        for byte in 0..=u8::MAX {
            for before in 0..17 {
                let text = format!("{}{}b\u{1}\"", "a".repeat(before), char::from(byte));
                let mut out = Vec::new();
                write_string(&mut out, &text);
                assert_eq!(out, serde_json::to_vec(&text).unwrap());
            }
        }
        assert_eq!(out, br#"{"a\"":["\\","\n","\u0001","#.iter().chain("\"é\",{},[]]}".as_bytes()).copied().collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn joins(text in any::<String>()) {
            let mut out = Vec::new();
            write_joined(&mut out, "f:", &text);
            prop_assert_eq!(out, serde_json::to_vec(&format!("f:{text}")).unwrap());
        }

        #[test]
        fn writes_as_serde_json_does(document in any_document()) {
            let mut out = Vec::new();
            write(&mut out, &document);
            prop_assert_eq!(out, serde_json::to_vec(&document).unwrap());
        }
    }
}
