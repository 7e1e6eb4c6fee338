use serde_json::{Value as Json, json};

use super::*;

fn environment() -> Environment {
    Environment::new([
        ("object", Type::Dyn),
        (
            "self",
            Type::from_schema(
                &json!({"type": "object", "properties": {
                    "replicas": {"type": "integer"},
                    "ratio": {"type": "number"},
                    "name": {"type": "string"},
                    "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    "ttl": {"type": "string", "format": "duration"},
                    "at": {"type": "string", "format": "date-time"},
                    "a-b": {"type": "integer"},
                    "port": {"x-kubernetes-int-or-string": true},
                }}),
                true,
            )
            .unwrap(),
        ),
    ])
}

fn document() -> Json {
    json!({"replicas": 3, "ratio": 2, "name": "web", "tags": ["a", "b"], "labels": {"x": "y"}, "ttl": "1h",
        "at": "2024-05-01T10:30:00Z", "a-b": 7, "port": "80%", "metadata": {"name": "n", "namespace": "ns"}})
}

fn run(text: &str) -> Result<Json, String> {
    let environment = environment();
    let program = Program::compile(text, &environment).map_err(|error| error.to_string())?;
    let document = document();
    let of = environment.variable("self").unwrap();
    let bindings = Bindings::new([
        ("object", Value::untyped(&document)),
        ("self", Value::json(&document, of)),
    ]);
    let value = program
        .evaluate(&bindings, &mut Budget::for_object())
        .map_err(|error| error.to_string())?;
    value.to_json().map_err(|error| error.to_string())
}

