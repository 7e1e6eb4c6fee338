//! Manifests: files, directories and standard input, with many documents in YAML or JSON.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::kinds::Kind;
use super::session::Session;

#[derive(Clone, Debug, Default, clap::Args)]
pub struct Files {
    /// Manifest files, directories, or - for standard input
    #[arg(
        long = "filename",
        short = 'f',
        value_name = "FILE",
        value_delimiter = ','
    )]
    pub filename: Vec<PathBuf>,
    /// Go down into directories
    #[arg(long, short = 'R')]
    pub recursive: bool,
}

/// One object of a manifest, where it came from and where it goes.
#[derive(Clone, Debug)]
pub struct Object {
    pub value: Value,
    pub kind: Kind,
    pub namespace: Option<String>,
    pub name: String,
    pub source: String,
}

impl Object {
    pub fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name)
    }

    pub fn collection(&self) -> String {
        self.kind.path(self.namespace.as_deref())
    }

    pub fn title(&self) -> String {
        self.kind.object(&self.name)
    }
}

impl Files {
    pub fn is_empty(&self) -> bool {
        self.filename.is_empty()
    }

    /// All objects, in the order of the files, with their resources and namespaces found.
    pub async fn objects(&self, session: &Session) -> Result<Vec<Object>> {
        let mut objects = Vec::new();
        for (source, value) in self.documents()? {
            objects.push(locate(session, value, &source).await?);
        }
        if objects.is_empty() {
            bail!(
                "no objects passed to {}",
                std::env::args().nth(1).unwrap_or_default()
            );
        }
        Ok(objects)
    }

    pub fn documents(&self) -> Result<Vec<(String, Value)>> {
        let mut all = Vec::new();
        for path in &self.filename {
            if path == Path::new("-") {
                let mut text = String::new();
                std::io::stdin()
                    .read_to_string(&mut text)
                    .context("standard input")?;
                all.extend(
                    parse(&text)
                        .map_err(|e| anyhow!("error parsing STDIN: {e:#}"))?
                        .into_iter()
                        .map(|v| ("STDIN".to_owned(), v)),
                );
                continue;
            }
            for file in self.expand(path)? {
                let name = file.display().to_string();
                let text = std::fs::read_to_string(&file).with_context(|| name.clone())?;
                let values = parse(&text).map_err(|e| anyhow!("error parsing {name}: {e:#}"))?;
                all.extend(values.into_iter().map(|value| (name.clone(), value)));
            }
        }
        Ok(all)
    }

    fn expand(&self, path: &Path) -> Result<Vec<PathBuf>> {
        if !path.exists() {
            bail!("the path {:?} does not exist", path.display().to_string());
        }
        if !path.is_dir() {
            return Ok(vec![path.to_owned()]);
        }
        let mut entries: Vec<PathBuf> = std::fs::read_dir(path)?
            .map(|e| e.map(|e| e.path()))
            .collect::<std::io::Result<_>>()?;
        entries.sort();
        let mut files = Vec::new();
        for entry in entries {
            let manifest = entry
                .extension()
                .is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
            if entry.is_dir() && self.recursive {
                files.extend(self.expand(&entry)?);
            } else if entry.is_file() && manifest {
                files.push(entry);
            }
        }
        Ok(files)
    }
}

/// All documents of a text; a List is taken apart.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let mut objects = Vec::new();
    for mut document in documents {
        if document.is_null() {
            continue;
        }
        let list = document["kind"]
            .as_str()
            .is_some_and(|kind| kind.ends_with("List"));
        let items = document.get_mut("items").and_then(Value::as_array_mut);
        match items.filter(|_| list) {
            Some(items) => objects.append(items),
            None => objects.push(document),
        }
    }
    Ok(objects)
}

pub async fn locate(session: &Session, mut value: Value, source: &str) -> Result<Object> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text(&value["apiVersion"]), text(&value["kind"]));
    for (field, content) in [("kind", &kind), ("apiVersion", &api_version)] {
        if content.is_empty() {
            bail!("error validating {source:?}: error validating data: {field} not set");
        }
    }
    let name = text(&value["metadata"]["name"]);
    let found = session.kinds().await?.of(&api_version, &kind).cloned();
    let given = text(&value["metadata"]["namespace"]);
    let Some(found) = found else {
        bail!(
            "resource mapping not found for name: {name:?} namespace: {given:?} from {source:?}: no matches for kind {kind:?} in version {api_version:?}\nensure CRDs are installed first"
        );
    };
    let namespace = match (found.namespaced, given.as_str()) {
        (false, _) => None,
        (true, "") => Some(session.namespace.clone()),
        (true, given) if session.namespace_given && given != session.namespace => bail!(
            "the namespace from the provided object {given:?} does not match the namespace {:?}. You must pass '--namespace={given}' to perform this operation.",
            session.namespace
        ),
        (true, given) => Some(given.to_owned()),
    };
    if let Some(namespace) = &namespace {
        value["metadata"]["namespace"] = namespace.clone().into();
    }
    Ok(Object {
        value,
        kind: found,
        namespace,
        name,
        source: source.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_documents() {
        let text = "# only a comment\n---\napiVersion: v1\nkind: A\n---\n---\nkind: List\nitems:\n- kind: B\n- kind: C\n---\n{\"kind\": \"D\"}\n";
        let kinds: Vec<_> = parse(text)
            .unwrap()
            .iter()
            .map(|v| v["kind"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(kinds, ["A", "B", "C", "D"]);
        assert!(parse("a: [").is_err());
    }

    #[test]
    fn documents_come_out_as_they_were_written() {
        let parsed = parse("kind: Pod\nmetadata: {name: a}\n").unwrap();
        let wanted = serde_json::json!({"kind": "Pod", "metadata": {"name": "a"}});
        assert_eq!(parsed, [wanted]);
    }
}
