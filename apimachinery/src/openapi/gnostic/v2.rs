//! The messages of `openapi.v2`.

use super::Kind::{Any, Flag, Integer, Listed, Number, OneOf, OneOfOrFlag, Repeated, Text};
use super::{Choice, Kind, Message, map, otherwise, when};

pub(super) static DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Text),
        ("info", 2, Kind::Message(&INFO)),
        ("host", 3, Text),
        ("basePath", 4, Text),
        ("schemes", 5, Repeated(&Text)),
        ("consumes", 6, Repeated(&Text)),
        ("produces", 7, Repeated(&Text)),
        ("paths", 8, Kind::Message(&PATHS)),
        ("definitions", 9, Kind::Message(&SCHEMAS)),
        ("security", 12, Repeated(&Kind::Message(&REQUIREMENT))),
        ("securityDefinitions", 13, Kind::Message(&SECURITY)),
    ],
    extensions: 16,
    rest: None,
};

static INFO: Message = Message {
    fields: &[
        ("title", 1, Text),
        ("version", 2, Text),
        ("description", 3, Text),
    ],
    extensions: 7,
    rest: None,
};

static PATHS: Message = Message {
    fields: &[],
    extensions: 1,
    rest: Some((2, Kind::Message(&PATH))),
};

static PATH: Message = Message {
    fields: &[
        ("$ref", 1, Text),
        ("get", 2, Kind::Message(&OPERATION)),
        ("put", 3, Kind::Message(&OPERATION)),
        ("post", 4, Kind::Message(&OPERATION)),
        ("delete", 5, Kind::Message(&OPERATION)),
        ("options", 6, Kind::Message(&OPERATION)),
        ("head", 7, Kind::Message(&OPERATION)),
        ("patch", 8, Kind::Message(&OPERATION)),
        ("parameters", 9, Repeated(&OneOf(PARAMETER))),
    ],
    extensions: 10,
    rest: None,
};

static OPERATION: Message = Message {
    fields: &[
        ("tags", 1, Repeated(&Text)),
        ("summary", 2, Text),
        ("description", 3, Text),
        ("externalDocs", 4, Kind::Message(&EXTERNAL)),
        ("operationId", 5, Text),
        ("produces", 6, Repeated(&Text)),
        ("consumes", 7, Repeated(&Text)),
        ("parameters", 8, Repeated(&OneOf(PARAMETER))),
        ("responses", 9, Kind::Message(&RESPONSES)),
        ("schemes", 10, Repeated(&Text)),
        ("deprecated", 11, Flag),
        ("security", 12, Repeated(&Kind::Message(&REQUIREMENT))),
    ],
    extensions: 13,
    rest: None,
};

static PARAMETER: &[Choice] = &[
    when("$ref", "", &[2], &REFERENCE),
    when("in", "body", &[1, 1], &BODY),
    when("in", "header", &[1, 2, 1], &PLAIN_PARAMETER),
    when("in", "formData", &[1, 2, 2], &EMPTY_PARAMETER),
    when("in", "query", &[1, 2, 3], &EMPTY_PARAMETER),
    when("in", "path", &[1, 2, 4], &PLAIN_PARAMETER),
];

static REFERENCE: Message = Message {
    fields: &[("$ref", 1, Text), ("description", 2, Text)],
    extensions: 0,
    rest: None,
};

static BODY: Message = Message {
    fields: &[
        ("description", 1, Text),
        ("name", 2, Text),
        ("in", 3, Text),
        ("required", 4, Flag),
        ("schema", 5, Kind::Message(&SCHEMA)),
    ],
    extensions: 6,
    rest: None,
};

/// A parameter in a path or a header.
static PLAIN_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Flag),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 5, Text),
        ("format", 6, Text),
        ("items", 7, Kind::Message(&ITEMS)),
        ("collectionFormat", 8, Text),
        ("default", 9, Any),
        ("maximum", 10, Number),
        ("exclusiveMaximum", 11, Flag),
        ("minimum", 12, Number),
        ("exclusiveMinimum", 13, Flag),
        ("maxLength", 14, Integer),
        ("minLength", 15, Integer),
        ("pattern", 16, Text),
        ("maxItems", 17, Integer),
        ("minItems", 18, Integer),
        ("uniqueItems", 19, Flag),
        ("enum", 20, Repeated(&Any)),
        ("multipleOf", 21, Number),
    ],
    extensions: 22,
    rest: None,
};

