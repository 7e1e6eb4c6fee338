//! From CEL's syntax tree to a program: names become places, calls become functions, and types are checked on the way.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube_cel::cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, StructExpr,
};

use super::issues::{CompileError, Issue, locate};
use super::library::{Function, Overload, function, regexes, time};
use super::types::Type;
use super::value::timestamp_of;
use super::{Environment, Program};

/// Trees deeper than this are refused: evaluating one must fit on a thread's stack.
const DEEPEST: usize = 200;

/// One step of a program.
#[derive(Debug)]
pub(super) enum Node {
    Literal(Literal),
    Variable(String),
    /// A variable of a macro, by its place.
    Local(usize),
    Select {
        operand: Box<Node>,
        field: String,
        optional: bool,
    },
    /// `has(a.b)`
    Has {
        operand: Box<Node>,
        field: String,
    },
    Index {
        operand: Box<Node>,
        index: Box<Node>,
        optional: bool,
    },
    All(Vec<Node>),
    Any(Vec<Node>),
    Conditional(Box<[Node; 3]>),
    /// True unless the value is plainly false: an error is not.
    NotFalse(Box<Node>),
    Call {
        function: &'static Call,
        member: bool,
        arguments: Vec<Node>,
        /// Of the result.
        of: Type,
    },
    List(Vec<(Node, bool)>),
    Map(Vec<(Node, Node, bool)>),
    Build {
        name: String,
        fields: Vec<(String, Node, bool)>,
    },
    Fold(Box<Fold>),
    /// Appends to the list that is being made at this place.
    Append(usize, Box<Node>),
    /// Inserts an entry into the map that is being made.
    Insert(usize, Box<Node>, Box<Node>),
    /// Inserts all entries of a map.
    InsertAll(usize, Box<Node>),
    /// Whether the list at this place has one item.
    HasOne(usize),
    /// `optMap` (true) and `optFlatMap`: an expression over the value of an optional.
    OverOptional {
        target: Box<Node>,
        place: usize,
        body: Box<Node>,
        wrap: bool,
    },
}

/// Wraps a function of a table so that nodes can be shown.
pub(super) struct Call(pub &'static Function);

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.name)
    }
}

#[derive(Clone, Debug)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    Type(Arc<str>),
}

/// A comprehension. Its variables stand at three places in a row: what is made, then one or two of the range.
#[derive(Debug)]
pub(super) struct Fold {
    pub range: Node,
    pub place: usize,
    pub two: bool,
    pub init: Node,
    pub condition: Node,
    pub step: Node,
    pub result: Node,
}

pub(super) fn compile(
    text: &str,
    tree: IdedExpr,
    environment: &Environment,
) -> Result<Program, CompileError> {
    let mut compiler = Compiler {
        text,
        environment,
        issues: Vec::new(),
        scopes: Vec::new(),
        uses: BTreeSet::new(),
        depth: 0,
    };
    let (root, output) = compiler.node(&tree);
    match compiler.issues.is_empty() {
        true => Ok(Program {
            root,
            output,
            uses: compiler.uses,
        }),
        false => Err(CompileError::new(text, compiler.issues)),
    }
}

pub(super) struct Compiler<'e> {
    text: &'e str,
    pub(super) environment: &'e Environment,
    issues: Vec<Issue>,
    /// Variables of macros around the current expression, innermost last.
    scopes: Vec<(String, Type)>,
    uses: BTreeSet<String>,
    depth: usize,
}

pub(super) type Typed = (Node, Type);

pub(super) const NOTHING: Node = Node::Literal(Literal::Null);

