//! Regular expressions in RE2's syntax, which differs a little from the `regex` crate's.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use regex::Regex;

use super::super::Error;

/// How many expressions are kept compiled.
const KEPT: usize = 256;
/// Bytes that one compiled expression may take.
const SIZE: usize = 1 << 20;

static COMPILED: LazyLock<Mutex<HashMap<String, Arc<Regex>>>> = LazyLock::new(Mutex::default);

/// A compiled expression, out of the cache if it was used before.
pub(in super::super) fn compiled(pattern: &str) -> Result<Arc<Regex>, Error> {
    if let Some(found) = COMPILED.lock().get(pattern) {
        return Ok(found.clone());
    }
    let regex = regex::RegexBuilder::new(&translate(pattern))
        .size_limit(SIZE)
        .build()
        .map_err(|error| Error::new(format!("invalid matches argument: {error}")))?;
    let regex = Arc::new(regex);
    let mut kept = COMPILED.lock();
    if kept.len() >= KEPT {
        kept.clear();
    }
    kept.insert(pattern.to_owned(), regex.clone());
    Ok(regex)
}

/// RE2's classes are ASCII, and brackets and doubled signs mean themselves in its character classes.
fn translate(pattern: &str) -> String {
    let mut translated = String::with_capacity(pattern.len());
    let mut characters = pattern.chars().peekable();
    let mut class = false;
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('d') => translated.push_str("[0-9]"),
                Some('D') => translated.push_str("[^0-9]"),
                Some('w') => translated.push_str("[0-9A-Za-z_]"),
                Some('W') => translated.push_str("[^0-9A-Za-z_]"),
                Some('s') => translated.push_str("[\\t\\n\\f\\r ]"),
                Some('S') => translated.push_str("[^\\t\\n\\f\\r ]"),
                Some('C') if !class => translated.push_str("(?s:.)"),
                Some(other) => translated.extend(['\\', other]),
                None => translated.push('\\'),
            },
            '[' if !class => {
                class = true;
                translated.push('[');
                if characters.next_if_eq(&'^').is_some() {
                    translated.push('^');
                }
                if characters.next_if_eq(&']').is_some() {
                    translated.push_str("\\]");
                }
            }
            '[' if characters.peek() == Some(&':') => {
                // A named class goes through whole: `[:alpha:]`.
                translated.push('[');
                for inner in characters.by_ref() {
                    translated.push(inner);
                    if inner == ']' {
                        break;
                    }
                }
            }
            '[' => translated.push_str("\\["),
            ']' if class => {
                class = false;
                translated.push(']');
            }
            '&' | '~' if class => translated.extend(['\\', character]),
            other => translated.push(other),
        }
    }
    translated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_re2() {
        for (pattern, text, matches) in [
            (r"^\d+$", "123", true),
            (r"^\d+$", "١٢٣", false),
            (r"^[\w-]+$", "a_b-c", true),
            (r"^[[]$", "[", true),
            (r"^[[:alpha:]]+$", "abc", true),
            (r"^[a&&b]+$", "&", true),
            (r"^[]a]+$", "]a", true),
            (r"^(?P<x>a|b)+$", "abab", true),
        ] {
            let found = compiled(pattern).unwrap().is_match(text);
            assert_eq!(found, matches, "{pattern} on {text}");
        }
        assert!(compiled("(").is_err());
        assert!(compiled(r"(a{1000}){1000}").is_err());
    }
}
