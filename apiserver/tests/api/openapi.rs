//! OpenAPI documents: in JSON and in protobuf, kept by their tags, and new when a definition is.

use std::io::Read;

use crate::common::{Answer, Api, until};
use crate::custom_resources::{define, definition};
use bytes::Bytes;
use http::Method;
use serde_json::json;

pub const PROTOBUF_V2: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const PROTOBUF_V3: &str = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";
/// What client-go's discovery asks for.
const CLIENT_GO: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
const WIDGET: &str = "com.example.v1.Widget";

/// The values of one length-delimited field of a message that has no other wire types but varints and doubles.
fn values(mut message: &[u8], field: u64) -> Vec<&[u8]> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = bytes.split_first().expect("a whole number");
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        match tag & 7 {
            0 => drop(varint(&mut message)),
            1 => message = &message[8..],
            2 => {
                let length = varint(&mut message) as usize;
                let (value, rest) = message.split_at(length);
                message = rest;
                if tag >> 3 == field {
                    found.push(value);
                }
            }
            other => panic!("wire type {other}"),
        }
    }
    found
}

fn names(message: &[u8], path: &[u64]) -> Vec<String> {
    let inner = path.iter().fold(vec![message], |level, field| {
        level.into_iter().flat_map(|m| values(m, *field)).collect()
    });
    let texts = inner
        .into_iter()
        .map(|name| String::from_utf8(name.to_vec()));
    texts.collect::<Result<_, _>>().unwrap()
}

/// The names of the definitions in a document of version 2.
pub fn definitions(document: &[u8]) -> Vec<String> {
    names(document, &[9, 1, 1])
}

async fn get(api: &Api, path: &str, headers: &[(&str, &str)]) -> Answer {
    api.send(Method::GET, path, headers, Bytes::new()).await
}

fn varies(answer: &Answer) -> Vec<&str> {
    let values = answer.headers.get_all("vary").iter();
    values.map(|value| value.to_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn version_two_in_both_forms() {
    let api = Api::start().await;
    let json = get(&api, "/openapi/v2", &[]).await;
    let etag = json.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(json.headers["content-type"], "application/json");
    let expected: Vec<String> = json.body["definitions"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    for accept in [PROTOBUF_V2, CLIENT_GO] {
        let got = get(&api, "/openapi/v2", &[("accept", accept)]).await;
        assert_eq!(got.code, 200);
        assert_eq!(got.headers["content-type"], PROTOBUF_V2);
        assert_eq!(got.headers["etag"], etag);
        assert_eq!(varies(&got), ["Accept-Encoding", "Accept"]);
        assert_eq!(definitions(&got.bytes), expected);
        let zipped = get(
            &api,
            "/openapi/v2",
            &[("accept", accept), ("accept-encoding", "gzip")],
        )
        .await;
        assert_eq!(zipped.headers["content-encoding"], "gzip");
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(&*zipped.bytes)
            .read_to_end(&mut bytes)
            .unwrap();
        assert_eq!(bytes, got.bytes);
        let known = get(
            &api,
            "/openapi/v2",
            &[("accept", accept), ("if-none-match", &etag)],
        )
        .await;
        assert_eq!((known.code, known.bytes.len()), (304, 0));
    }
    let refused = get(&api, "/openapi/v2", &[("accept", PROTOBUF_V3)]).await;
    assert_eq!((refused.code, varies(&refused)), (406, vec!["Accept"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_resources_appear_in_protobuf() {
    let api = Api::start().await;
    let accept = [("accept", CLIENT_GO)];
    let before = get(&api, "/openapi/v2", &accept).await;
    assert!(!definitions(&before.bytes).contains(&WIDGET.to_owned()));
    define(&api, &definition("widgets", "Widget")).await;
    let published = until("the definition is published", || async {
        let now = get(&api, "/openapi/v2", &accept).await;
        definitions(&now.bytes)
            .contains(&WIDGET.to_owned())
            .then_some(now)
    })
    .await;
    assert_ne!(published.headers["etag"], before.headers["etag"]);

    let index = get(&api, "/openapi/v3", &[]).await;
    let tag = index.headers["etag"].to_str().unwrap();
    let again = get(&api, "/openapi/v3", &[("if-none-match", tag)]).await;
    assert_eq!(again.code, 304);
    let url = index.body["paths"]["apis/example.com/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap();
    let document = get(&api, url, &[("accept", PROTOBUF_V3)]).await;
    assert_eq!(document.headers["content-type"], PROTOBUF_V3);
    assert_eq!(document.headers["cache-control"], "public, immutable");
    assert!(document.headers.contains_key("expires"));
    assert!(names(&document.bytes, &[5, 1, 1, 1]).contains(&WIDGET.to_owned()));
    let (path, _) = url.split_once('?').unwrap();
    let json = get(&api, path, &[]).await;
    assert_eq!(json.headers["etag"], document.headers["etag"]);
    assert_eq!(
        json.body["components"]["schemas"][WIDGET]["properties"]["spec"]["properties"]["size"]["default"],
        json!(3)
    );
    // An index from before.
    let moved = get(&api, &format!("{path}?hash=0123"), &[]).await;
    assert_eq!(
        (moved.code, moved.headers["location"].to_str().unwrap()),
        (301, url)
    );
    let refused = get(&api, url, &[("accept", PROTOBUF_V2)]).await;
    assert_eq!(refused.code, 406);
}