impl Compiler<'_> {
    /// Notes what is wrong; the type that follows fits everywhere, so that it is said once.
    pub(super) fn fail(&mut self, token: &str, message: String) -> Typed {
        let (line, column) = locate(self.text, token);
        self.issues.push(Issue {
            line,
            column,
            message,
        });
        (NOTHING, Type::Dyn)
    }

    pub(super) fn node(&mut self, tree: &IdedExpr) -> Typed {
        self.depth += 1;
        let typed = if self.depth > DEEPEST {
            if self.issues.is_empty() {
                self.fail("", "expression recursion limit exceeded: 250".to_owned());
            }
            (NOTHING, Type::Dyn)
        } else {
            match &tree.expr {
                Expr::Literal(literal) => self::literal(literal),
                Expr::Ident(name) => self.identifier(name),
                Expr::Select(select) => self.select(select),
                Expr::Call(call) => self.call(call),
                Expr::List(list) => self.list(&list.elements, &list.optional_indices),
                Expr::Map(map) => self.map(&map.entries),
                Expr::Struct(built) => self.build(built),
                Expr::Comprehension(comprehension) => self.comprehension(comprehension),
                Expr::Unspecified => self.fail("", "unexpected expression".to_owned()),
            }
        };
        self.depth -= 1;
        typed
    }

    /// Compiles with variables in scope, which take the next places.
    pub(super) fn scoped<T>(
        &mut self,
        variables: impl IntoIterator<Item = (String, Type)>,
        inside: impl FnOnce(&mut Self, usize) -> T,
    ) -> T {
        let place = self.scopes.len();
        self.scopes.extend(variables);
        let result = inside(self, place);
        self.scopes.truncate(place);
        result
    }

    fn local(&self, name: &str) -> Option<(usize, Type)> {
        self.scopes
            .iter()
            .enumerate()
            .rev()
            .find(|(_, (known, _))| known == name)
            .map(|(place, (_, of))| (place, of.clone()))
    }

    fn identifier(&mut self, name: &str) -> Typed {
        let name = name.trim_start_matches('.');
        if let Some((place, of)) = self.local(name) {
            return (Node::Local(place), of);
        }
        if let Some(of) = self.environment.variable(name) {
            self.uses.insert(name.to_owned());
            return (Node::Variable(name.to_owned()), of.clone());
        }
        let type_name = match name {
            "bool" | "int" | "uint" | "double" | "string" | "bytes" | "list" | "map"
            | "null_type" | "type" | "optional_type" => name,
            _ => {
                let message = format!("undeclared reference to '{name}' (in container '')");
                return self.fail(name, message);
            }
        };
        (Node::Literal(Literal::Type(type_name.into())), Type::Type)
    }

    /// Names with dots that mean one thing: a variable, or a type.
    fn qualified(&mut self, select: &SelectExpr) -> Option<Typed> {
        let mut path = vec![select.field.as_str()];
        let mut operand = &select.operand.expr;
        loop {
            match operand {
                Expr::Select(inner) if !inner.test => {
                    path.push(&inner.field);
                    operand = &inner.operand.expr;
                }
                Expr::Ident(name) => {
                    if self.local(name).is_some() {
                        return None;
                    }
                    path.push(name);
                    break;
                }
                _ => return None,
            }
        }
        path.reverse();
        let name = path.join(".");
        if let Some(of) = self.environment.variable(&name) {
            self.uses.insert(name.clone());
            return Some((Node::Variable(name), of.clone()));
        }
        let known = matches!(
            name.as_str(),
            "google.protobuf.Timestamp" | "google.protobuf.Duration" | "net.IP" | "net.CIDR"
        ) || name.starts_with("kubernetes.");
        known.then(|| (Node::Literal(Literal::Type(name.into())), Type::Type))
    }

    fn select(&mut self, select: &SelectExpr) -> Typed {
        if !select.test
            && let Some(typed) = self.qualified(select)
        {
            return typed;
        }
        let (operand, of) = self.node(&select.operand);
        let of = self.field(&of, &select.field);
        let (operand, field) = (Box::new(operand), select.field.clone());
        match select.test {
            true => (Node::Has { operand, field }, Type::Bool),
            false => (
                Node::Select {
                    operand,
                    field,
                    optional: false,
                },
                of,
            ),
        }
    }

    /// The type of a field of a value of some type.
    fn field(&mut self, of: &Type, field: &str) -> Type {
        match of {
            Type::Dyn | Type::Parameter(_) => Type::Dyn,
            Type::Map(_, values) => (**values).clone(),
            Type::Optional(of) => Type::optional(self.field(of, field)),
            Type::Object(object) if super::macros::is_built(&object.name) => Type::Dyn,
            Type::Object(object) => match object.fields.get(field) {
                Some(found) => found.of.clone(),
                None => self.fail(field, format!("undefined field '{field}'")).1,
            },
            other => {
                let message = format!("type '{other}' does not support field selection");
                self.fail(field, message).1
            }
        }
    }

    fn call(&mut self, call: &CallExpr) -> Typed {
        match (call.func_name.as_str(), call.args.as_slice()) {
            ("_&&_", terms) => (Node::All(self.terms("_&&_", terms)), Type::Bool),
            ("_||_", terms) => (Node::Any(self.terms("_||_", terms)), Type::Bool),
            ("_?_:_", [condition, yes, no]) => self.conditional(condition, yes, no),
            ("@not_strictly_false", [term]) => {
                let (node, _) = self.node(term);
                (Node::NotFalse(Box::new(node)), Type::Bool)
            }
            ("_[_]", [operand, index]) => self.index(operand, index, false),
            ("_[?_]", [operand, index]) => self.index(operand, index, true),
            ("_?._", [operand, field]) => self.optional_select(operand, field),
            _ => match self.macro_call(call) {
                Some(typed) => typed,
                None => self.function_call(call),
            },
        }
    }

    /// The terms of a chain, which the parser nests.
    fn terms(&mut self, operator: &str, terms: &[IdedExpr]) -> Vec<Node> {
        let mut nodes = Vec::new();
        let mut pending: Vec<&IdedExpr> = terms.iter().rev().collect();
        while let Some(term) = pending.pop() {
            match &term.expr {
                Expr::Call(inner) if inner.func_name == operator => {
                    pending.extend(inner.args.iter().rev());
                }
                _ => {
                    let (node, of) = self.node(term);
                    if !of.is_dyn() && of != Type::Bool {
                        let message = format!("expected type 'bool' but found '{of}'");
                        self.fail(operator.trim_matches('_'), message);
                    }
                    nodes.push(node);
                }
            }
        }
        nodes
    }

    fn conditional(&mut self, condition: &IdedExpr, yes: &IdedExpr, no: &IdedExpr) -> Typed {
        let (condition, of) = self.node(condition);
        let (yes, of_yes) = self.node(yes);
        let (no, of_no) = self.node(no);
        let fits = of_yes.assignable(&of_no, &mut Vec::new())
            || of_no.assignable(&of_yes, &mut Vec::new());
        if !(of.is_dyn() || of == Type::Bool) || !fits {
            let message = format!(
                "found no matching overload for '_?_:_' applied to '({of}, {of_yes}, {of_no})'"
            );
            return self.fail("?", message);
        }
        let node = Node::Conditional(Box::new([condition, yes, no]));
        (node, of_yes.join(&of_no))
    }

    fn index(&mut self, operand: &IdedExpr, index: &IdedExpr, optional: bool) -> Typed {
        let (operand, of) = self.node(operand);
        let (index, by) = self.node(index);
        let (inner, chained) = match &of {
            Type::Optional(of) => ((**of).clone(), true),
            of => (of.clone(), false),
        };
        let fits = |wanted: &Type| by.is_dyn() || by.assignable(wanted, &mut Vec::new());
        let number = matches!(by, Type::Int | Type::Uint | Type::Double);
        let found = match &inner {
            Type::List(list) if by.is_dyn() || number => Some(list.items.clone()),
            Type::Map(keys, values)
                if fits(keys) || number && matches!(**keys, Type::Int | Type::Uint) =>
            {
                Some((**values).clone())
            }
            inner if inner.is_dyn() => Some(Type::Dyn),
            _ => None,
        };
        let Some(found) = found else {
            let name = if optional { "_[?_]" } else { "_[_]" };
            let message =
                format!("found no matching overload for '{name}' applied to '({of}, {by})'");
            return self.fail("[", message);
        };
        let node = Node::Index {
            operand: Box::new(operand),
            index: Box::new(index),
            optional,
        };
        match optional || chained {
            true => (node, Type::optional(found)),
            false => (node, found),
        }
    }

    fn optional_select(&mut self, operand: &IdedExpr, field: &IdedExpr) -> Typed {
        let Expr::Literal(LiteralValue::String(field)) = &field.expr else {
            return self.fail("?", "unsupported optional field selection".to_owned());
        };
        let field = field.inner().to_owned();
        let (operand, of) = self.node(operand);
        let found = match self.field(&of, &field) {
            Type::Optional(of) => Type::Optional(of),
            of => Type::optional(of),
        };
        let node = Node::Select {
            operand: Box::new(operand),
            field,
            optional: true,
        };
        (node, found)
    }

    fn function_call(&mut self, call: &CallExpr) -> Typed {
        let mut name = call.func_name.clone();
        let mut target = call.target.as_deref();
        if let Some(Expr::Ident(namespace)) = target.map(|target| &target.expr)
            && self.local(namespace).is_none()
            && self.environment.variable(namespace).is_none()
        {
            let qualified = format!("{namespace}.{name}");
            if function(&qualified).is_some() {
                name = qualified;
                target = None;
            }
        }
        let member = target.is_some();
        let (mut arguments, mut types) = (Vec::new(), Vec::new());
        for argument in target.into_iter().chain(&call.args) {
            let (node, of) = self.node(argument);
            arguments.push(node);
            types.push(of);
        }
        let token = token(&name);
        let Some(found) = called(&name) else {
            let message = format!("undeclared reference to '{name}' (in container '')");
            return self.fail(token, message);
        };
        self.check_literals(&name, &arguments);
        match resolve(&found.0.overloads, member, &types) {
            Some(result) => (
                Node::Call {
                    function: found,
                    member,
                    arguments,
                    of: result.clone(),
                },
                result,
            ),
            None => {
                let message = mismatch(&name, member, &types);
                self.fail(token, message)
            }
        }
    }

    /// What can be seen to fail before anything runs: durations, timestamps and regular expressions.
    fn check_literals(&mut self, name: &str, arguments: &[Node]) {
        let literal = |index: usize| match arguments.get(index) {
            Some(Node::Literal(Literal::String(text))) => Some(text.clone()),
            _ => None,
        };
        match name {
            "duration" => {
                if let Some(text) = literal(0)
                    && time::duration_of(&text).is_none()
                {
                    self.fail(name, "invalid duration argument".to_owned());
                }
            }
            "timestamp" => {
                if let Some(text) = literal(0)
                    && timestamp_of(&text).is_none()
                {
                    self.fail(name, "invalid timestamp argument".to_owned());
                }
            }
            "matches" => {
                if let Some(text) = literal(1)
                    && regexes::compiled(&text).is_err()
                {
                    self.fail(name, "invalid matches argument".to_owned());
                }
            }
            _ => {}
        }
    }

    fn list(&mut self, elements: &[IdedExpr], optionals: &[usize]) -> Typed {
        let mut nodes = Vec::with_capacity(elements.len());
        let mut items: Option<Type> = None;
        for (index, element) in elements.iter().enumerate() {
            let (node, mut of) = self.node(element);
            let optional = optionals.contains(&index);
            if let (true, Type::Optional(inner)) = (optional, &of) {
                of = (**inner).clone();
            }
            items = Some(self.homogeneous(items, of));
            nodes.push((node, optional));
        }
        let items = items.unwrap_or(Type::Parameter('A'));
        (Node::List(nodes), Type::list(items))
    }

    /// Literals hold values of one type.
    fn homogeneous(&mut self, known: Option<Type>, of: Type) -> Type {
        let Some(known) = known else { return of };
        if of.assignable(&known, &mut Vec::new()) || known.assignable(&of, &mut Vec::new()) {
            return known.join(&of);
        }
        let message = format!("expected type '{known}' but found '{of}'");
        self.fail("[", message).1
    }

    fn map(&mut self, entries: &[kube_cel::cel::common::ast::IdedEntryExpr]) -> Typed {
        let mut nodes = Vec::with_capacity(entries.len());
        let (mut keys, mut values): (Option<Type>, Option<Type>) = (None, None);
        for entry in entries {
            let EntryExpr::MapEntry(entry) = &entry.expr else {
                continue;
            };
            let (key, of_key) = self.node(&entry.key);
            let (value, mut of_value) = self.node(&entry.value);
            if let (true, Type::Optional(inner)) = (entry.optional, &of_value) {
                of_value = (**inner).clone();
            }
            keys = Some(self.homogeneous(keys, of_key));
            values = Some(self.homogeneous(values, of_value));
            nodes.push((key, value, entry.optional));
        }
        let of = Type::map(
            keys.unwrap_or(Type::Parameter('A')),
            values.unwrap_or(Type::Parameter('B')),
        );
        (Node::Map(nodes), of)
    }

    fn build(&mut self, built: &StructExpr) -> Typed {
        let name = built.type_name.trim_start_matches('.').to_owned();
        if !self.environment.builds_objects || !super::macros::is_built(&name) {
            let message = format!("undeclared reference to '{name}' (in container '')");
            return self.fail(&name, message);
        }
        let mut fields = Vec::with_capacity(built.entries.len());
        for entry in &built.entries {
            let EntryExpr::StructField(entry) = &entry.expr else {
                continue;
            };
            let (value, of) = self.node(&entry.value);
            if let Some(message) =
                super::macros::misplaced(&name, &entry.field, &of, entry.optional)
            {
                self.fail(&entry.field, message);
            }
            fields.push((entry.field.clone(), value, entry.optional));
        }
        let of = Type::object(name.clone(), []);
        (Node::Build { name, fields }, of)
    }

    fn comprehension(&mut self, fold: &ComprehensionExpr) -> Typed {
        let (range, of) = self.node(&fold.iter_range);
        let Some((first, _)) = self.range(&of, false) else {
            return (NOTHING, Type::Dyn);
        };
        let (init, made) = self.node(&fold.accu_init);
        let variables = [
            (fold.accu_var.clone(), made.clone()),
            (fold.iter_var.clone(), first),
        ];
        self.scoped(variables, |compiler, place| {
            let (condition, _) = compiler.node(&fold.loop_cond);
            let (step, stepped) = compiler.step(&fold.loop_step, &fold.accu_var, place);
            // What is made is known better after a step: the items of a list.
            let made = made.join(&stepped);
            let made = if stepped.assignable(&made, &mut Vec::new()) {
                stepped
            } else {
                made
            };
            compiler.scopes[place].1 = made;
            let (result, of) = compiler.node(&fold.result);
            let fold = Fold {
                range,
                place,
                two: false,
                init,
                condition,
                step,
                result,
            };
            (Node::Fold(Box::new(fold)), of)
        })
    }

    /// A step that adds to a list adds in place: `@result + [x]`, perhaps under a condition.
    fn step(&mut self, step: &IdedExpr, made: &str, place: usize) -> Typed {
        let is_made = |tree: &IdedExpr| matches!(&tree.expr, Expr::Ident(name) if name == made);
        if let Expr::Call(call) = &step.expr {
            match (call.func_name.as_str(), call.args.as_slice()) {
                ("_+_", [list, added]) if is_made(list) => {
                    if let Expr::List(added) = &added.expr
                        && let [item] = added.elements.as_slice()
                        && added.optional_indices.is_empty()
                    {
                        let (node, of) = self.node(item);
                        return (Node::Append(place, Box::new(node)), Type::list(of));
                    }
                }
                ("_?_:_", [condition, yes, no]) if is_made(no) => {
                    let (condition, of) = self.node(condition);
                    if !of.is_dyn() && of != Type::Bool {
                        let message = format!("expected type 'bool' but found '{of}'");
                        return self.fail("", message);
                    }
                    let (yes, of) = self.step(yes, made, place);
                    let nodes = [condition, yes, Node::Local(place)];
                    return (Node::Conditional(Box::new(nodes)), of);
                }
                _ => {}
            }
        }
        self.node(step)
    }

    /// The types of the variables over a range: one (an item or a key), or two (index or key, and value).
    pub(super) fn range(&mut self, of: &Type, two: bool) -> Option<(Type, Type)> {
        match of {
            Type::List(list) if two => Some((Type::Int, list.items.clone())),
            Type::List(list) => Some((list.items.clone(), Type::Dyn)),
            Type::Map(keys, values) => Some(((**keys).clone(), (**values).clone())),
            of if of.is_dyn() => Some((Type::Dyn, Type::Dyn)),
            of => {
                let message = format!(
                    "expression of type '{of}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.fail("", message);
                None
            }
        }
    }
}

