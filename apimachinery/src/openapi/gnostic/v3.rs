//! The messages of `openapi.v3`.

use super::Kind::{Any, Flag, Integer, Listed, Number, OneOf, OneOfOrFlag, Repeated, Scalar, Text};
use super::{Choice, Kind, Message, map, otherwise, when};

pub(super) static DOCUMENT: Message = Message {
    fields: &[
        ("openapi", 1, Text),
        ("info", 2, Kind::Message(&INFO)),
        ("servers", 3, Repeated(&Kind::Message(&SERVER))),
        ("paths", 4, Kind::Message(&PATHS)),
        ("components", 5, Kind::Message(&COMPONENTS)),
        ("security", 6, Repeated(&Kind::Message(&REQUIREMENT))),
        ("externalDocs", 8, Kind::Message(&EXTERNAL)),
    ],
    extensions: 9,
    rest: None,
};

static INFO: Message = Message {
    fields: &[
        ("title", 1, Text),
        ("description", 2, Text),
        ("version", 6, Text),
    ],
    extensions: 7,
    rest: None,
};

static SERVER: Message = Message {
    fields: &[("url", 1, Text), ("description", 2, Text)],
    extensions: 4,
    rest: None,
};

static PATHS: Message = Message {
    fields: &[],
    extensions: 2,
    rest: Some((1, Kind::Message(&PATH))),
};

static PATH: Message = Message {
    fields: &[
        ("$ref", 1, Text),
        ("summary", 2, Text),
        ("description", 3, Text),
        ("get", 4, Kind::Message(&OPERATION)),
        ("put", 5, Kind::Message(&OPERATION)),
        ("post", 6, Kind::Message(&OPERATION)),
        ("delete", 7, Kind::Message(&OPERATION)),
        ("options", 8, Kind::Message(&OPERATION)),
        ("head", 9, Kind::Message(&OPERATION)),
        ("patch", 10, Kind::Message(&OPERATION)),
        ("trace", 11, Kind::Message(&OPERATION)),
        ("servers", 12, Repeated(&Kind::Message(&SERVER))),
        ("parameters", 13, Repeated(&OneOf(PARAMETER_OR_REFERENCE))),
    ],
    extensions: 14,
    rest: None,
};

static OPERATION: Message = Message {
    fields: &[
        ("tags", 1, Repeated(&Text)),
        ("summary", 2, Text),
        ("description", 3, Text),
        ("externalDocs", 4, Kind::Message(&EXTERNAL)),
        ("operationId", 5, Text),
        ("parameters", 6, Repeated(&OneOf(PARAMETER_OR_REFERENCE))),
        (
            "requestBody",
            7,
            OneOf(&[
                when("$ref", "", &[2], &REFERENCE),
                otherwise(&[1], &REQUEST_BODY),
            ]),
        ),
        ("responses", 8, Kind::Message(&RESPONSES)),
        ("deprecated", 10, Flag),
        ("security", 11, Repeated(&Kind::Message(&REQUIREMENT))),
        ("servers", 12, Repeated(&Kind::Message(&SERVER))),
    ],
    extensions: 13,
    rest: None,
};

static PARAMETER_OR_REFERENCE: &[Choice] = &[
    when("$ref", "", &[2], &REFERENCE),
    otherwise(&[1], &PARAMETER),
];

static REFERENCE: Message = Message {
    fields: &[
        ("$ref", 1, Text),
        ("summary", 2, Text),
        ("description", 3, Text),
    ],
    extensions: 0,
    rest: None,
};

static PARAMETER: Message = Message {
    fields: &[
        ("name", 1, Text),
        ("in", 2, Text),
        ("description", 3, Text),
        ("required", 4, Flag),
        ("deprecated", 5, Flag),
        ("allowEmptyValue", 6, Flag),
        ("style", 7, Text),
        ("explode", 8, Flag),
        ("allowReserved", 9, Flag),
        ("schema", 10, OneOf(SCHEMA_OR_REFERENCE)),
        ("example", 11, Any),
        ("content", 13, Kind::Message(&MEDIA_TYPES)),
    ],
    extensions: 14,
    rest: None,
};