#[test]
fn values() {
    for (text, wanted) in [
        ("1 + 2 * 3", json!(7)),
        ("7 % 4 - 1", json!(2)),
        ("'a' + 'b'", json!("ab")),
        ("[1] + [2, 3]", json!([1, 2, 3])),
        ("object.replicas > 2 && object.replicas < 4.5", json!(true)),
        ("self.ratio == 2.0", json!(true)),
        ("self.ratio / 4.0", json!(0.5)),
        ("self.a__dash__b", json!(7)),
        ("object['a-b']", json!(7)),
        ("has(object.nothing) || has(self.name)", json!(true)),
        ("object.nothing == 1 || true", json!(true)),
        ("true || object.nothing == 1", json!(true)),
        ("object.?nothing.inner.orValue(5)", json!(5)),
        ("object.?metadata.name.orValue('')", json!("n")),
        ("object.metadata.namespace", json!("ns")),
        ("object[?'replicas'].hasValue()", json!(true)),
        ("optional.of(2).optMap(x, x * 2).value()", json!(4)),
        ("optional.none().optMap(x, x * 2).hasValue()", json!(false)),
        (
            "optional.of(2).optFlatMap(x, optional.none()).hasValue()",
            json!(false),
        ),
        ("[?optional.none(), 1, ?optional.of(2)]", json!([1, 2])),
        ("{?'a': optional.none(), 'b': 1}", json!({"b": 1})),
        ("self.tags.all(t, t.size() == 1)", json!(true)),
        ("self.tags.exists(t, t == 'b')", json!(true)),
        ("self.tags.exists_one(t, t == 'b')", json!(true)),
        ("self.tags.map(t, t + '!')", json!(["a!", "b!"])),
        ("self.tags.map(t, t == 'a', t + '!')", json!(["a!"])),
        ("self.tags.filter(t, t != 'a')", json!(["b"])),
        (
            "self.labels.all(k, k == 'x' && self.labels[k] == 'y')",
            json!(true),
        ),
        ("self.labels.all(k, v, k == 'x' && v == 'y')", json!(true)),
        ("self.tags.exists(i, t, i == 1 && t == 'b')", json!(true)),
        ("self.tags.existsOne(i, t, t == 'b')", json!(true)),
        ("[1, 2, 3].transformList(i, v, i > 0, v * 2)", json!([4, 6])),
        (
            "{'a': 1, 'b': 2}.transformMap(k, v, v > 1, v + 1)",
            json!({"b": 3}),
        ),
        (
            "{'a': 'x'}.transformMapEntry(k, v, {v: k})",
            json!({"x": "a"}),
        ),
        (
            "[[1, 2], [3]].map(l, l.map(x, x + 1))",
            json!([[2, 3], [4]]),
        ),
        ("[1, 2].all(x, [1, 2].exists(y, y == x))", json!(true)),
        ("['a', 1 > 2 ? 'b' : 'c']", json!(["a", "c"])),
        (
            "'b' in self.tags && 'x' in self.labels && !('z' in object)",
            json!(true),
        ),
        ("self.tags == ['b', 'a']", json!(true)),
        (
            "type(object.replicas) == int && type(self.name) == string",
            json!(true),
        ),
        ("self.port.matches('^[0-9]+%$')", json!(true)),
        ("size(self.tags) + self.name.size()", json!(5)),
        (
            "self.ttl == duration('60m') && self.at.getHours() == 10",
            json!(true),
        ),
        (
            "self.at + duration('1h') > timestamp('2024-05-01T11:00:00Z')",
            json!(true),
        ),
        ("int('5') + int(2.9) + int(3u)", json!(10)),
        ("string(5) + string(true) + string(1.5)", json!("5true1.5")),
        ("[3, 1, 2].isSorted() || [1, 2].isSorted()", json!(true)),
        ("[1, 2, 3].sum() + [3, 1].min() + [3, 1].max()", json!(10)),
        ("[1, 2, 1].indexOf(1) + [1, 2, 1].lastIndexOf(1)", json!(2)),
        (
            "'abcabc'.indexOf('c') + 'abcabc'.lastIndexOf('c')",
            json!(7),
        ),
        (
            "sets.contains([1, 2], [2]) && sets.intersects([1], [1, 2]) && sets.equivalent([1, 1], [1])",
            json!(true),
        ),
        (
            "'abc 123'.find('[0-9]+') + 'a1b2'.findAll('[0-9]').join('-')",
            json!("1231-2"),
        ),
        (
            "'a,b,c'.split(',').size() + 'abc'.charAt(1).size()",
            json!(4),
        ),
        (
            "'Hello'.lowerAscii() + 'x'.upperAscii() + ' a '.trim() + 'abc'.substring(1) + 'aa'.replace('a', 'b')",
            json!("helloXabcbb"),
        ),
        ("'%s is %d'.format([dyn('x'), 3])", json!("x is 3")),
        (
            "quantity('1Gi').isGreaterThan(quantity('1M')) && quantity('50k').add(20) == quantity('50020')",
            json!(true),
        ),
        (
            "quantity('2').asInteger() + quantity('-1').sign()",
            json!(1),
        ),
        ("isQuantity('20') && !isQuantity('x')", json!(true)),
        (
            "url('https://example.com:80/p?q=1').getHost()",
            json!("example.com:80"),
        ),
        ("isURL('https://x/') && !isURL('x y')", json!(true)),
        (
            "ip('10.0.0.1').family() + cidr('10.0.0.0/8').prefixLength()",
            json!(12),
        ),
        (
            "cidr('10.0.0.0/8').containsIP('10.1.2.3') && isIP('::1') && !isCIDR('10.0.0.0/99')",
            json!(true),
        ),
        ("ip.isCanonical('127.0.0.1')", json!(true)),
        (
            "semver('1.2.3').isLessThan(semver('1.10.0')) && semver('2.1.0').minor() == 1",
            json!(true),
        ),
        (
            "!format.dns1123Label().validate('Nope').hasValue()",
            json!(false),
        ),
        (
            "format.named('dns1123Label').value().validate('fine').hasValue()",
            json!(false),
        ),
        ("lists.range(3)", json!([0, 1, 2])),
        ("[[1], [2]].flatten()", json!([1, 2])),
        (
            "[2, 1].sort() == [1, 2] && [1, 1].distinct().size() == 1 && [1, 2].reverse()[0] == 2",
            json!(true),
        ),
        ("[1, 2, 3].slice(1, 3)", json!([2, 3])),
        ("[1].first().value() + [1, 2].last().value()", json!(3)),
        ("self.tags.all(t, object.nothing == t) || true", json!(true)),
        ("[1, 2].exists(x, x / (x - 1) > 1)", json!(true)),
        ("b'abc'.size() + bytes('é').size() + 'é'.size()", json!(6)),
        (r#""tab\t" == 'tab\t' && r'\d' == '\\d'"#, json!(true)),
    ] {
        assert_eq!(run(text), Ok(wanted), "{text}");
    }
}

#[test]
fn failures_at_run_time() {
    for (text, wanted) in [
        ("object.nothing", "no such key: nothing"),
        ("object.nothing.inner", "no such key: nothing"),
        ("object.name.inner", "no such overload"),
        ("self.tags[5]", "index out of bounds: 5"),
        ("1 / 0", "division by zero"),
        ("9223372036854775807 + 1", "integer overflow"),
        ("object.replicas + 'x'", "no such overload"),
        ("[1, 2].all(x, x / 0 == 1)", "division by zero"),
        ("object.nothing == 1 && true", "no such key: nothing"),
        ("[].min()", "min called on empty list"),
        ("{'a': 1, 'a': 2}", "Failed with repeated key: a"),
        ("optional.none().value()", "optional.none() dereference"),
    ] {
        assert_eq!(run(text), Err(wanted.to_owned()), "{text}");
    }
}

#[test]
fn failures_to_compile() {
    for (text, wanted) in [
        (
            "nothing == 1",
            "undeclared reference to 'nothing' (in container '')",
        ),
        ("self.nothing", "undefined field 'nothing'"),
        ("self.namespace", "undefined field 'namespace'"),
        (
            "self.replicas + 'x'",
            "found no matching overload for '_+_' applied to '(int, string)'",
        ),
        (
            "self.name > 3",
            "found no matching overload for '_>_' applied to '(string, int)'",
        ),
        (
            "self.replicas.startsWith('a')",
            "found no matching overload for 'startsWith' applied to 'int.(string)'",
        ),
        (
            "self.replicas.x",
            "type 'int' does not support field selection",
        ),
        (
            "nothing(1)",
            "undeclared reference to 'nothing' (in container '')",
        ),
        ("self.all(x, true)", "cannot be range of a comprehension"),
        ("[1, 'a']", "expected type 'int' but found 'string'"),
        (
            "self.replicas && true",
            "expected type 'bool' but found 'int'",
        ),
        ("self.name.matches('(')", "invalid matches argument"),
        ("duration('x')", "invalid duration argument"),
        (
            "Object{}",
            "undeclared reference to 'Object' (in container '')",
        ),
        ("1 +", "Syntax error"),
        ("self.name ==", "Syntax error"),
        ("", "Syntax error"),
        ("@", "Syntax error"),
        ("'unclosed", "Syntax error"),
    ] {
        let error = run(text).unwrap_err();
        assert!(error.contains(wanted), "{text}: {error}");
        assert!(error.starts_with("ERROR: <input>:1:"), "{text}: {error}");
    }
}

#[test]
fn output_types() {
    let environment = environment();
    for (text, wanted) in [
        ("1 + 2", "int"),
        ("self.tags.map(t, t.size())", "list(int)"),
        ("self.tags.filter(t, true)", "list(string)"),
        ("object.x == 1", "bool"),
        ("object.x", "dyn"),
        ("self.labels['x']", "string"),
        ("self.?name", "optional_type(string)"),
        ("self.?name.orValue('')", "string"),
        ("{'a': 1}", "map(string, int)"),
        ("self.tags.all(t, t == 'x')", "bool"),
    ] {
        let program = Program::compile(text, &environment).unwrap();
        assert_eq!(program.output().to_string(), wanted, "{text}");
    }
}

#[test]
fn costs_are_bounded() {
    let environment = Environment::new([("x", Type::Dyn)]);
    let long = json!("x".repeat(100_000));
    let items = json!((0..1000).collect::<Vec<_>>());
    let text = "x.all(a, x.all(b, x.all(c, a + b + c >= 0)))";
    let bindings = Bindings::new([("x", Value::untyped(&items))]);
    let program = Program::compile(text, &environment).unwrap();
    let mut budget = Budget::for_object();
    assert_eq!(
        program.evaluate(&bindings, &mut budget).unwrap_err(),
        Error::CostLimit
    );
    // What was spent is gone, and in the end there is none.
    assert!(budget.left() < 10_000_000);
    let mut last = None;
    for _ in 0..20 {
        last = program.evaluate(&bindings, &mut budget).err();
    }
    assert_eq!(last, Some(Error::BudgetExceeded));

    let bindings = Bindings::new([("x", Value::untyped(&long))]);
    for (text, cost) in [
        ("x.contains('abc')", 10_001),
        ("x.startsWith('abc')", 10_001),
        ("x == x", 10_002),
        ("x.matches('^x+x+$')", 10_001 * 2 + 1),
        ("1 + 2 == 3", 2),
    ] {
        let mut budget = Budget::for_object();
        let program = Program::compile(text, &environment).unwrap();
        program.evaluate(&bindings, &mut budget).unwrap();
        assert_eq!(10_000_000 - budget.left(), cost, "{text}");
    }
}

#[test]
fn hostile_texts_are_refused() {
    let environment = Environment::new([("x", Type::Dyn)]);
    for text in [
        "(".repeat(5_000),
        "[".repeat(5_000),
        "!".repeat(5_000) + "x",
        "-".repeat(5_000) + "1",
        "x".to_owned() + &".a".repeat(4_000),
        "x".to_owned() + &"[0]".repeat(3_000),
        "x?".repeat(3_000),
        "1".to_owned() + &"+1".repeat(4_000),
        "x".repeat(200_000),
        "\u{0}\u{ffff}\\".to_owned(),
    ] {
        let shown: String = text.chars().take(8).collect();
        assert!(Program::compile(&text, &environment).is_err(), "{shown}");
    }
    let chain = "x == 1".to_owned() + &" || x == 1".repeat(500);
    assert!(Program::compile(&chain, &environment).is_ok());
}

#[test]
fn objects_are_built() {
    let mut environment = Environment::new([("object", Type::Dyn)]);
    environment.builds_objects = true;
    let document = json!({"spec": {"replicas": 2}});
    let bindings = Bindings::new([("object", Value::untyped(&document))]);
    for (text, of, wanted) in [
        (
            "Object{spec: Object.spec{replicas: object.spec.replicas + 1}}",
            "Object",
            json!({"spec": {"replicas": 3}}),
        ),
        (
            "[JSONPatch{op: 'add', path: '/a', value: [1]}]",
            "list(JSONPatch)",
            json!([{"op": "add", "path": "/a", "value": [1]}]),
        ),
        ("Object{?spec: optional.none()}", "Object", json!({})),
        ("jsonpatch.escapeKey('a/b~c')", "string", json!("a~1b~0c")),
    ] {
        let program = Program::compile(text, &environment).unwrap();
        assert_eq!(program.output().to_string(), of, "{text}");
        let value = program
            .evaluate(&bindings, &mut Budget::for_object())
            .unwrap();
        assert_eq!(value.to_json().unwrap(), wanted, "{text}");
    }
    for text in [
        "Object{spec: Object.other{}}",
        "JSONPatch{op: 1}",
        "JSONPatch{nothing: 'x'}",
    ] {
        assert!(Program::compile(text, &environment).is_err(), "{text}");
    }
}