fn literal(literal: &LiteralValue) -> Typed {
    let (literal, of) = match literal {
        LiteralValue::Null => (Literal::Null, Type::Null),
        LiteralValue::Boolean(value) => (Literal::Bool(*value.inner()), Type::Bool),
        LiteralValue::Int(value) => (Literal::Int(*value.inner()), Type::Int),
        LiteralValue::UInt(value) => (Literal::Uint(*value.inner()), Type::Uint),
        LiteralValue::Double(value) => (Literal::Double(*value.inner()), Type::Double),
        LiteralValue::String(value) => (Literal::String(value.inner().into()), Type::String),
        LiteralValue::Bytes(value) => (Literal::Bytes(value.inner().into()), Type::Bytes),
    };
    (Node::Literal(literal), of)
}

/// The text by which a function is found in the source.
fn token(name: &str) -> &str {
    let trimmed = name.trim_start_matches(['_', '@']).trim_end_matches('_');
    match trimmed.rsplit_once('.') {
        Some((_, last)) => last,
        None => trimmed,
    }
}

/// Functions are handed around as references that never end: the table is static.
fn called(name: &str) -> Option<&'static Call> {
    use std::collections::HashMap;
    use std::sync::LazyLock;
    static CALLS: LazyLock<HashMap<&'static str, Call>> = LazyLock::new(|| {
        super::library::FUNCTIONS
            .iter()
            .filter_map(|declared| function(declared.name))
            .map(|function| (function.name, Call(function)))
            .collect()
    });
    CALLS.get(name)
}

/// The result of the overloads that fit; `Dyn` if they differ and the arguments leave it open.
fn resolve(overloads: &[Overload], member: bool, types: &[Type]) -> Option<Type> {
    let mut result: Option<Type> = None;
    for overload in overloads {
        if overload.member != member || overload.arguments.len() != types.len() {
            continue;
        }
        let mut bound = Vec::new();
        let fits = types
            .iter()
            .zip(&overload.arguments)
            .all(|(actual, wanted)| actual.assignable(wanted, &mut bound));
        if !fits {
            continue;
        }
        let of = overload.result.substitute(&bound);
        result = Some(match result {
            None => of,
            Some(known) if known == of => known,
            Some(_) => Type::Dyn,
        });
    }
    result
}

fn mismatch(name: &str, member: bool, types: &[Type]) -> String {
    let list = |types: &[Type]| {
        let names: Vec<String> = types.iter().map(ToString::to_string).collect();
        names.join(", ")
    };
    let signature = match (member, types) {
        (true, [target, arguments @ ..]) => format!("{target}.({})", list(arguments)),
        _ => format!("({})", list(types)),
    };
    format!("found no matching overload for '{name}' applied to '{signature}'")
}
