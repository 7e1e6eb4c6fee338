//! Macros that the parser does not know: comprehensions over two variables, and those of optional values; and the
//! objects that mutations build.

use kube_cel::cel::common::ast::{CallExpr, Expr, IdedExpr};

use super::compile::{Compiler, Fold, Literal, Node, Typed};
use super::types::Type;

/// Where what is made stands, under a name that no expression can use.
const MADE: &str = "@result";

impl Compiler<'_> {
    pub(super) fn macro_call(&mut self, call: &CallExpr) -> Option<Typed> {
        let target = call.target.as_deref()?;
        match (call.func_name.as_str(), call.args.as_slice()) {
            ("optMap", [variable, body]) => Some(self.over_optional(target, variable, body, true)),
            ("optFlatMap", [variable, body]) => {
                Some(self.over_optional(target, variable, body, false))
            }
            (
                name @ ("all" | "exists" | "exists_one" | "existsOne" | "transformList"
                | "transformMap" | "transformMapEntry"),
                [first, second, rest @ ..],
            ) if matches!(
                (name, rest.len()),
                ("all" | "exists" | "exists_one" | "existsOne", 1)
                    | (
                        "transformList" | "transformMap" | "transformMapEntry",
                        1 | 2
                    )
            ) =>
            {
                Some(self.over_two(target, name, (first, second), rest))
            }
            _ => None,
        }
    }

    fn variable_name(&mut self, tree: &IdedExpr) -> Option<String> {
        match &tree.expr {
            Expr::Ident(name) => Some(name.clone()),
            _ => {
                self.fail("", "argument must be a simple name".to_owned());
                None
            }
        }
    }

    fn over_optional(
        &mut self,
        target: &IdedExpr,
        variable: &IdedExpr,
        body: &IdedExpr,
        wrap: bool,
    ) -> Typed {
        let (target, of) = self.node(target);
        let inner = match &of {
            Type::Optional(inner) => (**inner).clone(),
            _ => Type::Dyn,
        };
        let Some(name) = self.variable_name(variable) else {
            return (target, Type::Dyn);
        };
        self.scoped([(name, inner)], |compiler, place| {
            let (body, of) = compiler.node(body);
            let of = match (wrap, of) {
                (true, of) => Type::optional(of),
                (false, of) => of,
            };
            let node = Node::OverOptional {
                target: Box::new(target),
                place,
                body: Box::new(body),
                wrap,
            };
            (node, of)
        })
    }

    fn over_two(
        &mut self,
        target: &IdedExpr,
        name: &str,
        (first, second): (&IdedExpr, &IdedExpr),
        rest: &[IdedExpr],
    ) -> Typed {
        let (range, of) = self.node(target);
        let (Some(first), Some(second)) = (self.variable_name(first), self.variable_name(second))
        else {
            return (range, Type::Dyn);
        };
        let Some((key, value)) = self.range(&of, true) else {
            return (range, Type::Dyn);
        };
        let variables = [
            (MADE.to_owned(), Type::Dyn),
            (first, key.clone()),
            (second, value),
        ];
        self.scoped(variables, |compiler, place| {
            let made = || Node::Local(place);
            let yes = |value: bool| Node::Literal(Literal::Bool(value));
            let mut terms: Vec<Typed> = rest.iter().map(|tree| compiler.node(tree)).collect();
            let Some((last, of_last)) = terms.pop() else {
                return (range, Type::Dyn);
            };
            let filter = terms.pop().map(|(node, _)| node);
            let filtered = |step: Node| match filter {
                Some(filter) => Node::Conditional(Box::new([filter, step, Node::Local(place)])),
                None => step,
            };
            let (init, condition, step, of) = match name {
                "all" => (
                    yes(true),
                    Node::NotFalse(Box::new(made())),
                    Node::All(vec![made(), last]),
                    Type::Bool,
                ),
                "exists" => (
                    yes(false),
                    Node::NotFalse(Box::new(Node::Conditional(Box::new([
                        made(),
                        yes(false),
                        yes(true),
                    ])))),
                    Node::Any(vec![made(), last]),
                    Type::Bool,
                ),
                "exists_one" | "existsOne" => {
                    let step = Node::Conditional(Box::new([
                        last,
                        Node::Append(place, Box::new(yes(true))),
                        made(),
                    ]));
                    (Node::List(Vec::new()), yes(true), step, Type::Bool)
                }
                "transformList" => (
                    Node::List(Vec::new()),
                    yes(true),
                    filtered(Node::Append(place, Box::new(last))),
                    Type::list(of_last),
                ),
                "transformMap" => (
                    Node::Map(Vec::new()),
                    yes(true),
                    filtered(Node::Insert(
                        place,
                        Box::new(Node::Local(place + 1)),
                        Box::new(last),
                    )),
                    Type::map(key, of_last),
                ),
                _ => (
                    Node::Map(Vec::new()),
                    yes(true),
                    filtered(Node::InsertAll(place, Box::new(last))),
                    of_last,
                ),
            };
            let result = match name {
                "exists_one" | "existsOne" => Node::HasOne(place),
                _ => made(),
            };
            let fold = Fold {
                range,
                place,
                two: true,
                init,
                condition,
                step,
                result,
            };
            (Node::Fold(Box::new(fold)), of)
        })
    }
}

/// Types that mutations build: the object and what is in it, and operations of a JSON patch.
pub(super) fn is_built(name: &str) -> bool {
    name == "Object" || name.starts_with("Object.") || name == "JSONPatch"
}

/// Why a field cannot have a value of some type in a built object.
pub(super) fn misplaced(object: &str, field: &str, of: &Type, optional: bool) -> Option<String> {
    let of = match of {
        Type::Optional(inner) if optional => inner,
        of => of,
    };
    if object == "JSONPatch" {
        return match field {
            "op" | "path" | "from" if of.is_dyn() || *of == Type::String => None,
            "op" | "path" | "from" => Some(format!(
                "expected type of field '{field}' is 'string' but provided type is '{of}'"
            )),
            "value" => None,
            _ => Some(format!("undefined field '{field}'")),
        };
    }
    match of {
        Type::Object(inner)
            if is_built(&inner.name) && inner.name != format!("{object}.{field}") =>
        {
            Some(format!(
                "expected type of field '{field}' is '{object}.{field}' but provided type is '{}'",
                inner.name
            ))
        }
        _ => None,
    }
}
