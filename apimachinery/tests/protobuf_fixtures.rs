//! The codec against the documents that Kubernetes keeps of every kind, as JSON and as protobuf, in its own source tree.

use std::path::Path;

use apimachinery::protobuf::{self, Message};
use serde_json::Value;

const FOLDERS: [&str; 2] = [
    "staging/src/k8s.io/api/testdata/HEAD",
    "staging/src/k8s.io/apiextensions-apiserver/pkg/apis/testdata/HEAD",
];

/// Differences between our two forms and Kubernetes'.
fn compare(json: &[u8], protobuf: &[u8]) -> Vec<String> {
    let mut wrong = Vec::new();
    let expected: Value = serde_json::from_slice(json).unwrap();
    match protobuf::to_json(protobuf, ("", "")) {
        Ok(found) if found == expected => {}
        Ok(found) => wrong.push(format!("decoded to\n{found}\nnot\n{expected}")),
        Err(error) => wrong.push(format!("not decoded: {error}")),
    }
    match protobuf::from_json(json) {
        Ok(found) if found == protobuf => {}
        Ok(found) => {
            let same = found
                .iter()
                .zip(protobuf)
                .take_while(|(a, b)| a == b)
                .count();
            let near = |bytes: &[u8]| {
                let part = &bytes[same.saturating_sub(40)..bytes.len().min(same + 40)];
                part.escape_ascii().to_string()
            };
            wrong.push(format!(
                "encoded to\n{}\nnot\n{}",
                near(&found),
                near(protobuf)
            ));
        }
        Err(error) => wrong.push(format!("not encoded: {error}")),
    }
    wrong
}

#[test]
#[ignore = "KUBERNETES_SOURCE names a source tree of Kubernetes 1.36"]
fn every_document_of_kubernetes() {
    let source = std::env::var("KUBERNETES_SOURCE").expect("KUBERNETES_SOURCE is set");
    let (mut seen, mut failed) = (0, Vec::new());
    for folder in FOLDERS {
        for entry in std::fs::read_dir(Path::new(&source).join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "pb") {
                continue;
            }
            let protobuf = std::fs::read(&path).unwrap();
            let json = std::fs::read(path.with_extension("json")).unwrap();
            let envelope = protobuf::open(&protobuf).unwrap();
            if Message::find(envelope.api_version, envelope.kind).is_none() {
                continue;
            }
            seen += 1;
            for difference in compare(&json, &protobuf) {
                failed.push(format!("{}: {difference}", path.display()));
            }
        }
    }
    assert!(seen > 80, "only {seen} documents");
    assert!(failed.is_empty(), "of {seen}:\n{}", failed.join("\n\n"));
}