/// A parameter that may be there without a value: in a query or a form.
static EMPTY_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Flag),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("allowEmptyValue", 5, Flag),
        ("type", 6, Text),
        ("format", 7, Text),
        ("items", 8, Kind::Message(&ITEMS)),
        ("collectionFormat", 9, Text),
        ("default", 10, Any),
        ("maximum", 11, Number),
        ("exclusiveMaximum", 12, Flag),
        ("minimum", 13, Number),
        ("exclusiveMinimum", 14, Flag),
        ("maxLength", 15, Integer),
        ("minLength", 16, Integer),
        ("pattern", 17, Text),
        ("maxItems", 18, Integer),
        ("minItems", 19, Integer),
        ("uniqueItems", 20, Flag),
        ("enum", 21, Repeated(&Any)),
        ("multipleOf", 22, Number),
    ],
    extensions: 23,
    rest: None,
};

/// The elements of a parameter that is a list.
static ITEMS: Message = Message {
    fields: &[
        ("type", 1, Text),
        ("format", 2, Text),
        ("items", 3, Kind::Message(&ITEMS)),
        ("collectionFormat", 4, Text),
        ("default", 5, Any),
        ("maximum", 6, Number),
        ("exclusiveMaximum", 7, Flag),
        ("minimum", 8, Number),
        ("exclusiveMinimum", 9, Flag),
        ("maxLength", 10, Integer),
        ("minLength", 11, Integer),
        ("pattern", 12, Text),
        ("maxItems", 13, Integer),
        ("minItems", 14, Integer),
        ("uniqueItems", 15, Flag),
        ("enum", 16, Repeated(&Any)),
        ("multipleOf", 17, Number),
    ],
    extensions: 18,
    rest: None,
};

static RESPONSES: Message = Message {
    fields: &[],
    extensions: 2,
    rest: Some((
        1,
        OneOf(&[
            when("$ref", "", &[2], &REFERENCE),
            otherwise(&[1], &RESPONSE),
        ]),
    )),
};

static RESPONSE: Message = Message {
    fields: &[
        ("description", 1, Text),
        ("schema", 2, OneOf(&[otherwise(&[1], &SCHEMA)])),
    ],
    extensions: 5,
    rest: None,
};

static SCHEMAS: Message = map(Kind::Message(&SCHEMA));

static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Text),
        ("format", 2, Text),
        ("title", 3, Text),
        ("description", 4, Text),
        ("default", 5, Any),
        ("multipleOf", 6, Number),
        ("maximum", 7, Number),
        ("exclusiveMaximum", 8, Flag),
        ("minimum", 9, Number),
        ("exclusiveMinimum", 10, Flag),
        ("maxLength", 11, Integer),
        ("minLength", 12, Integer),
        ("pattern", 13, Text),
        ("maxItems", 14, Integer),
        ("minItems", 15, Integer),
        ("uniqueItems", 16, Flag),
        ("maxProperties", 17, Integer),
        ("minProperties", 18, Integer),
        ("required", 19, Repeated(&Text)),
        ("enum", 20, Repeated(&Any)),
        (
            "additionalProperties",
            21,
            OneOfOrFlag(&[otherwise(&[1], &SCHEMA)]),
        ),
        ("type", 22, Listed(&Text)),
        ("items", 23, Listed(&Kind::Message(&SCHEMA))),
        ("allOf", 24, Repeated(&Kind::Message(&SCHEMA))),
        ("properties", 25, Kind::Message(&SCHEMAS)),
        ("discriminator", 26, Text),
        ("readOnly", 27, Flag),
        ("externalDocs", 29, Kind::Message(&EXTERNAL)),
        ("example", 30, Any),
    ],
    extensions: 31,
    rest: None,
};

static EXTERNAL: Message = Message {
    fields: &[("description", 1, Text), ("url", 2, Text)],
    extensions: 3,
    rest: None,
};

static REQUIREMENT: Message = map(Listed(&Text));

static SECURITY: Message = map(OneOf(&[
    when("type", "basic", &[1], &BASIC),
    when("type", "apiKey", &[2], &API_KEY),
]));

static BASIC: Message = Message {
    fields: &[("type", 1, Text), ("description", 2, Text)],
    extensions: 3,
    rest: None,
};

static API_KEY: Message = Message {
    fields: &[
        ("type", 1, Text),
        ("name", 2, Text),
        ("in", 3, Text),
        ("description", 4, Text),
    ],
    extensions: 5,
    rest: None,
};
