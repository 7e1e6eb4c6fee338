//! From text to CEL's syntax tree, by the `cel` crate, with bounds on what is tried.

use std::panic::{AssertUnwindSafe, catch_unwind};

use kube_cel::cel::common::ast::IdedExpr;
use kube_cel::cel::parser::Parser;

use super::issues::{CompileError, Issue};

/// Longer expressions are refused, as CEL's own parser does.
const LONGEST: usize = 100_000;
/// How deep brackets may nest.
const DEEPEST: usize = 96;
/// Expressions of this size are compiled on the caller's stack.
const SHORT: usize = 512;
/// Chains of operators make deep trees: the stack for those of the longest expressions.
const STACK: usize = 256 << 20;

/// Parses an expression and hands the tree on. Whatever the text, the caller's stack is safe.
pub(super) fn with<T: Send>(
    text: &str,
    use_: impl FnOnce(IdedExpr) -> Result<T, CompileError> + Send,
) -> Result<T, CompileError> {
    if text.len() > LONGEST {
        return Err(CompileError::single(
            "",
            format!(
                "expression code point size exceeds limit: size: {}, limit {LONGEST}",
                text.len()
            ),
        ));
    }
    if nesting(text) > DEEPEST {
        return Err(CompileError::single(
            text,
            "expression recursion limit exceeded: 250",
        ));
    }
    if text.len() <= SHORT {
        return parse(text).and_then(use_);
    }
    let failed = || CompileError::single(text, "the expression cannot be compiled");
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, || parse(text).and_then(use_))
            .map_err(|_| failed())?
            .join()
            .unwrap_or_else(|_| Err(failed()))
    })
}

/// How deep brackets nest, and signs before a value.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest, mut signs) = (0_usize, 0, 0);
    for character in text.bytes() {
        match character {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        signs = match character {
            b'!' | b'-' | b'?' | b'(' => signs + 1,
            b' ' | b'\n' | b'\t' => signs,
            _ => 0,
        };
        deepest = deepest.max(depth).max(signs);
    }
    deepest
}

fn parse(text: &str) -> Result<IdedExpr, CompileError> {
    let parser = Parser::new()
        .enable_optional_syntax(true)
        .max_recursion_depth(1024);
    // The generated parser is not free of panics on broken input.
    let parsed = catch_unwind(AssertUnwindSafe(|| parser.parse(text)));
    match parsed {
        Ok(Ok(tree)) => Ok(tree),
        Ok(Err(errors)) => {
            let issues = errors.errors.into_iter().map(|error| Issue {
                line: usize::try_from(error.pos.0).unwrap_or(1).max(1),
                column: usize::try_from(error.pos.1 - 1).unwrap_or(0),
                message: error.msg,
            });
            Err(CompileError::new(text, issues.collect()))
        }
        Err(_) => Err(CompileError::single(
            text,
            "Syntax error: invalid expression",
        )),
    }
}
