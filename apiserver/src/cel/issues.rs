//! What is wrong with an expression, shown as CEL shows it: place, message, line and a caret.

use std::fmt;

/// Everything that keeps an expression from being a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    text: String,
    issues: Vec<Issue>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Issue {
    /// From one.
    pub line: usize,
    /// From zero.
    pub column: usize,
    pub message: String,
}

impl CompileError {
    pub(super) fn new(text: &str, issues: Vec<Issue>) -> Self {
        Self {
            text: text.to_owned(),
            issues,
        }
    }

    pub(super) fn single(text: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self::new(
            text,
            vec![Issue {
                line: 1,
                column: 0,
                message,
            }],
        )
    }
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, issue) in self.issues.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let (line, column) = (issue.line, issue.column);
            write!(f, "ERROR: <input>:{line}:{}: {}", column + 1, issue.message)?;
            if let Some(shown) = self.text.lines().nth(line.saturating_sub(1)) {
                write!(
                    f,
                    "\n | {}\n | {}^",
                    shown.replace('\t', " "),
                    ".".repeat(column)
                )?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for CompileError {}

/// Where a name or an operator stands in an expression. The parser does not say, so the first place where it can be
/// meant is taken: no part of a longer name, and in no string.
pub(super) fn locate(text: &str, token: &str) -> (usize, usize) {
    let named = |c: char| c.is_alphanumeric() || c == '_';
    let word = token.starts_with(named);
    let mut quote = None;
    let mut before = ' ';
    for (offset, character) in text.char_indices() {
        match quote {
            Some(open) if character == open && before != '\\' => quote = None,
            Some(_) => {}
            None if matches!(character, '"' | '\'') => quote = Some(character),
            None if text[offset..].starts_with(token) => {
                let after = text[offset + token.len()..].chars().next().unwrap_or(' ');
                if !word || (!named(before) && !named(after)) {
                    let head = &text[..offset];
                    let line = head.matches('\n').count() + 1;
                    let start = head.rfind('\n').map_or(0, |end| end + 1);
                    return (line, head[start..].chars().count());
                }
            }
            None => {}
        }
        before = character;
    }
    (1, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        for (text, token, wanted) in [
            ("self.foo == 'x'", "foo", (1, 5)),
            ("'foo' == foo", "foo", (1, 9)),
            ("foobar + foo", "foo", (1, 9)),
            ("a +\n  b", "b", (2, 2)),
            ("a", "missing", (1, 0)),
        ] {
            assert_eq!(locate(text, token), wanted, "{token} in {text}");
        }
    }

    #[test]
    fn shown_with_a_caret() {
        let issue = Issue {
            line: 1,
            column: 4,
            message: "undefined field 'x'".into(),
        };
        assert_eq!(
            CompileError::new("self.x", vec![issue]).to_string(),
            "ERROR: <input>:1:5: undefined field 'x'\n | self.x\n | ....^"
        );
    }
}