static REQUEST_BODY: Message = Message {
    fields: &[
        ("description", 1, Text),
        ("content", 2, Kind::Message(&MEDIA_TYPES)),
        ("required", 3, Flag),
    ],
    extensions: 4,
    rest: None,
};

static MEDIA_TYPES: Message = map(Kind::Message(&MEDIA_TYPE));

static MEDIA_TYPE: Message = Message {
    fields: &[
        ("schema", 1, OneOf(SCHEMA_OR_REFERENCE)),
        ("example", 2, Any),
    ],
    extensions: 5,
    rest: None,
};

static RESPONSES: Message = Message {
    fields: &[("default", 1, OneOf(RESPONSE_OR_REFERENCE))],
    extensions: 3,
    rest: Some((2, OneOf(RESPONSE_OR_REFERENCE))),
};

static RESPONSE_OR_REFERENCE: &[Choice] = &[
    when("$ref", "", &[2], &REFERENCE),
    otherwise(&[1], &RESPONSE),
];

static RESPONSE: Message = Message {
    fields: &[
        ("description", 1, Text),
        ("content", 3, Kind::Message(&MEDIA_TYPES)),
    ],
    extensions: 5,
    rest: None,
};

static COMPONENTS: Message = Message {
    fields: &[
        ("schemas", 1, Kind::Message(&SCHEMAS)),
        ("securitySchemes", 7, Kind::Message(&SECURITY_SCHEMES)),
    ],
    extensions: 10,
    rest: None,
};

/// Named schemas: components, or the properties of an object.
static SCHEMAS: Message = map(OneOf(SCHEMA_OR_REFERENCE));

static SCHEMA_OR_REFERENCE: &[Choice] =
    &[when("$ref", "", &[2], &REFERENCE), otherwise(&[1], &SCHEMA)];

static SCHEMA: Message = Message {
    fields: &[
        ("nullable", 1, Flag),
        ("readOnly", 3, Flag),
        ("writeOnly", 4, Flag),
        ("externalDocs", 6, Kind::Message(&EXTERNAL)),
        ("example", 7, Any),
        ("deprecated", 8, Flag),
        ("title", 9, Text),
        ("multipleOf", 10, Number),
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
        ("maxProperties", 21, Integer),
        ("minProperties", 22, Integer),
        ("required", 23, Repeated(&Text)),
        ("enum", 24, Repeated(&Any)),
        ("type", 25, Text),
        ("allOf", 26, Repeated(&OneOf(SCHEMA_OR_REFERENCE))),
        ("oneOf", 27, Repeated(&OneOf(SCHEMA_OR_REFERENCE))),
        ("anyOf", 28, Repeated(&OneOf(SCHEMA_OR_REFERENCE))),
        ("not", 29, Kind::Message(&SCHEMA)),
        ("items", 30, Listed(&OneOf(SCHEMA_OR_REFERENCE))),
        ("properties", 31, Kind::Message(&SCHEMAS)),
        (
            "additionalProperties",
            32,
            OneOfOrFlag(&[
                when("$ref", "", &[1, 2], &REFERENCE),
                otherwise(&[1, 1], &SCHEMA),
            ]),
        ),
        ("default", 33, Scalar),
        ("description", 34, Text),
        ("format", 35, Text),
    ],
    extensions: 36,
    rest: None,
};

static EXTERNAL: Message = Message {
    fields: &[("description", 1, Text), ("url", 2, Text)],
    extensions: 3,
    rest: None,
};

static REQUIREMENT: Message = map(Listed(&Text));

static SECURITY_SCHEMES: Message = map(OneOf(&[
    when("$ref", "", &[2], &REFERENCE),
    otherwise(&[1], &SECURITY_SCHEME),
]));

static SECURITY_SCHEME: Message = Message {
    fields: &[
        ("type", 1, Text),
        ("description", 2, Text),
        ("name", 3, Text),
        ("in", 4, Text),
        ("scheme", 5, Text),
        ("bearerFormat", 6, Text),
        ("openIdConnectUrl", 8, Text),
    ],
    extensions: 9,
    rest: None,
};
